"""Digests of many at once are those of one by one."""

from hypothesis import given
from hypothesis import strategies as st

from swarmctl.proto import digest

INCARNATIONS = st.lists(st.integers(1, 2**63 - 1), max_size=30)
COUNTS = st.integers(0, 2**31)


@given(INCARNATIONS, st.integers(0, 11), COUNTS, COUNTS)
def test_an_inventory_of_like_ones_has_the_entries_of_each(incarnations, state, attempt, restarts):
    """However large the numbers are."""
    one_by_one = [digest.inventory_entry(one, state, attempt, restarts) for one in incarnations]
    assert digest.inventory_entries(incarnations, state, attempt, restarts) == one_by_one


@given(st.lists(st.tuples(st.integers(1, 2**63 - 1), st.integers(0, 1), COUNTS), max_size=30))
def test_many_assigned_entries_are_those_of_each(assigned):
    """In the same order."""
    assert digest.assignment_entries(assigned) == [
        digest.assignment_entry(*each) for each in assigned
    ]
