"""The table of targets: what is read from a report, and what is called met."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import anchors
from bench.launch import scenario


def _report(**changes: Any) -> dict[str, Any]:
    plain = {
        "scenario": {"name": "one_by_one"},
        "seconds_to_submitted": 0.5,
        "requests": 15_000,
        "instances_per_s": 10_000.0,
        "found": {"one_change": {"request_durable_p50_ms": 1.0}},
    }
    return plain | changes


def _line(rounds: list[dict[str, Any]], figure: str) -> str:
    return next(line for line in anchors.table(rounds) if figure in line)


def test_figures_of_a_report_are_those_of_its_scenario_s_targets() -> None:
    """The rate of acknowledged requests is made from the report's counts."""
    found = anchors.figures(_report())
    assert found == {
        "one_by_one: requests durable/s": 30_000.0,
        "one_by_one: running/s": 10_000.0,
        "one_by_one: one alone, ms": 1.0,
    }


def test_figure_that_a_run_did_not_get_to_is_a_miss() -> None:
    """One round without it outweighs two good ones: there is no median of what did not happen."""
    good, broken = anchors.figures(_report()), anchors.figures(_report(found={}))
    line = _line([good, good, broken], "one alone")
    assert "not reached" in line
    assert "**missed**" in line


@pytest.mark.parametrize(("rate", "mark"), [(15_000.0, "| met |"), (14_999.0, "**missed**")])
def test_median_decides_whether_a_target_is_met(rate: float, mark: str) -> None:
    """Between a bad and a good round the middle one counts, and the limit itself is met."""
    rounds = [anchors.figures(_report(instances_per_s=one)) for one in (1.0, rate, 99_999.0)]
    assert mark in _line(rounds, "running/s")


def test_a_report_of_the_suite_counts_as_a_round(tmp_path: Path) -> None:
    """It is added to those that were measured before, with what its checker said."""
    rounds, report = tmp_path / "anchors.json", tmp_path / "one_by_one.json"
    about = {"measured": "now", "machine": {"cores": 2}, "check": {"passed": True}}
    report.write_text(json.dumps(_report(**about)))
    for _ in range(2):
        asked = ["--count", str(report), "--file", str(rounds)]
        assert CliRunner().invoke(anchors.main, asked).exit_code == 0
    kept = json.loads(rounds.read_text())
    assert [one["one_by_one: running/s"] for one in kept] == [10_000.0, 10_000.0]
    assert [one["check_passed"] for one in kept] == [True, True]


def test_every_scenario_with_a_target_exists() -> None:
    """A renamed scenario would otherwise lose its line of the table."""
    for target in anchors.TARGETS:
        assert scenario.load(target.scenario).name == target.scenario
