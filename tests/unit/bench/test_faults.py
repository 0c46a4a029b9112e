"""What the programs that measure reliability make of what they measured."""

import pytest

from bench.faults import rows
from bench.faults.rows import Row, Watch, record, summary, table
from bench.soak import ALLOWED, Curve


def test_rounds_are_summed_up_by_their_median_and_the_slowest():
    """The outcome is the same in all of them, or there is no row."""
    row = summary(
        [Row("cut", "moved", healed, "the cut", 4.0, {"back": 1.0}) for healed in (5, 9, 6)]
    )
    assert (row["healed_s"], row["healed_max_s"], row["rounds"]) == (6, 9, 3)
    assert table([row]).splitlines()[-1] == "| cut | moved (back 1.0 s) | 4.0 s | 6.0 s | the cut |"


def test_each_rounds_numbers_and_the_machine_are_kept():
    """Of an older file, which has neither, what it has is kept."""
    old = {"fault": "old", "healed_s": 1.0}
    recorded = {"rows": {"old": old}, "machine": {"cores": 1}}
    rounds = [Row("cut", "moved", healed, "the cut", 4.0, {"back": 1.0}) for healed in (5, 9)]
    row = summary(rounds) | {"machine": {"cores": 2}}
    assert row["each"] == [
        {"noticed_s": 4.0, "healed_s": healed, "more": {"back": 1.0}} for healed in (5, 9)
    ]
    record(recorded, "cut", row)
    assert recorded == {"rows": {"old": old, "cut": row}, "machine": {"cores": 1}}
    record(recorded, "old", row)
    assert recorded == {"rows": {"old": row, "cut": row}}


def test_an_outcome_that_does_not_come_is_a_failure(monkeypatch):
    """By name."""
    monkeypatch.setattr(rows, "PATIENCE_S", 0.0)
    with pytest.raises(AssertionError, match="no other leader"):
        Watch().until(lambda: False, "other leader")


@pytest.mark.parametrize(("slope", "grows"), [(0.0, False), (1.0, True)])
def test_a_curve_that_climbs_after_its_first_quarter_grows(slope, grows):
    """What is filled once, at the start, is no growth."""
    curve = Curve()
    curve.values["tasks"] = [min(number, 10) * 5 + slope * number for number in range(80)]
    assert (curve.growth("tasks") > ALLOWED["tasks"]) is grows
