"""From libvirt's lifecycle events to the agent's, and to whoever waits for a domain's end.

A stream of events is bounded.  When the agent does not take them, or the connection was lost,
events are missed; then the stream keeps the connection up and says ``RESYNC`` as soon as there
is room, after which the agent lists.  That a connection was lost it says at once
(``INTERRUPTED``), if there is room.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from swarmctl.agent.drivers.api import DriverEvent, EventKind
from swarmctl.agent.drivers.libvirt import states
from swarmctl.agent.drivers.libvirt.connection import Connection, Lifecycle
from swarmctl.proto.errors import SwarmError

# A few events for each of the VMs that one host can run; more than that is a gap.
EVENTS_MAX: Final = 1_000
# Waits before a connection is tried again; doubled from the first up to the second.
RECONNECT_MIN_S: Final = 0.2
RECONNECT_MAX_S: Final = 5.0
# A libvirtd that accepts and says nothing: give up the attempt, and wait.
OPEN_TIMEOUT_S: Final = 10.0


class EventStream:
    """One agent's stream of events; see :meth:`open`."""

    def __init__(
        self, connection: Connection, translate: Callable[[Lifecycle], DriverEvent | None]
    ) -> None:
        self._connection = connection
        self._translate = translate
        self._send, self._receive = trio.open_memory_channel[DriverEvent](EVENTS_MAX)
        self._gap = trio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[trio.MemoryReceiveChannel[DriverEvent]]:
        """The stream, as long as the context is open.

        Raises:
            DriverUnavailable: libvirtd cannot be reached at the start. Later it may come and go.
        """
        failure: Exception | None = None
        with self._connection.listening(self._heard):
            await self._connection.ensure_open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._mend)
                try:
                    yield self._receive
                except Exception as error:  # noqa: BLE001 - passed on below, without a group
                    failure = error
                nursery.cancel_scope.cancel()
        self._send.close()
        if failure is not None:
            raise failure

    def _heard(self, lifecycle: Lifecycle | None) -> None:
        event: DriverEvent | None
        if lifecycle is None:
            self._gap.set()
            event = DriverEvent(EventKind.INTERRUPTED)
        else:
            event = self._translate(lifecycle)
        if event is None:
            return
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self._gap.set()

    async def _mend(self) -> None:
        while True:
            await self._gap.wait()
            self._gap = trio.Event()
            await self._reconnect()
            await self._send.send(DriverEvent(EventKind.RESYNC))

    async def _reconnect(self) -> None:
        wait_s = RECONNECT_MIN_S
        while True:
            try:
                with trio.move_on_after(OPEN_TIMEOUT_S) as attempt:
                    await self._connection.ensure_open()
                if not attempt.cancelled_caught:
                    return
            except SwarmError:
                pass  # `probe` tells the reason to whoever asks; here it is only tried again
            await trio.sleep(wait_s)
            wait_s = min(wait_s * 2, RECONNECT_MAX_S)


class EndWatch:
    """Notices that a domain may have ended: its event came, or events were missed."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._noticed = trio.Event()

    def heard(self, lifecycle: Lifecycle | None) -> None:
        """A listener for :meth:`Connection.listening`."""
        if lifecycle is None or (
            lifecycle.uuid == self._uuid and lifecycle.event == states.EventType.STOPPED
        ):
            self._noticed.set()

    def take(self) -> bool:
        """Whether it may have ended since the last time that this said so."""
        if not self._noticed.is_set():
            return False
        self._noticed = trio.Event()
        return True

    async def wait(self) -> None:
        """Until :meth:`take` would be true; takes it."""
        await self._noticed.wait()
        self.take()
