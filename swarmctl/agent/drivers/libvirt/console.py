"""The serial console of a VM, live: a libvirt stream as a :class:`Terminal`.

The stream's callback runs in libvirt's event loop thread: it reads what is there and hands it to
trio.  It counts what trio has not taken yet and stops reading at a bound, so a console that
nobody reads holds a fixed amount; taking some starts it again.  What the console prints goes to
its log file all the time, whether anybody is attached or not.

libvirt lets one client at a time attach; a second one is refused and told so.
"""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from swarmctl.agent.drivers.api import LogChunk
from swarmctl.agent.drivers.libvirt.connection import Connection, call_soon, fault, load
from swarmctl.proto.errors import Conflict, SwarmError
from swarmctl.proto.limits import STREAM_CHUNK_BYTES

# Chunks read from libvirt and not yet taken: 1 MiB, far more than a serial line fills.
_PENDING_MAX: Final = 32
# A non-blocking send that found the socket full is tried again after this.
_SEND_AGAIN_S: Final = 0.01
# Detaching is one message; a libvirtd that hangs must not hold the caller.
_DETACH_TIMEOUT_S: Final = 2.0
# libvirt's answer of a non-blocking stream that has nothing, or no room.
_WOULD_BLOCK: Final = -2


class ConsoleTerminal:
    """One attachment to a serial console; made by :func:`attach`."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._stream: Any = None
        self._lock = threading.Lock()
        self._pending = 0
        self._paused = False
        self._closed = False
        # One more than is ever pending, for the end.
        self._in, self._out = trio.open_memory_channel[bytes](_PENDING_MAX + 1)

    async def receive(self) -> LogChunk | None:
        """The next output, or None when the VM has ended or libvirt is gone."""
        try:
            data = await self._out.receive()
        except trio.EndOfChannel:
            return None
        self._taken()
        return LogChunk("stdout", data)

    async def send(self, data: bytes) -> None:
        """Type ``data``."""
        while data:
            sent = await trio.to_thread.run_sync(self._send, data, abandon_on_cancel=True)
            data = data[sent:]
            if not sent:
                await trio.sleep(_SEND_AGAIN_S)

    async def send_eof(self) -> None:
        """Nothing: a serial line has no end of input."""
        await trio.lowlevel.checkpoint()

    async def resize(self, rows: int, columns: int) -> None:
        """Nothing: a serial line has no size."""
        del rows, columns
        await trio.lowlevel.checkpoint()

    async def exit_code(self) -> int | None:
        """None: what runs on a serial console does not tell."""
        await trio.lowlevel.checkpoint()
        return None

    def open_on(self, conn: Any, uuid: str) -> None:
        """Attach. Blocks; libvirt's errors pass through."""
        libvirt = load()
        stream = conn.newStream(libvirt.VIR_STREAM_NONBLOCK)
        conn.lookupByUUIDString(uuid).openConsole(None, stream, 0)
        with self._lock:
            self._stream = stream
            given_up = self._closed
        if given_up:
            stream.abort()  # else nobody could attach any more
        else:
            stream.eventAddCallback(self._events(reading=True), self._ready, None)

    def close(self) -> None:
        """Detach. Blocks."""
        with self._lock:
            self._closed = True
            if self._stream is None:
                return  # not attached, or the attempt is still under way and will see this
        libvirt = load()
        try:
            self._stream.eventRemoveCallback()
            self._stream.abort()
        except libvirt.libvirtError:
            pass  # the VM or libvirtd ended it before

    def _events(self, *, reading: bool) -> int:
        libvirt = load()
        ends = libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
        return int(ends | (libvirt.VIR_STREAM_EVENT_READABLE if reading else 0))

    def _ready(self, stream: Any, _events: int, _opaque: object) -> None:
        """There is output, or the end; runs in the event loop's thread."""
        libvirt = load()
        try:
            data = stream.recv(STREAM_CHUNK_BYTES)
        except libvirt.libvirtError:
            data = b""  # the stream broke: for a reader that is its end
        if data == _WOULD_BLOCK:
            return
        if not data:
            stream.eventUpdateCallback(0)
            call_soon(self._token, self._in.close)
            return
        with self._lock:
            self._pending += 1
            if self._pending >= _PENDING_MAX:
                self._paused = True
                stream.eventUpdateCallback(self._events(reading=False))
        call_soon(self._token, lambda: self._offer(data))

    def _offer(self, data: bytes) -> None:
        try:
            self._in.send_nowait(data)
        except trio.ClosedResourceError:
            pass  # a callback that was on its way when we detached

    def _taken(self) -> None:
        with self._lock:
            self._pending -= 1
            if self._paused and self._pending <= _PENDING_MAX // 2:
                self._paused = False
                self._stream.eventUpdateCallback(self._events(reading=True))

    def _send(self, data: bytes) -> int:
        libvirt = load()
        try:
            sent = self._stream.send(data)
        except libvirt.libvirtError as error:
            raise fault(error, "console") from error
        return 0 if sent == _WOULD_BLOCK else int(sent)


@asynccontextmanager
async def attach(
    connection: Connection, uuid: str, instance: str
) -> AsyncIterator[ConsoleTerminal]:
    """The serial console of the domain ``uuid``; leaving detaches, and the VM goes on.

    Raises:
        Conflict: somebody else is attached, or the VM is not running.
        NotFound: no such domain.
        DriverUnavailable: libvirtd does not answer.
    """
    terminal = ConsoleTerminal(trio.lowlevel.current_trio_token())
    try:
        try:
            await connection.call(lambda conn: terminal.open_on(conn, uuid), instance)
        except SwarmError as error:
            raise _refusal(error) from error
        yield terminal
    finally:
        with trio.move_on_after(_DETACH_TIMEOUT_S, shield=True):
            await trio.to_thread.run_sync(terminal.close, abandon_on_cancel=True)


def _refusal(error: SwarmError) -> SwarmError:
    if "Active console session" in error.what:
        return Conflict(
            "somebody is attached to this console", error.where, "one at a time: detach there"
        )
    if "not running" in error.what:
        return Conflict("the VM is not running", error.where, "start it first")
    return error
