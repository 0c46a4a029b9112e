"""An index that finds the node of a plain request in microseconds.

How a request is answered:

* pinned by a constraint to a value that few nodes have: those nodes are looked at;
* ``binpack``: the sets of nodes that have enough of each resource are intersected (see
  ``levels``), and of what is left the most loaded node that fits is it.
* ``spread``: the nodes in the order of their load (see ``byload``); the first that fits is it.  On
  a full cluster the first nodes do not fit: after a few of them the sets are asked here too.

Every answer is exact: the cuts decide how fast a node is found, never which.

``place`` is the hot path, and the only one; what it calls stands below it, in the order in which it
happens.  Its budget in microseconds a request, on one core, at 10,000 nodes:

===========  ===  ================================================================================
pinned       1.5  the value's rows 0.4, looking at one 0.3, taking it 0.4
``spread``   4    the node of the request before to its new place 1.2, finding 1.0, taking 0.6
``binpack``  6    the sets brought up to date 1.6, intersected 1.0, the most loaded 2.0, taking 0.6
===========  ===  ================================================================================

The index repeats the columns of ``usage`` as plain lists.  It lives on between plans: a plan takes
it along with its fork of the columns, and ``commit`` brings it back; rows that were changed
meanwhile are noted and read again.  Without an index, or when too much has changed, the next run
of requests builds one.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from swarmctl.scheduler.byload import ByLoad
from swarmctl.scheduler.facts import LOAD_PER_INSTANCE, LOAD_SCALE, Facts, Ints
from swarmctl.scheduler.levels import Levels, each_member, members, to_set
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import Usage

NOWHERE: Final = -1

# Cuts a resource: more of them mean fewer nodes that look right and are not, and more to update.
_CUTS_MAX: Final = 32
# Cuts of load, evenly from an empty node to a full one: few enough nodes between two of them.
_LOAD_CUTS: Final = 16
# Powers of two among the cuts: from a node's whole capacity down to a thousandth of it.
_POWERS: Final = 10
# Requests that the cuts are chosen from: enough for 32 cuts that part them evenly.
_SAMPLE: Final = 1_000
# Nodes with a value up to which looking at each is faster than the sets.
_PINNED_MAX: Final = 16
# Least loaded nodes that do not fit before the sets are asked: they cost some 30 of these.
_MISSES_MAX: Final = 32

_Needs = Sequence[tuple[str, int]]
# Changed rows, as a share of all, from which building anew is cheaper than reading them again.
_CHANGED_MAX: Final = 1 / 4
# Nodes looked at in vain for each request, and requests, from which the cuts no longer suit them.
_LOOKED_MAX: Final = 24
_ASKED_MIN: Final = 64

# Free units by row, and how many of them are needed.
_Wanted = list[tuple[list[int], int]]


class _Columns(dict[str, list[int]]):
    """Free units by resource, then by row; a resource's column is made when first asked for."""

    def __init__(self, facts: Facts, usage: Usage) -> None:
        super().__init__()
        self.facts = facts
        self.usage = usage

    def __missing__(self, resource: str) -> list[int]:
        column: list[int] = self.usage.free(self.facts, resource).tolist()
        self[resource] = column
        return column


class Index:
    """See the module's docstring.

    Attributes:
        facts: the nodes; an index is about these only.
        free: units by resource, then by row.
        load: by row.
    """

    def __init__(self, facts: Facts, usage: Usage) -> None:
        self.facts = facts
        self.start = 0
        self.free = _Columns(facts, usage)
        self.load: list[int] = usage.load.tolist()
        self.per_unit = {
            resource: column.tolist() for resource, column in facts.load_per_unit.items()
        }
        self.sample: list[Request] = []
        # Made when first asked, and brought up to date when next asked: what each of them does not
        # know the last of are the rows moved since.
        self.by_load: ByLoad | None = None
        self.moved_by_load: list[int] = []
        self.load_levels: Levels | None = None
        self.levels: dict[str, Levels] = {}
        # All of these levels: themselves, their cuts, and the column that they follow.
        self.followers: list[tuple[Levels, list[int], list[int]]] = []
        self.moved: list[int] = []
        # Rows that usage has changed without the index.
        self.changed: set[int] = set()
        self.asked = self.looked = 0
        # Answers of the facts, at hand: schedulable nodes with a driver (a byte each), eligible
        # nodes by static filters (a byte each, and as a set), rows by attribute and value.
        self.with_driver: dict[str, bytes] = {}
        self.eligible: dict[tuple[object, ...], tuple[bytes, int]] = {}
        self.by_value: dict[str, Mapping[str | None, Sequence[int]]] = {}

    def note_changed(self, rows: Iterable[int]) -> None:
        """Usage of these rows has changed; they are read again before the next run."""
        self.changed.update(rows)

    def suits(self, facts: Facts) -> bool:
        """Whether it is about these nodes, and little has changed."""
        return self.facts is facts and len(self.changed) <= len(facts) * _CHANGED_MAX

    def begin(self, usage: Usage, requests: Sequence[Request], start: int) -> None:
        """Get ready for a run of requests, with ties counted from row ``start``."""
        # Every so many requests, and those before: cuts decide about speed alone.
        latest = requests[:: max(1, len(requests) // _SAMPLE)]
        self.sample = [*self.sample, *latest][-_SAMPLE:]
        self.free.usage = usage
        for row in self.changed:
            self._read(usage, row)
        self.changed.clear()
        many = len(self.load) * _CHANGED_MAX
        if start != self.start or len(self.moved_by_load) > many:
            self.start, self.by_load = start, None
            self.moved_by_load.clear()
        ill_cut = self.looked > _LOOKED_MAX * self.asked and self.asked > _ASKED_MIN
        if ill_cut or len(self.moved) > many:
            self.load_levels, self.levels, self.followers = None, {}, []
            self.moved.clear()
        if ill_cut or self.asked > _ASKED_MIN:
            self.asked = self.looked = 0
        self.asked += len(requests)

    def _read(self, usage: Usage, row: int) -> None:
        for resource, column in self.free.items():
            if resource in usage.used:
                units = self.facts.capacity[resource].item(row)
                column[row] = units - usage.used[resource].item(row)
        self.load[row] = usage.load.item(row)
        self.moved.append(row)
        self.moved_by_load.append(row)

    def end(self, usage: Usage, rows: Ints) -> None:
        """Bring the columns up to what the run has placed: one copy on each of ``rows``."""
        np.add.at(usage.instances, rows, 1)
        touched = np.unique(rows)
        at = touched.tolist()
        usage.load[touched] = [self.load[row] for row in at]
        for resource, free in self.free.items():
            if resource in usage.used:
                left = np.array([free[row] for row in at], dtype=np.int64)
                usage.used[resource][touched] = self.facts.capacity[resource][touched] - left

    # --- the hot path -----------------------------------------------------------------------------

    def place(self, request: Request) -> int:
        """The best row for one copy, which is taken; NOWHERE when none fits."""
        pinned = self._pinned(request) if request.constraints else None
        if pinned is not None:
            row = self._best_pinned(request, pinned)
        elif request.strategy == "binpack":
            row = self._most_loaded(request)
        else:
            row = self._least_loaded(request)
        if row == NOWHERE:
            return row
        load, per_unit = LOAD_PER_INSTANCE, self.per_unit
        for resource, amount in request.needs:
            self.free[resource][row] -= amount
            if resource in per_unit:
                load += per_unit[resource][row] * amount
        self.load[row] += load
        self.moved.append(row)
        self.moved_by_load.append(row)
        return row

    def _pinned(self, request: Request) -> Sequence[int] | None:
        """The rows of a value that few nodes have and the request must have; None without one."""
        for constraint in request.constraints:
            if constraint.operator == "==":
                by_value = self.by_value.get(constraint.attribute)
                if by_value is None:
                    by_value = self.facts.grouping(constraint.attribute).rows
                    self.by_value[constraint.attribute] = by_value
                rows = by_value.get(constraint.values[0], ())
                if len(rows) <= _PINNED_MAX:
                    return rows
        return None

    def _best_pinned(self, request: Request, rows: Sequence[int]) -> int:
        constraints, free, needs = request.constraints, self.free, request.needs
        mask = self.with_driver.get(request.driver)
        if mask is None:
            able = self.facts.schedulable & self.facts.with_driver(request.driver)
            mask = self.with_driver[request.driver] = able.tobytes()
        best, best_key = NOWHERE, (0, 0)
        for row in rows:
            if not mask[row]:
                continue
            if len(constraints) > 1:
                node = self.facts.nodes[row]
                if not all(one.matches(node.name, node.labels) for one in constraints):
                    continue
            for resource, amount in needs:
                if free[resource][row] < amount:
                    break
            else:
                if len(rows) == 1:
                    return row
                load = self.load[row]
                key = (load if request.strategy == "spread" else -load, self._rank(row))
                if best == NOWHERE or key < best_key:
                    best, best_key = row, key
        return best

    def _least_loaded(self, request: Request) -> int:
        """The first that fits by load; when a few do not, what the sets say."""
        if self.by_load is None:
            self.by_load = ByLoad(self.load, self.start)
        else:
            self.by_load.move(self.moved_by_load, self.load)
        self.moved_by_load.clear()
        mask, rows = self._eligible(request)
        row = self._first_by_load(self.by_load, mask, request.needs, _MISSES_MAX)
        if row is not None:
            return row
        self._updated_levels()
        rows, wanted = self._with_enough(request.needs, rows)
        # Of n nodes, k of which fit, one that does is the n/k-th by load, and the set has k.
        if rows.bit_count() ** 2 > len(self.load):
            row = self._first_by_load(self.by_load, mask, request.needs, len(self.load))
            return NOWHERE if row is None else row
        return self._best_of_level(rows, wanted, spread=True)

    def _first_by_load(
        self, by_load: ByLoad, mask: bytes, needs: _Needs, misses_max: int
    ) -> int | None:
        """The least loaded node that fits; None when the first ``misses_max`` do not."""
        free, rank_mask, start, count = self.free, by_load.rank_mask, self.start, len(self.load)
        misses = 0
        for block in by_load.blocks:
            for number in block:
                row = (number & rank_mask) + start
                if row >= count:
                    row -= count
                if mask[row]:
                    for resource, amount in needs:
                        if free[resource][row] < amount:
                            break
                    else:
                        return row
                misses += 1
                if misses > misses_max:
                    return None
        return None

    def _most_loaded(self, request: Request) -> int:
        """The most loaded node that fits."""
        load_levels = self._updated_levels()
        _, rows = self._eligible(request)
        rows, wanted = self._with_enough(request.needs, rows)
        while rows:
            tried, level = load_levels.top(rows)
            if level:
                row = self._best_of_level(tried, wanted, spread=False)
            else:
                # Empty nodes are all alike: the first that fits is it.
                row = _first_of(each_member(tried, len(self.load), self.start), wanted)
            if row != NOWHERE:
                return row
            rows ^= tried
        return NOWHERE

    def _eligible(self, request: Request) -> tuple[bytes, int]:
        """The nodes that static filters let through: a byte each, and as a set."""
        key = (request.driver, request.constraints)
        known = self.eligible.get(key)
        if known is None:
            mask = self.facts.eligible(request)
            known = self.eligible[key] = (mask.tobytes(), to_set(mask))
        return known

    def _with_enough(self, needs: _Needs, rows: int) -> tuple[int, _Wanted]:
        """Those of the rows that may have enough; and what to check on each."""
        wanted: _Wanted = []
        for resource, amount in needs:
            levels = self.levels.get(resource) or self._index(resource)
            rows &= levels.at_least[bisect_right(levels.cuts, amount)]
            wanted.append((self.free[resource], amount))
        return rows, wanted

    def _best_of_level(self, rows: int, wanted: _Wanted, *, spread: bool) -> int:
        """The least (or the most) loaded row of a set that fits; of equals the first."""
        found = members(rows, len(self.load), self.start)
        self.looked += len(found)
        best, best_load = NOWHERE, 0
        for row in found:
            for free, amount in wanted:
                if free[row] < amount:
                    break
            else:
                load = self.load[row]
                if best == NOWHERE or (load < best_load if spread else load > best_load):
                    best, best_load = row, load
        return best

    def _updated_levels(self) -> Levels:
        """Bring the levels up to what has been placed; those of load are returned."""
        if self.load_levels is None:
            full = len(self.per_unit) * LOAD_SCALE
            # The first cut parts the empty nodes from the others.
            cuts = [1, *(full * i // _LOAD_CUTS for i in range(1, _LOAD_CUTS))]
            self.load_levels = Levels(cuts, np.array(self.load, dtype=np.int64))
            self.followers.append((self.load_levels, self.load_levels.cuts, self.load))
        else:
            for row in self.moved:
                for levels, cuts, column in self.followers:
                    level = bisect_right(cuts, column[row])
                    if level != levels.level[row]:
                        levels.move(row, level)
        self.moved.clear()
        return self.load_levels

    def _index(self, resource: str) -> Levels:
        """Levels for one more resource."""
        amounts = {amount for one in self.sample for name, amount in one.needs if name == resource}
        free = self.free[resource]
        levels = Levels(_cuts(amounts, max(free, default=0)), np.array(free, dtype=np.int64))
        self.levels[resource] = levels
        self.followers.append((levels, levels.cuts, free))
        return levels

    def _rank(self, row: int) -> int:
        return (row - self.start) % len(self.load)


def _first_of(rows: Iterable[int], wanted: _Wanted) -> int:
    for row in rows:
        for free, amount in wanted:
            if free[row] < amount:
                break
        else:
            return row
    return NOWHERE


def _cuts(amounts: set[int], most: int) -> list[int]:
    """Cuts at the amounts asked for, or at evenly chosen ones of them when there are many.

    Requests to come may ask for other amounts: so there are cuts at each power of two besides, up
    to ``most`` that a node has free.
    """
    distinct = sorted(amounts)
    if len(distinct) > _CUTS_MAX:
        distinct = [distinct[len(distinct) * i // _CUTS_MAX] for i in range(_CUTS_MAX)]
    top = max(most, 1).bit_length()
    return sorted({*distinct, *(1 << bits for bits in range(max(0, top - _POWERS), top))})
