"""What a launch costs an agent in CPU: the whole path, and each stage of it.

    python -m bench.agent_path [--nodes 200] [--instances 200] [--rounds 3] [--profile FILE]

The load has the shape of C1M: a node gets its instances in assignments of some twenty, nearly
each of another service, whose template comes along the first time.

*whole* are production agents (session, supervisor, executor, outbox) with simulated drivers and
journals in memory, all in this process; their links end in a script that plays the controller,
whose own time is taken off.  What ZeroMQ takes of a message is not in it: ``bench.transport``
measures that.  *stages* drives the same messages through the same functions without trio.

What is measured is CPU time of this process, so that a busy machine disturbs it little: medians of
several rounds, in microseconds an instance.  *idle* is the cost of a node for a heartbeat, *join*
that of a node from nothing to an open session, both in microseconds.
"""

import argparse
import cProfile
import gc
import math
import random
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, cast

import structlog
import trio
from attrs import define, field

from bench.launch.fleet import (
    SharedLook,
    open_memory_journal,
    shared_shortage,
    simulated_drivers,
)
from bench.launch.scenario import service
from swarmctl import garbage
from swarmctl.agent import assignment
from swarmctl.agent.alarms import Alarms
from swarmctl.agent.config import AgentConfig
from swarmctl.agent.daemon import Agent, Edges
from swarmctl.agent.drivers.api import Owner
from swarmctl.agent.enrol import Membership, NodeIdentity
from swarmctl.agent.journal import MemoryJournal
from swarmctl.proto import codec, incarnation
from swarmctl.proto.messages import (
    Assign,
    AssignedGroup,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Report,
    ReportAck,
    Welcome,
)
from swarmctl.proto.states import InstanceState
from swarmctl.spec import wire
from swarmctl.spec.models import Kind
from swarmctl.transport import keys
from swarmctl.transport.api import Link, LinkFailure

CLUSTER = "c" * 16
TERM = 1
# Entries of one assignment, as C1M's controller plans and sends them.
PART = 20
SERVICES = 1_000
HEARTBEAT_S = 2.0
# Messages go out in rounds, so many a second at the most: reports are not to pile up.
_PATIENCE_S = 600.0
_NEEDS = {"cpu_millis": 100, "memory_bytes": 64 << 20}


# --- the load -------------------------------------------------------------------------------------


@define
class Load:
    """What the nodes are told: for each node its assignments, encoded."""

    instances: int
    templates: list[tuple[str, bytes, bytes]]

    @classmethod
    def make(cls, instances: int) -> "Load":
        """Templates of as many services as C1M has."""
        templates = []
        for number in range(SERVICES):
            spec = service(f"web-{number + 1}", Kind.CONTAINER, 1, _NEEDS)
            encoded = wire.encode_template(spec.template)
            # Decoded once in a process, which has 2,500 nodes in C1M, and here some hundred.
            wire.decode_template(encoded)
            templates.append((spec.name, wire.digest(encoded), encoded))
        return cls(instances, templates)

    def messages(self, node: int) -> list[bytes]:
        """The assignments of node ``node``."""
        chance = random.Random(node)  # noqa: S311 - a load, repeatable
        services = [chance.randrange(SERVICES) for _ in range(self.instances)]
        known: set[int] = set()
        made: list[bytes] = []
        for start in range(0, self.instances, PART):
            groups: dict[int, list[tuple[int, int, int, int, int]]] = {}
            for offset in range(start, min(start + PART, self.instances)):
                one = incarnation.make(TERM, node * self.instances + offset + 1)
                groups.setdefault(services[offset], []).append((node + 1, one, 0, 0, 0))
            new = {self.templates[one][1]: self.templates[one][2] for one in groups.keys() - known}
            known |= groups.keys()
            told = tuple(
                AssignedGroup(name, "default", digest, "docker", tuple(groups[one]))
                for one, (name, digest, _) in ((one, self.templates[one]) for one in groups)
            )
            message = Assign(CLUSTER, TERM, len(made) + 1, full=False, templates=new, groups=told)
            made.append(codec.encode(message))
        return made


# --- the controller's side ------------------------------------------------------------------------


class Script:
    """Plays the controller for all nodes; ``spent_s`` is the CPU that it took."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.running = 0
        self.open = 0
        self.beats = 0
        self.reports = 0
        self.links: list[ScriptedLink] = []
        self.look = SharedLook()
        self.shortage = shared_shortage()
        self.alarms = Alarms()
        self._due: Callable[[], bool] = lambda: False
        self._reached = trio.Event()
        self._welcome = codec.encode(
            Welcome(1, CLUSTER, TERM, HEARTBEAT_S, 3600.0, takes_groups=True)
        )

    def heard(self, link: "ScriptedLink", payload: bytes) -> None:
        """A node says something, and is answered."""
        began = process_time()
        message = codec.decode(payload)
        if isinstance(message, Hello):
            self.open += 1
            link.push(self._welcome)
        elif isinstance(message, Heartbeat):
            self.beats += 1
            link.push(codec.encode(HeartbeatAck(message.sequence)))
        elif isinstance(message, Report):
            self.reports += 1
            self.running += _running(message)
            link.push(codec.encode(ReportAck(message.sequence)))
        if self._due():
            self._reached.set()
        self.spent_s += process_time() - began

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was heard makes it true."""
        self._due, self._reached = condition, trio.Event()
        if not condition():
            await self._reached.wait()


def _running(report: Report) -> int:
    many = sum(len(one.entries) for one in report.groups if one.state == InstanceState.RUNNING)
    return many + sum(one.state == InstanceState.RUNNING for one in report.instances)


class ScriptedLink:
    """A link without a network: what is sent is heard at once, what is pushed waits to be read."""

    endpoint = "tcp://10.0.0.1:7077"
    connected = True
    has_others = False

    def __init__(self, script: Script) -> None:
        self._script = script
        self._waiting: deque[bytes] = deque()
        self._arrived = trio.Event()
        self._adopted = False
        script.links.append(self)

    def push(self, payload: bytes) -> None:
        """The controller sends."""
        self._waiting.append(payload)
        self._arrived.set()

    def send(self, payload: bytes) -> None:
        """The agent sends."""
        self._script.heard(self, payload)

    async def receive_batch(self) -> list[bytes]:
        """As a link's: one turn for the others, by waiting or before what waits is handed out."""
        if self._waiting:
            await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._arrived = trio.Event()
            await self._arrived.wait()
        batch = list(self._waiting)
        self._waiting.clear()
        return batch

    async def wait_connected(self) -> int:
        """There is one connection, for ever."""
        if self._adopted:
            await trio.sleep_forever()
        self._adopted = True
        return 1

    async def wait_failure(self) -> LinkFailure:
        """It never fails."""
        await trio.sleep_forever()
        raise AssertionError("unreachable")


# --- the whole ------------------------------------------------------------------------------------


@define
class Figures:
    """Samples by name, in microseconds."""

    samples: dict[str, list[float]] = field(factory=dict)

    def add(self, name: str, seconds: float, count: int) -> None:
        """One sample: ``seconds`` for ``count`` of them."""
        self.samples.setdefault(name, []).append(seconds / count * 1e6)

    def lines(self) -> Iterator[str]:
        """A table."""
        for name, values in self.samples.items():
            spread = f"{min(values):.1f} to {max(values):.1f}"
            yield f"{name:<22}{median(values):8.1f}   ({spread})"


def agent(folder: Path, number: int, script: Script) -> tuple[Agent, ScriptedLink]:
    """One node's production agent, and its link."""
    name = f"node-{number:05d}"
    config = AgentConfig(data=folder, name=name, drivers=("docker", "libvirt"), sim_bulk=True)
    identity = NodeIdentity(name, CLUSTER, "", (ScriptedLink.endpoint,))
    drivers = simulated_drivers(Owner(CLUSTER, name), number)
    chance = random.Random(number)  # noqa: S311 - jitter, repeatable
    edges = Edges(
        _no_link,
        lambda *_: drivers,
        open_memory_journal,
        chance,
        look=script.look,
        shortage=script.shortage,
        alarms=script.alarms,
    )
    member = Membership(identity, keys.generate())
    return Agent(config, member, drivers, MemoryJournal(), edges), ScriptedLink(script)


@asynccontextmanager
async def _no_link(*_: Any) -> Any:
    yield None


async def measure_whole(
    nodes: int, load: Load, figures: Figures, profile: cProfile.Profile | None
) -> None:
    """Join, be idle, launch."""
    script = Script()
    told = [load.messages(number) for number in range(nodes)]
    with tempfile.TemporaryDirectory() as folder, trio.fail_after(_PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(script.alarms.run)
            began = process_time()
            for number in range(nodes):
                one, link = agent(Path(folder), number, script)
                await nursery.start(one.run, cast("Link", link))
            await script.until(lambda: script.open == nodes)
            figures.add("join (a node)", process_time() - began - script.spent_s, nodes)
            gc.freeze()
            await _settled()

            beats, began, script.spent_s = script.beats, process_time(), 0.0
            await trio.sleep(2 * HEARTBEAT_S)
            spent_s = process_time() - began - script.spent_s
            figures.add("idle (a heartbeat)", spent_s, script.beats - beats)

            began, script.spent_s = process_time(), 0.0
            if profile is not None:
                profile.enable()
            for number in range(len(told[0])):
                for link, messages in zip(script.links, told, strict=True):
                    link.push(messages[number])
                due = sum(min(load.instances, (number + 1) * PART) for _ in told)
                await script.until(lambda due=due: script.running >= due)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            if profile is not None:
                profile.disable()
            spent_s = process_time() - began - script.spent_s
            if profile is None:  # Profiling is most of the time.
                figures.add("whole (an instance)", spent_s, nodes * load.instances)
            assert script.running == nodes * load.instances, "some were told twice"
            nursery.cancel_scope.cancel()
    gc.unfreeze()


async def _settled() -> None:
    """What follows a hello is over."""
    await trio.sleep(HEARTBEAT_S)


# --- stages ---------------------------------------------------------------------------------------


async def measure_stages(nodes: int, load: Load, figures: Figures) -> None:
    """The same messages through the same functions, one after the other."""
    script = Script()
    stages = dict.fromkeys(
        ("decode", "apply", "take", "journal", "launch", "report", "encode"), 0.0
    )
    clock = math.nan

    def lap(stage: str) -> None:
        nonlocal clock
        now = process_time()
        stages[stage] += now - clock
        clock = process_time()

    with tempfile.TemporaryDirectory() as folder:
        async with trio.open_nursery() as nursery:
            for number in range(nodes):
                one, _ = agent(Path(folder), number, script)
                supervisor, outbox = one.supervisor, one.outbox
                supervisor.listed.update(one.drivers)
                executor = one.make_executor(nursery)
                for payload in load.messages(number):
                    clock = process_time()
                    message = cast("Assign", codec.decode(payload))
                    lap("decode")
                    assignment.apply(supervisor, message, 1.0)
                    lap("apply")
                    actions = supervisor.take()
                    lap("take")
                    await one.journal.apply(actions.puts, actions.deletes)
                    lap("journal")
                    await executor.begin(actions)
                    lap("launch")
                    report = outbox.next_report(groups=True)
                    lap("report")
                    assert report is not None, "nothing launched"
                    codec.encode(report)
                    lap("encode")
                    outbox.acknowledged(report.sequence)
    for stage, seconds in stages.items():
        figures.add(f"  {stage}", seconds, nodes * load.instances)
    figures.add("  all stages", sum(stages.values()), nodes * load.instances)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--instances", type=int, default=200, help="a node")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", help="write a cProfile of the last launch to this file")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    garbage.tune()
    load, figures = Load.make(options.instances), Figures()
    for number in range(options.rounds):
        profiled = bool(options.profile) and number == options.rounds - 1
        profile = cProfile.Profile() if profiled else None
        trio.run(measure_whole, options.nodes, load, figures, profile)
        trio.run(measure_stages, options.nodes, load, figures)
        if profile is not None:
            profile.dump_stats(options.profile)
    print(f"microseconds of CPU, median of {options.rounds} (least to most)")
    for line in figures.lines():
        print(line)


if __name__ == "__main__":
    main()
