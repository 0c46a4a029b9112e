"""What the index keeps by change equals what is built anew."""

from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_strategies import steady

from swarmctl.scheduler import byload
from swarmctl.scheduler.byload import ByLoad
from swarmctl.scheduler.levels import Levels, each_member, members, to_set

loads = st.lists(st.integers(0, 40), min_size=1, max_size=60)
moves = st.lists(st.tuples(st.integers(0, 59), st.integers(0, 40)), max_size=80)


def moved(values, changes):
    """The values after the changes, and the rows changed in order."""
    after = values.copy()
    rows = [row % len(values) for row, _ in changes]
    for row, (_, value) in zip(rows, changes, strict=True):
        after[row] = value
    return after, rows


@steady
@given(values=loads, changes=moves, start=st.integers(0, 59), block=st.sampled_from([1, 2, 5, 256]))
def test_nodes_stay_in_the_order_of_load(values, changes, start, block):
    """However nodes move, and however small the blocks: as if sorted anew, ties by rank."""
    start %= len(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byload, "_BLOCK", block)
        kept = ByLoad(values, start)
        after, rows = moved(values, changes)
        # In two parts: rows that moved more than once are told with their last load only.
        kept.move(rows[: len(rows) // 2], after)
        kept.move(rows, after)

    order = [
        ((number & kept.rank_mask) + start) % len(values) for one in kept.blocks for number in one
    ]
    expected = sorted(range(len(values)), key=lambda row: (after[row], (row - start) % len(values)))
    assert expected == order
    assert all(kept.blocks)
    assert max(map(len, kept.blocks)) <= 2 * block


@steady
@given(values=loads, changes=moves, cuts=st.sets(st.integers(0, 41), max_size=6))
def test_levels_follow_their_column(values, changes, cuts):
    """Moved row by row they equal those of the new values; the top of a set is its best rows."""
    after, rows = moved(values, changes)
    kept = Levels(sorted(cuts), np.array(values))
    for row in rows:
        kept.move(row, bisect_right(kept.cuts, after[row]))
    rebuilt = Levels(sorted(cuts), np.array(after))

    assert (rebuilt.at_least, rebuilt.level) == (kept.at_least, kept.level)
    asked = to_set(np.array([value % 3 > 0 for value in after]))
    found, level = kept.top(asked)
    best = max((kept.level[row] for row in members(asked, len(after))), default=0)
    assert (level if asked else 0) == best
    assert members(found, len(after)) == [
        row for row in members(asked, len(after)) if kept.level[row] == best
    ]


@steady
@given(rows=st.sets(st.integers(0, 199)), count=st.integers(200, 209), start=st.integers(0, 199))
def test_sets_are_read_in_the_order_of_ranks(rows, count, start):
    """Sparse or dense, at once or one after the other: from ``start`` upwards, then from 0."""
    mask = np.zeros(count, dtype=np.bool_)
    mask[list(rows)] = True
    expected = sorted(rows, key=lambda row: (row - start) % count)

    assert expected == members(to_set(mask), count, start)
    assert expected == list(each_member(to_set(mask), count, start))
