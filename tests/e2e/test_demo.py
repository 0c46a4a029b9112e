"""The README's two commands, beside whatever demo runs here already."""

import os
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import libvirt
import pytest

from lab import procs
from lab.demo.cluster import Demo
from tests.e2e.cluster import LIBVIRT_URI, docker_client, free_port
from tests.integration.lab_sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
FIRST_S = 240
SECOND_S = 100  # ten of them on two busy cores
DOWN_S = 240
GONE_S = 30


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo of this test's own; taken away in the end, whatever happened."""
    folder = tmp_path_factory.mktemp("demo")
    made = Demo(folder / "data", f"tcp://127.0.0.1:{free_port()}", "")
    yield made
    make(made, "down")


def make(demo, target, timeout_s=DOWN_S):
    """Run make as the README says, but for the folder, the port and the contexts; its output."""
    options = f"--data {demo.data} --listen {demo.listen} --keep-lab"
    config = {"SWARMCTL_CONFIG": str(demo.data.parent / "config"), "YES": "1"}
    done = subprocess.run(
        ["make", "--no-print-directory", target, f"DEMO={options}"],
        cwd=ROOT,
        env={**os.environ, **config},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"make {target}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def running(cluster_id):
    """How many containers and domains of the cluster run, and how many there are at all."""
    with closing(docker_client()) as client:
        label = {"label": f"swarmctl.cluster={cluster_id}"}
        containers = (len(client.containers(filters=label)),)
        containers += (len(client.containers(all=True, filters=label)),)
    with closing(libvirt.open(LIBVIRT_URI)) as connection:
        prefix = f"swarmctl-{cluster_id[:8]}-"
        ours = [one for one in connection.listAllDomains() if one.name().startswith(prefix)]
        domains = (sum(one.isActive() for one in ours), len(ours))
    return {"containers": containers, "domains": domains}


def test_make_demo_launches_what_it_says(demo):
    """Ten containers and two VMs, as Docker and libvirt count them; the table shows them."""
    said = make(demo, "demo", FIRST_S)
    assert running(demo.cluster_id()) == {"containers": (10, 10), "domains": (2, 2)}
    assert "running: 10 containers, counted by Docker; 2 VMs, counted by libvirt" in said
    assert all(f"{name} " in said for name in ("web.4", "worker.6", "machine.2"))
    assert (demo.data.parent / "config" / "current").read_text().strip() == "dev"


def test_make_demo_again_finds_it_up(demo):
    """Twice in a row is once, and soon done."""
    said = make(demo, "demo", SECOND_S)
    assert "is up already" in said
    assert running(demo.cluster_id()) == {"containers": (10, 10), "domains": (2, 2)}


def test_make_down_leaves_nothing_even_of_dead_daemons(demo):
    """Nobody is left who could remove anything; what was made is found by the cluster's id."""
    cluster_id = demo.cluster_id()
    for process in demo.processes():
        os.kill(process.pid, signal.SIGKILL)
    make(demo, "down")
    assert running(cluster_id) == {"containers": (0, 0), "domains": (0, 0)}
    assert list(demo.processes()) == []
    assert not demo.data.exists()
    assert list((demo.data.parent / "config").iterdir()) == []


def test_make_down_leaves_the_machine_as_it_was(tmp_path):
    """A machine without daemons: after demo and down its network, devices and processes are back.

    The machine is a set of namespaces, so the daemons of everybody else are not stopped.
    """
    options = f"DEMO=--data {tmp_path}/demo"
    with Sandbox(tmp_path) as machine:
        machine.environment |= {"SWARMCTL_CONFIG": str(tmp_path / "config")}
        before = seen_of(machine)
        said = machine.run("make", "demo", options).stdout
        assert "running: 10 containers, counted by Docker; 2 VMs, counted by libvirt" in said
        machine.run("make", "down", options)
        # The kernel takes away a namespace's interfaces a moment after its last process.
        procs.wait_until(lambda: seen_of(machine) == before, GONE_S)
        assert seen_of(machine) == before
    assert not (tmp_path / "demo").exists()


def seen_of(machine):
    """Its network, processes and devices."""
    return machine.network(), processes(machine), machine.run("ls", "/dev").stdout


def processes(machine):
    """The names of what runs in there, but for what asks."""
    names = machine.run("ps", "-e", "-o", "comm=").stdout.split("\n")
    return sorted(name for name in names if name not in ("ps", ""))
