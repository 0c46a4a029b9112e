"""Serving simple requests together: for methods that are asked ten thousand times a second.

A task, a deadline, a lock and a wake-up for each request would cost more than what it asks for.
So simple requests of some methods wait in an :class:`~swarmctl.transport.intake.Intake` in place
of that, and are served in batches: one task, one commit and one wake-up for up to
``limits.TRANSACTION_OPS_MAX`` of them. A batch is what has gathered meanwhile, so a request that
comes alone is served alone and at once.

What is not simple (more than one record, a stream, a record that another request is changing) goes
to the method's ordinary handler (:mod:`swarmctl.transport.rpc`); so does everything else.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog
import trio
from attrs import define

from swarmctl.proto import limits
from swarmctl.proto.errors import DeadlineExceeded, SwarmError, sole_error
from swarmctl.proto.messages import Message, Reply, Request
from swarmctl.transport.intake import Intake
from swarmctl.transport.rpc import (
    Call,
    RpcServer,
    RpcStatistics,
    Send,
    as_defect,
    as_failure,
    refuse_busy,
    send_answer,
)

_log = structlog.get_logger(__name__)


@define(eq=False)
class SimpleRequest:
    """A request that is served with others; whoever serves it answers or defers it, once."""

    call: Call
    deadline: float
    _id: int
    _send: Send
    _server: "BulkServer"
    answered: bool = False

    def reply(self, result: Any) -> None:
        """It is done."""
        self.answered = True
        self._server.served += 1
        send_answer(self._send, Reply(self._id, result))

    def fail(self, error: SwarmError) -> None:
        """It has failed."""
        self.answered = True
        self._server.failed += 1
        send_answer(self._send, as_failure(self._id, error))

    def defer(self) -> None:
        """It is not simple after all, since it has to wait: it gets a task of its own."""
        self.answered = True
        call, left_ms = self.call, 0
        if self.deadline < math.inf:
            left_ms = max(1, int((self.deadline - trio.current_time()) * 1000))
        request = Request(self._id, call.method, call.params, left_ms, call.trace)
        self._server.others.begin(call.peer, call.user_id, request, self._send)


class Bulk(Protocol):
    """Serves the simple requests of one method."""

    def suits(self, user_id: str, params: Mapping[str, Any]) -> bool:
        """Whether a request is simple; the others are for the method's handler. A quick look."""
        ...

    async def serve(self, requests: Sequence[SimpleRequest]) -> None:
        """Answer or defer each of ``requests``."""
        ...


class BulkServer:
    """Stands before a server of requests, and takes the simple ones out.

    Args:
        others: serves all else.
        bulk: by method, what serves the simple requests of it.
        nursery: where; cancelled with it.
    """

    def __init__(self, others: RpcServer, bulk: Mapping[str, Bulk], nursery: trio.Nursery) -> None:
        self.others = others
        self.served = self.failed = self.refused_busy = 0
        self._bulk = bulk
        self._nursery = nursery
        self._intake: Intake[SimpleRequest] = Intake()
        self._may_take = trio.Event()
        self._idle = trio.Event()
        self._idle.set()
        nursery.start_soon(self._run)

    def on_message(
        self, peer: bytes, user_id: str, message: Message, send: Send, size_bytes: int
    ) -> bool:
        """Take a message in; False when it is not one for a server.

        ``size_bytes`` is what it took on the wire: what waits is bounded by it.
        """
        if isinstance(message, Request):
            bulk = self._bulk.get(message.method)
            if bulk is not None and bulk.suits(user_id, message.params):
                self._let_in(peer, user_id, message, send, size_bytes)
                return True
        return self.others.on_message(peer, user_id, message, send)

    def peer_departed(self, peer: bytes) -> None:
        """Its connection has ended: nobody waits for what it asked."""
        self._intake.drop(peer)
        if self._intake.is_idle:
            self._idle.set()
        self.others.peer_departed(peer)

    def statistics(self) -> RpcStatistics:
        """How much was served so far, simple or not."""
        found = self.others.statistics()
        return RpcStatistics(
            found.served + self.served,
            found.failed + self.failed,
            found.refused_busy + self.refused_busy,
            found.under_way + self._intake.waiting + self._intake.under_way,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no simple request waits or is being served."""
        return self._idle.is_set()

    async def wait_idle(self) -> None:
        """Wait until no simple request waits or is being served; at once when that is so."""
        await self._idle.wait()

    def _let_in(
        self, peer: bytes, user_id: str, request: Request, send: Send, size_bytes: int
    ) -> None:
        now = trio.current_time()
        retry_ms = self._intake.refusal_ms(peer, now)
        if retry_ms:
            self.refused_busy += 1
            refuse_busy(request.id, send, retry_ms)
            return
        deadline = now + request.timeout_ms / 1000 if request.timeout_ms else math.inf
        call = Call(request.method, request.params, peer, user_id, request.trace)
        simple = SimpleRequest(call, deadline, request.id, send, self)
        self._intake.add(peer, simple, size_bytes, now)
        if self._idle.is_set():
            self._idle = trio.Event()
        self._may_take.set()

    async def _run(self) -> None:
        """Take what waits, in batches; between two of them the others have their turn."""
        while True:
            await self._may_take.wait()
            if self._intake.may_take:
                batch = self._intake.take(limits.TRANSACTION_OPS_MAX)
                self._nursery.start_soon(self._serve, batch)
                await trio.lowlevel.checkpoint()
            else:
                self._may_take = trio.Event()

    async def _serve(self, batch: list[SimpleRequest]) -> None:
        now = trio.current_time()
        by_method: dict[str, list[SimpleRequest]] = {}
        for request in batch:
            if now > request.deadline:
                request.fail(DeadlineExceeded(f"{request.call.method} had to wait too long"))
            else:
                by_method.setdefault(request.call.method, []).append(request)
        try:
            for method, requests in by_method.items():
                await self._serve_method(method, requests)
        finally:
            self._intake.finished(len(batch), trio.current_time())
            self._may_take.set()
            if self._intake.is_idle:
                self._idle.set()

    async def _serve_method(self, method: str, requests: list[SimpleRequest]) -> None:
        cause: BaseException = AssertionError("it was not answered")
        try:
            await self._bulk[method].serve(requests)
        except Exception as error:  # noqa: BLE001 - a defect in one handler must not end the daemon: it is logged with its trace and reported as ours
            _log.exception("handler failed", method=method)
            cause = sole_error(error)
        for request in requests:
            if not request.answered:
                request.fail(as_defect(method, cause))
