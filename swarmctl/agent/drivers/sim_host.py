"""The machine below the simulated driver: instances that exist as rows in a table.

:class:`SimHost` holds the instances of all owners and outlives the driver, so that a restarted
agent finds and adopts them.  There are no threads; time is the injected clock (trio's by default,
so that tests jump over waits), chance is a seeded generator.

An end in the future (``run_for``, a grace period) is an entry in a heap.  :meth:`SimHost.settle`
lets everything happen that is due; it is called at every look at the host, and by a timer as
long as someone reads events.  Nothing else runs, so a million instances cost a dictionary entry
each.

What one instance does can also be said by words in its container's command, which makes sim
services in stack files: ``run_for=2.5``, ``exit=3``, ``stubborn`` (ends only by force),
``fail=create``, ``fail=start``.  Images whose name begins with ``missing/`` do not exist.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count
from random import Random
from typing import Final

import trio
from attrs import define, field, frozen

from swarmctl.agent.drivers.api import (
    DriverEvent,
    EventKind,
    Found,
    Launch,
    Owner,
    Phase,
    Started,
)
from swarmctl.agent.drivers.outlet import EVENTS_MAX, Outlet
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import (
    InvalidSpec,
    LaunchFailed,
    NotFound,
    SwarmError,
)
from swarmctl.spec.models import Template

# What a shell says of a process that ended by SIGKILL and by SIGTERM.
EXIT_KILLED: Final = 137
EXIT_TERMINATED: Final = 143
# Nothing is waited for: as many at once as an agent likes.
CONCURRENCY: Final = 256
# Nothing simulated is finer than this.
TICK_S: Final = 1e-6
# Images that do not exist.
_MISSING: Final = "missing/"
# Distinct commands remembered in parsed form: a cluster has fewer services than that on a node.
ORDERS_CACHED: Final = 1_024


@frozen
class Delay:
    """How long something takes: ``fixed_s``, up to ``spread_s`` more, and an exponential tail."""

    fixed_s: float = 0.0
    spread_s: float = 0.0
    tail_mean_s: float = 0.0

    def draw(self, random: Random) -> float:
        """One sample, in seconds."""
        drawn = self.fixed_s
        if self.spread_s:
            drawn += random.uniform(0.0, self.spread_s)
        if self.tail_mean_s:
            drawn += random.expovariate(1.0 / self.tail_mean_s)
        return drawn


@frozen
class SimSettings:
    """How a simulated machine behaves. ``capacity`` 0 is without end; rates are 0 to 1.

    ``run_for_s`` None means that instances run until they are stopped.
    """

    prepare: Delay = field(factory=Delay)
    create: Delay = field(factory=Delay)
    start: Delay = field(factory=Delay)
    stop: Delay = field(factory=Delay)
    run_for_s: float | None = None
    exit_code: int = 0
    create_failure_rate: float = 0.0
    start_failure_rate: float = 0.0
    capacity: int = 0
    concurrency: int = CONCURRENCY
    events_max: int = EVENTS_MAX
    seed: int = 0


@frozen
class Orders:
    """What the words of a command ask of the simulation."""

    run_for_s: float | None = None
    exit_code: int | None = None
    stubborn: bool = False
    fail: str = ""


@lru_cache(maxsize=ORDERS_CACHED)
def parse_orders(command: tuple[str, ...]) -> Orders:
    """Read the orders in ``command``; words that are none (a real command) say nothing.

    Raises:
        InvalidSpec: an order's value is not a number.
    """
    run_for_s: float | None = None
    exit_code: int | None = None
    fail = ""
    for word in command:
        name, _, value = word.partition("=")
        try:
            if name == "run_for":
                run_for_s = float(value)
            elif name == "exit":
                exit_code = int(value)
            elif name == "fail":
                fail = value
        except ValueError:
            raise InvalidSpec(f"{word!r} is not a number", "command", "such as run_for=2") from None
    return Orders(run_for_s, exit_code, "stubborn" in command, fail)


def orders_of(launch: Launch) -> Orders:
    """The orders in a launch's template; a VM has none."""
    container = launch.template.container
    return parse_orders(container.command or ()) if container else parse_orders(())


def is_plain(template: Template) -> bool:
    """Whether instances of it just run: no orders, and an image that there is."""
    container = template.container
    return container is None or not (container.command or container.image.startswith(_MISSING))


@define
class Instance:
    """One row of a host. ``ends_at`` and ``ends_with`` are the end that is to come, if any."""

    launch: Launch
    phase: Phase = Phase.CREATED
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int | None = None
    ends_at: float = math.inf
    ends_with: int = 0
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs, or is on its way out."""
        return self.phase in (Phase.RUNNING, Phase.STOPPING)

    def found(self, template: bytes = b"") -> Found:
        """The row as a driver reports it; ``template`` is its own, encoded, for lists."""
        launch = self.launch
        return Found(
            incarnation=launch.incarnation,
            service=launch.service,
            slot=launch.slot,
            runtime_id=runtime_id(launch.incarnation),
            phase=self.phase,
            exit_code=self.exit_code,
            started_at=self.started_at,
            finished_at=self.finished_at,
            reason=self.reason,
            tenant=launch.tenant,
            template=template,
        )


def runtime_id(incarnation: int) -> str:
    """What stands for a container's id."""
    return f"sim-{incarnations.label(incarnation)}"


@define
class Fault:
    """What the next ``times`` calls of an operation meet: an error, or silence.

    A silent call never returns; with ``finish`` it has its effect all the same, as a daemon's
    call may after its caller gave up.
    """

    times: int
    error: SwarmError | None = None
    finish: bool = False


class SimHost:
    """A simulated machine: the instances of every owner, and the faults to come.

    Args:
        settings: how it behaves.
        clock: seconds, for everything that is told and waited for.
    """

    def __init__(
        self,
        settings: SimSettings | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.settings = settings or SimSettings()
        self.clock = clock
        self.random = Random(self.settings.seed)  # noqa: S311 - chance in a simulation, no secret
        self.reachable = True
        self.calls: dict[str, int] = {}
        self._books: dict[Owner, dict[int, Instance]] = {}
        self._outlets: dict[Owner, list[Outlet]] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._ends: list[tuple[float, int, Owner, Instance]] = []
        self._order = count()
        self._timers = trio.lowlevel.ParkingLot()

    # --- faults, for tests --------------------------------------------------------------------

    def fail_next(self, operation: str, error: SwarmError, times: int = 1) -> None:
        """Let the next calls of ``create``, ``start``, ``stop``, ... raise ``error``."""
        self._faults.setdefault(operation, []).append(Fault(times, error))

    def hang_next(self, operation: str, times: int = 1, *, finish: bool = False) -> None:
        """Let the next calls of ``operation`` never return; see :class:`Fault`."""
        self._faults.setdefault(operation, []).append(Fault(times, None, finish))

    def kill(self, owner: Owner, incarnation: int, exit_code: int = EXIT_KILLED) -> None:
        """End an instance behind its driver's back."""
        self.settle()
        instance = self.book(owner)[incarnation]
        assert instance.alive, f"{instance.launch.instance} does not run"
        self._end(owner, instance, exit_code, self.clock())

    def vanish(self, owner: Owner, incarnation: int) -> None:
        """Take an instance away behind its driver's back."""
        self.settle()
        self.discard(owner, incarnation)

    def lose_events(self, owner: Owner) -> None:
        """Let a gap be noticed in the owner's events."""
        for outlet in self._outlets.get(owner, ()):
            outlet.resync("simulated gap")

    def go_away(self) -> None:
        """The daemon cannot be reached from now on, and whoever listens to it notices that."""
        self.reachable = False
        for outlet in (one for some in self._outlets.values() for one in some):
            outlet.interrupted("the simulated daemon went away")

    def next_fault(self, operation: str) -> Fault | None:
        """Count a call of ``operation`` and take the fault that it meets, if any."""
        self.calls[operation] = self.calls.get(operation, 0) + 1
        waiting = self._faults.get(operation)
        if not waiting:
            return None
        fault = waiting[0]
        fault.times -= 1
        if fault.times <= 0:
            waiting.pop(0)
        return fault

    # --- the table ----------------------------------------------------------------------------

    def book(self, owner: Owner) -> dict[int, Instance]:
        """The owner's instances by incarnation."""
        return self._books.setdefault(owner, {})

    @property
    def population(self) -> int:
        """Instances of all owners."""
        return sum(map(len, self._books.values()))

    def create(self, owner: Owner, launch: Launch) -> Instance:
        """Make a row; the row that is there already when it is a repetition.

        Raises:
            NotFound: the image does not exist.
            LaunchFailed: the host is full, or chance or an order says so.
        """
        check_image(launch)
        book = self.book(owner)
        present = book.get(launch.incarnation)
        if present is not None:
            return present
        settings = self.settings
        if orders_of(launch).fail == "create" or self._unlucky(settings.create_failure_rate):
            raise LaunchFailed("the simulated create failed", launch.instance)
        if settings.capacity and self.population >= settings.capacity:
            raise LaunchFailed(f"the host is full: {settings.capacity} instances", launch.instance)
        instance = book[launch.incarnation] = Instance(launch)
        return instance

    def start(self, owner: Owner, launch: Launch, *, tell: bool = True) -> Instance:
        """Let a row run; again, when it ended.

        Raises:
            NotFound: there is no such row.
            InvalidSpec: an order says that the command does not exist.
            LaunchFailed: chance says so.
        """
        instance = self.book(owner).get(launch.incarnation)
        if instance is None:
            raise NotFound("it was not created, or is removed", launch.instance)
        if instance.alive:
            return instance
        orders = orders_of(launch)
        if orders.fail == "start":
            raise InvalidSpec("the simulated command does not exist", launch.instance)
        if self._unlucky(self.settings.start_failure_rate):
            raise LaunchFailed("the simulated start failed", launch.instance)
        now = self.clock()
        instance.phase = Phase.RUNNING
        instance.started_at, instance.finished_at = now, 0.0
        instance.exit_code, instance.ends_at, instance.reason = None, math.inf, ""
        if tell:
            self._tell(owner, DriverEvent(EventKind.STARTED, launch.incarnation, now))
        run_for_s = self.settings.run_for_s if orders.run_for_s is None else orders.run_for_s
        if run_for_s is None and orders.exit_code is not None:
            run_for_s = 0.0
        if run_for_s is not None:
            code = self.settings.exit_code if orders.exit_code is None else orders.exit_code
            self.schedule_end(owner, instance, now + run_for_s, code)
        return instance

    def launch_many(self, owner: Owner, launches: Sequence[Launch]) -> Started:
        """Create and start each at once; nobody is told by an event of what this answers."""
        book, now, settings = self.book(owner), self.clock(), self.settings
        # Where nothing is left to chance or to orders, a row is made as it will be.
        plain = (
            not settings.capacity
            and not settings.create_failure_rate
            and not settings.start_failure_rate
            and settings.run_for_s is None
        )
        answers: list[str | SwarmError] = []
        for launch in launches:
            incarnation = launch.incarnation
            if plain and incarnation not in book and is_plain(launch.template):
                book[incarnation] = Instance(launch, Phase.RUNNING, now)
                answers.append(runtime_id(incarnation))
                continue
            try:
                self.create(owner, launch)
                self.start(owner, launch, tell=False)
                answers.append(runtime_id(incarnation))
            except SwarmError as error:
                answers.append(error)
        return Started(now, answers)

    def schedule_end(self, owner: Owner, instance: Instance, at: float, code: int) -> None:
        """Let ``instance`` end at ``at``, unless it does so before."""
        if at >= instance.ends_at:
            return
        instance.ends_at, instance.ends_with = at, code
        heapq.heappush(self._ends, (at, next(self._order), owner, instance))
        if self._ends[0][3] is instance:
            self._timers.unpark_all()

    def discard(self, owner: Owner, incarnation: int) -> None:
        """Take a row away, whatever it is doing; nothing when it is not there."""
        instance = self.book(owner).get(incarnation)
        if instance is None:
            return
        if instance.alive:
            self._end(owner, instance, EXIT_KILLED, self.clock())
        del self.book(owner)[incarnation]
        self._tell(owner, DriverEvent(EventKind.REMOVED, incarnation, self.clock()))

    def settle(self) -> None:
        """Let everything happen that is due by now."""
        now = self.clock()
        while self._ends and self._ends[0][0] <= now:
            at, _, owner, instance = heapq.heappop(self._ends)
            if instance.alive and instance.ends_at == at:
                self._end(owner, instance, instance.ends_with, at)

    def _end(self, owner: Owner, instance: Instance, code: int, at: float) -> None:
        instance.phase, instance.exit_code = Phase.EXITED, code
        instance.finished_at, instance.ends_at = at, math.inf
        incarnation = instance.launch.incarnation
        self._tell(owner, DriverEvent(EventKind.EXITED, incarnation, at, code, instance.reason))

    def _unlucky(self, rate: float) -> bool:
        return rate > 0.0 and self.random.random() < rate

    # --- events -------------------------------------------------------------------------------

    def attach(self, owner: Owner, outlet: Outlet) -> None:
        """Send the owner's events to ``outlet``, too."""
        self._outlets.setdefault(owner, []).append(outlet)

    def detach(self, owner: Owner, outlet: Outlet) -> None:
        """Send nothing to ``outlet`` any more."""
        self._outlets[owner].remove(outlet)

    def _tell(self, owner: Owner, event: DriverEvent) -> None:
        for outlet in self._outlets.get(owner, ()):
            outlet.offer(event)

    async def keep_time(self) -> None:
        """Settle whenever something is due; until cancelled."""
        while True:
            self.settle()
            due = self._ends[0][0] - self.clock() if self._ends else math.inf
            # A wait lost in the clock's rounding would end before it began, for ever.
            with trio.move_on_after(max(due, TICK_S)):
                await self._timers.park()


def check_image(launch: Launch) -> None:
    """Refuse images that do not exist in the simulation.

    Raises:
        NotFound: the image's name begins with ``missing/``.
    """
    container = launch.template.container
    if container is not None and container.image.startswith(_MISSING):
        raise NotFound(f"image {container.image} does not exist", launch.instance)
