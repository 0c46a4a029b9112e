"""Faults of the machine below real daemons: network, disks, clocks, file descriptors."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import evolve

from bench.faults.nodes import COPIES, FROZEN_S, pair, running_on, runs, settled, state_of
from bench.faults.rows import PATIENCE_S, Row, Watch
from swarmctl.proto.errors import SwarmError
from tests.e2e.cluster import Cluster, Daemon, box, until
from tests.e2e.test_bad_input import AGENT_DISK_BYTES, fill, small_disk
from tests.integration.namespaces import entered
from tests.integration.test_clock_steps import SOURCE, with_clock

HOUR_S: Final = 3600
STORE_BYTES: Final = 6 << 20
DESCRIPTORS: Final = 4096
JOURNALED: Final = 3


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
            with entered(left):
                return _cut(cluster, right)
        finally:
            cluster.close()


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
            healed_s = watch.passed_s
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
    "network-cut": network_cut,
    "controllers-disk-full": controllers_disk_full,
    "agents-disk-full": agents_disk_full,
    "clock-stepped": clock_stepped,
    "controllers-descriptors": controllers_descriptors,
    "agents-descriptors": agents_descriptors,
}
