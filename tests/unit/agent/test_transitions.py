"""The supervisor's tables: complete, and safe whatever the phase."""

import itertools

import pytest

from swarmctl.agent.transitions import AFTER, BUSY, STEPS, Goal, Happened, Phase, Step


def test_table_has_a_step_for_every_pair():
    """Each phase has a row, each goal a column."""
    assert len(STEPS) == len(Phase)
    assert {len(row) for row in STEPS} == {len(Goal)}


@pytest.mark.parametrize(("phase", "goal"), list(itertools.product(Phase, Goal)))
def test_step_is_safe(phase, goal):
    """What must hold of each pair, whatever the table says."""
    step = STEPS[phase][goal]

    if goal is Goal.LEAVE:
        assert step is Step.NOTHING, "unknown is not unwanted"
    if phase in BUSY:
        assert step in (Step.NOTHING, Step.CANCEL), "one operation at a time"
    if step is Step.CANCEL:
        assert phase is Phase.LAUNCHING
    if step is Step.STOP:
        assert phase is Phase.RUNNING
    if step is Step.REMOVE:
        assert goal is Goal.GONE
    if step is Step.LAUNCH:
        assert goal in (Goal.RUN, Goal.RESTART)
        assert phase not in (Phase.RUNNING, Phase.UNSEEN)
    if phase is Phase.UNSEEN:
        assert step is Step.NOTHING, "adoption before action"


def test_every_operation_ends_in_a_phase_that_is_at_rest():
    """No end of an operation leaves a phase in which an operation seems to be under way."""
    for (phase, _), after in AFTER.items():
        assert after not in BUSY
        assert after is not phase


def test_something_that_runs_is_never_forgotten():
    """From every phase at rest, finding that it runs leads to running."""
    for phase in Phase:
        if phase not in BUSY and phase not in (Phase.RUNNING, Phase.UNSEEN):
            assert AFTER[phase, Happened.STARTED] is Phase.RUNNING
