"""What arrives is handled in an order that neither users nor nodes suffer from."""

from types import SimpleNamespace

import pytest
import trio

from swarmctl.controller.listening import Listening
from swarmctl.controller.receiving import Backlog, Receiver
from swarmctl.transport.api import Arrival, PeerId


def node(number, payload=b"hello"):
    """What a node says."""
    return Arrival(PeerId(b"n%d" % number), f"node:n{number}", payload)


def user(number):
    """What a user asks."""
    return Arrival(PeerId(b"u%d" % number), f"admin:u{number}", b"ask")


class Script:
    """A listener that has what a test gives it, a batch a reading."""

    def __init__(self, *batches):
        self.batches = list(batches)
        self.departures = []
        self.readings = 0

    def receive_nowait(self):
        self.readings += 1
        return self.batches.pop(0) if self.batches else []

    async def receive_batch(self):
        await trio.lowlevel.checkpoint()
        if not self.batches and not self.departures:
            await trio.sleep_forever()
        return self.receive_nowait()

    def take_departed(self):
        departures, self.departures = self.departures, []
        return departures


class Recorder(Receiver):
    """Notes what it would handle, and when the nodes' time has come to."""

    def __init__(self, listener, backlog=None):
        self.listening = Listening(trio.current_time)
        cluster = SimpleNamespace(listening=self.listening, state=SimpleNamespace(nodes={}))
        super().__init__(cluster, listener, None)
        if backlog is not None:
            self._backlog = backlog
        self.handled = []

    def _take(self, _server, _nursery, arrival):
        self.handled.append(arrival.peer)

    def _depart(self, _server, peer):
        self.handled.append((peer, "departed"))

    async def run_for(self, count):
        """Run until so much has been handled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run, None, nursery)
            while len(self.handled) < count:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        return self.handled


async def test_a_user_does_not_wait_behind_a_storm_of_nodes():
    """A thousand hellos came before the request: it is handled after a slice of them."""
    receiver = Recorder(Script([node(n) for n in range(1000)], [user(1)]))

    handled = await receiver.run_for(1001)

    assert handled.index(b"u1") < 100
    assert [peer for peer in handled if peer != b"u1"] == [b"n%d" % n for n in range(1000)]


async def test_nodes_have_their_turn_in_a_flood_of_requests():
    """As many of their messages are handled as of the users', while both come."""
    flood = [[user(n) for n in range(300)] for _ in range(5)]
    receiver = Recorder(Script([*flood[0], *(node(n) for n in range(900))], *flood[1:]))

    handled = await receiver.run_for(2400)

    for end in (600, 1200, 1800):
        assert sum(peer.startswith(b"n") for peer in handled[:end]) == end // 2


async def test_a_departure_waits_behind_what_the_peer_has_said():
    """Or it would be taken for a peer that is there, for ever."""
    listener = Script([node(n) for n in range(200)])
    listener.departures = [PeerId(b"n199"), PeerId(b"n3")]
    receiver = Recorder(listener)

    handled = await receiver.run_for(202)

    assert handled[199:] == [b"n199", (b"n199", "departed"), (b"n3", "departed")]


@pytest.mark.parametrize("backlog", [Backlog(messages_max=100), Backlog(bytes_max=5_000)])
async def test_what_waits_is_bounded(backlog):
    """While it is full the sockets are left alone; then all that is there is handled."""
    listener = Script(*([node(n, b"x" * 50) for n in range(150)] for _ in range(4)))
    receiver = Recorder(listener, backlog)
    seen = []
    take = receiver._take

    def note(server, nursery, arrival):
        seen.append(len(backlog))
        take(server, nursery, arrival)

    receiver._take = note
    handled = await receiver.run_for(600)

    assert max(seen) < 100 + 150
    assert handled == [b"n%d" % n for n in range(150)] * 4


async def test_nobody_is_late_while_what_they_said_waits_here(autojump_clock):
    """The clock by which nodes are silent stands still until all that arrived was handled."""
    began = trio.current_time()
    listener = Script([node(n) for n in range(500)])
    receiver = Recorder(listener)
    times = []

    def slow(_server, _nursery, arrival):
        autojump_clock.jump(0.01)
        receiver.handled.append(arrival.peer)
        times.append(receiver.listening.time() - began)

    receiver._take = slow
    await receiver.run_for(500)

    assert trio.current_time() - began > 4.9
    # Only the last slice is known to be the last.
    assert max(times[:449]) == 0.0
