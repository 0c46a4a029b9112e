"""Incarnations and digests: the two numbers that both sides compute alone and compare."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.proto import digest, incarnation
from swarmctl.proto.states import Desired, InstanceState

terms = st.integers(1, incarnation.TERM_MAX)
sequences = st.integers(0, incarnation.SEQUENCE_MAX)
pairs = st.tuples(terms, sequences)


@given(pairs, pairs)
def test_incarnations_order_by_term_and_then_by_sequence(one, other):
    """Of two holders of a slot, the later controller's is the newer."""
    assert (incarnation.make(*one) < incarnation.make(*other)) == (one < other)
    assert (incarnation.make(*one) == incarnation.make(*other)) == (one == other)


@given(pairs)
def test_incarnations_are_signed_64_bit_and_readable(pair):
    """SQLite and msgpack keep them whole; a label in a container's name gives them back."""
    made = incarnation.make(*pair)

    assert 0 < made < 1 << 63
    assert incarnation.term_of(made) == pair[0]
    assert incarnation.parse(incarnation.label(made)) == made


@pytest.mark.parametrize(
    "text", ["", "7", "7-", "-7", "a-b", "7-1-2", "0-1", "-1-5", f"{1 << 24}-0", f"1-{1 << 40}"]
)
def test_a_label_that_is_none_is_a_value_error(text):
    """Names of foreign containers are tried too: that is no defect."""
    with pytest.raises(ValueError, match="incarnation"):
        incarnation.parse(text)


entries = st.builds(
    digest.assignment_entry,
    st.integers(1, 1 << 62),
    st.sampled_from([int(one) for one in Desired]),
    st.integers(0, 1000),
)


@given(st.lists(entries), st.randoms())
def test_the_order_of_entries_does_not_matter(some, random):
    """Both sides hold them in orders of their own."""
    shuffled = list(some)
    random.shuffle(shuffled)

    assert digest.total(some) == digest.total(shuffled)


@given(st.lists(entries, min_size=1), entries, st.data())
def test_a_change_by_difference_equals_computing_anew(some, new, data):
    """Replaced, added or taken away."""
    at = data.draw(st.integers(0, len(some) - 1))
    before = digest.total(some)
    rest = some[:at] + some[at + 1 :]

    assert digest.replace(before, some[at], new) == digest.total([*rest, new])
    assert digest.replace(before, 0, new) == digest.total([*some, new])
    assert digest.replace(before, some[at], 0) == digest.total(rest)


def test_nothing_is_zero_and_all_is_64_bit():
    """No entries agree with no entries; a heartbeat's field takes any total."""
    assert digest.total([]) == 0
    assert 0 <= digest.total([(1 << 64) - 1] * 5) < 1 << 64
    assert digest.replace(0, 5, 0) == (1 << 64) - 5


def test_any_difference_between_two_small_nodes_shows():
    """Over all states, attempts and restarts near zero no two entries are alike."""
    seen = {
        digest.inventory_entry(number, state, attempt, restarts)
        for number in range(1, 6)
        for state in InstanceState
        for attempt in range(6)
        for restarts in range(6)
    }
    assert len(seen) == 5 * len(InstanceState) * 36
    seen = {
        digest.assignment_entry(number, wish, generation)
        for number in range(1, 50)
        for wish in Desired
        for generation in range(50)
    }
    assert len(seen) == 49 * 2 * 50


@given(st.integers(1, 1 << 62), st.sampled_from(InstanceState), st.integers(0, 1 << 30))
def test_more_restarts_always_show(number, state, restarts):
    """A crash loop's count is not lost where the bits of two fields meet."""
    first = digest.inventory_entry(number, state, restarts + 1, restarts)

    assert first != digest.inventory_entry(number, state, restarts + 2, restarts + 1)
