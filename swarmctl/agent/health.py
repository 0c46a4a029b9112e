"""Whether instances are well: when each is asked, and what the answers mean. Pure.

An instance whose template has a check gets a :class:`Watch` when it runs; the :class:`Watchlist`
keeps them in the order in which they are due.  The shell (:mod:`swarmctl.agent.checks`) takes what
is due, asks, and hands the answer back.  Instances without a check are not known here at all.

:data:`AFTER` says which health follows an answer, from three facts: whether it was good, whether
failures count by now, and whether there were as many in a row as the check allows.  Looks are
early and frequent until the first good one, so that what is quick is known to be well within a
second; but failures count only once the start period is over, and never before the first
interval is, as a container engine would have asked then for the first time.

A check that could not be made (the daemon is away, the instance has just gone) is no answer.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import HealthCheck

if TYPE_CHECKING:
    from swarmctl.agent.instance import Instance
    from swarmctl.agent.supervisor import Supervisor

# The first look comes this soon, and each of the next ones twice as late as the one before, up to
# the interval at the start.
FIRST_LOOK_S: Final = 0.5


class Health(Enum):
    """What is known of an instance's health."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Heard(Enum):
    """An answer, as the table takes it."""

    GOOD = "good"
    EARLY = "a failure that does not count yet"
    BAD = "a failure that counts, and too few of them"
    TOO_BAD = "one failure too many"


_H: Final = Health

AFTER: Final[dict[tuple[Health, Heard], Health]] = {
    **{(before, Heard.GOOD): _H.HEALTHY for before in Health},
    **{(before, Heard.EARLY): before for before in Health},
    **{(before, Heard.BAD): before for before in Health},
    **{(before, Heard.TOO_BAD): _H.UNHEALTHY for before in Health},
}


@frozen
class Answer:
    """How one check ended; ``said`` is what to tell people of a failure."""

    good: bool
    said: str = ""


@define(eq=False)
class Watch:
    """One attempt of an instance that is checked; times are the agent's clock.

    ``failures`` are those in a row that count; ``looks`` all checks so far; ``healthy_since`` is
    0 until the first good answer; ``asking`` that one is under way; ``condemned`` why the instance
    is stopped for it.
    """

    incarnation: int
    check: HealthCheck
    began_at: float
    health: Health = Health.STARTING
    failures: int = 0
    looks: int = 0
    healthy_since: float = 0.0
    said: str = ""
    due: float = 0.0
    asking: bool = False
    condemned: str = ""

    def take(self, answer: Answer, now: float) -> bool:
        """An answer came; whether the health is another one now."""
        before = self.health
        heard = self._heard(answer, now)
        self.health = AFTER[before, heard]
        self.said = answer.said
        if self.health is Health.HEALTHY and not self.healthy_since:
            self.healthy_since = now
        self._plan(now)
        return self.health is not before

    def well_since(self, wall_offset_s: float) -> float:
        """Since when it was well, in epoch seconds; 0 when it never was."""
        return self.healthy_since + wall_offset_s if self.healthy_since else 0.0

    def put_off(self, now: float) -> None:
        """The check could not be made: later, and nothing is known."""
        self._plan(now)

    def _heard(self, answer: Answer, now: float) -> Heard:
        if answer.good:
            self.failures = 0
            return Heard.GOOD
        if self.health is Health.STARTING and now - self.began_at < self._grace_s:
            return Heard.EARLY
        self.failures += 1
        return Heard.TOO_BAD if self.failures >= self.check.retries else Heard.BAD

    @property
    def _grace_s(self) -> float:
        # With some slack, so that the look at the end of the first interval counts.
        return max(self.check.start_period_s, self.check.interval_s * 0.99)

    def _plan(self, now: float) -> None:
        """Set when to look next."""
        self.looks += 1
        self.asking = False
        wait_s = self.check.interval_s
        early = now - self.began_at < self._grace_s
        if self.health is Health.STARTING and early:
            frequent_s = min(self.check.start_interval_s, self.check.interval_s)
            wait_s = min(FIRST_LOOK_S * 2.0 ** min(self.looks, 32), frequent_s)
            # The end of the grace is looked at, not passed over.
            wait_s = min(wait_s, self.began_at + self._grace_s - now + 0.001)
        self.due = now + wait_s


@define(eq=False)
class Watchlist:
    """All watches of a node, by incarnation, and which is due when.

    ``changed`` is called when there is a new one: whoever waits for the next one may have to wait
    for less.  ``in_use`` says that some template has a check: until then nothing is looked up.
    """

    in_use: bool = False
    watches: dict[int, Watch] = field(factory=dict)
    changed: Callable[[], None] = lambda: None
    _heap: list[tuple[float, int]] = field(factory=list)

    def begin(self, incarnation: int, check: HealthCheck, now: float) -> Watch:
        """An attempt of ``incarnation`` has begun to run."""
        first_s = min(FIRST_LOOK_S, check.interval_s, check.start_interval_s)
        watch = Watch(incarnation, check, now, due=now + first_s)
        self.watches[incarnation] = watch
        self.schedule(watch)
        self.changed()
        return watch

    def attach(self, instance: "Instance", supervisor: "Supervisor", *, was_well: bool) -> bool:
        """``instance`` runs: watch it if its template has a check; whether it is only starting."""
        template = supervisor.templates.get(instance.template)
        check = template.checked if template is not None else None
        if check is None:
            return False
        instance.health = self.begin(instance.incarnation, check, supervisor.now)
        if not was_well:
            reason = "waiting for the first good health check"
            supervisor.show(instance, InstanceState.STARTING, reason)
        return not was_well

    def end(self, watch: Watch) -> None:
        """What it watched runs no more."""
        if self.watches.get(watch.incarnation) is watch:
            del self.watches[watch.incarnation]

    def schedule(self, watch: Watch) -> None:
        """It was planned anew."""
        heapq.heappush(self._heap, (watch.due, watch.incarnation))

    def due(self, now: float, most: int) -> Iterator[Watch]:
        """Take those whose time has come, ``most`` of them; each has to be planned again."""
        while most > 0 and self._heap and self._heap[0][0] <= now:
            due, incarnation = heapq.heappop(self._heap)
            watch = self.watches.get(incarnation)
            if watch is not None and watch.due == due and not watch.asking:
                watch.asking = True
                most -= 1
                yield watch

    def next_due(self) -> float:
        """When the next one is; infinite when there is none."""
        return self._heap[0][0] if self._heap else math.inf
