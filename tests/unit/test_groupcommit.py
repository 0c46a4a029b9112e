"""The group commit engine by itself: sharing, failing, waiting, closing."""

import threading
from contextlib import aclosing

import outcome
import pytest
import trio
import trio.testing

from swarmctl.database import Migration, Schema
from swarmctl.groupcommit import GroupCommitter
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, InternalError, StorageFault

SCHEMA = Schema(
    title="test's numbers",
    application_id=7,
    migrations=(Migration("numbers", ("CREATE TABLE numbers (n INTEGER)",)),),
    recovery="start again",
)
DEADLINE_S = 20


class Gate:
    """An Apply function that can be held in the middle, and remembers its groups."""

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.groups = []

    def __call__(self, connection, group):
        self.entered.set()
        assert self.open.wait(DEADLINE_S)
        self.groups.append(len(group))
        for number in group:
            if number < 0:
                raise ZeroDivisionError(number)
            connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        return [outcome.Value(number * 2) for number in group]

    async def hold(self, nursery, committer):
        """Let a first piece of work enter, and keep it (and the thread) in there."""
        self.open.clear()
        self.entered.clear()
        nursery.start_soon(committer.submit, 0, 1, 1)
        await trio.to_thread.run_sync(self.entered.wait, DEADLINE_S)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
async def committer(tmp_path, gate):
    with trio.fail_after(DEADLINE_S):
        async with aclosing(
            await GroupCommitter.open(tmp_path / "numbers.db", SCHEMA, gate)
        ) as committer:
            yield committer


def count(committer):
    return committer.call(lambda db: db.execute("SELECT count(*) FROM numbers").fetchone()[0])


async def test_what_gathers_during_a_sync_is_one_group(committer, gate):
    """While one group is on its way to the disk, all that comes shares the next one."""
    answers = {}

    async def submit(number):
        answers[number] = await committer.submit(number, 1, 1)

    async with trio.open_nursery() as nursery:
        await gate.hold(nursery, committer)
        for number in range(1, 301):
            nursery.start_soon(submit, number)
        while committer.statistics().waiting < 301:
            await trio.lowlevel.checkpoint()
        gate.open.set()
    assert gate.groups == [1, 300]
    assert answers == {number: number * 2 for number in range(1, 301)}
    statistics = committer.statistics()
    assert (statistics.commits, statistics.groups, statistics.waiting) == (301, 2, 0)
    assert statistics.sync_s > 0


async def test_a_group_is_bounded_by_operations_and_by_bytes(committer, gate):
    """Neither a thousand operations nor 16 MiB are exceeded by a group of several."""
    half = limits.COMMIT_GROUP_BYTES // 2
    async with trio.open_nursery() as nursery:
        await gate.hold(nursery, committer)
        for _ in range(3):
            nursery.start_soon(committer.submit, 1, 1, half)
        while committer.statistics().waiting < 4:
            await trio.lowlevel.checkpoint()
        gate.open.set()
    assert gate.groups == [1, 2, 1]
    gate.groups.clear()
    async with trio.open_nursery() as nursery:
        await gate.hold(nursery, committer)
        for _ in range(25):
            nursery.start_soon(committer.submit, 1, 100, 1)
        while committer.statistics().waiting < 2501:
            await trio.lowlevel.checkpoint()
        gate.open.set()
    assert gate.groups == [1, 10, 10, 5]


async def test_a_call_keeps_its_place_in_the_queue(committer):
    """What was submitted before a call is there for it, what comes after is not."""
    counts = []

    async def look():
        counts.append(await count(committer))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            await committer.submit(1, 1, 1)
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
    assert counts == [1, 2, 3, 4, 5]


async def test_a_defect_fails_its_group_and_the_next_goes_on(committer, gate):
    """Every waiter gets an error of its own, nothing of the group is there, the thread lives."""
    errors = []

    async def submit(number):
        with pytest.raises(InternalError, match="ZeroDivisionError") as caught:
            await committer.submit(number, 1, 1)
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        await gate.hold(nursery, committer)
        for number in (1, -1, 2):
            nursery.start_soon(submit, number)
        while committer.statistics().waiting < 4:
            await trio.lowlevel.checkpoint()
        gate.open.set()
    assert len({id(error) for error in errors}) == 3
    assert isinstance(errors[0].__cause__, ZeroDivisionError)
    assert await committer.submit(4, 1, 1) == 8
    assert await count(committer) == 2
    assert committer.statistics().refused == 3


async def test_bytes_that_wait_are_bounded_too(committer, gate):
    """Past the bound the answer is Busy at once; but an empty queue takes anything."""
    async with trio.open_nursery() as nursery:
        await gate.hold(nursery, committer)
        with pytest.raises(Busy, match="numbers"):
            await committer.submit(1, 1, limits.COMMIT_QUEUE_BYTES)
        gate.open.set()
    assert await committer.submit(1, 1, limits.COMMIT_QUEUE_BYTES * 2) == 2


async def test_the_bound_counts_what_cancelled_tasks_left(committer, gate):
    """A task that gives up does not make room for more than the disk can take."""
    async with trio.open_nursery() as nursery:
        await gate.hold(nursery, committer)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(committer.submit, 1, limits.COMMIT_QUEUE_MAX - 1, 1)
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        with pytest.raises(Busy):
            await committer.submit(1, 1, 1)
        assert committer.statistics().waiting == limits.COMMIT_QUEUE_MAX
        gate.open.set()
    assert await count(committer) == 2
    assert committer.statistics().waiting == 0


async def test_a_disk_that_hangs_does_not_hang_the_end(tmp_path, gate, monkeypatch):
    """Closing gives up after its bound, and says so; later the thread still ends."""
    monkeypatch.setattr("swarmctl.groupcommit.STORE_CLOSE_S", 0.05)
    committer = await GroupCommitter.open(tmp_path / "numbers.db", SCHEMA, gate)
    async with trio.open_nursery() as nursery:
        await gate.hold(nursery, committer)
        with pytest.raises(StorageFault, match="has not answered"):
            await committer.aclose()
        gate.open.set()
    monkeypatch.undo()
    await committer.aclose()
    await trio.to_thread.run_sync(committer._thread.join, DEADLINE_S)
    assert not committer._thread.is_alive()


def test_a_run_that_ends_without_closing_leaves_no_trace_of_error(tmp_path, gate):
    """The thread has nobody to tell, and keeps quiet."""

    async def main():
        committer = await GroupCommitter.open(tmp_path / "numbers.db", SCHEMA, gate)
        async with trio.open_nursery() as nursery:
            await gate.hold(nursery, committer)
            nursery.cancel_scope.cancel()
        return committer

    committer = trio.run(main)
    gate.open.set()
    committer._thread.join(DEADLINE_S)
    assert not committer._thread.is_alive()
