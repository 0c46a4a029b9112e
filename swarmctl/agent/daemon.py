"""The node daemon: everything of the agent, wired together.

One loop turns the supervisor's decisions into durable journal entries and then into operations;
everything else (driver events, ends of operations, messages) only tells the supervisor something
and wakes the loop.  While the journal's disk works on one group of entries the next one gathers.

Cancelling ends the daemon and nothing else: instances run on, and the next agent on the same
folder adopts them.
"""

import math
import platform
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import evolve, frozen

from swarmctl import descriptors
from swarmctl.agent import adoption, enrol, facts, guard
from swarmctl.agent.actions import Actions
from swarmctl.agent.alarms import Alarms
from swarmctl.agent.attaching import Attaching
from swarmctl.agent.checks import Checker
from swarmctl.agent.config import AgentConfig, MissingDriver, make_drivers, make_plugs
from swarmctl.agent.drivers.api import Driver, EventKind, Health, Owner
from swarmctl.agent.executor import Executor
from swarmctl.agent.fencing import Fence, Leases, explained, make_fence, take_fenced_removes
from swarmctl.agent.handlers import handlers
from swarmctl.agent.journal import Journal, open_journal
from swarmctl.agent.outbox import Outbox
from swarmctl.agent.relays import Relays
from swarmctl.agent.session import Session
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.timeline import Timelines
from swarmctl.agent.tracing import Tracing
from swarmctl.folder import PASSAGE_MODE, DataFolder
from swarmctl.net.plugging.api import Plugs
from swarmctl.proto.errors import Busy, StorageFault, SwarmError
from swarmctl.proto.messages import NodeFacts
from swarmctl.transport.api import Link
from swarmctl.transport.rpc import Handler

_log = structlog.get_logger(__name__)

JOURNAL_FILE: Final = "journal.db"
# A disk that refuses is asked again this often; meanwhile nothing new is launched.
JOURNAL_RETRY_S: Final = 2.0
# The first session waits this long for the drivers' lists, so that its hello is complete. A
# driver that takes longer is said not to have listed, and is caught up with by reports.
FIRST_LIST_S: Final = 5.0
# An events stream that ends is opened again after this.
EVENTS_RETRY_S: Final = 1.0


@frozen
class Edges:
    """Where the daemon touches the world; tests put their own in place."""

    open_link: enrol.OpenLink
    make_drivers: Callable[[AgentConfig, Owner], Mapping[str, Driver]]
    open_journal: Callable[[Path], AbstractAsyncContextManager[Journal]]
    random: random.Random
    wall: Callable[[], float] = time.time
    look: Callable[[Path], facts.Machine] = facts.look
    shortage: Callable[[], str] = descriptors.shortage
    process_name: Callable[[], str] = facts.process_name
    make_fence: Callable[[AgentConfig], Fence | None] = lambda _: None
    boottime_ns: Callable[[], int] = guard.boottime_ns
    make_plugs: Callable[[AgentConfig, Owner], Plugs | None] = lambda *_: None
    # Where many agents share a process they share a clock, which somebody runs.
    alarms: Alarms | None = None


def real_edges() -> Edges:
    """ZeroMQ, the real drivers, a journal on disk, a guard."""
    from swarmctl.transport.zmq_link import open_link

    return Edges(
        open_link,
        make_drivers,
        open_journal,
        random.SystemRandom(),
        make_fence=make_fence,
        make_plugs=make_plugs,
    )


class Agent:
    """A node's agent, enrolled, with its journal open.

    Args:
        config: what it was told.
        membership: who it is.
        drivers: by name.
        journal: what it remembers.
        edges: the world.
        plugs: what plugs instances into tenant networks; None for simulations.
    """

    def __init__(
        self,
        config: AgentConfig,
        membership: enrol.Membership,
        drivers: Mapping[str, Driver],
        journal: Journal,
        edges: Edges,
        plugs: Plugs | None = None,
    ) -> None:
        self.identity = membership.identity
        self._membership = membership
        self.drivers = drivers
        now = trio.current_time()
        self.supervisor = Supervisor(drivers, edges.wall() - now)
        self.attaching = Attaching(plugs, drivers, self.supervisor) if plugs else None
        if plugs is not None and self.attaching is not None and not config.trunk:
            self.attaching.relays = Relays(
                plugs, self.identity.cluster_id, lambda: self._membership.identity.addresses
            )
        self.outbox = Outbox(self.supervisor)
        self.timelines = Timelines()
        self.session: Session | None = None
        self.executor: Executor | None = None
        self._config = config
        self.journal = journal
        self._edges = edges
        self._fence = edges.make_fence(config)
        self._settings = facts.FactsSettings(
            config.labels, config.capacity, config.reserve, parent=config.parent
        )
        self._health: dict[str, Health] = {}
        self._seen_available: set[str] = set()
        self._facts = NodeFacts()
        self._pressure: list[str] = []
        self._journal_fault = ""
        # What could not be made durable yet, and the launches that wait for it.
        self._held = Actions()
        self._woken = trio.Event()
        self._listed = trio.Event()
        # A driver does not answer, or does again: how it is will not wait for the next look.
        self._doubtful = trio.Event()
        adoption.restore(
            self.supervisor,
            journal.load(),
            int(journal.meta("term") or b"0"),
            self.identity.cluster_id,
            now,
        )
        self._lacking = adoption.show_without_driver(self.supervisor, self.identity.name)

    # --- what others ask ----------------------------------------------------------------------

    def wake(self) -> None:
        """The supervisor was told something."""
        self._woken.set()

    def reasons(self) -> tuple[str, ...]:
        """What is wrong on this node, for its heartbeats; empty when nothing is."""
        found = [
            f"{name}: {one.reason}"
            for name, one in self._health.items()
            if not one.available and name in self._seen_available
        ]
        found += [
            reason
            for name, reason in self.supervisor.down.items()
            if name in self._seen_available and self._health[name].available
        ]
        found += self.executor.hung() if self.executor is not None else []
        found += self.attaching.reasons() if self.attaching is not None else []
        found += self._pressure
        found += self._lacking
        if self._journal_fault:
            found.append(self._journal_fault)
        return tuple(found)

    def facts_now(self) -> NodeFacts:
        """What the node is, as was seen last; and of which drivers it knows what they have."""
        unlisted = self.drivers.keys() - self.supervisor.listed
        if not unlisted:
            return self._facts
        drivers = [evolve(one, listed=one.name not in unlisted) for one in self._facts.drivers]
        return evolve(self._facts, drivers=tuple(drivers))

    def statistics(self) -> dict[str, Any]:
        """Counters for ``node.statistics``."""
        states: dict[str, int] = {}
        for instance in self.supervisor.instances.values():
            states[instance.state.label] = states.get(instance.state.label, 0) + 1
        return {
            "instances": states,
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "term": self.supervisor.term,
            "unreported": len(self.supervisor.dirty) + len(self.supervisor.unsent_gone),
            "reasons": list(self.reasons()),
        }

    # --- running ------------------------------------------------------------------------------

    async def run(self, link: Link, task_status: "trio.TaskStatus[Agent]") -> SwarmError:
        """Supervise and keep the session, until cancelled or refused for good (the error)."""
        async with trio.open_nursery() as nursery:
            self.executor = self.make_executor(nursery)
            if self.attaching is not None:
                nursery.start_soon(self.attaching.run, self._listed)
            if self._fence is not None:
                nursery.start_soon(self._fence.run)
            nursery.start_soon(self._supervise)
            nursery.start_soon(Checker(self.supervisor, self.drivers, self.wake).run)
            for driver in self.drivers.values():
                nursery.start_soon(self._watch, driver)
            await self._look()
            nursery.start_soon(self._look_again)
            self.session = Session(
                link,
                self.identity.name,
                self.supervisor,
                self.outbox,
                facts=self.facts_now,
                reasons=self.reasons,
                handlers=self._handlers(),
                wake=self.wake,
                rejoin=lambda: enrol.rejoin(self._membership, self._edges.open_link),
                learn=self._learn,
                random_=self._edges.random,
                leases=Leases(self._fence, self._edges.boottime_ns),
                wall=self._edges.wall,
                alarms=self._edges.alarms,
            )
            with trio.move_on_after(FIRST_LIST_S):
                await self._listed.wait()
                if self._fence is not None:
                    await self._fence.wait_alive()
            task_status.started(self)
            refusal = await self.session.run()
            nursery.cancel_scope.cancel()
        return refusal

    def _handlers(self) -> dict[str, Handler]:
        timelines, drivers, wall = self.timelines, self.drivers, self._edges.wall
        return {
            **handlers(self.supervisor, drivers, self.facts_now, self.statistics),
            **Tracing(self.supervisor, timelines, drivers, self.attaching, wall).handlers(),
        }

    def make_executor(self, nursery: trio.Nursery) -> Executor:
        """What carries out this agent's decisions, in tasks of ``nursery``."""
        return Executor(
            self.drivers,
            self.supervisor,
            nursery,
            self.wake,
            bulk=self._config.sim_bulk,
            fence=self._fence,
            attaching=self.attaching,
            timelines=self.timelines,
        )

    def _learn(self, addresses: tuple[str, ...]) -> None:
        """The controllers' addresses, for this and the next start."""
        if self._config.trunk:
            return  # From inside a VM there is one way to all of them: the host's relay.
        self._membership = enrol.learn(self._config.data, self._membership, addresses)

    async def _supervise(self) -> None:
        supervisor = self.supervisor
        down: set[str] = set()
        listed: set[str] = set()
        while True:
            if down != supervisor.down.keys():
                down = set(supervisor.down)
                self._doubtful.set()
            if listed != supervisor.listed:
                listed = set(supervisor.listed)
                if self.session is not None:
                    self.session.facts_changed()
            # Before anything is looked at: what comes in from here on starts another round.
            self._woken = trio.Event()
            supervisor.tick(trio.current_time())
            if self._all_listed():
                self._listed.set()
            if supervisor.idle and not self._held.journals:
                if self.session is not None:
                    self.session.wake()
                due = supervisor.next_due()
                if due == math.inf:  # Most of the time: a scope costs more than the wait.
                    await self._woken.wait()
                else:
                    with trio.move_on_at(due):
                        await self._woken.wait()
            else:
                await self._carry_out(supervisor.take())
                if self.session is not None:
                    self.session.wake()

    def _all_listed(self) -> bool:
        """Whether every driver has said what it has, or that it cannot."""
        supervisor = self.supervisor
        return all(name in supervisor.listed or name in supervisor.down for name in self.drivers)

    async def _carry_out(self, actions: Actions) -> None:
        """Journal first, then act; a journal that refuses holds up launches, and little else."""
        assert self.executor is not None, "runs after the executor was made"
        actions = self._with_held(actions)
        try:
            if actions.term is not None:
                await self.journal.set_meta("term", str(actions.term).encode())
            if actions.puts or actions.deletes:
                await self.journal.apply(actions.puts, actions.deletes)
        except (StorageFault, Busy) as error:
            if not self._journal_fault:
                _log.error("journal refuses, launches wait", error=str(error))
            self._journal_fault = f"journal: {error}"
            self._held = Actions(
                actions.term,
                actions.puts,
                actions.deletes,
                launches=actions.launches,
                removes=take_fenced_removes(actions, self.supervisor),
            )
            await self.executor.begin(actions, launch=False)
            with trio.move_on_after(JOURNAL_RETRY_S):
                await self._woken.wait()
            return
        self._journal_fault = ""
        await self.executor.begin(actions)

    def _with_held(self, actions: Actions) -> Actions:
        """``actions`` together with what waits for the journal."""
        held, self._held = self._held, Actions()
        if not held.journals:
            return actions
        if actions.term is None:
            actions.term = held.term
        actions.puts = {
            key: record for key, record in held.puts.items() if key not in actions.deletes
        } | actions.puts
        actions.deletes |= held.deletes - actions.puts.keys()
        for name, incarnations in held.removes.items():
            actions.removes.setdefault(name, []).extend(incarnations)
        cancelled = set(actions.cancels)
        now = trio.current_time()
        for name, launches in held.launches.items():
            for launch in launches:
                if launch.incarnation in cancelled:
                    self.supervisor.launch_cancelled(launch.incarnation, now)
                else:
                    actions.launches.setdefault(name, []).append(launch)
        return actions

    async def _watch(self, driver: Driver) -> None:
        """Follow a driver's events; a list after each gap makes up for what was missed."""
        assert self.executor is not None, "runs after the executor was made"
        while True:
            try:
                async with driver.events() as events:
                    self._doubtful.set()
                    self.executor.by_driver[driver.name].relist()
                    async for event in events:
                        if event.kind is EventKind.INTERRUPTED:
                            self._doubtful.set()
                            continue
                        now = trio.current_time()
                        event = explained(event, self._fence, self.supervisor, now)
                        self.supervisor.event(driver.name, event, now)
                        self.wake()
            except SwarmError as error:
                _log.warning("events interrupted", driver=driver.name, error=str(error))
                self._doubtful.set()
            await trio.sleep(EVENTS_RETRY_S)

    # --- facts --------------------------------------------------------------------------------

    async def _look_again(self) -> None:
        while True:
            away = [name for name in self._seen_available if not self._health[name].available]
            sick = away or self._pressure
            looked_at = trio.current_time()
            with trio.move_on_after(facts.PROBE_SICK_S if sick else facts.PROBE_EVERY_S):
                await self._doubtful.wait()
                # A driver that comes and goes must not make this a loop.
                await trio.sleep_until(looked_at + facts.PROBE_PAUSE_S)
            self._doubtful = trio.Event()
            await self._look()

    async def _look(self) -> None:
        """Look at the machine and the drivers, and tell the controller what has changed."""
        now = trio.current_time()
        self.supervisor.wall_offset_s = self._edges.wall() - now
        self._health = await facts.probe_all(self.drivers)
        network = await self.attaching.look() if self.attaching is not None else {}
        short = self._edges.shortage()
        try:
            machine = self._edges.look(self._config.data)
        except OSError as error:
            if error.errno not in descriptors.EXHAUSTED:
                raise
            # What was seen before holds until there is one to look with.
            self._pressure = [short] if short else self._pressure
            return
        self._pressure = facts.pressure(machine, self._config.data, self._pressure)
        self._pressure += [short] if short else []
        for name, one in self._health.items():
            self._note_health(name, one)
        await self._tidy_guards_list()
        process = self._edges.process_name()
        after = facts.node_facts(self._settings, machine, self._health, process, network)
        if after != self._facts:
            self._facts = after
            if self.session is not None:
                self.session.facts_changed()

    async def _tidy_guards_list(self) -> None:
        """What nobody has any more, once all who could have it have told, leaves the list."""
        there = {name for name, one in self.drivers.items() if not isinstance(one, MissingDriver)}
        if self._fence is not None and there <= self.supervisor.listed:
            await self._fence.dismiss_dead(self._fence.listed.difference(self.supervisor.instances))

    def _note_health(self, name: str, health: Health) -> None:
        now = trio.current_time()
        if health.available:
            self._seen_available.add(name)
            if name in self.supervisor.down and self.executor is not None:
                # It was away: what it has now, it has to say before it is trusted.
                self.executor.by_driver[name].relist()
                self.wake()
        else:
            self.supervisor.driver_down(name, f"{name}: {health.reason}", now)
            self.wake()


async def run_agent(
    config: AgentConfig,
    *,
    edges: Edges | None = None,
    task_status: trio.TaskStatus[Agent] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node's agent until cancelled; reports it once it supervises.

    Raises:
        Conflict: the folder is in use, or another node's or cluster's; or another agent has a
            live session under this name.
        Refused: the join token or the node's key is refused.
        StorageFault: the folder or the journal cannot be used.
        InvalidSpec: something in ``config`` is wrong, or the node is not enrolled.
    """
    edges = edges or real_edges()
    # QEMU runs as a user of its own, and reaches its VM's disks below this folder.
    with DataFolder.open(config.data, "agent", PASSAGE_MODE):
        membership = await enrol.membership(
            config.data,
            name=config.name,
            join=config.join,
            controllers=config.controllers,
            open_link=edges.open_link,
            default_name=platform.node(),
        )
        identity = membership.identity
        owner = Owner(identity.cluster_id, identity.name)
        async with edges.open_journal(config.data / JOURNAL_FILE) as journal:
            drivers = edges.make_drivers(config, owner)
            async with (
                _closing(drivers),
                edges.open_link(
                    identity.addresses, identity.server_key, membership.keypair
                ) as link,
            ):
                plugs = edges.make_plugs(config, owner)
                agent = Agent(config, membership, drivers, journal, edges, plugs)
                _log.info("agent begins", node=identity.name, drivers=list(drivers))
                refusal = await agent.run(link, task_status)
    raise refusal


# Letting go of daemons' connections at the end must not hold up the end.
CLOSE_DEADLINE_S: Final = 2.0


@asynccontextmanager
async def _closing(drivers: Mapping[str, Driver]) -> AsyncIterator[None]:
    """Close what drivers hold open, at the end; their instances run on."""
    try:
        yield
    finally:
        with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
            for driver in drivers.values():
                close = getattr(driver, "close", None)
                aclose = getattr(driver, "aclose", None)
                if close is not None:
                    close()
                if aclose is not None:
                    await aclose()
