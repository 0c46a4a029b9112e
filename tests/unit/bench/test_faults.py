"""What the programs that measure reliability make of what they measured."""

import pytest

from bench.faults import rows
from bench.faults.rows import Row, Watch, record, summary, table
from bench.soak import ALLOWED, TASKS_AT_REST, Curve, left_over


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


def test_a_leak_that_all_daemons_share_shows_at_rest():
    """Tasks are compared with a number; what libraries keep, with what was there at first."""

    def all_of_them(**more):
        values = {"tasks": 0, "descriptors": 20, "threads": 5}
        return {
            name: {key: value + more.get(key, 0) for key, value in values.items()}
            | {"tasks": TASKS_AT_REST[name.rstrip("0")] + more.get("tasks", 0)}
            for name in ("controller", "sim0", "real")
        }

    before = all_of_them()
    assert left_over({}, before) == left_over(before, before) == []
    assert left_over(before, all_of_them(descriptors=8, threads=8)) == []
    assert [one.partition(":")[0] for one in left_over({}, all_of_them(tasks=1))] == list(before)
    assert left_over(before, before | {"sim0": before["sim0"] | {"descriptors": 29}}) == [
        "sim0: 29 descriptors at rest, more than 28"
    ]
