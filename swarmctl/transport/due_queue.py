"""Payloads on their way in memory, and who waits for them: the wires of one end of a connection.

A payload is there when it is due and not before.  Whoever waits sleeps until the first is due; one
that is put meanwhile and due sooner moves that moment, and wakes nobody before it.
"""

import heapq
import itertools
import math
from typing import Generic, TypeVar

import trio

# What a payload came on.
_W = TypeVar("_W")


class DueQueue(Generic[_W]):
    """Payloads on their way to one end, by the time they are due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _W, bytes]] = []
        self._serial = itertools.count()
        self._woken = trio.Event()
        self._busy = False
        self._until = trio.CancelScope()

    def put(self, due: float, wire: _W, payload: bytes) -> None:
        """Put a payload on its way; ``due`` on trio's clock, in seconds."""
        heapq.heappush(self._heap, (due, next(self._serial), wire, payload))
        if not self._busy:
            return  # Whoever waits next looks first.
        if due <= trio.current_time():
            self.wake()
        elif due < self._until.deadline:
            # To wake it now only for it to wait again would double what a payload costs.
            self._until.deadline = due

    def take(self) -> tuple[_W, bytes] | None:
        """The next payload that is due."""
        if not self._heap or self._heap[0][0] > trio.current_time():
            return None
        _, _, wire, payload = heapq.heappop(self._heap)
        return wire, payload

    def lose_under_way(self, wire: _W) -> int:
        """Lose what is not due yet on a wire; returns how many."""
        now = trio.current_time()
        kept = [entry for entry in self._heap if entry[2] is not wire or entry[0] <= now]
        lost = len(self._heap) - len(kept)
        self._heap = kept
        heapq.heapify(self._heap)
        return lost

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._woken.set()

    async def wait(self) -> None:
        """Wait until something is due or :meth:`wake` is called; may return without either."""
        if self._busy:
            raise trio.BusyResourceError("another task is receiving here")
        self._busy = True
        try:
            due = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=due) as self._until:
                await self._woken.wait()
            self._woken = trio.Event()
        finally:
            self._busy = False
