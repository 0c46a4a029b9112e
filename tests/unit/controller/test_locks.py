"""Locks of records."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from swarmctl.controller.locks import RecordLocks


async def test_who_waits_has_it_next(autojump_clock):
    """In the order of asking, and nobody takes it in between."""
    locks, order = RecordLocks(), []

    async def change(name):
        async with locks.holding(["a"]):
            order.append(name)

    assert locks.try_hold("a")
    async with trio.open_nursery() as nursery:
        for name in "xyz":
            nursery.start_soon(change, name)
            await wait_all_tasks_blocked()
        assert not locks.try_hold("a")
        locks.release("a")
        assert not locks.try_hold("a")

    assert order == list("xyz")
    assert not locks


async def test_who_is_cancelled_while_it_waits_is_passed_over(autojump_clock):
    """The next in line has it, and nothing stays behind."""
    locks, order = RecordLocks(), []

    async def change(name, patience_s):
        with trio.move_on_after(patience_s):
            async with locks.holding(["b", "a"]):
                order.append(name)

    assert locks.try_hold("b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, "hasty", 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(change, "patient", 10)
        await trio.sleep(2)
        locks.release("b")

    assert order == ["patient"]
    assert not locks


async def test_who_is_cancelled_together_with_the_holder_leaves_nothing_held(autojump_clock):
    """The holder gives it to one whose cancellation is under way: that one gives it on."""
    for _ in range(20):  # Which of the two ends first is chance.
        locks = RecordLocks()

        async def hold(locks=locks):
            async with locks.holding(["a"]):
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(hold)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert len(locks) == 0


async def test_what_nobody_holds_cannot_be_given_back():
    """That would be a mistake of the caller's."""
    with pytest.raises(KeyError):
        RecordLocks().release("a")
