"""A bounded way out for a driver's events, that never blocks and never loses one silently.

The last place of the channel is reserved: when only that one is left, a ``RESYNC`` takes it in
place of the event.  So a full channel always ends in a ``RESYNC`` that its reader has yet to see,
and events that find it full can be dropped: what they told will be in the list that the reader
asks for then.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import trio

from swarmctl.agent.drivers.api import DriverEvent, EventKind

# Events waiting for the supervisor: a node's worth of containers ending together, and then some.
EVENTS_MAX: Final = 1_024


class Outlet:
    """The writing end; one for each open ``events()`` context."""

    def __init__(
        self,
        channel: trio.MemorySendChannel[DriverEvent],
        bound: int,
        now: Callable[[], float],
    ) -> None:
        self._channel = channel
        self._bound = bound
        self._now = now
        # At least as many as wait in the channel: its reader only ever makes them fewer. Asking
        # the channel costs more than sending, so it is asked when this comes near the bound.
        self._waiting_at_most = 0
        self.dropped = 0

    def offer(self, event: DriverEvent) -> None:
        """Tell ``event``, or that there were more than fit. For the trio thread only."""
        if self._waiting_at_most >= self._bound - 1:
            self._waiting_at_most = self._channel.statistics().current_buffer_used
        if self._waiting_at_most >= self._bound:
            self.dropped += 1
        elif self._waiting_at_most == self._bound - 1:
            self.dropped += event.kind is not EventKind.RESYNC
            self._put(DriverEvent(EventKind.RESYNC, at=self._now()))
        else:
            self._put(event)

    def interrupted(self, reason: str) -> None:
        """Tell that no events come for now, and why."""
        self.offer(DriverEvent(EventKind.INTERRUPTED, at=self._now(), reason=reason))

    def resync(self, reason: str) -> None:
        """Tell that events may be missing, and why."""
        self.offer(DriverEvent(EventKind.RESYNC, at=self._now(), reason=reason))

    def _put(self, event: DriverEvent) -> None:
        try:
            self._channel.send_nowait(event)
            self._waiting_at_most += 1
        except trio.BrokenResourceError:
            self.dropped += 1  # the reader closed its end before it left the context


@contextmanager
def open_outlet(
    now: Callable[[], float], bound: int = EVENTS_MAX
) -> Generator[tuple[Outlet, trio.MemoryReceiveChannel[DriverEvent]], None, None]:
    """An outlet and the channel it leads to; both are closed at the end."""
    assert bound >= 2, "one place is for the RESYNC"
    send, receive = trio.open_memory_channel[DriverEvent](bound)
    with send, receive:
        yield Outlet(send, bound, now), receive
