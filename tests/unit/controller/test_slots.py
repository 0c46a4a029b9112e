"""Sets of slots behave as sets, and are small in the store."""

import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.controller.slots import SlotSet, slot_set
from swarmctl.proto.errors import ProtocolError

slots = st.sets(st.integers(1, 3_000))


@given(slots, slots, st.integers(0, 3_100))
def test_it_behaves_as_a_set(some, others, last):
    """Of the same members, in order."""
    made = slot_set(some)
    assert (list(made), len(made)) == (sorted(some), len(some))
    assert list(made.united(others)) == sorted(some | others)
    assert list(made.upto(last)) == sorted(one for one in some if one <= last)
    assert all((one in made) == (one in some) for one in (*others, last, 0, 9_999))
    for one in list(others)[:3]:
        assert list(made.without(one)) == sorted(some - {one})
    assert (made == slot_set(sorted(some, reverse=True))) is True
    assert (made == slot_set(some | {3_500})) is False


@given(slots)
def test_it_is_stored_and_read_again(some):
    """As ranges or bits."""
    made = slot_set(some)
    stored = msgpack.unpackb(msgpack.packb(made.packed()))
    assert SlotSet.unpacked(stored) == made


def test_a_million_completions_are_small():
    """One range in order, and never more than a bit a slot."""
    everything = slot_set(range(1, 1_000_001))
    assert everything.packed() == [1, 1_000_000]
    mixed = random.Random(1).sample(range(1, 1_000_001), 500_000)
    assert len(msgpack.packb(slot_set(mixed).packed())) <= 125_010


@pytest.mark.parametrize("stored", [[1], "abc", 7, None])
def test_what_is_no_set_is_refused(stored):
    """A damaged record is said to be one."""
    with pytest.raises(ProtocolError):
        SlotSet.unpacked(stored)
