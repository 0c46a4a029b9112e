"""Requests over a pair of functions: deadlines, cancellation, credit, bounds, errors."""

import math
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from swarmctl.proto import codec, limits
from swarmctl.proto.errors import (
    Busy,
    DeadlineExceeded,
    InternalError,
    InvalidSpec,
    NotFound,
    PeerUnreachable,
    ProtocolError,
    StorageFault,
)
from swarmctl.proto.messages import (
    Cancel,
    Failure,
    Heartbeat,
    Reply,
    Request,
    StreamCredit,
    StreamData,
)
from swarmctl.transport.errors import Backpressure
from swarmctl.transport.rpc import RpcCaller, RpcServer

SERVER, CLIENT = b"server", b"client"
WINDOW = limits.STREAM_WINDOW_CHUNKS


@attrs.define(eq=False)
class Wire:
    """A caller and a server in two functions; ``sent`` and ``answered`` are what crossed."""

    caller: RpcCaller
    server: RpcServer | None = None
    there: bool = True
    answering: bool = True
    sent: list = attrs.field(factory=list)
    answered: list = attrs.field(factory=list)
    trouble: list = attrs.field(factory=list)

    def send(self, message):
        """To the server."""
        if not self.there:
            raise PeerUnreachable("not connected")
        message = codec.decode(codec.encode(message))
        self.sent.append(message)
        try:
            assert self.server.on_message(CLIENT, "admin:a", message, self.answer)
        except ProtocolError as error:
            self.trouble.append(error)

    def answer(self, message):
        """To the caller."""
        if not self.there:
            raise PeerUnreachable("not connected")
        message = codec.decode(codec.encode(message))
        self.answered.append(message)
        if self.answering:
            self.caller.on_message(SERVER, message)

    async def call(self, method, params=None, **options):
        return await self.caller.call(SERVER, self.send, method, params, **options)

    def stream(self, method, params=None, **options):
        return self.caller.stream(SERVER, self.send, method, params, **options)


@asynccontextmanager
async def a_wire(**handlers):
    """Both ends, and a nursery for the server's handlers."""
    wire = Wire(RpcCaller())
    async with trio.open_nursery() as nursery:
        wire.server = RpcServer(handlers, nursery)
        yield wire
        nursery.cancel_scope.cancel()


async def echo(call):
    return {"params": call.params, "user": call.user_id, "peer": call.peer}


async def for_ever(call):
    await trio.sleep_forever()


# --- answers ---------------------------------------------------------------------------------


async def test_a_request_is_answered(autojump_clock):
    """The handler sees the parameters and who asks; the caller gets what it returned."""
    async with a_wire(echo=echo) as wire:
        answer = await wire.call("echo", {"a": 1})

    assert answer == {"params": {"a": 1}, "user": "admin:a", "peer": CLIENT}
    assert wire.server.statistics().served == 1


async def test_answers_find_their_callers_in_any_order(autojump_clock):
    """Many requests under way on one connection."""

    async def later(call):
        await trio.sleep(call.params["s"])
        return call.params["s"]

    got = []
    async with a_wire(later=later) as wire, trio.open_nursery() as nursery:

        async def ask(s):
            got.append((s, await wire.call("later", {"s": s})))

        for s in (3, 1, 2):
            nursery.start_soon(ask, s)
    assert got == [(1, 1), (2, 2), (3, 3)]


async def test_an_absent_peer_fails_at_once(autojump_clock):
    """Nothing is queued, nothing is waited for."""
    async with a_wire(echo=echo) as wire:
        wire.there = False
        began = trio.current_time()
        with pytest.raises(PeerUnreachable):
            await wire.call("echo")

        assert trio.current_time() == began
        assert not wire.caller._pending


async def test_a_peer_that_departs_fails_what_waits_for_it_and_nothing_else(autojump_clock):
    """The other peers' requests go on."""
    async with a_wire(for_ever=for_ever) as wire, trio.open_nursery() as nursery:

        async def ask():
            with pytest.raises(PeerUnreachable, match="gone"):
                await wire.call("for_ever", timeout_s=math.inf)

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        wire.caller.fail_peer(b"another", "gone")
        await wait_all_tasks_blocked()
        assert len(wire.caller._pending) == 1
        wire.caller.fail_peer(SERVER, "gone")


async def test_only_the_peer_that_was_asked_can_answer(autojump_clock):
    """Another node that guesses the number changes nothing."""
    async with a_wire(for_ever=for_ever) as wire, trio.open_nursery() as nursery:

        async def ask():
            assert await wire.call("for_ever", timeout_s=math.inf) == "true"

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        [request] = wire.sent
        assert wire.caller.on_message(b"another", Reply(request.id, "false"))
        assert not wire.caller.on_message(b"another", StreamData(request.id, "stdout", b"false"))
        await wait_all_tasks_blocked()
        wire.caller.on_message(SERVER, Reply(request.id, "true"))
        wire.caller.on_message(SERVER, Failure(request.id, "internal", "a second answer"))


async def test_stream_messages_that_are_not_the_callers_are_left_to_a_server(autojump_clock):
    """One process is both: a client's data and credit must reach the handler."""
    caller = RpcCaller()

    assert not caller.on_message(CLIENT, StreamData(1, "stdin", b"x"))
    assert not caller.on_message(CLIENT, StreamCredit(1, 5))
    assert not caller.on_message(CLIENT, Request(1, "m"))
    assert caller.on_message(CLIENT, Reply(1, "late"))


# --- deadlines and cancellation --------------------------------------------------------------


async def test_no_answer_in_time_is_a_deadline_exceeded(autojump_clock):
    """The caller's own clock decides, whatever the server does."""
    async with a_wire(for_ever=for_ever) as wire:
        wire.answering = False
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="for_ever in 3 s"):
            await wire.call("for_ever", timeout_s=3)

        assert trio.current_time() - began == pytest.approx(3)


async def test_the_server_ends_a_handler_at_the_deadline(autojump_clock):
    """A request that nobody can wait for any more does not go on."""
    async with a_wire(for_ever=for_ever) as wire:
        wire.send(Request(1, "for_ever", {}, 2_000))
        await trio.sleep(1.9)
        assert wire.server.statistics().under_way == 1
        await trio.sleep(0.2)

        assert wire.server.statistics().under_way == 0
        assert wire.answered[-1].code == "deadline"


async def test_leaving_the_block_cancels_the_handler(autojump_clock):
    """Ctrl-C at a log follows through to its source."""
    ended = trio.Event()

    async def source(call):
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with a_wire(source=source) as wire:
        async with wire.stream("source"):
            await wait_all_tasks_blocked()
        with trio.fail_after(1):
            await ended.wait()
        await wait_all_tasks_blocked()

        assert isinstance(wire.sent[-1], Cancel)
        assert wire.server.statistics().under_way == 0
        assert wire.answered == []


async def test_an_error_beside_a_cancellation_does_not_escape(autojump_clock):
    """Cleaning up after a cancelled handler may fail too; the server lives on."""

    async def fails_at_the_end(call):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise NotFound("gone meanwhile")

    async with a_wire(fails=fails_at_the_end, echo=echo) as wire:
        async with wire.stream("fails"):
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()

        assert await wire.call("echo")


async def test_a_departed_peers_handlers_end(autojump_clock):
    """A client that was killed sends no cancel; its watches must not stay for ever."""
    async with a_wire(for_ever=for_ever) as wire:
        for number in range(3):
            wire.send(Request(number, "for_ever", {}, 0))
        wire.server.on_message(b"another", "admin:b", Request(1, "for_ever", {}, 0), wire.answer)
        await wait_all_tasks_blocked()
        wire.server.peer_departed(CLIENT)
        wire.server.peer_departed(b"unknown")
        await wait_all_tasks_blocked()

        assert wire.server.statistics().under_way == 1
        assert wire.answered == []


# --- errors ----------------------------------------------------------------------------------


async def test_an_error_keeps_class_what_where_and_hint(autojump_clock):
    """What the handler raised is what the caller catches."""

    async def fails(call):
        raise InvalidSpec("not a size", "web.yaml:3", "write 2GiB")

    async with a_wire(fails=fails) as wire:
        with pytest.raises(InvalidSpec) as caught:
            await wire.call("fails")
    error = caught.value

    assert (error.what, error.where, error.hint) == ("not a size", "web.yaml:3", "write 2GiB")


async def test_an_error_in_a_handlers_own_nursery_is_that_error(autojump_clock):
    """A group around it is how the handler is written, not what went wrong."""

    async def fails(call):
        async def one():
            raise StorageFault("disk full")

        async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
            nursery.start_soon(trio.sleep_forever)
            inner.start_soon(one)

    async with a_wire(fails=fails) as wire:
        with pytest.raises(StorageFault, match="disk full"):
            await wire.call("fails")


async def test_a_defect_is_reported_as_ours_and_the_server_lives_on(autojump_clock):
    """One handler's bug harms one request."""

    async def broken(call):
        raise ZeroDivisionError("oops")

    async def broken_inside(call):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken, call)

    async with a_wire(broken=broken, broken_inside=broken_inside, echo=echo) as wire:
        for method in ("broken", "broken_inside"):
            with pytest.raises(InternalError, match="ZeroDivisionError: oops"):
                await wire.call(method)

        assert await wire.call("echo")
        assert wire.server.statistics().failed == 2


async def test_an_unknown_method_is_named(autojump_clock):
    """The peer is older or newer."""
    async with a_wire() as wire:
        wire.send(Request(1, "no.such"))
        await wait_all_tasks_blocked()

        assert wire.answered == [Failure(1, "unknown-method", "no method 'no.such' here")]


@pytest.mark.parametrize(
    ("result", "code"),
    [(b"x" * limits.MESSAGE_MAX_BYTES, "too-large"), (object(), "internal"), (1 << 70, "internal")],
    ids=["too large", "not data", "no integer of the wire"],
)
async def test_an_answer_that_cannot_be_sent_is_an_error_at_once(autojump_clock, result, code):
    """The caller does not have to wait for its deadline, and the server lives on."""

    async def gives(call):
        return result

    async with a_wire(gives=gives, echo=echo) as wire:
        wire.answering = False
        wire.send(Request(1, "gives"))
        await wait_all_tasks_blocked()

        assert [(type(one), one.code) for one in wire.answered] == [(Failure, code)]


async def test_an_answer_that_nobody_takes_ends_nothing(autojump_clock):
    """The caller has gone, or does not read."""

    def refuse(message):
        raise Backpressure("full")

    async with a_wire(echo=echo) as wire:
        wire.server.on_message(CLIENT, "admin:a", Request(1, "echo"), refuse)
        await wait_all_tasks_blocked()

        assert await wire.call("echo")


async def test_long_texts_of_errors_are_cut(autojump_clock):
    """A daemon's output in an error must not make the answer too large to send."""

    async def fails(call):
        raise NotFound("x" * 9_000_000, "y" * 5_000_000)

    async with a_wire(fails=fails) as wire:
        with pytest.raises(NotFound) as caught:
            await wire.call("fails")

    assert len(caught.value.what) == limits.TEXT_MAX_CHARS


@pytest.mark.parametrize(
    ("read", "params"),
    [
        (lambda call: call.text("a"), {}),
        (lambda call: call.text("a"), {"a": 1}),
        (lambda call: call.integer("a"), {"a": "1"}),
        (lambda call: call.integer("a"), {"a": True}),
        (lambda call: call.flag("a"), {"a": 1}),
        (lambda call: call.texts("a"), {"a": "web"}),
        (lambda call: call.texts("a"), {"a": [1]}),
    ],
)
async def test_a_parameter_of_the_wrong_type_is_the_callers_fault(autojump_clock, read, params):
    """It is named, and is no defect of the server."""

    async def reads(call):
        return read(call)

    async with a_wire(reads=reads) as wire:
        with pytest.raises(ProtocolError, match=r"a\b"):
            await wire.call("reads", params)


# --- streams ---------------------------------------------------------------------------------


async def test_a_stream_arrives_whole_and_in_order_and_then_the_result(autojump_clock):
    """Far more chunks than the window."""

    async def counts(call):
        for number in range(10 * WINDOW):
            await call.send("item", number)
        return "done"

    got = []
    async with a_wire(counts=counts) as wire, wire.stream("counts") as stream:
        while (item := await stream.receive()) is not None:
            got.append(item.data)
        assert await stream.result() == "done"
        assert await stream.receive() is None

    assert got == list(range(10 * WINDOW))


async def test_a_slow_reader_holds_the_sender_to_the_window(autojump_clock):
    """What is under way is bounded by the credit, not by memory."""
    sent = 0

    async def floods(call):
        nonlocal sent
        while True:
            await call.send("stdout", b"x")
            sent += 1

    async with a_wire(floods=floods) as wire, wire.stream("floods") as stream:
        await wait_all_tasks_blocked()
        assert sent == WINDOW
        for read in range(1, 3 * WINDOW):
            await stream.receive()
            await wait_all_tasks_blocked()
            assert sent - read <= WINDOW
        assert sent > 3 * WINDOW - 1


async def test_a_caller_streams_to_the_handler_within_the_window_too(autojump_clock):
    """Typing at a program that does not read waits."""
    proceed = trio.Event()

    async def swallows(call):
        await proceed.wait()
        return tuple([(await call.receive()).data for _ in range(3 * WINDOW)])

    async with a_wire(swallows=swallows) as wire, wire.stream("swallows") as stream:
        with trio.move_on_after(1) as late:
            for number in range(3 * WINDOW):
                await stream.send("stdin", number)
        assert late.cancelled_caught
        assert number == WINDOW
        proceed.set()
        for number in range(WINDOW, 3 * WINDOW):
            await stream.send("stdin", number)
        assert await stream.result() == tuple(range(3 * WINDOW))
    assert wire.trouble == []


async def test_more_data_than_granted_is_a_protocol_error_for_whoever_reads_the_socket(
    autojump_clock,
):
    """It is raised where the message came in, and the server lives on."""
    async with a_wire(for_ever=for_ever, echo=echo) as wire:
        wire.send(Request(100, "for_ever", {}, 0))
        for _ in range(WINDOW + 1):
            wire.send(StreamData(100, "stdin", b"x"))

        assert [type(one) for one in wire.trouble] == [ProtocolError]
        assert await wire.call("echo")


async def test_data_after_the_answer_is_dropped(autojump_clock):
    """A peer that goes on streaming after its answer ends nobody's receive loop."""
    async with a_wire(for_ever=for_ever) as wire, wire.stream("for_ever") as stream:
        [request] = wire.sent
        wire.caller.on_message(SERVER, StreamData(request.id, "stdout", b"last"))
        wire.caller.on_message(SERVER, Reply(request.id, 0))
        wire.caller.on_message(SERVER, StreamData(request.id, "stdout", b"late"))

        assert (await stream.receive()).data == b"last"
        assert await stream.receive() is None
        assert await stream.result() == 0


async def test_credit_beyond_the_window_and_below_zero_is_not_taken(autojump_clock):
    """A peer cannot make a sender queue without bound, nor break it."""
    sent = 0

    async def floods(call):
        nonlocal sent
        while True:
            await call.send("stdout", b"x")
            sent += 1

    async with a_wire(floods=floods) as wire, wire.stream("floods"):
        await wait_all_tasks_blocked()
        [request] = wire.sent
        wire.send(StreamCredit(request.id, -5))
        wire.send(StreamCredit(request.id, 0))
        await wait_all_tasks_blocked()
        assert sent == WINDOW
        wire.answering = False
        wire.send(StreamCredit(request.id, 1 << 60))
        await wait_all_tasks_blocked()

        assert sent == 2 * WINDOW


async def test_messages_of_requests_that_are_over_are_ignored(autojump_clock):
    """Cancel, data and credit may cross the answer."""
    async with a_wire(echo=echo) as wire:
        await wire.call("echo")
        for message in (Cancel(1), StreamData(1, "stdin", b""), StreamCredit(1, 1), Cancel(99)):
            wire.send(message)

        assert wire.trouble == []


async def test_what_is_no_request_is_not_taken(autojump_clock):
    """The reader of the socket asks the others."""
    async with a_wire() as wire:
        assert not wire.server.on_message(CLIENT, "", Heartbeat(1, 1, 0, 0), wire.answer)
        assert not wire.server.on_message(CLIENT, "", Reply(1), wire.answer)


# --- bounds ----------------------------------------------------------------------------------


async def test_too_many_requests_of_one_peer_are_answered_busy(autojump_clock):
    """Others are still served, and so is it when some have ended."""
    async with a_wire(for_ever=for_ever, echo=echo) as wire:
        for number in range(limits.RPC_PER_PEER):
            wire.send(Request(1_000_000 + number, "for_ever", {}, 0))
        await wait_all_tasks_blocked()
        with pytest.raises(Busy, match="retry in"):
            await wire.call("echo")
        other = []
        wire.server.on_message(b"other", "admin:b", Request(1, "echo"), other.append)
        await wait_all_tasks_blocked()
        assert isinstance(other[0], Reply)
        wire.send(Cancel(1_000_000))
        await wait_all_tasks_blocked()

        assert await wire.call("echo")
        assert wire.server.statistics().refused_busy == 1


async def test_all_requests_together_are_bounded(autojump_clock, monkeypatch):
    """The total counts over all peers."""
    monkeypatch.setattr(limits, "RPC_TOTAL", 3)
    async with a_wire(for_ever=for_ever) as wire:
        answers = []
        for number in range(5):
            peer = b"peer%d" % number
            wire.server.on_message(peer, "", Request(1, "for_ever", {}, 0), answers.append)
        await wait_all_tasks_blocked()

        assert [one.code for one in answers] == ["busy", "busy"]


async def test_a_number_in_use_is_not_used_twice(autojump_clock):
    """The first request of it goes on."""
    async with a_wire(for_ever=for_ever) as wire:
        wire.answering = False
        wire.send(Request(1, "for_ever", {}, 0))
        wire.send(Request(1, "for_ever", {}, 0))
        await wait_all_tasks_blocked()

        assert [one.code for one in wire.answered] == ["busy"]
        assert wire.server.statistics().under_way == 1


async def test_nothing_is_left_behind_by_requests_that_ended(autojump_clock):
    """Tables of requests empty themselves."""
    async with a_wire(echo=echo, for_ever=for_ever) as wire:
        for _ in range(50):
            await wire.call("echo")
        with pytest.raises(DeadlineExceeded):
            await wire.call("for_ever", timeout_s=1)
        await wait_all_tasks_blocked()

        assert not wire.caller._pending
        assert not wire.server._active
        assert not wire.server._per_peer
