"""The way to libvirtd: one event loop a process, connections that come back.

libvirt's client library wants a thread that runs its event loop: keepalives, lifecycle events and
console streams all happen there.  It is started once a process, before the first connection, and
ends with the process.  Nothing may block in it and nothing of trio runs in it: a callback there
hands plain data to trio with ``run_sync_soon`` and returns.

A :class:`Connection` opens itself at the first call.  When libvirtd goes away, or does not answer
keepalives, the library closes it: calls under way fail, the listeners are told of a gap, and the
next call opens a new one.  Calls block in threads that are given up when the caller's deadline
passes; the number of threads is bounded by the limiter, so a libvirtd that hangs costs a fixed
number of them, and keepalives end even those.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import trio
from attrs import frozen

from swarmctl.proto.errors import (
    DriverUnavailable,
    EnvironmentFault,
    InvalidSpec,
    LaunchFailed,
    NotFound,
    StorageFault,
    SwarmError,
)

T = TypeVar("T")

# A libvirtd that misses so many answers in a row is gone; its calls fail after 4 times 3 s.
KEEPALIVE_S: Final = 3
KEEPALIVE_COUNT: Final = 3
# Abandoned threads keep their place; these many may hang before calls wait for a place.
_START_HINT: Final = "is libvirtd running? `systemctl status libvirtd`, or `virsh version`"

# libvirt's error codes that mean something to us (``virErrorNumber``, public ABI).
_INTERNAL_ERROR: Final = 1
_NO_CONNECT: Final = 5
_INVALID_CONN: Final = 6
_SYSTEM_ERROR: Final = 38
_RPC: Final = 39
_NO_DOMAIN: Final = 42
_NO_NETWORK: Final = 43
_AUTH_FAILED: Final = 45
_CONFIG_UNSUPPORTED: Final = 67
_FROM_RPC: Final = 7

_loop_lock = threading.Lock()
_loop_started = False


@frozen
class Lifecycle:
    """One lifecycle event as libvirt tells it."""

    name: str
    uuid: str
    event: int
    detail: int
    at: float


# Called in the trio thread with each event, or None when events may have been missed.
Listener = Callable[[Lifecycle | None], None]


def load() -> Any:
    """The ``libvirt`` module, with its event loop running.

    Raises:
        EnvironmentFault: libvirt-python or the system's library is not installed.
    """
    try:
        import libvirt
    except ImportError as error:
        raise EnvironmentFault(
            f"libvirt's Python binding cannot be loaded: {error}",
            hint="install libvirt0, then pip install 'swarmctl[libvirt]'",
        ) from error
    _start_loop(libvirt)
    return libvirt


def _start_loop(libvirt: Any) -> None:
    global _loop_started  # the library allows one loop a process
    with _loop_lock:
        if _loop_started:
            return
        libvirt.virEventRegisterDefaultImpl()
        # Errors come as exceptions; the library would print each to standard error as well.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        # A daemon: the library has no way to end the loop, and it holds nothing to lose.
        threading.Thread(target=_run_loop, args=(libvirt,), name="libvirt", daemon=True).start()
        _loop_started = True


def _run_loop(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def fault(error: Any, where: str = "") -> SwarmError:
    """Our error for a ``libvirtError``, by who is at fault."""
    text = (error.get_error_message() or str(error)).strip()
    code = error.get_error_code()
    if is_broken(error):
        return DriverUnavailable(f"libvirt does not answer: {text}", where, _START_HINT)
    if code == _NO_DOMAIN:
        return NotFound("no such domain", where)
    if code == _NO_NETWORK:
        return InvalidSpec(text, where, "`virsh net-list --all` shows the node's networks")
    if "No space left on device" in text:
        return StorageFault(text, where)
    if 'Failed to get "write" lock' in text:
        hint = "is another instance running from the same disk?"
        return LaunchFailed("the disk is in use", where, hint)
    if "Cannot allocate memory" in text or "cannot set up guest memory" in text:
        return LaunchFailed("the node has no memory for the VM", where, "ask for less memory")
    return LaunchFailed(_one_line(text), where)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def is_broken(error: Any) -> bool:
    """Whether a ``libvirtError`` means that libvirtd was not reached, or went away."""
    code = error.get_error_code()
    if code in (_NO_CONNECT, _INVALID_CONN, _RPC, _AUTH_FAILED):
        return True
    # "client socket is closed", "End of file while reading data" and the like.
    return code in (_INTERNAL_ERROR, _SYSTEM_ERROR) and error.get_error_domain() == _FROM_RPC


class Connection:
    """A connection to libvirtd that opens itself, and again after it was lost.

    Args:
        uri: libvirt's, such as ``qemu:///system``.
        threads: how many calls may be under way at once.
        with_events: whether lifecycle events are wanted from it.
    """

    def __init__(self, uri: str, *, threads: int, with_events: bool = False) -> None:
        self.uri = uri
        self._with_events = with_events
        self._limiter = trio.CapacityLimiter(threads)
        # One at a time: a libvirtd that accepts and says nothing must not collect threads.
        self._open_limiter = trio.CapacityLimiter(1)
        self._connection: Any = None
        self._listeners: list[Listener] = []
        self._closed = False

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Tell ``listener`` of lifecycle events while the context is open."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def listen(self, listener: Listener) -> None:
        """Tell ``listener`` of lifecycle events for as long as this object lives."""
        self._listeners.append(listener)

    async def ensure_open(self) -> None:
        """Open it if it is not.

        Raises:
            DriverUnavailable: libvirtd cannot be reached.
            EnvironmentFault: libvirt-python is not installed.
        """
        if self._connection is None:
            token = trio.lowlevel.current_trio_token()
            await trio.to_thread.run_sync(
                self._open, token, limiter=self._open_limiter, abandon_on_cancel=True
            )

    async def call(self, function: Callable[[Any], T], where: str = "") -> T:
        """Run ``function(virConnect)`` in a thread.

        A caller that is cancelled leaves at once; the call may still finish.

        Raises:
            SwarmError: what :func:`fault` makes of libvirt's error.
        """
        await self.ensure_open()
        return await trio.to_thread.run_sync(
            self._run, function, where, limiter=self._limiter, abandon_on_cancel=True
        )

    async def aclose(self) -> None:
        """Close it for good."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await trio.to_thread.run_sync(_close, connection, abandon_on_cancel=True)

    def _run(self, function: Callable[[Any], T], where: str) -> T:
        libvirt = load()
        connection = self._connection
        if connection is None:
            raise DriverUnavailable("the connection to libvirt was lost", where, _START_HINT)
        try:
            return function(connection)
        except libvirt.libvirtError as error:
            raise fault(error, where) from error

    def _open(self, token: trio.lowlevel.TrioToken) -> None:
        """Open and install it; runs in a thread, one at a time."""
        if self._connection is not None:
            return  # an attempt whose caller gave up came through after all
        libvirt = load()
        try:
            connection = libvirt.open(self.uri)
            self._set_up(libvirt, connection, token)
        except libvirt.libvirtError as error:
            text = error.get_error_message() or str(error)
            raise DriverUnavailable(
                f"no connection to libvirt: {_one_line(text)}", self.uri, _START_HINT
            ) from error
        if self._closed:
            _close(connection)
            return
        self._connection = connection

    def _set_up(self, libvirt: Any, connection: Any, token: trio.lowlevel.TrioToken) -> None:
        connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)

        def closed(which: Any, _reason: int, _opaque: object) -> None:
            call_soon(token, lambda: self._lost(which))

        connection.registerCloseCallback(closed, None)
        if not self._with_events:
            return

        def happened(_conn: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
            at = time.time()
            lifecycle = Lifecycle(domain.name(), domain.UUIDString(), event, detail, at)
            call_soon(token, lambda: self._tell(lifecycle))

        kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        connection.domainEventRegisterAny(None, kind, happened, None)

    def _lost(self, which: Any) -> None:
        if which is self._connection or self._connection is None:
            self._connection = None
            self._tell(None)

    def _tell(self, lifecycle: Lifecycle | None) -> None:
        for listener in tuple(self._listeners):
            listener(lifecycle)


def _close(connection: Any) -> None:
    try:
        connection.unregisterCloseCallback()
        connection.close()
    except load().libvirtError:
        pass  # it is being thrown away, and was lost already


def call_soon(token: trio.lowlevel.TrioToken, function: Callable[[], None]) -> None:
    """Run ``function`` in the trio thread, if trio still runs. For libvirt's callbacks."""
    try:
        token.run_sync_soon(function)
    except trio.RunFinishedError:
        pass  # the agent has ended; nobody is left to tell
