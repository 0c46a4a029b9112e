"""The twin's own features: trouble on the wires, on a virtual clock."""

import pytest
import trio
import trio.testing

from swarmctl.transport import bounds, keys
from swarmctl.transport.errors import LinkLost
from swarmctl.transport.memory import Direction, MemoryNetwork

ENDPOINT = "tcp://controller:7077"


@pytest.fixture
def network():
    return MemoryNetwork()


@pytest.fixture
async def listener(network, server_keys, users):
    async with network.open_listener(ENDPOINT, server_keys, users.get) as opened:
        yield opened


@pytest.fixture
async def link(network, listener, server_keys, agent_keys):
    async with network.open_link(ENDPOINT, server_keys.public, agent_keys) as opened:
        await opened.wait_connected()
        yield opened


async def test_a_delay_passes_on_the_clock_and_keeps_the_order(
    autojump_clock, network, listener, link
):
    """A slow payload holds up the quick ones behind it."""
    delays = {b"slow": 5.0, b"quick": 1.0}
    network.fate = lambda passage: delays[passage.payload]
    begun = trio.current_time()
    link.send(b"slow")
    link.send(b"quick")
    batch = await listener.receive_batch()

    assert [arrival.payload for arrival in batch] == [b"slow", b"quick"]
    assert trio.current_time() - begun == pytest.approx(5.0)


async def test_a_lost_payload_is_lost_alone(autojump_clock, network, listener, link):
    """What fate drops does not arrive; the rest does."""
    network.fate = lambda passage: None if passage.payload == b"2" else 0.0
    for number in range(4):
        link.send(b"%d" % number)

    batch = await listener.receive_batch()
    assert [arrival.payload for arrival in batch] == [b"0", b"1", b"3"]


async def test_fate_sees_which_way_and_whose(autojump_clock, network, listener, link, agent_keys):
    """A passage names the address, the link's key, the direction and its number."""
    seen = []

    def watch(passage):
        seen.append(passage)
        return 0.0

    network.fate = watch
    link.send(b"up")
    (arrival,) = await listener.receive_batch()
    listener.send(arrival.peer, b"down")

    assert [(p.direction, p.payload, p.number) for p in seen] == [
        (Direction.TO_LISTENER, b"up", 0),
        (Direction.TO_LINK, b"down", 1),
    ]
    assert {(p.endpoint, p.public_key) for p in seen} == {(ENDPOINT, agent_keys.public)}


async def test_a_cut_loses_what_is_under_way_and_the_link_returns(
    autojump_clock, network, listener, link
):
    """A severed connection is a new peer afterwards."""
    link.send(b"hello")
    (first,) = await listener.receive_batch()
    network.fate = lambda _passage: 10.0
    link.send(b"under way")
    assert network.sever(endpoint=ENDPOINT) == 1
    network.fate = lambda _passage: 0.0
    with pytest.raises(LinkLost):
        link.send(b"x")
    assert await listener.receive_batch() == []
    assert listener.take_departed() == [first.peer]
    assert await link.wait_connected() == 2
    link.send(b"again")
    (second,) = await listener.receive_batch()

    assert second.payload == b"again"
    assert second.peer != first.peer


async def test_a_one_way_partition_swallows_and_then_ends_the_connection(
    autojump_clock, network, listener, link
):
    """Payloads vanish without an error until the pings fail; then the link dials in vain."""
    link.send(b"hello")
    (arrival,) = await listener.receive_batch()
    begun = trio.current_time()
    network.block(direction=Direction.TO_LISTENER)
    link.send(b"swallowed")
    listener.send(arrival.peer, b"this way is open")
    assert await link.receive_batch() == [b"this way is open"]
    await link.wait_lost()
    assert trio.current_time() - begun == pytest.approx(bounds.PING_TIMEOUT_S)
    await link.wait_failure()
    network.unblock()
    assert await link.wait_connected() == 2
    link.send(b"back")
    batch = []
    while not batch:
        batch = await listener.receive_batch()
        listener.take_departed()

    assert [arrival.payload for arrival in batch] == [b"back"]


async def test_a_partition_that_ends_in_time_keeps_the_connection(
    autojump_clock, network, listener, link
):
    """A short interruption loses payloads, not the connection."""
    network.block()
    link.send(b"swallowed")
    await trio.sleep(bounds.PING_TIMEOUT_S / 2)
    network.unblock()
    await trio.sleep(bounds.PING_TIMEOUT_S)
    link.send(b"through")

    assert [arrival.payload for arrival in await listener.receive_batch()] == [b"through"]
    assert link.connection == 1


async def test_a_partition_of_one_key_leaves_the_others(
    autojump_clock, network, listener, link, server_keys, agent_keys, stranger_keys, users
):
    """Blocking one node's traffic is that node's trouble."""
    users[stranger_keys.public] = "agent-2"
    async with network.open_link(ENDPOINT, server_keys.public, stranger_keys) as other:
        await other.wait_connected()
        network.block(public_key=agent_keys.public)
        link.send(b"swallowed")
        other.send(b"through")

        assert [arrival.payload for arrival in await listener.receive_batch()] == [b"through"]


def test_the_same_program_runs_the_same_way_twice(monkeypatch, server_keys):
    """With trio's own scheduling seeded, nothing in the twin differs between two runs."""
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    pairs = [keys.generate() for _ in range(5)]

    async def simulate():
        network = MemoryNetwork()
        network.fate = lambda passage: (passage.number * 7 % 5) / 10
        log = []
        cut = False

        async def talk(pair, number):
            async with network.open_link(ENDPOINT, server_keys.public, pair) as link:
                while True:
                    await link.wait_connected()
                    try:
                        for count in range(20):
                            link.send(b"%d:%d" % (number, count))
                            await trio.sleep(0.3)
                    except LinkLost:
                        continue

        async with (
            network.open_listener(ENDPOINT, server_keys, lambda key: key) as listener,
            trio.open_nursery() as nursery,
        ):
            for number, pair in enumerate(pairs):
                nursery.start_soon(talk, pair, number)
            while len(log) < 60:
                log += [(trio.current_time(), a) for a in await listener.receive_batch()]
                log += [(trio.current_time(), peer) for peer in listener.take_departed()]
                if len(log) >= 30 and not cut:
                    cut = True
                    network.sever()
            nursery.cancel_scope.cancel()
        return log

    def run():
        trio._core._run._r.seed(1)
        return trio.run(simulate, clock=trio.testing.MockClock(autojump_threshold=0))

    assert run() == run()
