"""What both carriers promise (swarmctl.transport.api)."""

import functools

import pytest
import trio
import trio.testing

from swarmctl.proto.errors import PeerUnreachable
from swarmctl.transport import keys
from swarmctl.transport.api import PeerId
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.errors import (
    AddressInUse,
    Backpressure,
    HandshakeFailed,
    InvalidEndpoint,
    KeyRefused,
    LinkLost,
    PayloadTooLarge,
)
from swarmctl.transport.link import Backoff

ANY_PORT = "tcp://127.0.0.1:0"
QUICK = Backoff(minimum_s=0.02, maximum_s=0.1)


async def gather(receive, count):
    """Receive until there are ``count`` items."""
    items = []
    while len(items) < count:
        items += await receive()
    return items


async def until(condition):
    """Wait for a condition that no event announces."""
    while not condition():  # noqa: ASYNC110 - counters have no event
        await trio.sleep(0.005)


async def fill(send):
    """Send until the queue is full; returns how many went."""
    # Large enough that TCP's own buffers fill, so that the queue does.
    payload = bytes(1_000_000)
    sent = 0
    while True:
        try:
            send(payload)
        except Backpressure:
            return sent
        sent += 1
        await trio.sleep(0.001)


async def receive_until_lost(link, got):
    """Receive into ``got`` until the link raises."""
    while True:
        got += await link.receive_batch()


@pytest.fixture
async def listener(carrier, server_keys, users):
    async with carrier.open_listener(ANY_PORT, server_keys, users.get) as opened:
        yield opened


@pytest.fixture
async def link(carrier, listener, server_keys, agent_keys):
    async with carrier.open_link(
        listener.endpoint, server_keys.public, agent_keys, backoff=QUICK
    ) as opened:
        await opened.wait_connected()
        yield opened


async def test_a_round_trip_names_the_user(listener, link):
    """What a link sends arrives with its user's id, and the answer comes back."""
    link.send(b"hello")
    (arrival,) = await listener.receive_batch()
    listener.send(arrival.peer, b"welcome")

    assert (arrival.user_id, arrival.payload) == ("agent-1", b"hello")
    assert await link.receive_batch() == [b"welcome"]


async def test_payloads_are_opaque_and_whole(listener, link):
    """Empty, binary and large payloads arrive as they were, in order."""
    payloads = [b"", bytes(range(256)), b"\0" * 1_000_000, b"last"]
    for payload in payloads:
        link.send(payload)

    arrivals = await gather(listener.receive_batch, len(payloads))
    assert [arrival.payload for arrival in arrivals] == payloads


async def test_all_that_waits_comes_in_bounded_batches(carrier, server_keys, agent_keys, users):
    """A burst is handed out in few batches, none larger than the bound, nothing lost."""
    bounds = Bounds(batch_max=100)
    async with (
        carrier.open_listener(ANY_PORT, server_keys, users.get, bounds) as listener,
        carrier.open_link(listener.endpoint, server_keys.public, agent_keys) as link,
    ):
        await link.wait_connected()
        for number in range(1000):
            link.send(b"%d" % number)
        batches = []
        while sum(map(len, batches)) < 1000:
            batches.append(await listener.receive_batch())

    assert max(map(len, batches)) <= 100
    assert [a.payload for b in batches for a in b] == [b"%d" % n for n in range(1000)]


async def test_what_waits_can_be_taken_without_waiting(listener, link):
    """All that has arrived, in order; an empty batch when there is nothing."""
    assert listener.receive_nowait() == []
    for number in range(10):
        link.send(b"%d" % number)
    got = await listener.receive_batch()
    while len(got) < 10:
        await trio.lowlevel.checkpoint()
        got += listener.receive_nowait()
    assert [arrival.payload for arrival in got] == [b"%d" % number for number in range(10)]
    assert listener.receive_nowait() == []

    link.send(b"later")
    (arrival,) = await listener.receive_batch()
    assert arrival.payload == b"later"


async def test_sending_while_receiving_loses_no_wake_up(listener, link):
    """Echoes in both directions, with senders touching the sockets all the time, never stall."""
    count = 1000

    async def echo():
        answered = 0
        while answered < count:
            for arrival in await listener.receive_batch():
                listener.send(arrival.peer, arrival.payload)
                answered += 1

    async def send():
        for number in range(count):
            link.send(b"%d" % number)
            if number % 7 == 0:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(send)
        echoes = await gather(link.receive_batch, count)

    assert echoes == [b"%d" % number for number in range(count)]


async def test_a_send_that_eats_the_wake_up_kicks_the_receiver(listener, link):
    """A message that arrived unseen before a send to the same socket is still delivered."""
    link.send(b"first")
    (first,) = await listener.receive_batch()
    for number in range(200):
        async with trio.open_nursery() as nursery:
            received = []

            async def receive(received=received):
                received += await listener.receive_batch()

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            link.send(b"%d" % number)
            # These may read the socket's signal before the receiver does.
            for _ in range(3):
                listener.send(first.peer, b"noise")
        assert [arrival.payload for arrival in received] == [b"%d" % number]


async def test_cancelling_a_receive_loses_nothing(listener, link):
    """Receives that are cancelled at every moment hand out each payload exactly once."""
    count = 500
    got = []

    async def receive_with_interruptions():
        while len(got) < count:
            with trio.move_on_after(0.0005):
                got.extend(await listener.receive_batch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_with_interruptions)
        for number in range(count):
            link.send(b"%d" % number)
            await trio.sleep(0.0002)

    assert [arrival.payload for arrival in got] == [b"%d" % number for number in range(count)]


async def test_two_receivers_are_a_programming_error(listener, link):
    """A second task that receives from the same end is told so."""
    for end in (listener, link):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end.receive_batch)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await end.receive_batch()
            nursery.cancel_scope.cancel()


async def test_sending_to_an_unknown_peer_fails_at_once(listener):
    """A listener does not queue for a peer that is not there."""
    with pytest.raises(PeerUnreachable):
        listener.send(PeerId(b"\0nope"), b"x")

    assert listener.statistics().unreachable == 1


async def test_sending_without_a_connection_fails_at_once(
    carrier, server_keys, agent_keys, free_endpoint
):
    """A link that never connected queues nothing and says why."""
    async with carrier.open_link(
        free_endpoint, server_keys.public, agent_keys, backoff=QUICK
    ) as link:
        with pytest.raises(LinkLost):
            link.send(b"x")
        failure = await link.wait_failure()
        with pytest.raises(PeerUnreachable, match="no controller listens"):
            link.send(b"x")

    assert isinstance(failure, PeerUnreachable)


async def test_a_departed_peer_is_told_and_unreachable(carrier, listener, server_keys, agent_keys):
    """When a link closes, the listener hears of it and sends no more."""
    async with carrier.open_link(listener.endpoint, server_keys.public, agent_keys) as link:
        await link.wait_connected()
        link.send(b"hello")
        (arrival,) = await listener.receive_batch()
        assert listener.statistics().peers == 1
    batch = await listener.receive_batch()

    assert batch == []
    assert listener.take_departed() == [arrival.peer]
    assert listener.take_departed() == []
    assert listener.statistics().peers == 0
    with pytest.raises(PeerUnreachable):
        listener.send(arrival.peer, b"x")


async def test_a_restarted_listener_is_a_new_connection_to_adopt(
    carrier, server_keys, agent_keys, users, free_endpoint
):
    """After a loss the old connection fails, until the session adopts the new one."""
    async with carrier.open_link(
        free_endpoint, server_keys.public, agent_keys, backoff=QUICK
    ) as link:
        async with carrier.open_listener(free_endpoint, server_keys, users.get) as listener:
            assert await link.wait_connected() == 1
            link.send(b"hello")
            await listener.receive_batch()
        await link.wait_lost()
        async with carrier.open_listener(free_endpoint, server_keys, users.get) as listener:
            await until(lambda: link.connection == 2)
            with pytest.raises(LinkLost):
                link.send(b"before adoption")
            with pytest.raises(LinkLost):
                await link.receive_batch()
            assert await link.wait_connected() == 2
            link.send(b"hello again")
            (second,) = await listener.receive_batch()

    assert second.payload == b"hello again"


async def test_what_arrived_before_the_loss_is_handed_out_in_order(listener, link):
    """A connection's end cuts the stream of payloads somewhere; it tears no hole into it."""
    link.send(b"hello")
    (arrival,) = await listener.receive_batch()
    sent = [b"%d" % number for number in range(50)]
    for payload in sent:
        listener.send(arrival.peer, payload)
    got = await link.receive_batch()
    assert listener.disconnect(arrival.peer)
    with pytest.raises(LinkLost):
        await receive_until_lost(link, got)

    assert got == sent[: len(got)]
    assert got


async def test_an_unknown_key_is_refused_at_the_handshake(
    carrier, listener, server_keys, stranger_keys
):
    """A key that stands for nobody does not get in, and the link knows why."""
    async with carrier.open_link(
        listener.endpoint, server_keys.public, stranger_keys, backoff=QUICK
    ) as link:
        failure = await link.wait_failure()

    assert isinstance(failure, KeyRefused)
    assert listener.statistics().handshakes_refused >= 1
    assert listener.statistics().handshakes_allowed == 0


async def test_a_key_enrolled_later_gets_in(carrier, listener, server_keys, stranger_keys, users):
    """A refused link keeps trying, and connects once its key is known."""
    async with carrier.open_link(
        listener.endpoint, server_keys.public, stranger_keys, backoff=QUICK
    ) as link:
        await link.wait_failure()
        users[stranger_keys.public] = "late"
        await link.wait_connected()
        link.send(b"hello")
        (arrival,) = await listener.receive_batch()

    assert arrival.user_id == "late"


async def test_a_wrong_server_key_fails_the_handshake(carrier, listener, agent_keys, stranger_keys):
    """A link that expects another controller's key does not connect, and can say so."""
    async with carrier.open_link(
        listener.endpoint, stranger_keys.public, agent_keys, backoff=QUICK
    ) as link:
        failure = await link.wait_failure()
        await until(lambda: listener.statistics().handshakes_broken >= 1)

    assert isinstance(failure, HandshakeFailed)


async def test_a_revoked_user_is_dropped_and_disconnected(listener, link, users, agent_keys):
    """Once revoked, a peer is neither heard nor spoken to, and does not come back."""
    link.send(b"hello")
    (arrival,) = await listener.receive_batch()
    users.clear()
    link.send(b"too late")
    await trio.sleep(0.01)

    assert listener.forget_user("agent-1") == 1
    with pytest.raises(PeerUnreachable):
        listener.send(arrival.peer, b"x")
    await link.wait_lost()
    failure = await link.wait_failure()
    assert await listener.receive_batch() == []
    assert listener.take_departed() == [arrival.peer]
    assert isinstance(failure, KeyRefused)


async def test_reauthorise_forgets_only_what_changed(
    carrier, listener, link, server_keys, stranger_keys, users
):
    """Peers whose key still stands for the same user stay connected."""
    users[stranger_keys.public] = "agent-2"
    async with carrier.open_link(listener.endpoint, server_keys.public, stranger_keys) as other:
        await other.wait_connected()
        link.send(b"one")
        other.send(b"two")
        await gather(listener.receive_batch, 2)
        assert listener.reauthorise() == 0
        users[stranger_keys.public] = "somebody-else"
        assert listener.reauthorise() == 1
        await other.wait_lost()
        link.send(b"still here")
        payloads = []
        while not payloads:
            payloads += [arrival.payload for arrival in await listener.receive_batch()]

    assert payloads == [b"still here"]


async def test_a_key_revoked_between_handshake_and_first_message_is_dropped(listener, link, users):
    """The handshake alone is no licence to speak."""
    users.clear()
    link.send(b"hello")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.receive_batch)
        await link.wait_lost()
        nursery.cancel_scope.cancel()

    assert listener.statistics().dropped_revoked == 1
    assert listener.statistics().received == 0


async def test_a_full_peer_is_backpressure_not_loss(carrier, server_keys, agent_keys, users):
    """A listener learns that a peer does not read; what it did send arrives."""
    bounds = Bounds(send_hwm=5, receive_hwm=5)
    async with (
        carrier.open_listener(ANY_PORT, server_keys, users.get, bounds) as listener,
        carrier.open_link(listener.endpoint, server_keys.public, agent_keys, bounds) as link,
    ):
        await link.wait_connected()
        link.send(b"hello")
        (arrival,) = await listener.receive_batch()
        sent = await fill(functools.partial(listener.send, arrival.peer))
        received = await gather(link.receive_batch, sent)

    assert len(received) == sent
    assert listener.statistics().backpressure == 1


async def test_a_full_listener_is_backpressure_to_its_links(
    carrier, server_keys, agent_keys, users
):
    """A link learns that the controller does not read; what it did send arrives."""
    bounds = Bounds(send_hwm=5, receive_hwm=5)
    async with (
        carrier.open_listener(ANY_PORT, server_keys, users.get, bounds) as listener,
        carrier.open_link(listener.endpoint, server_keys.public, agent_keys, bounds) as link,
    ):
        await link.wait_connected()
        sent = await fill(link.send)
        received = await gather(listener.receive_batch, sent)

    assert len(received) == sent


async def test_a_payload_beyond_the_bound_is_not_sent(listener, link):
    """Both ends refuse to send what the other would drop."""
    link.send(b"hello")
    (arrival,) = await listener.receive_batch()
    too_large = bytes(Bounds().payload_bytes + 1)
    with pytest.raises(PayloadTooLarge):
        link.send(too_large)
    with pytest.raises(PayloadTooLarge):
        listener.send(arrival.peer, too_large)


async def test_a_payload_beyond_the_receivers_bound_is_counted_and_dropped(
    carrier, server_keys, agent_keys, users
):
    """A sender with a larger bound does not get its payload through, and stays connected."""
    async with (
        carrier.open_listener(
            ANY_PORT, server_keys, users.get, Bounds(payload_bytes=100)
        ) as listener,
        carrier.open_link(listener.endpoint, server_keys.public, agent_keys) as link,
    ):
        await link.wait_connected()
        link.send(bytes(101))
        link.send(bytes(100))
        (arrival,) = await listener.receive_batch()

    assert len(arrival.payload) == 100
    assert listener.statistics().dropped_oversize == 1


async def test_failover_to_the_next_address(
    carrier, listener, server_keys, agent_keys, free_endpoint
):
    """With the first address dead, the link connects to the second."""
    async with carrier.open_link(
        [free_endpoint, listener.endpoint], server_keys.public, agent_keys, backoff=QUICK
    ) as link:
        await link.wait_connected()

        assert link.endpoint == listener.endpoint
        assert link.last_failure is None


async def test_use_next_moves_to_another_controller(carrier, server_keys, agent_keys, users):
    """A session that met the wrong controller goes to the next one, and round again."""
    async with (
        carrier.open_listener(ANY_PORT, server_keys, users.get) as one,
        carrier.open_listener(ANY_PORT, server_keys, users.get) as two,
        carrier.open_link(
            [one.endpoint, two.endpoint], server_keys.public, agent_keys, backoff=QUICK
        ) as link,
    ):
        visited = []
        for _ in range(3):
            await link.wait_connected()
            visited.append(link.endpoint)
            link.use_next()
            await link.wait_lost()

    assert visited == [one.endpoint, two.endpoint, one.endpoint]


async def test_several_addresses_of_one_listener(carrier, server_keys, agent_keys, users):
    """Peers of all bound addresses arrive at the same listener."""
    async with (
        carrier.open_listener([ANY_PORT, ANY_PORT], server_keys, users.get) as listener,
        carrier.open_link(listener.endpoints[0], server_keys.public, agent_keys) as one,
        carrier.open_link(listener.endpoints[1], server_keys.public, agent_keys) as two,
    ):
        for link in (one, two):
            await link.wait_connected()
            link.send(b"hello")
        arrivals = await gather(listener.receive_batch, 2)

    assert len({arrival.peer for arrival in arrivals}) == 2
    assert listener.endpoint == listener.endpoints[0] != listener.endpoints[1]


async def test_an_address_in_use_is_named(carrier, listener, server_keys):
    """A second listener on the address gets a clear error."""
    with pytest.raises(AddressInUse, match=listener.endpoint):
        async with carrier.open_listener(listener.endpoint, server_keys, lambda _key: None):
            pass


@pytest.mark.parametrize("endpoint", ["", "localhost", "tcp://", "tcp://host", "udp://a:1"])
async def test_a_malformed_address_is_named(carrier, server_keys, agent_keys, endpoint):
    """Neither end accepts an address that is none."""
    with pytest.raises(InvalidEndpoint):
        async with carrier.open_listener(endpoint, server_keys, lambda _key: None):
            pass
    with pytest.raises(InvalidEndpoint):
        async with carrier.open_link(endpoint, server_keys.public, agent_keys):
            pass


async def test_an_error_in_the_block_leaves_as_itself(carrier, server_keys, agent_keys):
    """The background tasks do not wrap the caller's exception in a group."""

    async def fail_inside():
        async with (
            carrier.open_listener(ANY_PORT, server_keys, lambda _key: None) as listener,
            carrier.open_link(listener.endpoint, server_keys.public, agent_keys),
        ):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_inside()


async def test_two_hundred_links_join_at_once(carrier, server_keys):
    """Links that join together are let in or refused each by its own key."""
    known = [keys.generate() for _ in range(150)]
    unknown = [keys.generate() for _ in range(50)]
    users = {pair.public: f"agent-{number}" for number, pair in enumerate(known)}
    refused = []

    async def join(pair):
        async with carrier.open_link(
            listener.endpoint, server_keys.public, pair, backoff=Backoff(0.02, 10.0)
        ) as link:
            await link.wait_connected()
            link.send(users[pair.public].encode())
            assert await link.receive_batch() == [b"ok"]

    async def be_refused(pair):
        async with carrier.open_link(
            listener.endpoint, server_keys.public, pair, backoff=Backoff(10.0, 10.0)
        ) as link:
            refused.append(await link.wait_failure())

    async with carrier.open_listener(ANY_PORT, server_keys, users.get) as listener:
        async with trio.open_nursery() as nursery:
            for pair in known:
                nursery.start_soon(join, pair)
            for pair in unknown:
                nursery.start_soon(be_refused, pair)
            welcomed = set()
            while len(welcomed) < len(known):
                for arrival in await listener.receive_batch():
                    assert arrival.user_id.encode() == arrival.payload
                    listener.send(arrival.peer, b"ok")
                    welcomed.add(arrival.user_id)

        assert len(refused) == 50
        assert all(isinstance(failure, KeyRefused) for failure in refused)
        statistics = listener.statistics()
        assert (statistics.handshakes_allowed, statistics.handshakes_refused) == (150, 50)
