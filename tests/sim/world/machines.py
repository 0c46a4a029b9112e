"""A node: its instances, its driver, its clock, its disk; what outlives its agent."""

import random
from contextlib import asynccontextmanager

import attrs
import trio

from swarmctl.agent.drivers.api import Phase
from swarmctl.agent.drivers.sim import EXIT_KILLED, Delay, SimDriver, SimHost, SimSettings
from swarmctl.agent.facts import Machine as MachineFacts
from swarmctl.proto.errors import DriverUnavailable
from tests.sim.world.disks import Journal
from tests.sim.world.guards import Guards

# Two to five instances: together they take up to two thirds of all machines. Of none of these does
# an instance take more than two fifths, so that a machine with one of them always has room.
CAPACITY = {"cpu_millis": 500, "memory_bytes": 5 << 20, "disk_bytes": 50 << 20, "gpu": 5}
# Virtual time begins at 0; a clock of the day does not.
_EPOCH_S = 1_700_000_000.0
_DELAYS = {
    "prepare": Delay(0.0, 0.2),
    "create": Delay(0.0, 0.1),
    "start": Delay(0.0, 0.2),
    "stop": Delay(0.0, 0.5),
}
# All alike, and with room: what is short on the machine that runs the test is not our affair.
FACTS = MachineFacts(4, 2**33, 2**32, 2**36, 2**35)


@attrs.define
class Clock:
    """What a machine takes for the time of day: ``rate`` too fast, and ``offset_s`` ahead.

    ``on_look`` is called when somebody looks at it next.
    """

    rate: float = 0.0
    offset_s: float = 0.0
    on_look: object = None

    def at(self, true_s):
        """Its time of day at the virtual time ``true_s``."""
        if self.on_look is not None:
            on_look, self.on_look = self.on_look, None
            on_look()
        return _EPOCH_S + true_s * (1.0 + self.rate) + self.offset_s

    def now(self):
        """Its time of day."""
        return self.at(trio.current_time())

    def drift(self, rate):
        """Run faster by ``rate`` from now on, without a step."""
        self.offset_s += trio.current_time() * (self.rate - rate)
        self.rate = rate


class Host(SimHost):
    """The instances of a machine. Its books are watched: ``on_start`` and ``on_create``."""

    def __init__(self, machine, settings):
        super().__init__(settings)
        self.machine = machine

    def create(self, owner, launch):
        new = launch.incarnation not in self.book(owner)
        instance = super().create(owner, launch)
        if new:
            self.machine.world.invariants.created(self.machine, launch)
        return instance

    def start(self, owner, launch, *, tell=True):
        present = self.book(owner).get(launch.incarnation)
        again = present is not None and present.alive
        instance = super().start(owner, launch, tell=tell)
        if not again:
            self.machine.world.invariants.started(self.machine, instance)
            self.machine.wake_guards()
        return instance

    def lose_events(self, owner):
        super().lose_events(owner)
        return len(self._outlets.get(owner, ()))

    def next_fault(self, operation):
        fault = super().next_fault(operation)
        if fault is not None:
            self.machine.world.books.fire("driver-fails", self.machine.name, operation)
        return fault

    def _end(self, owner, instance, code, at):
        super()._end(owner, instance, code, at)
        self.machine.world.invariants.ended(instance, code)

    def _tell(self, owner, event):
        self.machine.world.trace.note("event", self.machine.name, event.kind.value)
        super()._tell(owner, attrs.evolve(event, at=self.machine.clock.at(event.at)))


class Driver(SimDriver):
    """The daemon of a machine as its agent sees it: slow, and now and then away or silent."""

    def __init__(self, owner, host):
        super().__init__(owner, host)
        self.machine = host.machine

    async def create(self, launch):
        self.machine.world.invariants.journaled(self.machine, launch)
        return await self._effect("create", super().create(launch), launch)

    async def start(self, launch):
        return self._told(await self._effect("start", super().start(launch), launch))

    async def list(self):
        return [self._told(one) for one in await super().list()]

    def _told(self, found):
        """The daemon tells the machine's time of day."""
        at = self.machine.clock.at
        return attrs.evolve(
            found,
            started_at=at(found.started_at) if found.started_at else 0.0,
            finished_at=at(found.finished_at) if found.finished_at else 0.0,
        )

    @asynccontextmanager
    async def exec(self, incarnation, command, *, tty, stdin):  # noqa: ARG002 - as Exec's
        """A health check."""
        await self._meet("exec")
        machine = self.machine
        instance = machine.running().get(incarnation)
        if machine.unwell and instance is not None:
            machine.world.books.fire("unwell", machine.name)
        if instance is not None:
            machine.world.invariants.asked(machine, instance, well=not machine.unwell)
        yield _Verdict(int(machine.unwell))

    async def _effect(self, what, call, launch):
        """A call whose caller may die before the effect, after it, or while the daemon works."""
        if self.machine.on_call is not None:
            on_call, self.machine.on_call = self.machine.on_call, None
            on_call(0.2)
        try:
            result = await call
        except trio.Cancelled:
            self.machine.abandoned(what, self.owner, launch)
            raise
        await trio.sleep(self.machine.random.uniform(0.0, 0.02))
        return result

    async def _meet(self, operation, effect=None):
        self.machine.world.trace.note("call", self.machine.name, operation)
        if self.machine.silent is not None:
            self.machine.world.books.fire("driver-silent", self.machine.name, operation)
            await self.machine.silent.wait()
            raise DriverUnavailable("the simulated daemon was restarted", "sim")
        if not self.host.reachable:
            self.machine.world.books.fire("driver-away", self.machine.name, operation)
        await super()._meet(operation, effect)

    async def probe(self):
        if self.machine.silent is not None:
            await self.machine.silent.wait()
        return await super().probe()


@attrs.frozen
class _Verdict:
    """A terminal at whose other end a command has ended, without a word."""

    code: int

    async def receive(self):
        """The end."""
        await trio.lowlevel.checkpoint()

    async def exit_code(self):
        """What it said."""
        await trio.lowlevel.checkpoint()
        return self.code


def is_checked(instance):
    """Whether it is asked how it is."""
    return instance.launch.template.health is not None


@attrs.define(eq=False)
class Machine(Guards):
    """A node; ``silent`` is set while its daemon takes calls and answers none.

    ``lost`` says that it is off, and will never be on again; ``off`` that it is without power;
    ``unwell``, that what runs here answers health checks badly; ``book`` has its instances, by
    incarnation.
    """

    world: object
    name: str
    folder: object
    random: random.Random
    clock: Clock = attrs.field(factory=Clock)
    quartz: Clock = attrs.field(factory=Clock)
    silent: trio.Event | None = None
    on_call: object = None
    lost: bool = False
    unwell: bool = False
    off: bool = False
    forgotten: set = attrs.field(factory=set)
    host: Host = attrs.field(init=False)
    journal: Journal = attrs.field(init=False)
    book: dict = attrs.field(init=False)

    def __attrs_post_init__(self):
        settings = SimSettings(**_DELAYS, seed=self.random.getrandbits(32))
        self.host = Host(self, settings)
        Guards.__init__(self)
        self.journal = Journal(self.world.books, self.name, self.random)
        # Always the same: it is looked at thousands of times.
        self.book = self.host.book(self.world.owner(self.name))

    def alive(self):
        """Its instances that run."""
        return {number: one for number, one in self.book.items() if one.alive}

    def running(self):
        """Its instances that run and are not on their way out."""
        return {n: one for n, one in self.book.items() if one.phase is Phase.RUNNING}

    def kill_instance(self, incarnation):
        """Behind its agent's back."""
        self.host.settle()  # It may end by itself just now.
        if self.book[incarnation].alive:
            self.host.kill(self.world.owner(self.name), incarnation)

    def lose_power(self):
        """All that ran has ended, and nobody is told; the daemon does nothing more, either."""
        self.off = True
        owner = self.world.owner(self.name)
        for one in self.alive().values():
            self.host._end(owner, one, EXIT_KILLED, trio.current_time())
        self.lose_guards()

    def abandoned(self, what, owner, launch):
        """A call's caller is gone; the daemon may carry it out all the same, a little later."""
        if not self.host.reachable or self.random.random() < 0.5:
            return
        effect = self.host.create if what == "create" else self.host.start
        if what == "start" and launch.incarnation not in self.host.book(owner):
            return
        self.world.books.fire("call-outlives-caller", self.name, what)
        # A daemon that creates later than its agent is back would need lists from time to time.
        self.world.later(
            self.random.uniform(0.0, 0.09), lambda: self._finish(effect, owner, launch)
        )

    def _finish(self, effect, owner, launch):
        gone = effect == self.host.start and launch.incarnation not in self.host.book(owner)
        if not gone and not self.off:
            effect(owner, launch)

    def speak(self):
        """Its daemon answers again; calls under way are told that it was restarted."""
        if self.silent is not None:
            self.silent.set()
            self.silent = None
