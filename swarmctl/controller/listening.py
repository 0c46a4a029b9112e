"""A clock that runs only while we listen: nobody is blamed for silence that is ours.

A node is lost when nothing was heard of it for some seconds.  But a controller that plans a
million copies, that was stopped, or whose machine is overloaded, has not read what its nodes have
sent; their frames lie in its sockets.  So silence is measured by this clock.  It follows the real
one up to the moment by which all that had arrived is known to be read, and a time in which we did
not read counts as one step at the most.

What is read is known in three ways: a batch that was not cut short empties the sockets; a
receiver that had its turn and got nothing has found them empty; and when every batch is cut short
(overload, a flood), the sockets' fairness tells: each peer's turn comes once in as many messages
as there are peers.

The same knowledge bounds how long a message had lain there when it was taken in: since all was
read the last time.
"""

from collections.abc import Callable
from typing import Final

import trio

# Rounds of the task scheduler from news at the sockets to a batch, at the most.
_ROUNDS: Final = 3
# What one stretch without reading counts at most: two ticks of the controller.
_STEP_MAX_S: Final = 1.0


class Listening:
    """See the module's docstring.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._time = self._read_until = self._round_began = self._arrived_after = now()
        self._round = 0
        self._batches = 0
        self._busy = False

    def time(self) -> float:
        """Seconds; only differences mean anything."""
        return self._time

    def arrival(self) -> tuple[float, float]:
        """Monotonic seconds now, and since when, at the earliest, what is taken in had waited."""
        return self._now(), self._arrived_after

    def took(self, messages: int, peers: int, *, emptied: bool) -> None:
        """A batch was taken out of the sockets just now; :meth:`done` follows.

        Args:
            messages: how many it has.
            peers: how many may have sent something.
            emptied: it was all that had arrived.
        """
        now = self._now()
        self._batches += 1
        self._busy = True
        self._arrived_after = self._read_until
        self._round += messages
        if emptied:
            self._heard(now)
        elif self._round >= peers:
            self._heard(self._round_began)
        else:
            return
        self._round, self._round_began = 0, now

    def done(self) -> None:
        """All of the batch was taken in."""
        self._busy = False

    async def look(self) -> bool:
        """Notice that nothing arrives: the receiver has its turn and gets nothing; whether so."""
        batches = self._batches
        for _ in range(_ROUNDS):
            await trio.lowlevel.checkpoint()
        if batches != self._batches or self._busy:
            return False
        self._heard(self._now())
        self._round, self._round_began = 0, self._now()
        return True

    async def catch_up(self, longest_s: float) -> None:
        """Give way to the receiver until it has taken in all that arrived, or for ``longest_s``."""
        until = self._now() + longest_s
        while not await self.look() and self._now() < until:
            pass

    def _heard(self, until: float) -> None:
        """All that had arrived by ``until`` is read."""
        if until > self._read_until:
            self._time += min(until - self._read_until, _STEP_MAX_S)
            self._read_until = until
