"""One run: a swarm is made, everything is launched and measured on it, and it is taken away."""

import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from bench.net import checks, nested, paths, ready, world
from bench.net.checks import Attempt, Forgery, Reach
from bench.net.paths import Path as Way
from bench.net.report import ACROSS, ONE_HOST, TRUNK, VXLAN, WORDS, report
from bench.net.traffic import Endpoint
from bench.net.world import Member, World
from lab import podhost
from lab.faults import LabFault
from lab.report import Report, Step
from lab.swarm import Swarm

LAB: Final = "benchnet"
CONTAINERS: Final = (
    Member("a", "h1", "front"),
    Member("b", "h1", "front"),
    Member("c", "h2", "front"),
    Member("friend", "h1", "back"),
    Member("other", "h2", "back"),
)
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)


@define
class Run:
    """What is found as it goes.

    Attributes:
        swarm: on which it is.
        said: hears of each step.
        folder: for files of its own.
        seconds: for which each path is loaded.
        pings: of each path.
    """

    swarm: Swarm
    said: Report
    folder: Path
    seconds: int
    pings: int
    reached: list[Reach] = field(factory=list)
    cut_off: list[Reach] = field(factory=list)
    forgeries: list[Forgery] = field(factory=list)
    found: dict[str, dict[str, Any]] = field(factory=dict)
    port_ready_ms: dict[str, Any] | None = None

    def containers(self) -> None:
        """Launch containers, and measure and check what is between them.

        Raises:
            LabFault: something of it fails.
        """
        with self.said.step("containers") as step:
            world.make_networks(self.swarm)
            world.launch(self.swarm, self.folder, CONTAINERS)
            step.done(f"{len(CONTAINERS)} on 2 networks")
        made = world.look(self.swarm)
        ends = made.ends
        self.pass_and_not(made, "a.1", ("b.1", "c.1"), "other.1", "friend.1")
        self.forge(ends["a.1"], ends["c.1"], checks.attempts(made, "a.1", "c.1", "b.1"))
        self.measure(Way(ONE_HOST, ends["a.1"], ends["b.1"], across=False))
        self.measure(Way(ACROSS, ends["a.1"], ends["c.1"], across=True))

    def pods(self) -> None:
        """Launch VMs with pods, and measure and check what is between those.

        Raises:
            LabFault: something of it fails.
        """
        nodes = self.vms()
        self.ready(nodes[0].node)
        with self.said.step("pods") as step:
            members = nested.members(nodes)
            world.launch(self.swarm, self.folder, members, podhost.IMAGE)
            step.done(f"{len(members)} in {len(nodes)} VMs")
        made = world.look(self.swarm)
        ends, roots = made.ends, nested.roots(made, nodes)
        self.pass_and_not(made, "p.1", ("q.1", "c.1"), "podother.1", "podfriend.1")
        with self.said.step("tools") as step:
            over = nested.vxlan_pods(roots, step)
            step.done("a VXLAN network in the VMs")
        forged = [
            *checks.attempts(made, "p.1", "q.1", "c.1"),
            *nested.vlan_attempts(made, roots[0], "p.1", "q.1", "podfriend.1"),
        ]
        self.forge(ends["p.1"], ends["q.1"], forged)
        self.measure(Way(TRUNK, ends["p.1"], ends["q.1"], across=True))
        self.measure(Way(VXLAN, over[0], over[1], across=True))

    def vms(self) -> tuple[nested.Nested, ...]:
        """Launch VMs that host pods.

        Raises:
            LabFault: one does not come up.
        """
        with self.said.step("VMs") as step:
            step.progress("booting a VM on each host, and waiting for its agent")
            nodes = nested.launch_vms(self.swarm, self.folder)
            step.done(", ".join(f"{one.node} in {one.vm} on {one.host}" for one in nodes))
        return nodes

    def ready(self, node: str) -> None:
        """Measure how soon a pod's port is ready."""
        with self.said.step("ports") as step:
            step.progress(f"{ready.PODS} pods, one after the other, from a warm pool")
            found = self.port_ready_ms = ready.measure(self.swarm, self.folder, node)
            step.done(f"ready within {found['all']['p50']} ms (median), {found['all']['max']} ms")

    def pass_and_not(
        self, made: World, source: str, same: Sequence[str], other: str, friend: str
    ) -> None:
        """Look at who is reached: those of the same network, and not those of another."""
        ends = made.ends
        with self.said.step("passing") as step:
            step.progress(f"from {source}")
            reached = [checks.reach(ends[source], ends[name]) for name in same]
            apart = checks.cut_off(ends[source], ends[other], ends[friend])
            words = ", ".join(map(_answer, reached))
            step.done(f"from {source}: {words}; on another network: {_answer(apart)}")
        self.reached += reached
        self.cut_off.append(apart)

    def forge(
        self, source: Endpoint, target: Endpoint, attempts: Sequence[Attempt] | Iterator[Attempt]
    ) -> None:
        """Try all these forgeries."""
        with self.said.step("spoofing") as step:
            made = []
            for attempt in attempts:
                step.progress(f"{source.instance}: {attempt.what}")
                made.append(checks.forge(attempt, source, target))
            passed = (f"{one.what} {one.arrived} of {one.sent}" for one in made)
            step.done(f"from {source.instance} passed: {', '.join(passed)}")
        self.forgeries += made

    def measure(self, way: Way) -> None:
        """Measure a path."""
        with self.said.step(way.name) as step:
            step.progress(WORDS[way.name])
            measured = paths.measure(way, self.swarm, self.seconds, self.pings)
            step.done(f"{measured['throughput_mbit_per_s']:.0f} Mbit/s, "
                      f"round trip {measured['latency_ms']['p50']:.1f} ms")  # fmt: skip
        self.found[way.name] = measured


def _answer(one: Reach) -> str:
    return f"{one.target} {'answers' if one.answered else 'does not answer'}"


def measure(seconds: int, pings: int, *, vms: bool) -> dict[str, Any]:
    """Make a swarm, measure on it, and take it away.

    Raises:
        LabFault: something of it fails.
    """
    drivers = ("oci", "libvirt") if vms else ("oci",)
    with (
        Report(sys.stderr) as said,
        tempfile.TemporaryDirectory(prefix="bench-net-") as folder,
        _swarm(said, drivers, vms=vms) as swarm,
    ):
        run = Run(swarm, said, Path(folder), seconds, pings)
        run.containers()
        if vms:
            run.pods()
        return report(run.found, run.reached, run.cut_off, run.forgeries, run.port_ready_ms)


def measure_ready() -> dict[str, Any]:
    """On a swarm of its own only how soon ports are ready: a part of what :func:`measure` returns.

    Raises:
        LabFault: something of it fails.
    """
    with (
        Report(sys.stderr) as said,
        tempfile.TemporaryDirectory(prefix="bench-net-") as folder,
        _swarm(said, ("oci", "libvirt"), vms=True) as swarm,
    ):
        run = Run(swarm, said, Path(folder), 0, 0)
        world.make_networks(swarm)
        run.ready(run.vms()[0].node)
        return {"port_ready_ms": run.port_ready_ms}


@contextmanager
def _swarm(said: Report, drivers: Sequence[str], *, vms: bool) -> Iterator[Swarm]:
    """A swarm; Ctrl-C is not heeded while it is taken away."""
    swarm = Swarm(LAB, 2, drivers)
    if vms:
        with said.step("guest") as step:
            podhost.up(swarm.paths, step)
    try:
        with said.step("hosts") as step:
            step.progress("2 hosts, a controller, 2 agents")
            swarm.start()
            step.done("2 hosts with OVN, a controller, 2 agents")
        yield swarm
    except LabFault as fault:
        raise LabFault(f"{fault.what}\n{swarm.last_words()}", fault.hint) from fault
    finally:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTS}
        with said.step("the end") as step:
            _take_away(swarm, step)
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_away(swarm: Swarm, step: Step) -> None:
    swarm.close()
    step.done("all is taken away")
