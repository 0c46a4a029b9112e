"""Requests to a controller from plain, blocking code: the command line, scripts, benchmarks.

A :class:`Client` is one connection made with a context.  Requests have deadlines; streams are
bounded by credit like those of :mod:`swarmctl.transport.rpc`, whose blocking counterpart this is.

A connection ends when its controller does, or when that begins or ceases to lead.
:meth:`Client.call` then connects again, to whichever controller is there, and repeats the request
as long as its deadline allows: any request that was not sent, and of those that were, what is safe
to repeat (:mod:`swarmctl.proto.repeatable`).  Streams and :meth:`Client.call_each` end with the
connection; who reads them knows where to go on.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final

from swarmctl.credentials import Context
from swarmctl.pipeline import WINDOW, Answer, Pipeline, pause_s
from swarmctl.proto import codec, limits, repeatable
from swarmctl.proto.errors import (
    Busy,
    DeadlineExceeded,
    InternalError,
    NoController,
    PeerError,
    SwarmError,
    from_wire,
)
from swarmctl.proto.messages import (
    Cancel,
    Failure,
    Message,
    Refuse,
    Reply,
    Request,
    StreamCredit,
    StreamData,
)
from swarmctl.transport import bounds
from swarmctl.transport.errors import HandshakeFailed, KeyRefused, LinkLost
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.sync_client import SyncClient, connect

_REFRESH: Final = limits.STREAM_WINDOW_CHUNKS // 2
# A stream without a deadline still wakes this often, so that a lost connection is noticed.
_LOOK_S: Final = 5.0
# Between two attempts to reach a controller that starts anew.
_RECONNECT_PAUSE_S: Final = 0.2
# A request without an end to its time does not look for a controller for ever: an election takes
# seconds, and reading a large cluster anew some more.
_FAILOVER_S: Final = 30.0
# With several controllers nobody may listen for a moment: one is gone, another begins to lead.
# Where the only one hangs up it may be beginning to lead as well.
_TURN_S: Final = 3.0
_AWAY: Final = (NoController, HandshakeFailed)


class Client:
    """A connection to a cluster; a context manager.

    Args:
        context: where, and who we are.
        connect_timeout_s: for each address; the transport's own unless given.
        patience_s: how long to look for one where several may be; 0 for who cannot wait.

    Raises:
        NoController: no address of the context answers.
        Refused: the controller does not know the context's key.
    """

    def __init__(
        self,
        context: Context,
        *,
        connect_timeout_s: float = bounds.CLIENT_CONNECT_TIMEOUT_S,
        patience_s: float = _TURN_S,
    ) -> None:
        self.context = context
        self._connect_timeout_s = connect_timeout_s
        if len(context.addresses) > 1:
            self._connection = self._connect(context.addresses, patience_s, _AWAY)
        else:
            self._connection = self._connect_to_one(patience_s)
        self._ids = itertools.count(1)

    def _connect(
        self, addresses: Sequence[str], patience_s: float, passing: tuple[type[SwarmError], ...]
    ) -> SyncClient:
        """Try until ``patience_s`` are over, whatever fails for a reason that may pass."""
        context = self.context
        keypair = KeyPair(context.public_key, context.secret_key)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return connect(
                    addresses,
                    context.server_key,
                    keypair,
                    connect_timeout_s=self._connect_timeout_s,
                )
            except passing:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RECONNECT_PAUSE_S)

    def _connect_to_one(self, patience_s: float) -> SyncClient:
        """One that is not there will not be there in a moment either; one that hung up may."""
        began = time.monotonic()
        try:
            return self._connect(self.context.addresses, 0.0, ())
        except HandshakeFailed:
            left_s = began + patience_s - time.monotonic()
            if left_s <= 0:
                raise  # It did not hang up: it is silent.
        time.sleep(min(_RECONNECT_PAUSE_S, left_s))
        return self._connect(self.context.addresses, left_s, _AWAY)

    def reconnect(self, patience_s: float) -> None:
        """A new connection in place of a lost one; what was under way on that is lost.

        Raises:
            NoController: none could be made in ``patience_s``.
        """
        lost = self._connection.endpoint
        self._connection.close()
        # The others first: one that hangs takes seconds to find out about.
        others = sorted(self.context.addresses, key=lambda address: address == lost)
        # A controller in the moment of its start knows no keys yet; ours was let in before.
        self._connection = self._connect(others, patience_s, (*_AWAY, KeyRefused))

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        timeout_s: float = limits.RPC_TIMEOUT_S,
    ) -> Any:
        """Ask and wait for the answer; see the module's docstring for what is asked again.

        A controller that is busy is asked again when it says so.

        Raises:
            DeadlineExceeded: no answer in ``timeout_s``.
            Busy: the controller still was at the end of it.
            LinkLost: the connection was lost, and the request may have been done.
            NoController: the connection was lost, and none could be made in time.
            SwarmError: what else the controller answered.
        """
        params = params or {}
        deadline = time.monotonic() + timeout_s
        refusals = 0
        while True:
            try:
                stream = self.stream(method, params, timeout_s=_left_s(deadline))
            except LinkLost:
                self.reconnect(min(_FAILOVER_S, _left_s(deadline)))
                continue
            try:
                return stream.read()
            except Busy as busy:
                refusals += 1
                wait_s = pause_s(busy, refusals, _left_s(deadline))
                if wait_s is None:
                    raise
                time.sleep(wait_s)
            except LinkLost as lost:
                if not repeatable.is_repeatable(method, params):
                    raise _in_doubt(method, lost) from lost
                self.reconnect(min(_FAILOVER_S, _left_s(deadline)))

    def call_each(
        self,
        method: str,
        each: Iterable[dict[str, Any]],
        *,
        timeout_s: float = limits.RPC_TIMEOUT_S,
        window: int = WINDOW,
    ) -> Iterator[Answer]:
        """Ask with each of the parameters, ``window`` requests ahead; the answers as they come.

        Nothing else may be asked over this connection before the last answer. What a busy
        controller refuses is sent again (:mod:`swarmctl.pipeline`).

        Raises:
            PeerUnreachable: the connection was lost; what has no answer may have been done.
        """
        pipeline = Pipeline(
            self.send, self.receive, lambda: next(self._ids), method, timeout_s, window
        )
        return pipeline.run(each)

    def stream(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        timeout_s: float = math.inf,
    ) -> "ClientStream":
        """A request whose stream is iterated; leaving its block cancels it."""
        call_id = next(self._ids)
        timeout_ms = 0 if timeout_s == math.inf else max(1, int(timeout_s * 1000))
        self.send(Request(call_id, method, params or {}, timeout_ms))
        return ClientStream(self, call_id, method, timeout_s)

    def send(self, message: Message) -> None:
        """Hand a message to the connection."""
        self._connection.send(codec.encode(message))

    def receive(self, timeout_s: float) -> Message:
        """The next message; what only a newer controller says is passed over.

        Raises:
            DeadlineExceeded: none came in time.
            PeerUnreachable: the connection was lost.
        """
        deadline = time.monotonic() + timeout_s
        left_s = timeout_s
        while True:
            try:
                return codec.decode(self._connection.receive(left_s))
            except codec.UnknownMessage:
                left_s = max(0.0, deadline - time.monotonic())

    @property
    def connection(self) -> SyncClient:
        """The transport, for who has to wait for something else beside it (a terminal)."""
        return self._connection


class ClientStream:
    """A request under way: iterate for its data, then read ``result``."""

    def __init__(self, client: Client, call_id: int, method: str, timeout_s: float) -> None:
        self._client = client
        self._id = call_id
        self._method = method
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._consumed = 0
        self._credit = limits.STREAM_WINDOW_CHUNKS
        self._outcome: Reply | Failure | None = None

    def __enter__(self) -> "ClientStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._outcome is None:
            self.cancel()

    def __iter__(self) -> Iterator[StreamData]:
        while True:
            item = self.receive(_LOOK_S)
            if item is not None:
                yield item
            elif self._outcome is not None:
                return

    def read(self) -> Any:
        """Pass over its data, and return its result; what may be raised is that of both."""
        with self:
            for _ in self:
                pass
            return self.result

    @property
    def ended(self) -> bool:
        """Whether the answer has come."""
        return self._outcome is not None

    @property
    def may_send(self) -> bool:
        """Whether the controller has room for more of our data."""
        return self._credit > 0

    @property
    def result(self) -> Any:
        """What the request gave, once its stream has ended.

        Raises:
            SwarmError: what the controller answered.
        """
        if self._outcome is None:
            raise InternalError(f"the result of {self._method} was read before its stream ended")
        if isinstance(self._outcome, Failure):
            failure = self._outcome
            raise from_wire(
                failure.code, failure.what, failure.where, failure.hint, failure.retry_ms
            )
        return self._outcome.result

    def receive(self, timeout_s: float) -> StreamData | None:
        """The next data; None when the request has ended, or nothing came in ``timeout_s``.

        Raises:
            DeadlineExceeded: the request's own deadline has passed.
            PeerUnreachable: the connection was lost.
        """
        if self._outcome is not None:
            return None
        left_s = self._deadline - time.monotonic()
        try:
            message = self._client.receive(max(0.0, min(timeout_s, left_s)))
        except DeadlineExceeded as error:
            if time.monotonic() >= self._deadline:
                raise DeadlineExceeded(
                    f"no answer to {self._method} in {self._timeout_s:g} s",
                    self._client.connection.endpoint,
                    "the controller may be busy; see its log",
                ) from error
            return None
        return self._take(message)

    def send(self, channel: str, data: Any) -> None:
        """Stream ``data`` to the controller; only while ``may_send``."""
        assert self._credit > 0, "no credit"
        self._credit -= 1
        self._client.send(StreamData(self._id, channel, data))

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        try:
            self._client.send(Cancel(self._id))
        except PeerError:
            pass  # A connection that is gone has cancelled it already.

    def _take(self, message: Message) -> StreamData | None:
        match message:
            case Refuse():
                raise from_wire(message.code, message.what, message.where, message.hint)
            case StreamData() if message.id == self._id:
                self._consumed += 1
                if self._consumed >= _REFRESH:
                    self._client.send(StreamCredit(self._id, self._consumed))
                    self._consumed = 0
                return message
            case StreamCredit() if message.id == self._id:
                self._credit += message.chunks
            case Reply() | Failure() if message.id == self._id:
                self._outcome = message
            case _:
                pass  # Late data of a request that was cancelled.
        return None


def _left_s(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _in_doubt(method: str, lost: LinkLost) -> LinkLost:
    """Not repeated: it does more when it is done twice."""
    return LinkLost(
        f"the connection was lost while the controller had {method} to do: it may have been done",
        lost.where,
        "see whether it was, and repeat it if not",
    )
