"""A process full of simulated nodes; run as ``python -m bench.launch.fleet SETTINGS``.

Each node is the production agent: its own key, its own CURVE connection, session, supervisor and
executor.  Only what is below the driver is simulated, and the journal is in memory: in life those
disks are other machines'.

It speaks lines on standard output (``ready N SECONDS``, then answers) and takes commands on
standard input: ``list FILE`` writes what every node has, ``vanish N`` lets nodes fall silent,
``reconnect`` has all of them lose their connections and answers when all sessions are open again,
``quit``.
"""

import gc
import json
import math
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, cast

import structlog
import trio
from attrs import asdict, frozen

from bench.launch.scenario import Machine, Scenario, node_labels, node_name
from swarmctl import descriptors, garbage
from swarmctl.agent import facts
from swarmctl.agent.alarms import Alarms
from swarmctl.agent.config import AgentConfig
from swarmctl.agent.daemon import Agent, Edges
from swarmctl.agent.drivers.api import Driver, Owner
from swarmctl.agent.drivers.sim import Delay, SimDriver, SimHost, SimSettings
from swarmctl.agent.enrol import Membership, membership
from swarmctl.agent.journal import Journal, MemoryJournal
from swarmctl.transport.api import Link
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.zmq_link import open_link

# Enrolments under way at once: the controller commits them in groups of this size.
_ENROLLING_AT_ONCE = 200
_KINDS = ("docker", "libvirt")
# Between two looks at who is back: thousands are looked at, and that is not to be what is measured.
_LOOK_S = 0.1
# Allocations between two looks of the garbage collector: a storm makes millions that stay.
_YOUNGEST = 500_000
# Between two looks at the machine itself: a node's own are ten seconds apart.
_MACHINE_LOOK_S = 1.0


@frozen
class FleetSettings:
    """What one fleet process simulates.

    ``delay_s`` is the mean of an exponential start delay; rates are 0 to 1.
    """

    join: str
    folder: str
    first: int
    count: int
    seed: int = 0
    machines: tuple[dict[str, Any], ...] = ()
    delay_s: float = 0.0
    failure_rate: float = 0.0

    def to_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(asdict(self))


class Fleet:
    """The nodes of this process, by name."""

    def __init__(self, settings: FleetSettings) -> None:
        self.settings = settings
        self._shape = Scenario(machines=tuple(Machine(**one) for one in settings.machines))
        self.machines: dict[str, Machine] = {}
        self.links: dict[str, WatchedLink] = {}
        self.agents: dict[str, Agent] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self._enrolling = trio.CapacityLimiter(_ENROLLING_AT_ONCE)
        self._look = SharedLook()
        self._shortage = shared_shortage()
        self.alarms = Alarms()

    async def run_node(
        self, number: int, task_status: "trio.TaskStatus[Agent]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """One node, from enrolment on, until cancelled."""
        name = node_name(number)
        self.machines[name] = self._shape.machine_of(number)
        folder = Path(self.settings.folder) / name
        folder.mkdir(parents=True, exist_ok=True)
        config = self._config(number, folder)
        async with self._enrolling:
            member = await membership(
                folder, name=name, join=self.settings.join, controllers=(), open_link=_link
            )
        drivers = simulated_drivers(
            Owner(member.identity.cluster_id, name),
            number,
            seed=self.settings.seed,
            delay_s=self.settings.delay_s,
            failure_rate=self.settings.failure_rate,
        )
        with trio.CancelScope() as scope:
            self.scopes[name] = scope
            await self._serve(config, member, drivers, task_status)

    async def _serve(
        self,
        config: AgentConfig,
        member: Membership,
        drivers: dict[str, Driver],
        task_status: "trio.TaskStatus[Agent]",
    ) -> None:
        chance = random.Random(config.name)  # noqa: S311 - jitter, repeatable
        edges = Edges(
            _link,
            lambda *_: drivers,
            open_memory_journal,
            chance,
            look=self._look,
            shortage=self._shortage,
            alarms=self.alarms,
        )
        identity = member.identity
        async with _link(identity.addresses, identity.server_key, member.keypair) as link:
            agent = Agent(config, member, drivers, MemoryJournal(), edges)
            watched = self.links[identity.name] = WatchedLink(link)
            self.agents[identity.name] = agent
            raise await agent.run(cast("Link", watched), task_status)

    def _config(self, number: int, folder: Path) -> AgentConfig:
        name = node_name(number)
        machine = self.machines[name]
        return AgentConfig(
            data=folder,
            name=name,
            labels=node_labels(number, machine),
            drivers=_KINDS,
            capacity=machine.capacity,
            # A call for many takes no time; delays are those of single launches.
            sim_bulk=not self.settings.delay_s,
        )

    def write_lists(self, path: Path) -> int:
        """Write what each node's drivers have, node by node; how many instances that is."""
        total = 0
        with path.open("w", encoding="utf-8") as file:
            for name, agent in self.agents.items():
                rows = [
                    [kind, incarnation, one.launch.service, one.launch.slot, one.phase.value]
                    for kind, driver in agent.drivers.items()
                    if isinstance(driver, SimDriver)
                    for incarnation, one in driver.host.book(driver.owner).items()
                ]
                total += len(rows)
                row = self._row(name) | {"instances": rows}
                file.write(json.dumps(row) + "\n")
        return total

    def _row(self, name: str) -> dict[str, Any]:
        """What is known of a node without asking anybody."""
        machine = self.machines[name]
        labels = node_labels(int(name.rpartition("-")[2]), machine)
        return {"node": name, "capacity": machine.capacity, "labels": labels}

    def vanish(self, count: int) -> None:
        """Let nodes end without a word; what they had is gone with them."""
        for name in list(self.agents)[:count]:
            self.scopes.pop(name).cancel()
            del self.agents[name]
            del self.links[name]

    async def reconnect(self) -> float:
        """Cut every connection, and wait until every session is open again; how long it took."""
        began = monotonic()
        waiting = {name: link.adopted for name, link in self.links.items()}
        for link in self.links.values():
            link.use_next()
        while waiting:
            await trio.sleep(_LOOK_S)
            for name in list(waiting):
                if self.links[name].adopted > waiting[name] and self._is_open(name):
                    del waiting[name]
        return monotonic() - began

    def _is_open(self, name: str) -> bool:
        session = self.agents[name].session
        return session is not None and session.machine.is_open


class SharedLook:
    """The machine as its nodes see it: thousands are on one, which is looked at for all of them."""

    def __init__(self) -> None:
        self._seen: facts.Machine | None = None
        self._seen_at = -math.inf

    def __call__(self, data: Path) -> facts.Machine:
        """As :func:`swarmctl.agent.facts.look`, of a moment ago at the most."""
        now = monotonic()
        if self._seen is None or now - self._seen_at > _MACHINE_LOOK_S:
            self._seen, self._seen_at = facts.look(data), now
        return self._seen


def shared_shortage() -> Callable[[], str]:
    """As :func:`swarmctl.descriptors.shortage`, of a moment ago: they have one table, too."""
    seen, seen_at = "", -math.inf

    def look() -> str:
        nonlocal seen, seen_at
        now = monotonic()
        if now - seen_at > _MACHINE_LOOK_S:
            seen, seen_at = descriptors.shortage(), now
        return seen

    return look


class WatchedLink:
    """A link that counts the connections that its session has begun to use."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.adopted = 0
        # Looked up once: every message goes through them.
        self.send = link.send
        self.receive_batch = link.receive_batch

    async def wait_connected(self) -> int:
        """As the link's own."""
        number = await self._link.wait_connected()
        self.adopted += 1
        return number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


def _link(
    addresses: Sequence[str], server_key: str, keypair: KeyPair
) -> AbstractAsyncContextManager[Link]:
    return open_link(addresses, server_key, keypair)


def simulated_drivers(
    owner: Owner, number: int, *, seed: int = 0, delay_s: float = 0.0, failure_rate: float = 0.0
) -> dict[str, Driver]:
    """The simulated driver under the names of the real ones, for node ``number``."""
    made: dict[str, Driver] = {}
    for index, kind in enumerate(_KINDS):
        settings = SimSettings(
            start=Delay(tail_mean_s=delay_s),
            start_failure_rate=failure_rate,
            seed=seed * 1_000_003 + number * 2 + index,
        )
        driver = SimDriver(owner, SimHost(settings))
        driver.name = kind
        made[kind] = driver
    return made


@asynccontextmanager
async def open_memory_journal(path: Path) -> AsyncIterator[Journal]:
    """A journal as long as the process: the file's name is not needed."""
    del path
    yield MemoryJournal()


async def _read_commands(commands: trio.MemorySendChannel[str], scope: trio.CancelScope) -> None:
    """Read on while a command is carried out: the end of the input is the end of the fleet."""
    stdin = trio.lowlevel.FdStream(sys.stdin.fileno())
    waiting = b""
    async for chunk in stdin:
        waiting += chunk
        *lines, waiting = waiting.split(b"\n")
        for line in lines:
            await commands.send(line.decode())
    scope.cancel()


async def _carry_out(
    fleet: Fleet, commands: trio.MemoryReceiveChannel[str], scope: trio.CancelScope
) -> None:
    async for line in commands:
        verb, _, argument = line.partition(" ")
        if verb == "list":
            print(f"listed {fleet.write_lists(Path(argument))}", flush=True)
        elif verb == "vanish":
            fleet.vanish(int(argument))
            print(f"vanished {argument}", flush=True)
        elif verb == "reconnect":
            print(f"reconnected {await fleet.reconnect():.3f}", flush=True)
        elif verb == "quit":
            scope.cancel()


async def run_fleet(settings: FleetSettings) -> None:
    """Simulate the nodes until told to quit."""
    fleet = Fleet(settings)
    began = monotonic()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            tell, commands = trio.open_memory_channel[str](1)
            nursery.start_soon(_read_commands, tell, scope)
            nursery.start_soon(_carry_out, fleet, commands, scope)
            nursery.start_soon(fleet.alarms.run)
            async with trio.open_nursery() as starting:
                for number in range(settings.first, settings.first + settings.count):
                    starting.start_soon(nursery.start, fleet.run_node, number)
            # A thousand agents in one process: their lasting objects are not looked at again.
            gc.freeze()
            print(f"ready {settings.count} {monotonic() - began:.3f}", flush=True)


def main() -> None:
    """Run with the settings in the first argument."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    garbage.tune()
    gc.set_threshold(_YOUNGEST, *gc.get_threshold()[1:])
    trio.run(run_fleet, FleetSettings(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
