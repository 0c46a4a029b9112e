"""One alarm clock for many sessions: it calls back what is due, a tick's worth at a time.

A task of its own that sleeps until its next heartbeat costs a node more than the heartbeat: trio
makes, cancels and unwinds a scope for each sleep, and each wake-up finds the caches cold.  Where a
process holds thousands of nodes (a simulated fleet) that is most of what it does.  So what is due
is a call and not a task; times are rounded up to ticks, and all that is due in one tick is called
in one go.  An agent that is alone in its process has a clock to itself and loses nothing by it.
"""

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Final, Never

import trio
from attrs import define, field

# Calls come so much late at the most: a hundredth of the shortest heartbeat.
TICK_S: Final = 0.02

Ring = Callable[[float], None]


@define(eq=False)
class Alarm:
    """A call that is to come; ``due`` on trio's clock, in seconds."""

    due: float
    ring: Ring
    cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Do not call; nothing happens when that was done already."""
        self.cancelled = True


class Alarms:
    """See the module; :meth:`run` has to run for calls to come."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._waiting: list[tuple[float, int, Alarm]] = []
        self._order = itertools.count()
        # When the clock will look next, and what wakes it before that.
        self._next = math.inf
        self._sooner = trio.Event()

    def at(self, due: float, ring: Ring) -> Alarm:
        """Call ``ring(due)`` at ``due`` or up to a tick later; it must not wait and not raise."""
        alarm = Alarm(due, ring)
        heapq.heappush(self._waiting, (due, next(self._order), alarm))
        if due < self._next:
            self._sooner.set()
        return alarm

    async def run(self) -> Never:
        """Call what is due, until cancelled."""
        while True:
            self._sooner = trio.Event()
            first = self._waiting[0][0] if self._waiting else math.inf
            if self._waiting:
                # A product of floats may come out below what it was made of: then never before it.
                first = max(first, math.ceil(first / self._tick_s) * self._tick_s)
            self._next = first
            with trio.move_on_at(self._next):
                await self._sooner.wait()
            self._ring_due(trio.current_time())

    def _ring_due(self, now: float) -> None:
        waiting = self._waiting
        # What is set meanwhile for now or before comes in the next round: others have a turn.
        due: list[Alarm] = []
        while waiting and waiting[0][0] <= now:
            due.append(heapq.heappop(waiting)[2])
        for alarm in due:
            if not alarm.cancelled:
                alarm.ring(alarm.due)
