"""What nested nodes reach controllers through: bytes both ways, bounded, and nothing else."""

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from swarmctl.agent import relays as relays_
from swarmctl.agent.relays import Relays
from swarmctl.net import relays as places
from swarmctl.net.plugging.memory import MemoryPlugs

DEADLINE_S = 10.0


@asynccontextmanager
async def listening(handler):
    """A server on the loopback; its address."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, handler, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        yield listeners[0].socket.getsockname()[:2]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def relay(*addresses: str):
    """A relay to these addresses; where it listens."""
    one = Relays(MemoryPlugs("c0c0c0c0", "n1"), "c0c0c0c0", lambda: addresses)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.serve_listener, listener)
        yield listener.socket.getsockname()[:2]
        nursery.cancel_scope.cancel()


async def shout(stream):
    """A controller that answers in capitals."""
    async for data in stream:
        await stream.send_all(data.upper())


async def silence(stream):
    """A controller that closes at once."""
    await stream.aclose()


async def read(stream, count: int) -> bytes:
    data = b""
    with trio.fail_after(DEADLINE_S):
        while len(data) < count and (piece := await stream.receive_some()):
            data += piece
    return data


async def test_bytes_are_passed_both_ways():
    """The first controller that takes a connection has it; one that is away is passed over."""
    async with (
        listening(shout) as (host, port),
        relay("tcp://127.0.0.1:1", f"tcp://{host}:{port}") as place,
        await trio.open_tcp_stream(*place) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stream.send_all, b"hello" * 50_000)
        answer = await read(stream, 250_000)

    assert answer == b"HELLO" * 50_000


async def hello(stream):
    """As who connects to a controller: it speaks first."""
    await stream.send_all(b"hello")


@pytest.mark.parametrize("there", [True, False])
async def test_an_end_is_an_end_for_both(there):
    """A controller that closes, or none at all, closes the connection inside."""
    async with listening(silence) as (host, port):
        address = f"tcp://{host}:{port}" if there else "tcp://127.0.0.1:1"
        async with relay(address) as place, await trio.open_tcp_stream(*place) as stream:
            await hello(stream)
            assert await read(stream, 1) == b""


async def is_served(stream) -> bool:
    """Whether somebody answers."""
    await stream.send_all(b"a")
    return await read(stream, 1) == b"A"


@asynccontextmanager
async def only_one_served():
    """A relay with a bound of one, where a second connection was closed; its place, the first."""
    async with (
        listening(shout) as (host, port),
        relay(f"tcp://{host}:{port}") as place,
        await trio.open_tcp_stream(*place) as first,
    ):
        assert await is_served(first)
        async with await trio.open_tcp_stream(*place) as second:
            assert await read(second, 1) == b""
        yield place, first


async def test_no_more_connections_than_the_bound(monkeypatch):
    """One more is closed at once, and the others go on."""
    monkeypatch.setattr(relays_, "CONNECTIONS_MAX", 1)
    async with only_one_served() as (_, first):
        assert await is_served(first)


async def test_one_source_does_not_hold_them_all(monkeypatch):
    """So many connections of one address, and others are served still; what it ends is free."""
    monkeypatch.setattr(relays_, "SOURCE_MAX", 1)
    async with only_one_served() as (place, first):
        async with await trio.open_tcp_stream(*place, local_address="127.0.0.2") as other:
            assert await is_served(other)
        await first.send_eof()
        assert await read(first, 1) == b""
        async with await trio.open_tcp_stream(*place) as again:
            assert await is_served(again)


async def test_who_says_nothing_is_not_passed_on(monkeypatch):
    """A connection that is held idle ends, and no controller has heard of it."""
    monkeypatch.setattr(relays_, "FIRST_BYTES_S", 0.05)
    heard = []

    async def note(stream):
        heard.append(stream)

    async with (
        listening(note) as (host, port),
        relay(f"tcp://{host}:{port}") as place,
        await trio.open_tcp_stream(*place) as idle,
    ):
        assert await read(idle, 1) == b""
        assert heard == []


def test_a_relay_is_the_same_for_all_hosts():
    """Its port and MAC follow from cluster and network; its address is one for all."""
    one, again = places.relay("c0c0c0c0d1", "acme/front"), places.relay("c0c0c0c0d1", "acme/front")

    assert one == again
    assert one.port == "c0c0c0c0:relay:acme:front"
    assert one.mac != places.relay("c0c0c0c0d1", "acme/back").mac
    assert int(one.mac[:2], 16) & 0x03 == 0x02
    wish = places.wish("c0c0c0c0d1", "acme/front")
    assert (wish.port, wish.mac, wish.address) == (one.port, one.mac, "169.254.70.77")
    assert (wish.tenant, wish.network) == ("acme", "front")
    assert places.endpoint() == "tcp://169.254.70.77:7077"


def test_the_devices_of_relays_are_known_as_theirs():
    """So that nobody takes them for leftovers."""
    plugs = MemoryPlugs("c0c0c0c0", "n1")
    one = Relays(plugs, "c0c0c0c0", tuple)
    one.want({"acme/front": 1400})

    assert one.devices == {plugs.device("c0c0c0c0:relay:acme:front")}
