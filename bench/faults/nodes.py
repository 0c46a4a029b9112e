"""Faults of a controller, of agents, and of what is below them; one controller, two nodes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench.faults.rows import Row, Watch
from swarmctl.proto import limits
from swarmctl.proto.errors import SwarmError
from tests.e2e.cluster import Cluster, box, docker_client, machine
from tests.e2e.test_bad_input import PrivateDocker
from tests.integration.private_libvirtd import PrivateLibvirtd

# Longer than a node's silence may be before it is lost (5 s).
FROZEN_S: Final = 10.0
COPIES: Final = 4
# Who is blamed for what the controller suffers would be by then.
WATCHED_S: Final = 4 * limits.HEARTBEAT_S
# An agent starts within a second, on a machine that does nothing else.
STARTS_MAX: Final = 5


@contextmanager
def pair(folder: Path, *more: str, copies: int = COPIES) -> Iterator[Cluster]:
    """Two nodes on this machine's Docker, and a service on both; ``more`` are options of "b"."""
    cluster = Cluster(folder)
    cluster.agent("a")
    cluster.agent("b", *more)
    try:
        cluster.start()
        cluster.apply(box("web", copies))
        cluster.wait("web")
        yield cluster
    except BaseException:
        print(cluster.logs())
        raise
    finally:
        for daemon in cluster.others:
            if daemon.process is not None:
                daemon.send_signal(signal.SIGCONT)
        cluster.close()


def state_of(cluster: Cluster, node: str) -> str:
    """A node's state, as users see it."""
    return str(next(one["state"] for one in cluster.call("node.list") if one["node"] == node))


def running_on(cluster: Cluster, node: str) -> int:
    """Copies that the controller knows to run there."""
    return sum(one["node"] == node for one in cluster.ps().values() if one["state"] == "running")


def runs(cluster: Cluster) -> set[tuple[str, str]]:
    """Every container with the time of its start, by Docker: the same ones have not restarted."""
    return {(one.id, one.started_at) for one in cluster.containers().values() if one.running}


def settled(cluster: Cluster, before: set[tuple[str, str]]) -> bool:
    """Both nodes are ready, all runs, and it is what ran before."""
    try:
        states = list(cluster.states().values())
        good = cluster.all_ready() and states == ["running"] * len(states) and states
    except SwarmError:
        return False
    return bool(good) and runs(cluster) == before


# --- daemons ---------------------------------------------------------------------------------


def controller_killed(folder: Path) -> Row:
    """Kill -9, and a new start at once."""
    with pair(folder) as cluster:
        before, watch = runs(cluster), Watch()
        cluster.controller.kill()
        cluster.controller.start()
        healed_s = watch.until(lambda: settled(cluster, before), "the truth")
    return Row("controller: kill -9", "no container restarts; ps is true again", healed_s)


def controller_frozen(folder: Path) -> Row:
    """SIGSTOP for ten seconds."""
    with pair(folder) as cluster:
        before = runs(cluster)
        cluster.controller.send_signal(signal.SIGSTOP)
        time.sleep(FROZEN_S)
        assert runs(cluster) == before
        watch = Watch()
        cluster.controller.send_signal(signal.SIGCONT)
        healed_s = _settled_without_blame(cluster, before, watch)
    outcome = "no container restarts, and no node is blamed"
    return Row("controller: SIGSTOP, 10 s", outcome, healed_s, "SIGCONT")


def _settled_without_blame(cluster: Cluster, before: set[tuple[str, str]], watch: Watch) -> float:
    """When it was settled; nodes are looked at from now on, and for some heartbeats after it.

    Raises:
        AssertionError: a node was called anything but ready meanwhile.
    """
    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(cluster.blamed, WATCHED_S)
        healed_s = watch.until(lambda: settled(cluster, before), "the truth")
        blamed = looking.result()
    assert not blamed, blamed
    return healed_s


def agent_killed(folder: Path) -> Row:
    """Kill -9, and a new start at once: what runs is adopted."""
    for number in range(STARTS_MAX):
        with pair(folder / str(number)) as cluster:
            healed_s = _agent_killed(cluster)
        if healed_s is not None:
            outcome = "its containers are adopted as they run"
            return Row("agent: kill -9, started again", outcome, healed_s)
    raise AssertionError(f"no agent started in time in {STARTS_MAX} attempts: a busy machine")


def _agent_killed(cluster: Cluster) -> float | None:
    """None where the start took so long that the node was lost: that is another row."""
    before, watch = runs(cluster), Watch()
    cluster.agents["b"].kill()
    cluster.agents["b"].start()
    if watch.passed_s > limits.NODE_LOST_S - limits.HEARTBEAT_S:
        return None
    return watch.until(lambda: settled(cluster, before), "the node back")


def node_lost(folder: Path) -> Row:
    """A machine that is gone: its agent and its containers end at the same time."""
    with pair(folder) as cluster:
        doomed = [one.id for one in cluster.containers(node="b").values()]
        watch = Watch()
        cluster.agents["b"].kill()
        with closing(docker_client()) as client:
            for one in doomed:
                client.kill(one, "KILL")
        noticed_s = watch.until(lambda: state_of(cluster, "b") == "lost", "loss")
        healed_s = watch.until(lambda: running_on(cluster, "a") == COPIES, "all of it elsewhere")
        real = [one for one in cluster.containers(node="a").values() if one.running]
        assert len(real) == COPIES
        more = {"elsewhere after the detection": healed_s - noticed_s}
    return Row(
        "node lost for good", "its copies run elsewhere", healed_s, "the fault", noticed_s, more
    )


def agent_frozen(folder: Path) -> Row:
    """SIGSTOP until the node is lost; then it returns with what was replaced."""
    with pair(folder) as cluster:
        watch = Watch()
        cluster.agents["b"].send_signal(signal.SIGSTOP)
        noticed_s = watch.until(lambda: state_of(cluster, "b") == "lost", "loss")
        healed_s = watch.until(lambda: running_on(cluster, "a") == COPIES, "all of it elsewhere")
        back = Watch()
        cluster.agents["b"].send_signal(signal.SIGCONT)
        back_s = back.until(
            lambda: cluster.all_ready() and not cluster.containers(node="b"), "its copies gone"
        )
    outcome = "its copies run elsewhere; when it returns, those replaced end"
    more = {"those ended after SIGCONT": back_s}
    return Row("agent: SIGSTOP until lost", outcome, healed_s, "the fault", noticed_s, more)


# --- Docker ----------------------------------------------------------------------------------


@contextmanager
def with_own_docker(folder: Path) -> Iterator[tuple[Cluster, PrivateDocker]]:
    """The second node has a dockerd of its own, that may suffer."""
    # Short: sockets have names of 100 characters at the most.
    dockerd = PrivateDocker(Path("/tmp") / f"swf-{os.getpid()}")  # noqa: S108 - removed below
    dockerd.start()
    try:
        dockerd.load()
        with pair(folder, "--docker-host", dockerd.host) as cluster:
            yield cluster, dockerd
    finally:
        dockerd.close()
        subprocess.run(["rm", "-rf", str(dockerd.folder)], check=True)


def dockerd_killed(folder: Path) -> Row:
    """Kill -9 of it and its containerd, until the node is sick; then a new start."""
    with with_own_docker(folder) as (cluster, dockerd):
        before = set(cluster.containers(host=dockerd.host).values())
        watch = Watch()
        dockerd.kill()
        noticed_s = watch.until(lambda: state_of(cluster, "b") == "sick", "sickness")
        watch = Watch()
        dockerd.start()
        healed_s = watch.until(
            lambda: cluster.all_ready() and set(cluster.states().values()) == {"running"},
            "health",
        )
        assert set(cluster.containers(host=dockerd.host).values()) == before
    outcome = "the node is sick by name; its containers run on"
    return Row("dockerd: kill -9", outcome, healed_s, "its new start", noticed_s)


def dockerd_frozen(folder: Path) -> Row:
    """SIGSTOP: the node is sick, launches go elsewhere."""
    with with_own_docker(folder) as (cluster, dockerd):
        assert dockerd.process is not None
        watch = Watch()
        dockerd.process.send_signal(signal.SIGSTOP)
        try:
            noticed_s = watch.until(lambda: state_of(cluster, "b") == "sick", "sickness")
            cluster.apply(box("meanwhile", 2))
            cluster.wait("meanwhile")
            homes = {one["node"] for one in cluster.ps("meanwhile").values()}
            assert homes == {"a"}
        finally:
            watch = Watch()
            dockerd.process.send_signal(signal.SIGCONT)
        healed_s = watch.until(cluster.all_ready, "health")
    outcome = "the node is sick by name; launches go elsewhere"
    return Row("dockerd: SIGSTOP", outcome, healed_s, "SIGCONT", noticed_s)


# --- libvirt ---------------------------------------------------------------------------------


@contextmanager
def with_own_libvirtd(folder: Path) -> Iterator[tuple[Cluster, PrivateLibvirtd]]:
    """One node with a libvirtd of its own, and a VM on it."""
    # Short: as above.
    libvirtd = PrivateLibvirtd(Path("/tmp") / f"swl-{os.getpid()}")  # noqa: S108 - removed below
    cluster = Cluster(folder)
    cluster.agent("a", "--libvirt-uri", libvirtd.uri, drivers="libvirt")
    try:
        libvirtd.start()
        cluster.start()
        cluster.apply(machine("vm"))
        cluster.wait("vm")
        yield cluster, libvirtd
    finally:
        cluster.close()
        libvirtd.close()


def libvirtd_fails(number: signal.Signals, folder: Path) -> Row:
    """Killed or frozen until the node is sick; then started, or let go on."""
    with with_own_libvirtd(folder) as (cluster, libvirtd):
        guests, watch = libvirtd.guests(), Watch()
        libvirtd.kill() if number == signal.SIGKILL else libvirtd.send_signal(number)
        noticed_s = watch.until(lambda: state_of(cluster, "a") == "sick", "sickness")
        watch = Watch()
        libvirtd.start() if number == signal.SIGKILL else libvirtd.send_signal(signal.SIGCONT)
        healed_s = watch.until(
            lambda: cluster.all_ready() and cluster.states() == {"vm.1": "running"}, "health"
        )
        assert libvirtd.guests() == guests
    name, end = ("kill -9", "its new start")
    if number == signal.SIGSTOP:
        name, end = ("SIGSTOP", "SIGCONT")
    outcome = "the node is sick by name; its VM runs on"
    return Row(f"libvirtd: {name}", outcome, healed_s, end, noticed_s)


FAULTS: Final[dict[str, Callable[[Path], Row]]] = {
    "controller-killed": controller_killed,
    "controller-frozen": controller_frozen,
    "agent-killed": agent_killed,
    "agent-frozen": agent_frozen,
    "node-lost": node_lost,
    "dockerd-killed": dockerd_killed,
    "dockerd-frozen": dockerd_frozen,
    "libvirtd-killed": partial(libvirtd_fails, signal.SIGKILL),
    "libvirtd-frozen": partial(libvirtd_fails, signal.SIGSTOP),
}
