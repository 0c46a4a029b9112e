"""OVSDB's protocol without a server: messages out of bytes, addresses, and a peer that vanishes."""

import json

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.net.ovsdb import Framing, OvsdbConnection, parse_remote
from swarmctl.proto.errors import DriverUnavailable, InvalidSpec, ProtocolError

messages = st.lists(
    st.dictionaries(st.text(max_size=4), st.recursive(st.text(max_size=6), st.lists), max_size=3),
    max_size=5,
)


@given(messages, st.lists(st.integers(1, 20), min_size=1, max_size=10), st.booleans())
def test_messages_are_found_however_they_come(sent, sizes, is_ascii):
    """Cut anywhere, also inside a character or at a brace that ends nothing."""
    data = "".join(json.dumps(each, ensure_ascii=is_ascii) for each in sent).encode()
    framing, found, place = Framing(), [], 0
    while place < len(data):
        size = sizes[place % len(sizes)]
        found += framing.feed(data[place : place + size])
        place += size

    assert found == sent


def test_what_is_not_text_is_refused():
    """It is a mistake to go on with it."""
    with pytest.raises(ProtocolError):
        Framing().feed(b"\xff\xfe}")


@pytest.mark.parametrize("text", ["unix:/run/nb.sock", "tcp:127.0.0.1:6641", "ssl:db.example:6641"])
def test_addresses_are_read(text):
    """The three forms that OVN's own tools take."""
    assert str(parse_remote(text)) == text


@pytest.mark.parametrize("text", ["", "unix:", "/run/nb.sock", "tcp:6641", "tcp:host:", "http:x:1"])
def test_other_addresses_are_refused(text):
    """With the forms that there are."""
    with pytest.raises(InvalidSpec, match="unix:PATH"):
        parse_remote(text)


@pytest.fixture
async def peers(nursery):
    """A connection that is served, and the server's end of it."""
    ours, theirs = trio.testing.memory_stream_pair()
    connection = OvsdbConnection(ours)
    nursery.start_soon(connection.serve)
    return connection, theirs


async def test_the_server_is_answered(peers):
    """It asks whether we are alive."""
    _, server = peers
    await server.send_all(b'{"id":"echo","method":"echo","params":["x"]}')

    assert json.loads(await server.receive_some()) == {"id": "echo", "result": ["x"], "error": None}


async def test_a_lost_connection_ends_the_calls(peers, nursery):
    """Those under way, and those that come later."""
    connection, server = peers

    async def lose():
        await server.receive_some()
        await server.aclose()

    nursery.start_soon(lose)
    for _ in range(2):
        with pytest.raises(DriverUnavailable):
            await connection.transact("db", [])


async def test_a_server_that_is_silent_is_given_up(peers, autojump_clock):
    """It is asked after a while, and after another the connection is as good as lost."""
    connection, _ = peers
    with pytest.raises(DriverUnavailable):
        await connection.transact("db", [])

    assert trio.current_time() >= 10
