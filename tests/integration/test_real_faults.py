"""Faults of the machine under real daemons: a network that is cut, descriptors that run out.

And of libvirtd; dockerd's are in ``tests/e2e/test_bad_input.py`` and ``test_real_fencing.py``.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

from swarmctl.client import Client
from swarmctl.proto import limits
from swarmctl.proto.errors import SwarmError
from swarmctl.spec import wire
from tests.e2e.cluster import IMAGE, Cluster, box, machine, until
from tests.integration import real_instances
from tests.integration.namespaces import View, inside, ip
from tests.integration.private_libvirtd import PrivateLibvirtd
from tests.integration.real_instances import untouched

# A cut that is as long as this outlives the five seconds after which a node is lost.
CUT_S = 10.0
# Looking for what comes by itself is given up after this; how long it took is printed.
PATIENCE_S = 60.0
# Longer than a node's silence may be before it is lost, and two heartbeats more.
FROZEN_S = limits.NODE_LOST_S + 2 * limits.HEARTBEAT_S
# After a fault of the controller: who is blamed for it would be within three heartbeats.
WATCHED_S = 4 * limits.HEARTBEAT_S


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory):
    """A node with containers and VMs, for faults that leave the cluster as it was."""
    cluster = Cluster(tmp_path_factory.mktemp("real"))
    cluster.agent("n0", drivers=real_instances.DRIVERS)
    try:
        yield cluster.start()
    finally:
        print(cluster.logs())  # noqa: T201 - captured
        cluster.close()


@pytest.fixture
def own(tmp_path: Path):
    """A cluster that the test starts, and may ruin."""
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        print(cluster.logs())  # noqa: T201 - captured
        cluster.close()


# --- the network is cut ----------------------------------------------------------------------


@pytest.fixture
def two_namespaces():
    """Two network namespaces and a wire between them: (name, name)."""
    left, right = (f"swarmtest{os.getpid()}{side}" for side in "ab")
    ends = [f"v{os.getpid()}{side}" for side in "ab"]
    try:
        for name in (left, right):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", ends[0], "netns", left, "type", "veth", "peer", ends[1], "netns", right)
        for number, (name, end) in enumerate(zip((left, right), ends, strict=True), 1):
            ip("-n", name, "link", "set", end, "name", "wire")
            ip("-n", name, "addr", "add", f"10.213.7.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        yield left, right
    finally:
        for name in (left, right):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.mark.slow
@pytest.mark.alone
def test_a_network_that_is_cut_and_mended(own: Cluster, two_namespaces: tuple[str, str]):
    """The node is lost and what it ran goes elsewhere; when it returns, what was replaced ends."""
    left, right = two_namespaces
    own.controller.prefix = inside(left)
    own.controller.arguments += ["--listen", "tcp://10.213.7.1:7077"]
    near = own.agent("near")
    far = own.agent("far", "--controller", "tcp://10.213.7.1:7077")
    near.prefix, far.prefix = inside(left), inside(right)

    view = View(own, left)
    states, homes = view.states, view.homes
    for daemon in (own.controller, near, far):
        daemon.start()
    until(lambda: states() == {"near": "ready", "far": "ready"}, PATIENCE_S, "both nodes")
    run = ["run", "-d", "--name", "web", "--replicas", "4", "--network", "none"]
    view.run(*run, IMAGE, "sleep", "3600")
    until(lambda: homes() == ["far", "far", "near", "near"], PATIENCE_S, "two on each")

    began = time.monotonic()
    ip("-n", right, "link", "set", "wire", "down")
    until(lambda: states()["far"] == "lost", PATIENCE_S, "the node lost")
    lost_s = time.monotonic() - began
    until(lambda: homes() == ["near"] * 4, PATIENCE_S, "all of it elsewhere")
    moved_s = time.monotonic() - began
    time.sleep(max(0.0, CUT_S - moved_s))
    healed = time.monotonic()
    ip("-n", right, "link", "set", "wire", "up")
    until(lambda: states() == {"near": "ready", "far": "ready"}, PATIENCE_S, "the node back")
    back_s = time.monotonic() - healed
    until(
        lambda: {one["desired"] for one in view.listed("ps", "-a")} == {"running"},
        PATIENCE_S,
        "one each",
    )
    print(f"lost {lost_s:.1f} s, elsewhere {moved_s:.1f} s, back {back_s:.1f} s")  # noqa: T201
    assert homes() == ["near"] * 4


# --- file descriptors run out ----------------------------------------------------------------


def limit_descriptors(process: int, count: int) -> None:
    """Set the soft limit of a running process."""
    limit = f"--nofile={count}:"
    subprocess.run(["prlimit", "--pid", str(process), limit], check=True, timeout=10)


def test_the_controller_runs_out_of_descriptors(real: Cluster):
    """It serves those who are there, says what is wrong, and lets others in once it can."""
    assert real.controller.process is not None
    process = real.controller.process.pid
    with untouched(real, real.call):
        with real.client() as inside_already:
            limit_descriptors(process, 3)
            with pytest.raises(SwarmError):
                Client(real.context, connect_timeout_s=1.0)
            spec = wire.encode_service(box("more", 2))
            inside_already.call("service.apply", {"services": [spec]})
            until(lambda: "short" in real.controller.tail(), what="a line in its log")
            info = inside_already.call("cluster.info")
            assert "file descriptors" in info["shortage"]
            until(
                lambda: inside_already.call("cluster.statistics")["states"] == {"running": 4},
                what="the two, and two more",
            )
            limit_descriptors(process, 4096)
        assert real.swarmctl("ps").code == 0
        until(lambda: not real.call("cluster.info")["shortage"], what="enough again")
        until(real.all_ready, PATIENCE_S, "the node ready")
        real.remove("more")


def test_an_agent_runs_out_of_descriptors(real: Cluster):
    """Its node is sick and says why; what runs there runs on; it heals with the shortage."""
    agent = real.agents["n0"]
    assert agent.process is not None
    process = agent.process.pid

    def node() -> dict:
        [view] = real.call("node.list")
        return view

    with untouched(real, real.call):
        limit_descriptors(process, 3)
        until(lambda: node()["state"] == "sick", PATIENCE_S, "sick")
        until(lambda: "file descriptors" in "; ".join(node()["reasons"]), PATIENCE_S, "the reason")
        limit_descriptors(process, 4096)
        until(real.all_ready, PATIENCE_S, "ready again")
        real.apply(box("more", 2))
        real.wait("more")
        real.remove("more")


# --- the controller is frozen ----------------------------------------------------------------


def test_a_controller_that_was_frozen_blames_nobody(real: Cluster):
    """For longer than a node may be silent; from then on no node is called lost or sick."""
    with untouched(real, real.call):
        real.controller.send_signal(signal.SIGSTOP)
        try:
            time.sleep(FROZEN_S)
        finally:
            real.controller.send_signal(signal.SIGCONT)
        assert real.blamed(WATCHED_S) == {}


# --- libvirtd ---------------------------------------------------------------------------------


@pytest.fixture
def libvirtd():
    """One of the test's own."""
    made = PrivateLibvirtd(Path("/tmp") / f"swl-{secrets.token_hex(3)}")
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="frozen", marks=pytest.mark.slow),
    ],
)
def test_libvirtd_goes_away(own: Cluster, libvirtd: PrivateLibvirtd, number: signal.Signals):
    """The node is sick and says why; its VM is the same QEMU throughout; launches come after."""
    own.agent("n1", "--libvirt-uri", libvirtd.uri, drivers="libvirt")
    own.start()
    own.apply(machine("vm"))
    own.wait("vm")
    before, [guest] = own.ps(), libvirtd.guests()

    def node() -> dict:
        [view] = own.call("node.list")
        return view

    if number == signal.SIGKILL:
        libvirtd.kill()
    else:
        libvirtd.send_signal(number)
    until(lambda: "libvirt" in "; ".join(node()["reasons"]), PATIENCE_S, "sick of libvirt")
    assert node()["state"] == "sick"
    own.apply(machine("late"))
    assert libvirtd.guests() == {guest}
    if number == signal.SIGKILL:
        libvirtd.start()
    else:
        libvirtd.send_signal(signal.SIGCONT)
    until(own.all_ready, PATIENCE_S, "ready again")
    until(lambda: own.states("late") == {"late.1": "running"}, PATIENCE_S, "the late one")
    after = own.ps("vm")["vm.1"]
    assert (after["runtime_id"], after["restarts"], after["state"]) == (
        before["vm.1"]["runtime_id"],
        0,
        "running",
    )
    assert guest in libvirtd.guests()
    assert len(libvirtd.guests()) == 2
