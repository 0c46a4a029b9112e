"""The supervision of links, over scripted connections on a virtual clock."""

import itertools
import random

import pytest
import trio

from swarmctl.proto.errors import PeerUnreachable
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.errors import InvalidEndpoint, KeyRefused, LinkLost
from swarmctl.transport.link import Backoff, SupervisedLink, supervised


class ScriptedConnection:
    """Holds payloads and ends when told to."""

    malformed = 0

    def __init__(self, payloads=()):
        self.payloads = list(payloads)
        self.over = trio.Event()
        self.closed = False

    def send(self, payload):
        self.payloads.append(payload)

    def receive_nowait(self, count_max):
        batch, self.payloads = self.payloads[:count_max], self.payloads[count_max:]
        return batch

    async def wait_readable(self):
        await self.over.wait()

    async def wait_ended(self):
        await self.over.wait()

    def close(self):
        self.closed = True


def make_link(dial, endpoints=("a",), bounds=None, backoff=None):
    return SupervisedLink(
        dial, endpoints, bounds or Bounds(), backoff or Backoff(1.0, 8.0), random.Random(1)
    )


async def test_what_had_arrived_is_read_before_the_loss(autojump_clock):
    """Payloads of a lost connection stay readable, in bounded batches, then LinkLost."""
    first = ScriptedConnection([b"%d" % number for number in range(5)])
    connections = [first, ScriptedConnection([b"new"])]

    async def dial(_endpoint):
        return connections.pop(0)

    async with supervised(make_link(dial, bounds=Bounds(batch_max=2))) as link:
        await link.wait_connected()
        first.over.set()
        await link.wait_lost()
        batches = [await link.receive_batch() for _ in range(3)]
        with pytest.raises(LinkLost):
            await link.receive_batch()
        assert await link.wait_connected() == 2
        assert await link.receive_batch() == [b"new"]

    assert batches == [[b"0", b"1"], [b"2", b"3"], [b"4"]]
    assert first.closed


@pytest.mark.parametrize(("endpoints", "patience_s"), [(("a", "b"), 8.0), (("a",), 100.0)])
async def test_an_address_that_hangs_holds_up_the_others_for_a_moment(
    autojump_clock, endpoints, patience_s
):
    """A frozen controller; one that is the only one, or only slow, gets the time that it needs."""
    took = {}

    async def dial(endpoint):
        began = trio.current_time()
        try:
            if endpoint == "a":
                await trio.sleep(patience_s - 1.0)
            raise PeerUnreachable("nobody there", endpoint) if endpoint == "b" else KeyRefused("no")
        finally:
            took.setdefault(endpoint, []).append(trio.current_time() - began)

    async with supervised(make_link(dial, endpoints)) as link:
        with trio.fail_after(300):
            while not isinstance(link.last_failure, KeyRefused):
                await link.wait_failure()

    tried = [2.0, 4.0, 7.0] if "b" in endpoints else [99.0]
    assert took["a"] == pytest.approx(tried)


async def test_what_kept_us_from_running_is_no_hang_of_an_address(autojump_clock):
    """The deadline and the answer are seen at once then: the address has its time once more."""
    tries = []

    async def dial(endpoint):
        began = trio.current_time()
        if endpoint == "b":
            raise PeerUnreachable("nobody there", endpoint)
        try:
            if not tries:
                autojump_clock.jump(60.0)
            await trio.sleep_forever()
        finally:
            tries.append(trio.current_time() - began)

    async with supervised(make_link(dial, ("a", "b"))) as link:
        with trio.fail_after(300):
            while len(tries) < 3:
                await link.wait_failure()

    assert tries == pytest.approx([60.0, 2.0, 4.0])


async def test_adopting_the_next_connection_forgets_the_last_ones_payloads(autojump_clock):
    """Answers to an old session do not leak into a new one."""
    first = ScriptedConnection([b"old"])
    connections = [first, ScriptedConnection([b"new"])]

    async def dial(_endpoint):
        return connections.pop(0)

    async with supervised(make_link(dial)) as link:
        await link.wait_connected()
        first.over.set()
        await link.wait_lost()
        await link.wait_connected()

        assert await link.receive_batch() == [b"new"]


async def test_attempts_slow_down_by_round_and_stay_bounded(autojump_clock):
    """All addresses are tried before the wait doubles; it never exceeds the bound by the jitter."""
    attempts = []

    async def dial(endpoint):
        attempts.append((endpoint, trio.current_time()))
        raise PeerUnreachable("no")

    async with supervised(make_link(dial, ("a", "b"))):
        await trio.sleep(200)

    waits = [after[1] - before[1] for before, after in itertools.pairwise(attempts)]
    assert [endpoint for endpoint, _ in attempts[:4]] == ["a", "b", "a", "b"]
    assert all(0.5 <= wait < 1.5 for wait in waits[0::2])
    assert waits[1] < 3.0
    assert all(4.0 <= wait < 12.0 for wait in waits[9::2])


async def test_a_loss_is_tried_again_soon_at_the_same_address(autojump_clock):
    """A controller that restarts is found again within the shortest wait."""
    dialled = []

    async def dial(endpoint):
        dialled.append((endpoint, trio.current_time()))
        connection = ScriptedConnection()
        connection.over.set()
        return connection

    async with supervised(make_link(dial, ("a", "b"))):
        await trio.sleep(10)

    assert {endpoint for endpoint, _ in dialled} == {"a"}
    assert 10 / 1.5 <= len(dialled) <= 10 / 0.5 + 1


async def test_use_next_ends_a_dial_under_way(autojump_clock):
    """An address that hangs is left without waiting for its timeout."""
    dialled = []

    async def dial(endpoint):
        dialled.append(endpoint)
        if endpoint == "hangs":
            await trio.sleep_forever()
        return ScriptedConnection()

    async with supervised(make_link(dial, ("hangs", "works"))) as link:
        await trio.testing.wait_all_tasks_blocked()
        link.use_next()
        await link.wait_connected()

    assert dialled == ["hangs", "works"]


async def test_a_defect_in_a_dial_is_not_retried(autojump_clock):
    """Only expected failures are: a bug comes out."""

    async def dial(_endpoint):
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with supervised(make_link(dial)):
            await trio.sleep_forever()

    assert caught.group_contains(ZeroDivisionError)


def test_a_link_needs_an_address():
    """An empty list is an error at once."""
    with pytest.raises(InvalidEndpoint):
        make_link(None, ())


def test_backoff_doubles_to_its_bound():
    """The middle of the jitter follows the powers of two."""
    backoff = Backoff(0.1, 2.0)

    assert [backoff.delay_s(n, 0.5) for n in (0, 1, 2, 5, 1000)] == pytest.approx(
        [0.1, 0.2, 0.4, 2.0, 2.0]
    )
