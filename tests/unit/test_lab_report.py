"""What the lab says: outcomes with their time, faults with what to do, aligned tables."""

from __future__ import annotations

import io
import subprocess

import pytest

from lab.faults import LabFault
from lab.report import Report, table


def test_a_step_says_what_was_done_and_how_long_it_took():
    """One line a step."""
    out = io.StringIO()
    with Report(out).step("docker") as step:
        step.done("started")

    assert out.getvalue().startswith("  ok docker:    started (0.")


def test_a_fault_is_printed_with_its_hint_and_passed_on():
    """The operator reads what is wrong and what to do; the caller hears of it too."""
    out = io.StringIO()
    report = Report(out)
    with pytest.raises(LabFault), report.step("docker"):
        raise LabFault("no daemon", "start it")

    assert "!! docker:    no daemon" in out.getvalue()
    assert "what to do: start it" in out.getvalue()
    assert [name for name, _ in report.failures] == ["docker"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), subprocess.CalledProcessError(3, ["ip", "link"])],
)
def test_a_machine_error_becomes_a_fault(error):
    """A full disk or a failed tool is told, not thrown at the operator as a traceback."""
    with pytest.raises(LabFault), Report(io.StringIO()).step("guest"):
        raise error


def test_columns_are_aligned():
    """Each column is as wide as its widest cell, without trailing blanks."""
    assert table([["A", "B"], ["long", "x"]]) == "A     B\nlong  x"
