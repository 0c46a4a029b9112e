"""Waiting on a ZeroMQ socket in trio without losing a wake-up.

The descriptor of a ZeroMQ socket (``ZMQ_FD``) does not say "readable": it signals, once, that the
socket has internal commands to look at, and any call on the socket may consume that signal.
So the only truth is the ``EVENTS`` option. :meth:`Readable.wait` looks at it first and waits for
the descriptor only when it is clear, with no await between the two; and whoever calls the socket
while a task waits calls :meth:`Readable.kick` afterwards, which looks again and wakes the waiter
if the call ate its signal.
Reading ``EVENTS`` empties the command queue, so a clear flag means that the next command will
signal the descriptor again.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
import zmq

from swarmctl.transport.context import ZmqSocket

# Computed once: pyzmq's enumerations cost as much as the call. It comes with every message.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


class Readable:
    """The readiness of one socket, for at most one waiting task."""

    def __init__(self, socket: ZmqSocket) -> None:
        self._socket = socket
        # Kept as a number: it is needed after the socket is closed.
        self._descriptor = int(socket.get(zmq.FD))
        self._waiting = False
        # The waiter was woken and has not run since: once is enough.
        self._woken = False
        self._closing = False

    def is_readable(self) -> bool:
        """Whether a message waits."""
        return bool(int(self._socket.get(_EVENTS)) & _POLLIN)

    def kick(self) -> None:
        """Wake the waiter if a message waits: call this after any other use of the socket."""
        if self._waiting and not self._woken and self.is_readable():
            self.wake()

    def wake(self) -> None:
        """Wake the waiter, message or not."""
        if self._waiting and not self._woken:
            self._woken = True
            # As if it were closed: trio forgets the descriptor and wakes the waiter, at a tenth of
            # what a cancel scope around every wait costs.
            trio.lowlevel.notify_closing(self._descriptor)

    def closing(self) -> None:
        """Release the waiter before the socket is closed."""
        self._closing = True
        trio.lowlevel.notify_closing(self._descriptor)

    async def wait(self) -> None:
        """Wait until a message waits or :meth:`wake` is called; may return without either.

        Raises:
            trio.BusyResourceError: another task waits here already.
            trio.ClosedResourceError: the socket is being closed.
        """
        if self._waiting:
            raise trio.BusyResourceError("another task is receiving from this socket")
        if self.is_readable():
            await trio.lowlevel.checkpoint()
            return
        self._waiting, self._woken = True, False
        try:
            await trio.lowlevel.wait_readable(self._descriptor)
        except trio.ClosedResourceError:
            if self._closing:
                raise
            # Only woken. Whoever was woken by an exception has had no checkpoint.
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._waiting = False


@asynccontextmanager
async def running(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run background tasks for the length of a block.

    An exception of the block leaves as itself, not wrapped in a group; one of a task (a defect)
    cancels the block and leaves as a group.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
