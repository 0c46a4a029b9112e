"""The alarm clock of sessions: what is due is called, in order, a tick late at the most."""

import math

import pytest
import trio
from trio.testing import MockClock

from swarmctl.agent.alarms import Alarms

TICK_S = 0.5


@pytest.fixture
def alarms() -> Alarms:
    return Alarms(TICK_S)


async def _ring_all(alarms: Alarms, until: float) -> None:
    with trio.move_on_at(until):
        await alarms.run()


async def test_what_is_due_is_called_in_order_and_a_tick_late_at_the_most(
    alarms: Alarms, autojump_clock: MockClock
) -> None:
    rung: list[tuple[float, float]] = []
    start = trio.current_time()
    for after in (3.1, 0.2, 1.7, 0.3):
        alarms.at(start + after, lambda due: rung.append((due, trio.current_time())))
    await _ring_all(alarms, start + 10)
    assert [round(due - start, 6) for due, _ in rung] == [0.2, 0.3, 1.7, 3.1]
    assert all(0 <= now - due <= TICK_S for due, now in rung)


async def test_those_of_one_tick_are_called_in_one_go(
    alarms: Alarms, autojump_clock: MockClock
) -> None:
    moments: set[float] = set()
    tick = math.ceil(trio.current_time() / TICK_S) * TICK_S + TICK_S
    for number in range(100):
        alarms.at(tick + number * TICK_S / 101 + 1e-6, lambda _: moments.add(trio.current_time()))
    await _ring_all(alarms, tick + 10)
    assert len(moments) == 1


async def test_one_that_is_set_while_the_clock_sleeps_for_a_later_one_is_not_late(
    alarms: Alarms, autojump_clock: MockClock
) -> None:
    rung: list[float] = []
    start = trio.current_time()
    alarms.at(start + 60, lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ring_all, alarms, start + 5)
        await trio.sleep(1)
        alarms.at(start + 2, lambda _: rung.append(trio.current_time() - start))
    assert len(rung) == 1
    assert 2 <= rung[0] <= 2 + TICK_S


async def test_a_cancelled_one_is_not_called_even_by_another_of_its_tick(
    alarms: Alarms, autojump_clock: MockClock
) -> None:
    start = trio.current_time()
    never = alarms.at(start + 1.0, lambda _: pytest.fail("it was cancelled"))
    alarms.at(start + 0.9, lambda _: never.cancel())
    await _ring_all(alarms, start + 5)


async def test_one_that_sets_itself_again_goes_on(
    alarms: Alarms, autojump_clock: MockClock
) -> None:
    rung: list[float] = []

    def again(due: float) -> None:
        rung.append(due)
        alarms.at(due + 2.0, again)

    start = trio.current_time()
    alarms.at(start + 2.0, again)
    await _ring_all(alarms, start + 11)
    assert [round(due - start, 6) for due in rung] == [2, 4, 6, 8, 10]


async def test_a_time_that_rounds_below_itself_is_waited_for_and_not_looked_at_for_ever(
    autojump_clock: MockClock,
) -> None:
    """On a clock that stands still while there is work, the latter would never end."""
    alarms, rung = Alarms(0.02), []
    due = 31.200000000000003
    assert math.ceil(due / 0.02) * 0.02 < due
    alarms.at(due, rung.append)
    await _ring_all(alarms, 40.0)
    assert rung == [due]
