"""Requests with deadlines and streams, over any transport: both ends.

:class:`RpcServer` runs a handler task for each request in a nursery that it is given;
:class:`RpcCaller` matches answers to the tasks that wait for them.
Neither owns a socket: incoming messages are handed to ``on_message`` by whoever reads it, and a
plain function sends.
That function raises at once when the peer is not there, so a request to an absent peer fails
within milliseconds and never queues (DESIGN 1.4).

Streams are bounded by credit: a sender may have ``limits.STREAM_WINDOW_CHUNKS`` chunks under way
and waits until the receiver, having consumed half of them, grants more.
The caller cancels a request by leaving its block; the server then cancels the handler.
"""

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog
import trio
from attrs import define, field, frozen

from swarmctl.proto import limits
from swarmctl.proto.errors import (
    Busy,
    DeadlineExceeded,
    InternalError,
    PeerUnreachable,
    ProtocolError,
    SwarmError,
    UserError,
    from_wire,
    sole_error,
)
from swarmctl.proto.messages import (
    Cancel,
    Failure,
    Message,
    Reply,
    Request,
    StreamCredit,
    StreamData,
)

_T = TypeVar("_T")
Send = Callable[[Message], None]

_log = structlog.get_logger(__name__)
_REFRESH: Final = limits.STREAM_WINDOW_CHUNKS // 2


class UnknownMethod(ProtocolError, UserError):
    """The peer has no such method: it is older, newer, or of another kind."""

    code = "unknown-method"


class _StreamEnd:
    """One end of a request's stream: credit to send, and a bounded inbox."""

    def __init__(self, call_id: int, send: Send) -> None:
        self.call_id = call_id
        self._send = send
        self._credit = trio.Semaphore(limits.STREAM_WINDOW_CHUNKS)
        self._put, self._get = trio.open_memory_channel[StreamData](limits.STREAM_WINDOW_CHUNKS)
        self._consumed = 0

    async def send(self, channel: str, data: Any) -> None:
        await self._credit.acquire()
        self._send(StreamData(self.call_id, channel, data))

    async def receive(self) -> StreamData | None:
        try:
            item = await self._get.receive()
        except trio.EndOfChannel:
            return None
        self._consumed += 1
        if self._consumed >= _REFRESH:
            self._send(StreamCredit(self.call_id, self._consumed))
            self._consumed = 0
        return item

    def on_data(self, message: StreamData) -> None:
        try:
            self._put.send_nowait(message)
        except trio.WouldBlock as error:
            raise ProtocolError("the peer sent more stream data than it was granted") from error
        except trio.ClosedResourceError:
            pass  # It comes after the answer, which said that there is nothing more to come.

    def on_credit(self, chunks: int) -> None:
        # A peer that grants more than the window harms itself only, but not without end.
        room = limits.STREAM_WINDOW_CHUNKS - self._credit.value
        for _ in range(min(chunks, room)):
            self._credit.release()

    def close_inbox(self) -> None:
        self._put.close()


@define(eq=False)
class Call:
    """A request being served: what its handler sees.

    ``user_id`` is what the transport authenticated; ``peer`` the connection.
    """

    method: str
    params: dict[str, Any]
    peer: bytes
    user_id: str
    trace: str
    _active: "_Active | None" = field(default=None, repr=False)

    async def send(self, channel: str, data: Any) -> None:
        """Stream ``data`` to the caller; waits while it has no room.

        Raises:
            PeerUnreachable: the caller has gone.
        """
        assert self._active is not None, "a simple request has no stream"
        await self._active.stream.send(channel, data)

    async def receive(self) -> StreamData | None:
        """The next data that the caller streams; None when it will send no more."""
        assert self._active is not None, "a simple request has no stream"
        return await self._active.stream.receive()

    def text(self, name: str, default: str | None = None) -> str:
        """The parameter ``name`` as a string."""
        return self._typed(name, str, default)

    def integer(self, name: str, default: int | None = None) -> int:
        """The parameter ``name`` as an integer."""
        return self._typed(name, int, default)

    def flag(self, name: str) -> bool:
        """The parameter ``name`` as a boolean, False when it is missing."""
        return self._typed(name, bool, default=False)

    def texts(self, name: str) -> tuple[str, ...]:
        """The parameter ``name`` as a list of strings, empty when it is missing."""
        value = self.params.get(name) or ()
        if not isinstance(value, tuple | list) or not all(isinstance(one, str) for one in value):
            raise ProtocolError(f"{name} is not a list of texts", self.method)
        return tuple(value)

    def _typed(self, name: str, kind: type[_T], default: _T | None) -> _T:
        value = self.params.get(name, default)
        # By the exact type: True is no number here.
        if type(value) is not kind:
            raise ProtocolError(
                f"parameter {name} should be {kind.__name__}, not {type(value).__name__}",
                self.method,
            )
        return value


Handler = Callable[[Call], Awaitable[Any]]


@frozen
class RpcStatistics:
    """Counters of one server."""

    served: int
    failed: int
    refused_busy: int
    under_way: int


@define(eq=False)
class _Active:
    """A request under way in a server; most have no stream, so it is made when first used."""

    call_id: int
    send: Send
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    given_up: bool = False
    _stream: _StreamEnd | None = None

    @property
    def stream(self) -> _StreamEnd:
        """Its stream."""
        if self._stream is None:
            self._stream = _StreamEnd(self.call_id, self.send)
        return self._stream

    def give_up(self) -> None:
        """Nobody waits for its answer any more."""
        self.given_up = True
        self.scope.cancel()


class RpcServer:
    """Serves requests: one handler task each, in the given nursery.

    Args:
        handlers: what to run for each method.
        nursery: where; cancelled with it.
    """

    def __init__(self, handlers: Mapping[str, Handler], nursery: trio.Nursery) -> None:
        self._handlers = handlers
        self._nursery = nursery
        self._active: dict[tuple[bytes, int], _Active] = {}
        self._per_peer: dict[bytes, int] = {}
        self._served = self._failed = self._refused_busy = 0

    def on_message(self, peer: bytes, user_id: str, message: Message, send: Send) -> bool:
        """Take a message in; False when it is not one for a server."""
        match message:
            case Request():
                self.begin(peer, user_id, message, send)
            case StreamData():
                active = self._active.get((peer, message.id))
                if active is not None:
                    active.stream.on_data(message)
            case StreamCredit():
                active = self._active.get((peer, message.id))
                if active is not None:
                    active.stream.on_credit(message.chunks)
            case Cancel():
                active = self._active.get((peer, message.id))
                if active is not None:
                    active.give_up()
            case _:
                return False
        return True

    def peer_departed(self, peer: bytes) -> None:
        """Its connection has ended: nobody waits for what it asked."""
        if peer in self._per_peer:
            for (asker, _), active in self._active.items():
                if asker == peer:
                    active.give_up()

    def statistics(self) -> RpcStatistics:
        """How much was served so far."""
        return RpcStatistics(self._served, self._failed, self._refused_busy, len(self._active))

    def begin(self, peer: bytes, user_id: str, request: Request, send: Send) -> None:
        """Start the handler of a request."""
        key = (peer, request.id)
        full = (
            len(self._active) >= limits.RPC_TOTAL
            or self._per_peer.get(peer, 0) >= limits.RPC_PER_PEER
        )
        if full or key in self._active:
            self._refused_busy += 1
            refuse_busy(request.id, send, limits.BUSY_RETRY_MS)
            return
        active = _Active(request.id, send)
        self._active[key] = active
        self._per_peer[peer] = self._per_peer.get(peer, 0) + 1
        call = Call(request.method, request.params, peer, user_id, request.trace, active)
        self._nursery.start_soon(self._serve, key, active, call, request, send, name=request.method)

    async def _serve(
        self, key: tuple[bytes, int], active: _Active, call: Call, request: Request, send: Send
    ) -> None:
        if request.timeout_ms:
            active.scope.deadline = trio.current_time() + request.timeout_ms / 1000
        try:
            answer = await self._outcome(active.scope, call, request)
        finally:
            del self._active[key]
            self._per_peer[key[0]] -= 1
            if not self._per_peer[key[0]]:
                del self._per_peer[key[0]]
        if isinstance(answer, Failure):
            self._failed += 1
        else:
            self._served += 1
        if not active.given_up:
            send_answer(send, answer)

    async def _outcome(
        self, scope: trio.CancelScope, call: Call, request: Request
    ) -> Reply | Failure:
        """What to answer; only the nursery's own cancellation comes out as an exception."""
        handler = self._handlers.get(request.method)
        if handler is None:
            return as_failure(request.id, UnknownMethod(f"no method {request.method!r} here"))
        try:
            # Inside the try: errors of a handler's own nursery come out of the scope as a group,
            # cleared of the cancellations that were mixed with them.
            with scope:
                return Reply(request.id, await handler(call))
        except Exception as error:  # noqa: BLE001 - a defect in one handler must not end the daemon: it is logged with its trace and reported as ours
            cause = sole_error(error)
            if isinstance(cause, SwarmError):
                return as_failure(request.id, cause)
            _log.exception("handler failed", method=request.method)
            return as_failure(request.id, as_defect(request.method, cause))
        late = DeadlineExceeded(f"{request.method} did not end in {request.timeout_ms} ms")
        return as_failure(request.id, late)


def as_defect(method: str, error: BaseException) -> InternalError:
    """What a handler's own mistake is reported as."""
    return InternalError(
        f"{method} failed: {type(error).__name__}: {error}",
        hint="this is a defect in swarmctl: the log of the daemon has the trace",
    )


def as_failure(call_id: int, error: SwarmError) -> Failure:
    """``error`` as the answer to a request."""
    clip = limits.TEXT_MAX_CHARS
    retry_ms = error.retry_ms if isinstance(error, Busy) else 0
    return Failure(
        call_id, error.code, error.what[:clip], error.where[:clip], error.hint[:clip], retry_ms
    )


def refuse_busy(call_id: int, send: Send, retry_ms: int) -> None:
    """Answer that nothing was done, and when to ask again."""
    text = f"too many requests under way, retry in {retry_ms} ms"
    send_answer(send, Failure(call_id, Busy.code, text, retry_ms=retry_ms))


def send_answer(send: Send, message: Reply | Failure | Cancel) -> None:
    """Send an answer; a caller who has gone is no trouble."""
    try:
        send(message)
    except (PeerUnreachable, Busy) as error:
        # The caller has gone, or does not read: there is nobody to tell but the log.
        _log.debug("answer not delivered", error=str(error))
    except SwarmError as error:
        # It cannot be sent: too large, or not plain data. The caller is told that instead.
        _log.warning("answer cannot be sent", error=str(error))
        if isinstance(message, Reply):
            send_answer(send, as_failure(message.id, error))


class _Pending:
    """A request that waits for its answer."""

    def __init__(self, call_id: int, peer: bytes, send: Send) -> None:
        self.peer = peer
        self.stream = _StreamEnd(call_id, send)
        self.done = trio.Event()
        self.outcome: Reply | Failure | None = None

    def settle(self, outcome: Reply | Failure) -> None:
        if self.outcome is None:
            self.outcome = outcome
        self.done.set()
        self.stream.close_inbox()


class StreamCall:
    """A request under way, as its caller sees it: receive until None, then ask for the result."""

    def __init__(self, pending: _Pending) -> None:
        self._pending = pending

    async def receive(self) -> StreamData | None:
        """The next data, None at the end."""
        return await self._pending.stream.receive()

    async def send(self, channel: str, data: Any) -> None:
        """Stream data to the server; waits while it has no room."""
        await self._pending.stream.send(channel, data)

    async def result(self) -> Any:
        """What the handler returned.

        Raises:
            SwarmError: what it raised, as it crossed the wire.
        """
        await self._pending.done.wait()
        outcome = self._pending.outcome
        assert outcome is not None, "settled without an outcome"
        if isinstance(outcome, Failure):
            raise from_wire(
                outcome.code, outcome.what, outcome.where, outcome.hint, outcome.retry_ms
            )
        return outcome.result


class RpcCaller:
    """Makes requests to peers, and matches their answers."""

    def __init__(self) -> None:
        self._next_id = 1
        self._pending: dict[int, _Pending] = {}

    async def call(
        self,
        peer: bytes,
        send: Send,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        timeout_s: float = limits.RPC_TIMEOUT_S,
    ) -> Any:
        """Ask ``peer``, wait for the answer.

        Raises:
            PeerUnreachable: it is not there, or went while we waited.
            DeadlineExceeded: no answer in ``timeout_s``.
            SwarmError: what the handler raised.
        """
        async with self.stream(peer, send, method, params, timeout_s=timeout_s) as stream:
            return await stream.result()

    @asynccontextmanager
    async def stream(
        self,
        peer: bytes,
        send: Send,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        timeout_s: float = math.inf,
    ) -> AsyncGenerator[StreamCall, None]:
        """A request whose stream is read and written inside the block; leaving cancels it."""
        call_id, self._next_id = self._next_id, self._next_id + 1
        pending = _Pending(call_id, peer, send)
        timeout_ms = 0 if timeout_s == math.inf else max(1, int(timeout_s * 1000))
        self._pending[call_id] = pending
        try:
            send(Request(call_id, method, params or {}, timeout_ms))
        except BaseException:
            del self._pending[call_id]
            raise
        try:
            with trio.fail_after(timeout_s):
                yield StreamCall(pending)
        except trio.TooSlowError as error:
            raise DeadlineExceeded(f"no answer to {method} in {timeout_s:g} s") from error
        finally:
            del self._pending[call_id]
            if pending.outcome is None:
                send_answer(send, Cancel(call_id))

    def on_message(self, peer: bytes, message: Message) -> bool:
        """Take a message of ``peer`` in; False when it is not one for a caller.

        Stream messages go both ways: those of no request of ours may be for a server.
        """
        if not isinstance(message, Reply | Failure | StreamData | StreamCredit):
            return False
        pending = self._pending.get(message.id)
        if pending is None or pending.peer != peer:
            # What comes after the caller gave up is dropped; and a peer answers for itself only.
            return isinstance(message, Reply | Failure)
        match message:
            case StreamData():
                pending.stream.on_data(message)
            case StreamCredit():
                pending.stream.on_credit(message.chunks)
            case Reply() | Failure():
                pending.settle(message)
        return True

    def fail_peer(self, peer: bytes, reason: str) -> None:
        """Fail what waits for ``peer``: its connection has ended."""
        for call_id, pending in self._pending.items():
            if pending.peer == peer and pending.outcome is None:
                pending.settle(Failure(call_id, PeerUnreachable.code, reason))
