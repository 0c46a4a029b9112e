"""The table of instance states: what may follow what, for all pairs."""

from itertools import product

import pytest

from swarmctl.proto.states import (
    FINAL,
    FORWARD,
    LIVE,
    NEXT_ATTEMPT,
    Desired,
    InstanceState,
    may_follow,
)

S = InstanceState
PAIRS = list(product(S, S))


def test_every_state_is_in_the_table():
    """A state without a row could be entered and never left knowingly."""
    assert set(FORWARD) == set(S)


def test_wire_numbers_never_change():
    """Releases one apart exchange them."""
    assert [one.name for one in S] == [
        "PENDING", "ASSIGNED", "PREPARING", "STARTING", "RUNNING", "STOPPING",
        "STOPPED", "SUCCEEDED", "FAILED", "LOST", "REJECTED", "REMOVED",
    ]  # fmt: skip
    assert [int(one) for one in S] == list(range(12))
    assert [int(Desired.RUNNING), int(Desired.STOPPED)] == [0, 1]


def test_states_are_live_or_final_or_pending():
    """Each state says whether the node's resources are in use."""
    assert FINAL | LIVE | {S.PENDING} == set(S)
    assert not FINAL & LIVE


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda one: one.label)
def test_within_an_attempt_it_only_goes_forward(before, after):
    """No two different states may each follow the other: there is no way back."""
    forward = may_follow(before, after, same_attempt=True)
    backward = may_follow(after, before, same_attempt=True)

    assert (forward and backward) == (before is after)
    if after in FORWARD[before]:
        assert forward


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda one: one.label)
def test_only_removal_follows_an_end(before, after):
    """An attempt that has ended stays so."""
    if before in FINAL and before is not after:
        assert may_follow(before, after, same_attempt=True) == (
            after is S.REMOVED and before is not S.REMOVED
        )


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda one: one.label)
def test_a_new_attempt_may_begin_after_anything_but_removal(before, after):
    """Restarts follow any end; what is removed is no more."""
    assert may_follow(before, after, same_attempt=False) == (before is not S.REMOVED)


def test_reports_that_were_merged_may_skip_states():
    """From assigned straight to any end."""
    for end in FINAL - {S.REMOVED}:
        assert may_follow(S.ASSIGNED, end, same_attempt=True)


def test_every_state_can_come_to_be_removed():
    """Nothing is stuck."""
    for one in S:
        assert may_follow(one, S.REMOVED, same_attempt=True)


def test_the_next_attempt_begins_before_running():
    """Where the agent starts again."""
    assert NEXT_ATTEMPT <= LIVE
    assert S.RUNNING not in NEXT_ATTEMPT
