"""The simulator's clock."""

import trio

from tests.sim.world.clock import Jumping


async def _record():
    """Sleeps of several tasks, and when each ends."""
    ended = []

    async def sleep(name, *lengths_s):
        for length_s in lengths_s:
            await trio.sleep(length_s)
            ended.append((name, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep, "often", 0.5, 0.5, 0.5)
        nursery.start_soon(sleep, "once", 1.2)
        with trio.move_on_after(100.0):
            await trio.sleep_forever()
    return ended, trio.current_time()


def test_time_passes_only_while_all_wait_and_is_then_that_of_the_next_deadline():
    """Each is woken at its time, in that order, and no time is skipped."""
    ended, now = trio.run(_record, clock=Jumping())

    assert ended == [("often", 0.5), ("often", 1.0), ("once", 1.2), ("often", 1.5)]
    assert now == 100.0
