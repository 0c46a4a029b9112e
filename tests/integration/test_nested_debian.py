"""A Debian guest as a nested node: what its user-data says is all that makes it one.

Two hosts of the lab; on one a VM from a disk as those for clouds are, which boots by its own GRUB,
kernel and systemd. cloud-init starts the agent, which joins and runs a pod by runc. A container of
Docker on the other host gets a page from the pod, and what passes between the hosts and on the VM's
trunk is looked at. Without KVM the guest is emulated: that takes minutes. ``pytest -s`` shows it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.net.capture import capturing
from bench.net.frames import Frame
from bench.net.world import look
from lab import debian, podhost, procs
from lab.config import IMAGE_TAG, paths_from
from lab.faults import LabFault
from lab.swarm import Swarm
from swarmctl.net import relays
from swarmctl.net.mtu import GENEVE_V4_BYTES
from tests.lab_hosts_needed import need_hosts

# Without KVM the guest boots in 75 s on an idle machine, of which cloud-init takes half, and joins
# half a minute later; with a load of 8 on two cores all that took 310 s.
JOIN_S = 900
LAUNCH_S = 300
CONSOLE_S = 120
LOOK_EVERY_S = 3.0  # looking costs the CPU that the guest needs
NETWORKS = {"vms": "10.30.0.0/24", "front": "10.20.0.0/24"}
PAGE = "a page of the pod in the Debian guest"
SERVE = (
    f"mkdir -p /srv/www && echo '{PAGE}' >/srv/www/index.html && exec httpd -f -p 80 -h /srv/www"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    need_hosts,
]


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    """Two hosts with Docker and libvirt, and the Debian guest on the first, joined."""
    paths = paths_from()
    debian.ensure(paths)
    with Swarm(f"t{os.getpid()}", drivers=("docker", "libvirt")) as made:
        for name, subnet in NETWORKS.items():
            made.run("network", "create", name, "--subnet", subnet)
        file = made.folder / "guest.json"
        file.write_text(json.dumps(stack(debian.stack_vm(paths))))
        began = time.monotonic()
        made.run("apply", "-f", str(file), "--detach")
        try:
            made.until(lambda: nested(made), JOIN_S, "a node in the VM", LOOK_EVERY_S)
        except LabFault as fault:
            raise LabFault(
                f"{fault}\n{made.call('logs', '--tail', '40', 'guest').stdout}"
            ) from fault
        say(f"joined {time.monotonic() - began:.0f} s after the apply")
        yield made


def say(text: str) -> None:
    """For whoever watches."""
    sys.stdout.write(f"\n{text.rstrip()}\n")


def stack(vm: dict[str, object]) -> dict[str, Any]:
    """The guest, on the first host."""
    guest = {
        "vm": vm,
        "networks": ["vms"],
        "stop_grace_period": "1s",
        "deploy": {
            "placement": {"constraints": ["node.name == h1"]},
            "resources": {"reservations": {"cpus": 2, "memory": f"{debian.MEMORY_MIB}MiB"}},
        },
    }
    return {"services": {"guest": guest}, "networks": {"vms": {"external": True}}}


def nested(swarm: Swarm) -> dict[str, Any]:
    """The node in the VM, when it can take pods; else nothing."""
    nodes = [each for each in swarm.listed("node", "ls") if each["parent"]]
    usable = [one for one in nodes if one["state"] == "ready" and "oci" in one["drivers"]]
    return usable[0] if usable else {}


def launch(swarm: Swarm, *words: str) -> None:
    """Run an instance on the network `front`, and wait until it runs."""
    name = words[words.index("--name") + 1]
    swarm.run("run", "--detach", "--network", "front", *words)

    def is_running() -> bool:
        return [one["state"] for one in swarm.instances(name).values()] == ["running"]

    swarm.until(is_running, LAUNCH_S, f"{name} running", LOOK_EVERY_S)


def test_the_guest_joins_by_itself(swarm: Swarm) -> None:
    """As a node in its VM, on the VM's host, with the label of its service."""
    node, vm = nested(swarm), swarm.instances("guest")["guest.1"]

    assert node["node"] == f"guest.1-{vm['incarnation']}"
    assert (node["parent"], node["host"]) == ("guest.1", "h1")
    assert node["labels"]["vm"] == "guest"
    say(swarm.run("node", "ls", "-o", "wide"))


def test_a_container_on_another_host_reaches_a_pod_in_it(swarm: Swarm) -> None:
    """With one 802.1Q tag on the VM's trunk and one Geneve header between the hosts."""
    launch(
        swarm,
        *("--name", "pod", "--driver", "oci", "--constraint", "node.labels.vm == guest"),
        *(podhost.IMAGE, "sh", "-c", SERVE),
    )
    launch(swarm, *("--name", "far", "--constraint", "node.name == h2"), IMAGE_TAG, "sleep", "3600")
    world = look(swarm, ("vms", "front"))
    pod, far = world.ends["pod.1"], world.ends["far.1"]
    say(swarm.run("ps"))

    with (
        capturing(pod.place, pod.interface) as at_the_trunk,
        capturing(swarm.hosts.central.place, "h2", "udp port 6081") as between,
    ):
        page = swarm.run("exec", "far.1", "wget", "-q", "-O", "-", f"http://{pod.address}/")

    assert page.strip() == PAGE
    trunk = at_the_trunk.between(far.address, pod.address, least=4)
    wire = between.between(far.address, pod.address, least=4)
    say(f"on the trunk:      {shown(trunk[0])}\nbetween the hosts: {shown(wire[0])}")
    assert {one.layers.count("vlan") for one in trunk} == {1}
    assert {one.vlans for one in trunk} == {(world.vlans["pod.1"],)}
    assert {one.overlays for one in trunk} == {0}
    assert {one.layers.count("geneve") for one in wire} == {1}
    assert {one.overlays for one in wire} == {1}
    assert {one.layers.count("vlan") for one in wire} == {0}
    assert {one.around_bytes for one in wire} == {14 + GENEVE_V4_BYTES}


def test_its_way_to_the_controllers_outlives_the_guests_network_service(swarm: Swarm) -> None:
    """Which takes from the trunk what it did not make: the agent makes it again."""
    way = f"ip -o route show {relays.ADDRESS}"
    gone = "journalctl -u swarmctl-guest | grep -q 'way to the relay is gone'"
    words = (
        f"set -- $({way}); networkctl reconfigure $3; until {gone}; do sleep 1; done; "
        f"until {way} | grep .; do sleep 1; done; echo way-$((6 * 7))"
    )

    said = at_the_console(swarm, words, "way-42")

    assert f"{relays.ADDRESS} dev " in said
    swarm.run("exec", "pod.1", "true")
    assert nested(swarm)["state"] == "ready"


def at_the_console(swarm: Swarm, command: str, wanted: str) -> str:
    """Run a command as root at the guest's serial port; what was said until ``wanted``."""
    log = swarm.folder / "console.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            swarm.command("console", "guest.1"), stdin=subprocess.PIPE, stdout=output
        ) as console,
    ):
        assert console.stdin is not None

        def typed(line: str, answer: str) -> None:
            console.stdin.write(f"{line}\n".encode())
            console.stdin.flush()
            heard = procs.wait_until(lambda: answer in log.read_text(errors="replace"), CONSOLE_S)
            assert heard, log.read_text(errors="replace")

        try:
            typed("", "login:")
            typed("root", "# ")
            typed(command, f"\n{wanted}")
        finally:
            console.kill()
    return log.read_text(errors="replace")


def shown(frame: Frame) -> str:
    """A frame in a line."""
    tags = "".join(f" VLAN {one}" for one in frame.vlans)
    return (
        f"{' / '.join(frame.layers)}{tags}: {frame.source} to {frame.target}, "
        f"{frame.around_bytes} bytes around {frame.packet_bytes}"
    )
