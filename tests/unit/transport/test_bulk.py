"""Simple requests are served together, and answered each."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, Conflict, from_wire
from swarmctl.proto.messages import Cancel, Failure, Reply, Request
from swarmctl.transport.bulk import BulkServer
from swarmctl.transport.rpc import RpcServer

PEER = b"peer"


@attrs.define
class Doubling:
    """Doubles numbers, a batch at a time, once it may; the rest says what to do instead."""

    batches: list = attrs.field(factory=list)
    gate: trio.Event = attrs.field(factory=trio.Event)

    def suits(self, _user_id, params):
        return "number" in params

    async def serve(self, requests):
        self.batches.append(len(requests))
        await self.gate.wait()
        for one in requests:
            match one.call.params["number"]:
                case "defer":
                    one.defer()
                case "conflict":
                    one.fail(Conflict("taken"))
                case "defect":
                    raise RuntimeError("a mistake")
                case number:
                    one.reply(number * 2)


@asynccontextmanager
async def a_server():
    async def alone(call):
        return "alone"

    async with trio.open_nursery() as nursery:
        bulk = Doubling()
        others = RpcServer({"double": alone}, nursery)
        server = BulkServer(others, {"double": bulk}, nursery)
        answers = {}

        def ask(number, *, call_id, peer=PEER, timeout_ms=0, size_bytes=10):
            def answer(message):
                answers[(peer, message.id)] = message

            params = {} if number is None else {"number": number}
            request = Request(call_id, "double", params, timeout_ms)
            assert server.on_message(peer, "admin:a", request, answer, size_bytes)

        yield server, bulk, ask, answers
        nursery.cancel_scope.cancel()


async def test_what_gathers_is_served_together(autojump_clock):
    """The first alone and at once, what comes meanwhile in batches; each has its answer."""
    async with a_server() as (server, bulk, ask, answers):
        ask(0, call_id=0)
        await wait_all_tasks_blocked()
        for number in range(1, 151):
            ask(number, call_id=number)
        await wait_all_tasks_blocked()
        bulk.gate.set()
        await server.wait_idle()

        assert bulk.batches == [1, limits.TRANSACTION_OPS_MAX, 50]
        assert answers == {(PEER, number): Reply(number, 2 * number) for number in range(151)}
        assert server.statistics().served == 151
        assert server.statistics().under_way == 0


async def test_one_that_fails_fails_alone(autojump_clock):
    """A refusal is its own; one that has to wait goes to the handler, as one not simple does."""
    async with a_server() as (_, bulk, ask, answers):
        bulk.gate.set()
        for call_id, number in enumerate([1, "conflict", "defer", None, 2]):
            ask(number, call_id=call_id)
        await wait_all_tasks_blocked()

        assert answers[(PEER, 0)] == Reply(0, 2)
        assert answers[(PEER, 1)].code == Conflict.code
        assert answers[(PEER, 2)] == Reply(2, "alone")
        assert answers[(PEER, 3)] == Reply(3, "alone")
        assert answers[(PEER, 4)] == Reply(4, 4)


async def test_a_defect_is_told_to_all_that_it_left_without_an_answer(autojump_clock):
    """And the next batch is served."""
    async with a_server() as (server, bulk, ask, answers):
        bulk.gate.set()
        for call_id, number in enumerate([1, "defect", 3]):
            ask(number, call_id=call_id)
        await server.wait_idle()
        ask(4, call_id=4)
        await server.wait_idle()

        assert [answers[(PEER, n)].code for n in (1, 2)] == ["internal", "internal"]
        assert answers[(PEER, 0)] == Reply(0, 2)
        assert answers[(PEER, 4)] == Reply(4, 8)


async def test_a_request_whose_time_is_over_is_not_begun(autojump_clock):
    """Its caller has given up: doing it now would surprise."""
    async with a_server() as (server, bulk, ask, answers):
        for number in range(limits.BULK_UNDER_WAY):
            ask(number, call_id=number)
        await wait_all_tasks_blocked()
        ask(1, call_id=-1, timeout_ms=100)
        await trio.sleep(1)
        bulk.gate.set()
        await server.wait_idle()

        assert answers[(PEER, -1)].code == "deadline"
        assert sum(bulk.batches) == limits.BULK_UNDER_WAY


async def test_too_much_is_refused_with_when_to_come_again(autojump_clock):
    """A disk that hangs: nothing grows, and everybody is told."""
    async with a_server() as (server, bulk, ask, answers):
        ask(1, call_id=1)
        await trio.sleep(2 * limits.BULK_WAIT_S)
        ask(2, call_id=2)
        ask(2, call_id=2, peer=b"other")
        for refusal in (answers[(PEER, 2)], answers[(b"other", 2)]):
            assert isinstance(refusal, Failure)
            assert refusal.retry_ms >= limits.BUSY_RETRY_MS
            with pytest.raises(Busy, match=f"retry in {refusal.retry_ms} ms") as caught:
                raise from_wire(refusal.code, refusal.what, "", "", refusal.retry_ms)
            assert caught.value.retry_ms == refusal.retry_ms
        assert server.statistics().refused_busy == 2
        bulk.gate.set()
        await server.wait_idle()
        ask(3, call_id=3)
        await server.wait_idle()

        assert answers[(PEER, 3)] == Reply(3, 6)


async def test_what_a_departed_peer_asked_is_not_done(autojump_clock):
    """What has begun is finished; cancelling what is begun changes nothing."""
    async with a_server() as (server, bulk, ask, _):
        for number in range(limits.BULK_UNDER_WAY + 5):
            ask(number, call_id=number)
        await wait_all_tasks_blocked()
        server.on_message(PEER, "admin:a", Cancel(1), lambda _: None, 0)
        server.peer_departed(PEER)
        bulk.gate.set()
        await server.wait_idle()

        assert sum(bulk.batches) == limits.BULK_UNDER_WAY
