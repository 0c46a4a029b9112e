"""Answers reach clients that do not take them at once."""

import attrs
import pytest
import trio

from swarmctl.proto import codec, limits
from swarmctl.proto.errors import PeerUnreachable
from swarmctl.proto.messages import Reply
from swarmctl.transport.answers import Answers
from swarmctl.transport.errors import Backpressure


@attrs.define
class Peers:
    """Peers that take so many messages each, and no more until they have read them."""

    room: dict[bytes, int]
    taken: dict[bytes, list] = attrs.field(factory=dict)
    ended: list = attrs.field(factory=list)
    offers: int = 0

    def send(self, peer, payload):
        self.offers += 1
        if peer not in self.room:
            raise PeerUnreachable("gone")
        if not self.room[peer]:
            raise Backpressure("full")
        self.room[peer] -= 1
        self.taken.setdefault(peer, []).append(codec.decode(payload).id)


@pytest.fixture
async def peers(nursery):
    return Peers({b"slow": 3, b"quick": 1_000})


@pytest.fixture
async def answers(peers, nursery):
    made = Answers(peers.send, peers.ended.append)
    nursery.start_soon(made.run)
    return made


async def test_what_is_not_taken_comes_later_and_in_order(autojump_clock, peers, answers):
    """A full queue loses nothing, mixes nothing up, and holds up nobody else."""
    for number in range(10):
        answers.send(b"slow", Reply(number, None))
        answers.send(b"quick", Reply(number, None))

    assert peers.taken == {b"slow": [0, 1, 2], b"quick": list(range(10))}
    assert answers.waiting == 7
    while answers.waiting:
        peers.room[b"slow"] = 2
        await trio.sleep(0.2)
    assert peers.taken[b"slow"] == list(range(10))
    answers.send(b"slow", Reply(10, None))
    assert peers.taken[b"slow"][-1] == 10


async def test_a_client_that_sleeps_costs_nothing(autojump_clock, peers, answers):
    """It is offered what waits ten times a second, not all the time."""
    peers.room[b"slow"] = 0
    answers.send(b"slow", Reply(1, None))
    await trio.sleep(60)
    assert 500 < peers.offers < 700


async def test_a_client_that_never_reads_is_cut_off(autojump_clock, peers, answers, monkeypatch):
    """By number and by bytes; the others' answers stay."""
    peers.room[b"slow"] = peers.room[b"quick"] = 0
    answers.send(b"quick", Reply(0, None))
    monkeypatch.setattr(limits, "RPC_TOTAL", 50)
    for number in range(50):
        answers.send(b"slow", Reply(number, None))
    with pytest.raises(PeerUnreachable):
        answers.send(b"slow", Reply(50, None))
    assert (peers.ended, answers.waiting) == ([b"slow"], 1)

    monkeypatch.setattr(limits, "ANSWERS_BYTES", 1_000)
    with pytest.raises(PeerUnreachable):
        answers.send(b"slow", Reply(51, b"x" * 1_000))
    assert (peers.ended, answers.waiting) == ([b"slow", b"slow"], 1)


@pytest.mark.parametrize("told", [True, False])
async def test_what_waits_for_one_who_has_gone_is_forgotten(autojump_clock, peers, answers, told):
    """Whether its departure was told, or shows when it is offered something."""
    peers.room[b"slow"] = 0
    for number in range(5):
        answers.send(b"slow", Reply(number, None))
    del peers.room[b"slow"]
    if told:
        answers.peer_departed(b"slow")
    else:
        await trio.sleep(1)
    assert answers.waiting == 0
    with pytest.raises(PeerUnreachable):
        answers.send(b"slow", Reply(5, None))
