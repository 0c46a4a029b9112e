"""The plain client: what it tells apart, and how quickly."""

import socket
import subprocess
import sys
import time

import pytest
import trio

from swarmctl.proto.errors import DeadlineExceeded, NoController
from swarmctl.transport import keys, sync_client
from swarmctl.transport.errors import HandshakeFailed, InvalidEndpoint, KeyRefused, LinkLost
from swarmctl.transport.zmq_listener import open_listener

ANY_PORT = "tcp://127.0.0.1:0"


@pytest.fixture
async def listener(server_keys, users):
    async with open_listener(ANY_PORT, server_keys, users.get) as opened:
        yield opened


async def in_thread(function, *args):
    return await trio.to_thread.run_sync(function, *args)


async def echo(listener):
    while True:
        for arrival in await listener.receive_batch():
            listener.send(arrival.peer, b"re:" + arrival.payload)


async def test_a_round_trip(listener, server_keys, agent_keys, nursery):
    """Connect, send, receive, several times on one connection."""

    def talk():
        with sync_client.connect(listener.endpoint, server_keys.public, agent_keys) as client:
            for number in range(10):
                client.send(b"%d" % number)
                assert client.receive(5.0) == b"re:%d" % number

    nursery.start_soon(echo, listener)
    await in_thread(talk)


async def test_answers_that_come_together_are_handed_out_one_by_one(
    listener, server_keys, agent_keys, nursery
):
    """A burst of answers is kept in order."""

    def talk():
        with sync_client.connect(listener.endpoint, server_keys.public, agent_keys) as client:
            for number in range(100):
                client.send(b"%d" % number)
            return [client.receive(5.0) for _ in range(100)]

    nursery.start_soon(echo, listener)

    assert await in_thread(talk) == [b"re:%d" % number for number in range(100)]


def test_nothing_listens_is_told_within_a_second(server_keys, agent_keys, free_endpoint):
    """A refused TCP connection is no reason to wait for a timeout."""
    begun = time.monotonic()
    with pytest.raises(NoController, match="no controller listens") as caught:
        sync_client.connect(free_endpoint, server_keys.public, agent_keys)

    assert time.monotonic() - begun < 1.0
    assert caught.value.exit_code == 3
    assert free_endpoint in str(caught.value)


def test_a_name_that_does_not_resolve_is_no_controller(server_keys, agent_keys):
    """A wrong host name is told as quickly as a wrong port."""
    with pytest.raises(NoController):
        sync_client.connect("tcp://no-such-host.invalid:7077", server_keys.public, agent_keys)


async def test_a_refused_key_is_told_apart(listener, server_keys):
    """The controller is there and does not know us."""
    with pytest.raises(KeyRefused, match="refuses our key"):
        await in_thread(sync_client.connect, listener.endpoint, server_keys.public, keys.generate())


async def test_another_controllers_key_is_told_apart(listener, agent_keys):
    """Something listens, but it is not whom we expect."""
    with pytest.raises(HandshakeFailed, match="not the controller"):
        await in_thread(sync_client.connect, listener.endpoint, keys.generate().public, agent_keys)


def test_something_silent_that_listens_is_told_apart(server_keys, agent_keys):
    """A port that takes the connection and says nothing is a handshake that is late."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(HandshakeFailed, match="in time"):
            sync_client.connect(endpoint, server_keys.public, agent_keys, handshake_timeout_s=0.1)


async def test_the_first_address_that_lets_us_in_is_used(
    listener, server_keys, agent_keys, free_endpoint
):
    """Dead addresses before it do not matter."""

    def talk():
        with sync_client.connect(
            [free_endpoint, listener.endpoint], server_keys.public, agent_keys
        ) as client:
            return client.endpoint

    assert await in_thread(talk) == listener.endpoint


async def test_a_refused_key_outweighs_a_dead_address(listener, server_keys, free_endpoint):
    """Of several failures the one that the user can act on is told."""
    with pytest.raises(KeyRefused):
        await in_thread(
            sync_client.connect,
            [listener.endpoint, free_endpoint],
            server_keys.public,
            keys.generate(),
        )


async def test_no_answer_in_time_leaves_the_connection(listener, server_keys, agent_keys, nursery):
    """A deadline that passes is not a lost connection."""

    def talk():
        with sync_client.connect(listener.endpoint, server_keys.public, agent_keys) as client:
            with pytest.raises(DeadlineExceeded):
                client.receive(0.05)
            client.send(b"x")
            return client.receive(5.0)

    nursery.start_soon(echo, listener)

    assert await in_thread(talk) == b"re:x"


async def test_a_controller_that_goes_is_told_at_once(server_keys, agent_keys, users):
    """A lost connection ends the wait, long before the deadline."""
    received = trio.Event()

    def talk():
        with sync_client.connect(endpoint, server_keys.public, agent_keys) as client:
            client.send(b"x")
            with pytest.raises(LinkLost):
                client.receive(60.0)
            with pytest.raises(LinkLost):
                client.send(b"y")

    async def serve_one():
        nonlocal endpoint
        async with open_listener(ANY_PORT, server_keys, users.get) as listener:
            endpoint = listener.endpoint
            received.set()
            await listener.receive_batch()

    endpoint = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_one)
        await received.wait()
        await in_thread(talk)


async def test_a_connection_that_was_closed_is_a_lost_one(server_keys, agent_keys, users):
    """Whoever could not connect again is told so as before, and may close it once more."""

    def talk(endpoint):
        client = sync_client.connect(endpoint, server_keys.public, agent_keys)
        client.close()
        with pytest.raises(LinkLost):
            client.send(b"x")
        with pytest.raises(LinkLost):
            client.receive(5.0)
        client.close()

    async with open_listener(ANY_PORT, server_keys, users.get) as listener:
        await in_thread(talk, listener.endpoint)


@pytest.mark.parametrize("endpoints", [[], ["nonsense"], ["tcp://host:0"], ["tcp://*:1"]])
def test_a_malformed_address_is_told(server_keys, agent_keys, endpoints):
    """Before anything is tried."""
    with pytest.raises(InvalidEndpoint):
        sync_client.connect(endpoints, server_keys.public, agent_keys)


def test_the_plain_client_imports_no_trio():
    """Start-up time is felt."""
    program = "import sys, swarmctl.transport.sync_client; sys.exit('trio' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
