"""What a hostile or broken peer can do to a ZeroMQ listener: be counted, and nothing else."""

import os
import time
from pathlib import Path
from typing import ClassVar

import pytest
import trio
import trio.testing
import zmq

from swarmctl.transport import bounds, keys
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.context import new_context, shared_context
from swarmctl.transport.dealer import configure_dealer
from swarmctl.transport.monitor import MonitorEvent
from swarmctl.transport.zmq_link import _Target, _ZmqConnection, open_link
from swarmctl.transport.zmq_listener import open_listener

BOUND_BYTES = 1_000


@pytest.fixture
async def listener(server_keys, users):
    async with open_listener(
        "tcp://127.0.0.1:0", server_keys, users.get, Bounds(payload_bytes=BOUND_BYTES)
    ) as opened:
        yield opened


@pytest.fixture
async def good(listener, server_keys, agent_keys):
    """A well-behaved link, connected before the trouble begins."""
    async with open_link(listener.endpoint, server_keys.public, agent_keys) as opened:
        await opened.wait_connected()
        yield opened


@pytest.fixture
def raw_dealer(server_keys, agent_keys):
    """Bare DEALERs with a valid key, whose user does as he likes."""
    sockets = []

    def make(routing_id=None):
        socket = shared_context().socket(zmq.DEALER)
        configure_dealer(socket, server_keys.public, agent_keys, Bounds(), 5.0)
        if routing_id is not None:
            socket.set(zmq.ROUTING_ID, routing_id)
        sockets.append(socket)
        return socket

    yield make
    for socket in sockets:
        socket.close()


async def assert_serves(listener, link, connection=1):
    """The listener still answers a well-behaved link, over the same connection."""
    link.send(b"ping")
    arrivals = []
    while not arrivals:
        arrivals = await listener.receive_batch()
    assert [arrival.payload for arrival in arrivals] == [b"ping"]
    listener.send(arrivals[0].peer, b"pong")
    assert await link.receive_batch() == [b"pong"]
    assert link.connection == connection


async def until_counted(listener, counter, count=1):
    """Wait until a counter of the listener has reached ``count``."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.receive_batch)
        while getattr(listener.statistics(), counter) < count:  # noqa: ASYNC110 - no event
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


async def send_raw(socket, frames):
    """Send by a bare socket once it is connected."""
    while not socket.poll(0, zmq.POLLOUT):  # noqa: ASYNC110 - a bare socket has no event
        await trio.sleep(0.005)
    socket.send_multipart(frames, zmq.NOBLOCK)


def port_of(listener):
    return int(listener.endpoint.rpartition(":")[2])


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(os.urandom(4096), id="random"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http"),
        pytest.param(
            b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(47) + b"\xff" * 200, id="greeting"
        ),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_noise_on_the_port_harms_nobody(listener, good, noise):
    """Bytes that are no ZeroMQ, and a hang-up, are counted; the others go on."""
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(listener))
    async with stream:
        await stream.send_all(noise)
    await until_counted(listener, "connections_silent")

    await assert_serves(listener, good)
    assert listener.statistics().peers == 1


async def test_a_peer_that_speaks_no_curve_is_refused(listener, good):
    """The NULL mechanism gets nowhere: no message of its arrives."""
    socket = shared_context().socket(zmq.DEALER)
    socket.set(zmq.LINGER, 0)
    try:
        socket.connect(listener.endpoint)
        socket.send(b"let me in")
        await until_counted(listener, "handshakes_broken")
    finally:
        socket.close()

    await assert_serves(listener, good)
    assert listener.statistics().handshakes_allowed == 1


async def test_a_wrong_server_key_is_counted(listener, good, agent_keys):
    """A client of another cluster is a broken handshake here."""
    async with open_link(listener.endpoint, keys.generate().public, agent_keys):
        await until_counted(listener, "handshakes_broken")
        await assert_serves(listener, good)


async def test_a_public_key_without_its_secret_gets_nowhere(listener, good, server_keys, users):
    """Knowing somebody's public key does not make anybody that user."""
    thief = keys.KeyPair(next(iter(users)), keys.generate().secret)
    async with open_link(listener.endpoint, server_keys.public, thief) as link:
        await link.wait_failure()

        assert not link.connected
        await assert_serves(listener, good)


async def test_a_peer_that_names_itself_is_dropped(listener, good, raw_dealer):
    """A routing id chosen by the peer is not accepted, whatever its key."""
    socket = raw_dealer(b"controller")
    socket.connect(listener.endpoint)
    await send_raw(socket, [b"hello"])
    await until_counted(listener, "dropped_routing_id")

    await assert_serves(listener, good)


@pytest.mark.parametrize("frames", [2, 50])
async def test_a_message_of_several_frames_is_dropped(listener, good, raw_dealer, frames):
    """Only one payload a message; the connection stays usable."""
    socket = raw_dealer()
    socket.connect(listener.endpoint)
    await send_raw(socket, [b"part"] * frames)
    await until_counted(listener, "dropped_frames")
    await send_raw(socket, [b"whole"])
    (arrival,) = await listener.receive_batch()

    assert arrival.payload == b"whole"
    await assert_serves(listener, good)


async def test_a_frame_far_beyond_the_bound_ends_its_connection_only(listener, good, raw_dealer):
    """Libzmq does not even read it; the sender is cut off and the others go on."""
    socket = raw_dealer()
    socket.connect(listener.endpoint)
    await send_raw(socket, [b"hello"])
    (arrival,) = await listener.receive_batch()
    await send_raw(socket, [bytes(BOUND_BYTES + bounds.FRAME_SLACK_BYTES)])
    while not (departed := listener.take_departed()):
        assert await listener.receive_batch() == []

    assert departed == [arrival.peer]
    await assert_serves(listener, good)


async def test_a_flood_of_bad_messages_does_not_hold_the_loop(listener, good, raw_dealer):
    """While one peer floods, the good one is served and other tasks run."""
    socket = raw_dealer()
    socket.connect(listener.endpoint)
    for _ in range(20):
        await send_raw(socket, [b"bad", b"message"])
    for _ in range(500):
        socket.send_multipart([b"bad", b"message"], zmq.NOBLOCK)

    await assert_serves(listener, good)
    await until_counted(listener, "dropped_frames", 520)


async def test_many_short_connections_leave_nothing_behind(listener, server_keys, agent_keys):
    """Peers that come, speak and go are forgotten, each departs once."""
    peers = set()
    departed = []
    for _ in range(30):
        async with open_link(listener.endpoint, server_keys.public, agent_keys) as link:
            await link.wait_connected()
            link.send(b"x")
            while not (batch := await listener.receive_batch()):
                departed += listener.take_departed()
            (arrival,) = batch
            peers.add(arrival.peer)
    while len(departed) < 30:
        departed += listener.take_departed()
        if len(departed) < 30:
            await listener.receive_batch()

    assert len(peers) == 30
    assert sorted(departed) == sorted(peers)
    assert listener.statistics().peers == 0


async def test_a_departure_that_another_call_noticed_still_wakes_the_receiver(
    listener, server_keys, agent_keys
):
    """Reading the events for the statistics does not swallow the news."""
    async with trio.open_nursery() as nursery:
        async with open_link(listener.endpoint, server_keys.public, agent_keys) as link:
            await link.wait_connected()
            link.send(b"x")
            (arrival,) = await listener.receive_batch()
            batches = []

            async def receive():
                batches.append(await listener.receive_batch())

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
        # Without an await: the listener's own task does not get to see the event.
        while listener.statistics().peers:
            time.sleep(0.001)  # noqa: ASYNC251 - blocking the loop is the point

    assert batches == [[]]
    assert listener.take_departed() == [arrival.peer]


async def test_disconnect_of_a_peer_that_is_gone_says_so(listener, good):
    """A second disconnect finds nothing, and shuts nobody else's connection."""
    good.send(b"x")
    (arrival,) = await listener.receive_batch()

    assert listener.disconnect(arrival.peer) is True
    await good.wait_lost()
    await listener.receive_batch()
    assert listener.disconnect(arrival.peer) is False
    await good.wait_connected()
    await assert_serves(listener, good, connection=2)


async def test_a_closed_listener_leaves_no_thread_and_no_descriptor(server_keys):
    """Opening and closing again and again costs nothing."""

    async def open_and_close():
        async with open_listener("tcp://127.0.0.1:0", server_keys, lambda _key: None):
            pass

    def descriptors_and_threads():
        return [len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task")]

    await open_and_close()
    before = descriptors_and_threads()
    for _ in range(5):
        await open_and_close()

    assert descriptors_and_threads() == before


async def test_a_second_bind_that_fails_releases_the_first(listener, server_keys, free_endpoint):
    """An address in use among several leaves none of them taken."""
    with pytest.raises(Exception, match="another process listens"):
        async with open_listener(
            [free_endpoint, listener.endpoint], server_keys, lambda _key: None
        ):
            pass
    async with open_listener(free_endpoint, server_keys, lambda _key: None) as again:
        assert again.endpoint == free_endpoint


async def test_what_had_come_when_we_were_late_ourselves_is_not_lateness(
    autojump_clock, agent_keys, server_keys, free_endpoint
):
    """A process that is overrun sees the deadline and the event at once: it is connected."""
    target = _Target(shared_context(), server_keys.public, agent_keys, Bounds(), 3.0, 3.0)
    connection = _ZmqConnection(target, free_endpoint)
    connection.close()
    news = [zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED]

    class Late:
        """A monitor whose events come with the deadline, one at a time."""

        arrived: ClassVar = []

        async def wait(self):
            try:
                await trio.sleep_forever()
            finally:
                self.arrived.append(MonitorEvent(news.pop(0), 0))

        def read_nowait(self):
            while self.arrived:
                yield self.arrived.pop()

    connection._monitor = connection._monitor_readable = Late()
    await connection.wait_ready()
    assert not news


def test_no_message_that_waits_holds_on_to_the_buffer_into_which_it_was_received():
    """Of 18 KiB each: ten thousand agents may be waiting. Libzmq's own default is otherwise."""
    zero_copy_receive = 10
    with zmq.Context() as usual:
        assert usual.get(zero_copy_receive) == 1
    with new_context() as own:
        assert own.get(zero_copy_receive) == 0
    assert shared_context().get(zero_copy_receive) == 0
