"""Carries out what the supervisor decided: driver calls, bounded, each with its deadline.

A driver has four *lanes* (prepare, launch, stop, remove), each a queue and at most so many tasks
at once; tasks exist only while there is work.  Preparing has a lane of its own, so that one image
that takes minutes to pull does not hold up instances whose image is there; stopping too, because
a stop mostly waits for its grace period.

Every operation is answered to the supervisor exactly once.  A call that does not end within its
deadline is given up: its driver is named sick, other work goes on, and the list that the
supervisor then asks for shows whether it came through after all.

A driver that launches in bulk (the simulated one, in benchmarks) is called once for many.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import structlog
import trio

from swarmctl.agent import adoption, fast_path
from swarmctl.agent.actions import Actions, Stop
from swarmctl.agent.attaching import INSTALL_DEADLINE_S, Attaching
from swarmctl.agent.drivers.api import BulkLaunch, Driver, Launch
from swarmctl.agent.fencing import Fence, NotFenced, explained_list
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.timeline import Step, Timelines
from swarmctl.proto.errors import DeadlineExceeded, InternalError, SwarmError
from swarmctl.proto.states import InstanceState

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)

# A large image over a slow line; a user sees the progress, and can remove the instance.
PREPARE_DEADLINE_S: Final = 1_800.0
# A daemon that takes longer than this for one of these does not work.
CREATE_DEADLINE_S: Final = 60.0
START_DEADLINE_S: Final = 60.0
REMOVE_DEADLINE_S: Final = 60.0
LIST_DEADLINE_S: Final = 30.0
# A few netlink messages and a transaction a port, and a holder for Docker.
PLUG_DEADLINE_S: Final = 90.0
# The wait has a deadline of its own, and says more when it ends; this is for one that hangs.
INSTALLED_DEADLINE_S: Final = INSTALL_DEADLINE_S + 15.0
# Beyond the grace period: the forced end itself.
STOP_MARGIN_S: Final = 30.0
# Stops at once for each launch at once: they wait for their instance, not for the daemon.
STOPS_PER_LAUNCH: Final = 4
# Launches of one bulk call, about 5 ms: between two of them the loop serves everything else.
BULK_MAX: Final = 1_000


class _Lane:
    """A queue of jobs and the tasks that work on it, at most ``limit``."""

    def __init__(self, nursery: trio.Nursery, limit: int) -> None:
        self._nursery = nursery
        self._limit = limit
        # Bounded by the number of instances: each has one operation at the most.
        self._jobs: deque[Callable[[], Awaitable[None]]] = deque()
        self._workers = 0

    def submit(self, job: Callable[[], Awaitable[None]]) -> None:
        self._jobs.append(job)
        if self._workers < self._limit:
            self._workers += 1
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while self._jobs:
                await self._jobs.popleft()()
        finally:
            self._workers -= 1


class DriverExecutor:
    """The operations on one driver."""

    def __init__(
        self,
        driver: Driver,
        supervisor: Supervisor,
        nursery: trio.Nursery,
        wake: Callable[[], None],
        *,
        bulk: bool,
        fence: Fence | None = None,
        attaching: Attaching | None = None,
        timelines: Timelines,
    ) -> None:
        self.driver = driver
        self._timelines = timelines
        self._fence = fence
        # What is simulated has no network to be plugged into.
        self._attaching = None if getattr(driver, "simulated", False) else attaching
        # Why the last call that was given up makes the driver sick; empty when it does not.
        self.hung = ""
        self._supervisor = supervisor
        self._nursery = nursery
        self._wake = wake
        self._bulk = driver if bulk and isinstance(driver, BulkLaunch) else None
        self._prepares = _Lane(nursery, driver.concurrency)
        self._launches = _Lane(nursery, driver.concurrency)
        self._stops = _Lane(nursery, driver.concurrency * STOPS_PER_LAUNCH)
        self._removes = _Lane(nursery, driver.concurrency)
        # Launches that may still be cancelled, with the scope of their preparation if it began.
        self._preparing: dict[int, trio.CancelScope] = {}
        self._listing = False
        self._list_again = False

    # --- from the agent's loop ----------------------------------------------------------------

    async def launch(self, launches: list[Launch]) -> None:
        """Begin launches, in their order."""
        if self._bulk is not None:
            self._launch_many(self._bulk, launches[:BULK_MAX])
            for start in range(BULK_MAX, len(launches), BULK_MAX):
                await trio.lowlevel.checkpoint()
                self._launch_many(self._bulk, launches[start : start + BULK_MAX])
            return
        now, instances = trio.current_time(), self._supervisor.instances
        for launch in launches:
            one = instances.get(launch.incarnation)
            self._timelines.begin(launch.incarnation, one.attempt if one is not None else 1, now)
            self._preparing[launch.incarnation] = trio.CancelScope()
            self._prepares.submit(lambda launch=launch: self._prepare(launch))  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    def cancel(self, incarnation: int) -> None:
        """Give a launch up, unless it is creating already (that is short, and then undone)."""
        scope = self._preparing.get(incarnation)
        if scope is not None:
            scope.cancel()

    def stop(self, stop: Stop) -> None:
        """Begin a stop."""
        self._stops.submit(lambda: self._stop(stop))

    async def remove(self, incarnations: list[int]) -> None:
        """Begin removes."""
        if self._bulk is not None:
            for start in range(0, len(incarnations), BULK_MAX):
                batch = incarnations[start : start + BULK_MAX]
                self._bulk.remove_many(batch)
                now = trio.current_time()
                for incarnation in batch:
                    self._supervisor.removed(incarnation, now)
                self._wake()
                await trio.lowlevel.checkpoint()
            return
        for incarnation in incarnations:
            self._removes.submit(lambda one=incarnation: self._remove(one))  # type: ignore[misc]  # as above

    def relist(self) -> None:
        """Ask for all that the driver has; once more when that is under way already."""
        if self._listing:
            self._list_again = True
        else:
            self._listing = True
            self._nursery.start_soon(self._relist)

    # --- operations ---------------------------------------------------------------------------

    def _launch_many(self, driver: BulkLaunch, batch: list[Launch]) -> None:
        started = driver.launch_many(batch)
        fast_path.launched(self._supervisor, batch, started, trio.current_time())
        self._wake()

    async def _prepare(self, launch: Launch) -> None:
        incarnation = launch.incarnation
        scope = self._preparing[incarnation]

        def progress(text: str) -> None:
            now = trio.current_time()
            self._supervisor.progressed(incarnation, InstanceState.PREPARING, text, now)
            self._wake()

        self._note(incarnation, Step.PREPARING)
        error: SwarmError | None = None
        with scope:
            try:
                await self._within(
                    PREPARE_DEADLINE_S, "prepare", self.driver.prepare(launch, progress)
                )
            except SwarmError as failure:
                error = failure
        if error is None and not scope.cancelled_caught:
            # Still cancellable while it waits for its turn.
            self._note(incarnation, Step.PREPARED)
            self._launches.submit(lambda: self._create_and_start(launch, scope))
            return
        del self._preparing[incarnation]
        if error is not None:
            self._supervisor.launch_failed(incarnation, error, trio.current_time())
        else:
            self._supervisor.launch_cancelled(incarnation, trio.current_time())
        self._wake()

    async def _create_and_start(self, launch: Launch, scope: trio.CancelScope) -> None:
        incarnation, supervisor = launch.incarnation, self._supervisor
        del self._preparing[incarnation]
        if scope.cancel_called:
            supervisor.launch_cancelled(incarnation, trio.current_time())
            self._wake()
            return
        supervisor.progressed(incarnation, InstanceState.STARTING, "", trio.current_time())
        self._note(incarnation, Step.STARTING)
        try:
            if launch.attachments and self._attaching is not None:
                await self._create_plugged(self._attaching, launch)
            else:
                await self._create(launch)
            found = await self._within(START_DEADLINE_S, "start", self.driver.start(launch))
        except SwarmError as error:
            supervisor.launch_failed(incarnation, error, trio.current_time())
        else:
            self._note(incarnation, Step.RUNNING)
            supervisor.launched(incarnation, found, trio.current_time())
        self._wake()

    def _note(self, incarnation: int, step: Step) -> None:
        self._timelines.note(incarnation, step, trio.current_time())

    async def _create(self, launch: Launch) -> None:
        if launch.template.fenced:
            await self._create_fenced(launch)
        else:
            await self._within(CREATE_DEADLINE_S, "create", self.driver.create(launch))
        self._note(launch.incarnation, Step.CREATED)

    async def _create_plugged(self, attaching: Attaching, launch: Launch) -> None:
        """Create it with its ports plugged in and up; OVN has the time that the create takes."""
        plug = attaching.plug(launch, self.driver)
        await self._within(PLUG_DEADLINE_S, "plug in", plug)
        self._note(launch.incarnation, Step.PLUGGED)
        await self._create(launch)
        waiting = attaching.wait_installed(launch)
        await self._within(INSTALLED_DEADLINE_S, "wait for its ports", waiting)
        self._note(launch.incarnation, Step.PORT_UP)

    async def _create_fenced(self, launch: Launch) -> None:
        """Create it, and have it in the guard's list; only then may it be started."""
        if self._fence is None:
            raise NotFenced(
                "this agent has no guard that fences instances",
                hint="its log says why, from its start on",
            )
        self._fence.check()
        create = self.driver.create(launch)
        runtime_id = await self._within(CREATE_DEADLINE_S, "create", create)
        self._fence.enlist(launch.incarnation, runtime_id)
        self._fence.check()

    async def _stop(self, stop: Stop) -> None:
        deadline_s = stop.grace_s + STOP_MARGIN_S
        try:
            await self._within(deadline_s, "stop", self.driver.stop(stop.incarnation, stop.grace_s))
        except SwarmError as error:
            self._supervisor.stop_failed(stop.incarnation, error, trio.current_time())
        else:
            self._supervisor.stopped(stop.incarnation, trio.current_time())
        self._wake()

    async def _remove(self, incarnation: int) -> None:
        try:
            await self._within(REMOVE_DEADLINE_S, "remove", self.driver.remove(incarnation))
            instance = self._supervisor.instances.get(incarnation)
            if instance is not None and instance.attachments and self._attaching is not None:
                unplug = self._attaching.unplug(instance, self.driver)
                await self._within(PLUG_DEADLINE_S, "unplug", unplug)
        except SwarmError as error:
            self._supervisor.remove_failed(incarnation, error, trio.current_time())
        else:
            if self._fence is not None:
                self._fence.dismiss(incarnation)
            self._timelines.forget(incarnation)
            self._supervisor.removed(incarnation, trio.current_time())
        self._wake()

    async def _relist(self) -> None:
        failures = 0
        while True:
            self._list_again = False
            asked_at = self._supervisor.serial
            try:
                found = await self._within(LIST_DEADLINE_S, "list", self.driver.list())
            except SwarmError as error:
                failures += 1
                self._supervisor.driver_down(self.driver.name, error.what, trio.current_time())
                _log.warning("cannot list", driver=self.driver.name, error=str(error))
                self._wake()
                await trio.sleep(min(RELIST_MIN_S * 2.0 ** min(failures - 1, 8), RELIST_MAX_S))
                continue
            now = trio.current_time()
            told = explained_list(found, self._fence, self._supervisor, now)
            adoption.listed(self._supervisor, self.driver.name, asked_at, told, now)
            self._supervisor.driver_up(self.driver.name, now)
            self._wake()
            failures = 0
            if not self._list_again:
                self._listing = False
                return

    async def _within(self, deadline_s: float, what: str, call: Awaitable[_T]) -> _T:
        """Await a driver's call; every way in which it may fail comes out as a SwarmError."""
        name = self.driver.name
        try:
            with trio.fail_after(deadline_s):
                result = await call
        except trio.TooSlowError as error:
            self.hung = f"{name}: {what} did not end within {deadline_s:g} s"
            _log.warning("driver call given up", driver=name, call=what, deadline_s=deadline_s)
            raise DeadlineExceeded(self.hung) from error
        except SwarmError:
            raise
        except Exception as error:
            # A defect in one driver must not end what the others do: it is logged with its
            # trace, and reported as ours.
            _log.exception("driver failed", driver=name, call=what)
            raise InternalError(
                f"{name}: {what} failed: {type(error).__name__}: {error}",
                hint="this is a defect in swarmctl: the agent's log has the trace",
            ) from error
        self.hung = ""
        return result


# A daemon that is restarting answers within seconds; one that is not there is asked gently.
RELIST_MIN_S: Final = 0.25
RELIST_MAX_S: Final = 5.0


class Executor:
    """The operations on all drivers.

    Args:
        drivers: by name.
        supervisor: whose decisions these are, and who is told how they ended.
        nursery: where operations run.
        wake: called whenever the supervisor was told something.
        bulk: use the bulk calls of drivers that have them.
        fence: what ends fenced instances; without one they are not started.
        attaching: what plugs instances into tenant networks.
        timelines: where the steps of launches are noted.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        supervisor: Supervisor,
        nursery: trio.Nursery,
        wake: Callable[[], None],
        *,
        bulk: bool = False,
        fence: Fence | None = None,
        attaching: Attaching | None = None,
        timelines: Timelines | None = None,
    ) -> None:
        timelines = timelines if timelines is not None else Timelines()
        self.by_driver = {
            name: DriverExecutor(
                driver,
                supervisor,
                nursery,
                wake,
                bulk=bulk,
                fence=fence,
                attaching=attaching,
                timelines=timelines,
            )
            for name, driver in drivers.items()
        }

    async def begin(self, actions: Actions, *, launch: bool = True) -> None:
        """Begin all operations of ``actions``; without ``launch`` all but the launches."""
        for incarnation in actions.cancels:
            for each in self.by_driver.values():
                each.cancel(incarnation)
        for stop in actions.stops:
            self.by_driver[stop.driver].stop(stop)
        for name, incarnations in actions.removes.items():
            await self.by_driver[name].remove(incarnations)
        if launch:
            for name, launches in actions.launches.items():
                await self.by_driver[name].launch(launches)
        for name in actions.relists:
            if name in self.by_driver:
                self.by_driver[name].relist()

    def hung(self) -> list[str]:
        """The drivers that have a call that was given up, in words."""
        return [each.hung for each in self.by_driver.values() if each.hung]
