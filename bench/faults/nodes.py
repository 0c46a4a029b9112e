"""Faults of a controller, of agents, and of what is below them; one controller, two nodes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from attrs import evolve

from bench.faults.rows import PATIENCE_S, Row, Watch
from swarmctl.proto.errors import SwarmError
from tests.e2e.cluster import Cluster, Daemon, box, docker_client, machine, until
from tests.e2e.test_bad_input import AGENT_DISK_BYTES, PrivateDocker, fill, small_disk
from tests.integration.private_libvirtd import PrivateLibvirtd
from tests.integration.test_clock_steps import SOURCE, with_clock

# Longer than a node's silence may be before it is lost (5 s).
FROZEN_S: Final = 10.0
COPIES: Final = 4
HOUR_S: Final = 3600
STORE_BYTES: Final = 6 << 20
DESCRIPTORS: Final = 4096
JOURNALED: Final = 3


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
        healed_s = watch.until(lambda: settled(cluster, before), "the truth")
    outcome = "no container restarts, and no node is blamed"
    return Row("controller: SIGSTOP, 10 s", outcome, healed_s, "SIGCONT")


def agent_killed(folder: Path) -> Row:
    """Kill -9, and a new start at once: what runs is adopted."""
    with pair(folder) as cluster:
        before, watch = runs(cluster), Watch()
        cluster.agents["b"].kill()
        cluster.agents["b"].start()
        healed_s = watch.until(lambda: settled(cluster, before), "the node back")
    return Row("agent: kill -9, started again", "its containers are adopted as they run", healed_s)


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


# --- the machine -----------------------------------------------------------------------------


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces and a wire between them, gone at the end."""
    names = [f"swarmfault{os.getpid()}{side}" for side in "ab"]
    ends = [f"w{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        peers = ("type", "veth", "peer", ends[1], "netns", names[1])
        _ip("link", "add", ends[0], "netns", names[0], *peers)
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            _ip("-n", name, "link", "set", end, "name", "wire")
            _ip("-n", name, "addr", "add", f"10.213.8.{number}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def network_cut(folder: Path) -> Row:
    """The wire between two namespaces is down until the node was replaced, and up again."""
    with two_hosts() as (left, right):
        cluster = Cluster(folder)
        # This program and agent a are in no namespace of ours: they use the wire's first end.
        daemons: list[Daemon] = [cluster.controller, cluster.agent("a"), cluster.agent("b")]
        for daemon, name in zip(daemons, (left, left, right), strict=True):
            daemon.prefix = ["nsenter", f"--net=/run/netns/{name}"]
        cluster.controller.arguments += ["--listen", "tcp://10.213.8.1:7077"]
        cluster.agents["b"].arguments += ["--controller", "tcp://10.213.8.1:7077"]
        try:
            for daemon in daemons:
                daemon.start()
            with _inside(left):
                return _cut(cluster, right)
        finally:
            cluster.close()


@contextmanager
def _inside(name: str) -> Iterator[None]:
    """This thread's sockets are of another network namespace meanwhile."""
    own = Path("/proc/thread-self/ns/net").open("rb")  # noqa: SIM115 - closed below
    other = Path("/run/netns", name).open("rb")  # noqa: SIM115 - closed below
    try:
        os_setns(other.fileno())
        yield
    finally:
        os_setns(own.fileno())
        own.close()
        other.close()


def os_setns(descriptor: int) -> None:
    """``setns(2)``, which Python has from 3.12 on only."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")


def _cut(cluster: Cluster, right: str) -> Row:
    until(cluster.all_ready, PATIENCE_S, "both nodes")
    cluster.apply(box("web", COPIES))
    cluster.wait("web")
    watch = Watch()
    _ip("-n", right, "link", "set", "wire", "down")
    noticed_s = watch.until(lambda: state_of(cluster, "b") == "lost", "loss")
    healed_s = watch.until(lambda: running_on(cluster, "a") == COPIES, "all of it elsewhere")
    # As long as a node is lost it may stay so: its own agent goes on with what it has.
    time.sleep(FROZEN_S)
    back = Watch()
    _ip("-n", right, "link", "set", "wire", "up")
    back_s = back.until(
        lambda: cluster.all_ready() and not cluster.containers(node="b"), "its copies gone"
    )
    outcome = "its copies run elsewhere; when it returns, those replaced end"
    more = {"those ended after the mending": back_s}
    return Row("network cut", outcome, healed_s, "the fault", noticed_s, more)


def controllers_disk_full(folder: Path) -> Row:
    """Writes are refused by name; with room they are taken."""
    cluster = Cluster(folder)
    with small_disk(cluster.data, STORE_BYTES):
        try:
            cluster.agent("a")
            cluster.start()
            cluster.apply(box("web", 2))
            cluster.wait("web")
            before = runs(cluster)
            ballast = fill(cluster.data)
            watch, acknowledged = Watch(), 0

            def refused() -> bool:
                nonlocal acknowledged
                try:
                    cluster.apply(box(f"s{acknowledged}", 0))
                except SwarmError as error:
                    if "full" not in str(error):
                        raise
                    return True
                acknowledged += 1
                return False

            noticed_s = watch.until(refused, "refusal")
            ballast.unlink()
            watch = Watch()
            watch.until(lambda: not refused(), "write")
            healed_s = time.monotonic() - watch.began
            assert runs(cluster) == before
            assert len(cluster.call("service.list")) == acknowledged + 1
        finally:
            cluster.close()
    outcome = "writes are refused by name, what was acknowledged is there, containers run on"
    return Row("controller's disk full", outcome, healed_s, "room is made", noticed_s)


def agents_disk_full(folder: Path) -> Row:
    """The node is sick by name, and launches wait; with room they are done."""
    cluster = Cluster(folder)
    with small_disk(folder / "a", AGENT_DISK_BYTES):
        try:
            cluster.agent("a")
            cluster.start()
            ballast = fill(folder / "a")
            watch = Watch()
            # Larger than what the journal's file has room for as it is.
            spec = box("web", JOURNALED)
            large = evolve(spec.template, labels={"ballast": "x" * 300_000})
            cluster.apply(evolve(spec, template=large))
            noticed_s = watch.until(lambda: state_of(cluster, "a") == "sick", "sickness")
            assert not cluster.containers()
            ballast.unlink()
            watch = Watch()
            healed_s = watch.until(
                lambda: len(runs(cluster)) == JOURNALED and cluster.all_ready(), "all of it"
            )
        finally:
            cluster.close()
    outcome = "the node is sick by name, launches wait, and are done once there is room"
    return Row("agent's disk full", outcome, healed_s, "room is made", noticed_s)


def clock_stepped(folder: Path) -> Row:
    """A node's clock is an hour ahead, and set right."""
    library = folder.parent / "stepped_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    cluster = Cluster(folder)
    try:
        for name in ("a", "b", "c"):
            cluster.agent(name, drivers="docker" if name == "a" else "sim")
        step = with_clock(cluster.agents["a"], library)
        cluster.start()
        cluster.apply(box("web", 2, driver="docker"))
        cluster.wait("web")
        before, watch = runs(cluster), Watch()
        step(HOUR_S)
        noticed_s = watch.until(lambda: state_of(cluster, "a") == "sick", "sickness")
        assert runs(cluster) == before
        step(0)
        watch = Watch()
        healed_s = watch.until(lambda: settled(cluster, before), "health")
    finally:
        cluster.close()
    outcome = "the node is sick by name; nothing restarts"
    return Row("a node's clock stepped by an hour", outcome, healed_s, "it is set right", noticed_s)


def _limit(daemon: Daemon, count: int) -> None:
    assert daemon.process is not None
    command = ["prlimit", "--pid", str(daemon.process.pid), f"--nofile={count}:"]
    subprocess.run(command, check=True, timeout=10)


def controllers_descriptors(folder: Path) -> Row:
    """Who is inside is served; the shortage is said by name."""
    with pair(folder) as cluster:
        before = runs(cluster)
        with cluster.client() as client:
            watch = Watch()
            _limit(cluster.controller, 3)
            noticed_s = watch.until(lambda: client.call("cluster.info")["shortage"], "shortage")
            client.call("service.scale", {"replicas": {"web": COPIES}})
            _limit(cluster.controller, DESCRIPTORS)
            watch = Watch()
            healed_s = watch.until(
                lambda: not client.call("cluster.info")["shortage"] and settled(cluster, before),
                "room",
            )
    outcome = "sessions and clients that are there are served; it is said by name"
    return Row("controller out of descriptors", outcome, healed_s, "the limit is raised", noticed_s)


def agents_descriptors(folder: Path) -> Row:
    """The node is sick by name; what runs there runs on."""
    with pair(folder) as cluster:
        before, watch = runs(cluster), Watch()
        _limit(cluster.agents["b"], 3)
        noticed_s = watch.until(lambda: state_of(cluster, "b") == "sick", "sickness")
        _limit(cluster.agents["b"], DESCRIPTORS)
        watch = Watch()
        healed_s = watch.until(lambda: settled(cluster, before), "health")
    outcome = "the node is sick by name; its containers run on"
    return Row("agent out of descriptors", outcome, healed_s, "the limit is raised", noticed_s)


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
    "network-cut": network_cut,
    "controllers-disk-full": controllers_disk_full,
    "agents-disk-full": agents_disk_full,
    "clock-stepped": clock_stepped,
    "controllers-descriptors": controllers_descriptors,
    "agents-descriptors": agents_descriptors,
}
