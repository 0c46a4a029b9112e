"""Placing many identical copies at once, without a loop over copies or nodes.

Placing copy by copy means to take, again and again, the node with the smallest key, which then
gets a larger key.  Seen from the end, a node gets all those of its keys that are below some
threshold: as water poured into a vessel stands at one height everywhere.  So we look for a
threshold that is enough by halving an interval, write down every key below it (at most one a node
too many), sort them, and cut: exactly the nodes, in exactly the order, of copy by copy.

For ``spread`` over labels the same is done for the labels' values first (their keys are the
numbers of copies), and then for the nodes within each value: the values are *segments*, and the
search runs in all of them at the same time.
"""

from typing import Final

import attrs
import numpy as np

from swarmctl.scheduler import score
from swarmctl.scheduler.facts import Ints
from swarmctl.scheduler.filters import room
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import View

# Copies times load an instance must stay below 2**63: see facts.LOAD_PER_INSTANCE.
COPIES_MAX: Final = 1 << 21
# The number of keys below a threshold that nobody has counted yet: too many.
_NOT_COUNTED: Final = 1 << 60


@attrs.frozen(eq=False)
class _Items:
    """Things that take copies, at growing keys: nodes, or values of a label.

    The keys of item i are ``first[i]``, then ``first[i] + step[i] + slope[i]``, and ``slope[i]``
    more each time, ``limit[i]`` keys in all.  ``step`` is not negative, ``slope`` positive.
    """

    first: Ints
    step: Ints
    slope: Ints
    limit: Ints
    segment: Ints

    def count_to(self, threshold: Ints) -> Ints:
        """How many keys of each item are at most its segment's threshold."""
        height = threshold[self.segment] - self.first
        count: Ints = np.maximum((height - self.step) // self.slope, 0) + 1
        count[height < 0] = 0
        np.minimum(count, self.limit, out=count)
        return count

    def second_keys(self) -> Ints:
        """The next key of each item after its first, whether it has one or not."""
        return self.first + self.step + self.slope

    def last_keys(self) -> Ints:
        """The largest key of each item."""
        return self.first + self.step + self.slope * (self.limit - 1)


def is_batchable(request: Request) -> bool:
    """Whether the keys of each node only grow (or, for binpack, only fall) as it takes copies."""
    step = score.own_step(request)
    binds_itself = any(w.required and w.service == request.service for w in request.affinity)
    return not binds_itself and (step >= 0 if request.strategy == "spread" else step <= 0)


def place_many(view: View, request: Request, copies: Ints, wanted: int, start: int) -> Ints:
    """Choose nodes for up to ``wanted`` copies at once, and allocate them.

    Arguments and result are those of ``onebyone.place_each``; the request ``is_batchable``.
    """
    assert wanted <= COPIES_MAX
    limits = np.minimum(room(view, request, copies), wanted)
    rows = np.flatnonzero(limits)
    rows = np.concatenate((rows[rows >= start], rows[rows < start]))
    limits = limits[rows]
    wanted = min(wanted, int(limits.sum()))
    if not wanted:
        return np.zeros(0, dtype=np.int64)
    keys = score.keys(view, request, copies)[rows]
    if request.spread:
        chosen = _over_labels(view, request, copies, rows, keys, limits, wanted)
    elif request.strategy == "spread":
        few = _smallest(keys, wanted)
        rows = rows[few]
        items = _nodes(view, request, copies, rows, keys[few], limits[few], np.zeros_like(rows))
        chosen = rows[_in_turn(items, wanted)]
    else:
        order = np.argsort(keys, kind="stable")
        chosen = np.repeat(rows[order], limits[order])[:wanted]
    counts = np.bincount(chosen, minlength=len(copies))
    copies += counts
    distinct = np.flatnonzero(counts)
    view.allocate_rows(distinct, counts[distinct], request.needs)
    return chosen


def _smallest(keys: Ints, wanted: int) -> Ints:
    """Indexes, growing, of the ``wanted`` smallest keys, the first ones of equals.

    No other node gets a copy: each of these would take one before.
    """
    if len(keys) <= wanted:
        return np.arange(len(keys))
    greatest = np.partition(keys, wanted - 1)[wanted - 1]
    taken = keys < greatest
    taken[np.flatnonzero(keys == greatest)[: wanted - np.count_nonzero(taken)]] = True
    return np.flatnonzero(taken)


def _in_turn(items: _Items, wanted: int) -> Ints:
    """The items of the ``wanted`` smallest keys, in order."""
    if len(items.first) == wanted and items.first.max() < items.second_keys().min():
        # One copy each.  So it is mostly with few copies, or with copies that keep apart.
        return np.argsort(items.first, kind="stable")
    item, key = _expand(items, _enough(items, np.array([wanted])))
    return item[np.argsort(key, kind="stable")[:wanted]]


def _nodes(
    view: View,
    request: Request,
    copies: Ints,
    rows: Ints,
    keys: Ints,
    limits: Ints,
    segment: Ints,
) -> _Items:
    """Nodes as items, for the strategy ``spread``."""
    step = np.where(copies[rows] == 0, score.own_step(request), 0)
    slope = view.facts.load_of(request.needs)[rows]
    return _Items(keys, step, slope, limits, segment)


def _over_labels(
    view: View,
    request: Request,
    copies: Ints,
    rows: Ints,
    keys: Ints,
    limits: Ints,
    wanted: int,
) -> Ints:
    """Choose nodes so that the values of the request's labels stay even."""
    groups = view.facts.nested_groups(request.spread)
    counts = score.spread_counts(view, request, copies)
    quota = np.array([wanted])
    parent_of_row = np.zeros(len(copies), dtype=np.int64)
    for (group_of, size), count in zip(groups, counts, strict=True):
        items = _values(group_of, size, count, parent_of_row, rows, limits)
        quota = _enough(items, np.minimum(quota, _sum(items.limit, items.segment, len(quota))))
        parent_of_row = group_of
    segment = parent_of_row[rows]
    if request.strategy == "spread":
        nodes = _nodes(view, request, copies, rows, keys, limits, segment)
        item, key = _expand(nodes, _enough(nodes, quota))
        order = np.lexsort((item, key, segment[item]))
    else:
        step = np.where(copies[rows] == 0, score.own_step(request), 0)
        slope = view.facts.load_of(request.needs)[rows]
        item, key = _packed(_Items(keys, step, -slope, limits, segment), quota)
        order = np.arange(len(item))
    return rows[_interleave(item, key, order, rows, groups, counts)[:wanted]]


def _values(
    group_of: Ints, size: int, count: Ints, parent_of_row: Ints, rows: Ints, limits: Ints
) -> _Items:
    """The values of one label as items: their keys are numbers of copies."""
    first = np.zeros(size, dtype=np.int64)
    first[group_of] = count
    segment = np.zeros(size, dtype=np.int64)
    segment[group_of] = parent_of_row
    limit = _sum(limits, group_of[rows], size)
    return _Items(first, np.zeros_like(first), np.ones_like(first), limit, segment)


def _packed(nodes: _Items, quota: Ints) -> tuple[Ints, Ints]:
    """For binpack: the copies of each segment in the order in which its nodes are filled.

    The keys of ``nodes`` fall here: a node that has taken a copy takes the next one too.
    """
    order = np.lexsort((nodes.first, nodes.segment))
    limits, segment = nodes.limit[order], nodes.segment[order]
    before = np.cumsum(limits) - limits
    opens = np.searchsorted(segment, segment, side="left")
    counts = np.clip(quota[segment] - (before - before[opens]), 0, limits)
    by_item = np.empty_like(counts)
    by_item[order] = counts
    _, key = _expand(nodes, by_item)
    ends = np.cumsum(by_item)
    item = np.repeat(order, counts)
    nth = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
    return item, key[(ends - by_item)[item] + nth]


def _interleave(
    item: Ints,
    key: Ints,
    order: Ints,
    rows: Ints,
    groups: list[tuple[Ints, int]],
    counts: list[Ints],
) -> Ints:
    """Merge the sequences of all values, innermost label first, into the order of placing.

    ``order`` sorts the copies by innermost value and, within it, by their turn.  The copies that
    a value has when a copy's turn comes are those it had plus the copy's place in that sequence.
    """
    turns: list[Ints] = []
    for level in range(len(groups) - 1, -1, -1):
        row = rows[item[order]]
        group = groups[level][0][row]
        opens = np.searchsorted(group, group, side="left")
        turn = np.empty(len(order), dtype=np.int64)
        turn[order] = counts[level][row] + np.arange(len(order)) - opens
        turns.insert(0, turn)
        outer = [groups[level - 1][0][rows[item]]] if level else []
        order = np.lexsort((item, key, *reversed(turns), *outer))
    return item[order]


def _enough(items: _Items, quota: Ints) -> Ints:
    """How many keys of each item to write down, so that the smallest ``quota`` are among them.

    Args:
        items: the items; each segment has at least its quota of keys.
        quota: keys wanted by segment.

    Returns:
        By item; in each segment at most one key an item more than wanted (more only where keys
        are equal).
    """
    segments = len(quota)
    slack = np.bincount(items.segment, minlength=segments)
    low = np.zeros(segments, dtype=np.int64)
    high = np.full(segments, -1, dtype=np.int64)
    taking = items.limit > 0
    if not taking.any():
        return np.zeros_like(items.limit)
    low[:] = items.first[taking].min() - 1
    high[:] = items.last_keys()[taking].max()
    total_at_high = np.full(segments, _NOT_COUNTED)
    while np.any((total_at_high > quota + slack) & (high - low > 1)):
        middle = low + (high - low) // 2
        total = _sum(items.count_to(middle), items.segment, segments)
        enough = total >= quota
        total_at_high = np.where(enough, total, total_at_high)
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return items.count_to(high)


def _expand(items: _Items, counts: Ints) -> tuple[Ints, Ints]:
    """Write down the first ``counts`` keys of each item: whose each is, and the key."""
    item = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
    key = items.first[item] + items.slope[item] * nth
    if items.step.any():
        key += items.step[item] * (nth > 0)
    return item, key


def _sum(values: Ints, segment: Ints, segments: int) -> Ints:
    """Sums by segment (exact: they stay far below 2**53)."""
    return np.bincount(segment, weights=values, minlength=segments).astype(np.int64)
