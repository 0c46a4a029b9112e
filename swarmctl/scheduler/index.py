"""An index that finds the node of a plain request in microseconds.

How a request is answered:

* pinned by a constraint to a value that few nodes have: those nodes are looked at;
* ``binpack``: the sets of nodes that have enough of each resource are intersected (see
  ``levels``), and of what is left the most loaded node that fits is it.
* ``spread``: a heap of nodes by load; the first that fits is it.  On a full cluster the heap's
  first nodes do not fit: after a few of them the sets are asked here too.

Every answer is exact: the cuts decide how fast a node is found, never which.

The index repeats the columns of ``usage`` as plain lists.  It lives on between plans: a plan takes
it along with its fork of the columns, and ``commit`` brings it back; rows that were changed
meanwhile are noted and read again.  Without an index, or when too much has changed, the next run
of requests builds one.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from swarmctl.scheduler.facts import LOAD_PER_INSTANCE, LOAD_SCALE, Facts, Ints
from swarmctl.scheduler.levels import Levels, lowest_from, members_from, to_set
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
# Nodes that have enough up to which looking at each is faster than narrowing them by load.
_FEW: Final = 4
# Nodes of the heap that do not fit before the sets are asked.
_HEAP_MISSES_MAX: Final = 32
# Taking a node from the heap and putting it back costs as much as looking at so many of a set.
_HEAP_FAVOUR: Final = 4

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
        self.heap: list[tuple[int, int]] | None = None
        self.load_levels: Levels | None = None
        self.levels: dict[str, Levels] = {}
        # For each of them: how to tell it of a change, and the column that it is about.
        self.followers: list[tuple[Callable[[int, int], None], list[int]]] = []
        # Rows that the levels do not know the last of yet.
        self.moved: list[int] = []
        # Rows that usage has changed without the index.
        self.changed: set[int] = set()
        self.asked = self.looked = 0
        # Answers of the facts, at hand: eligible nodes by static filters, rows by attribute, value.
        self.eligible: dict[tuple[object, ...], tuple[bytes, int]] = {}
        self.by_value: dict[str, Mapping[str | None, Sequence[int]]] = {}

    def note_changed(self, row: int) -> None:
        """Usage of a row has changed; it is read again before the next run."""
        self.changed.add(row)

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
        if start != self.start:
            self.start, self.heap = start, None
        elif self.heap is not None and len(self.heap) > 4 * len(self.load):
            # Mostly entries of the past.
            self.heap = None
        ill_cut = self.looked > _LOOKED_MAX * self.asked and self.asked > _ASKED_MIN
        if ill_cut or len(self.moved) > len(self.load) * _CHANGED_MAX:
            self.load_levels, self.levels, self.followers = None, {}, []
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
        if self.heap is not None:
            heapq.heappush(self.heap, (self.load[row], self._rank(row)))

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

    def place(self, request: Request) -> int:
        """The best row for one copy, which is taken; NOWHERE when none fits."""
        row = self._find(request)
        if row != NOWHERE:
            self._take(row, request.needs)
        return row

    def _find(self, request: Request) -> int:
        if request.constraints:
            pinned = self._pinned(request)
            if pinned is not None:
                return self._best_pinned(request, pinned)
        mask, rows = self._eligible(request)
        if request.strategy == "binpack":
            return self._best_packed(request, rows)
        row = self._first_of_heap(mask, request.needs, _HEAP_MISSES_MAX)
        return self._least_loaded(request, mask, rows) if row is None else row

    def _take(self, row: int, needs: _Needs) -> None:
        load, per_unit = LOAD_PER_INSTANCE, self.per_unit
        for resource, amount in needs:
            self.free[resource][row] -= amount
            if resource in per_unit:
                load += per_unit[resource][row] * amount
        self.load[row] += load
        self.moved.append(row)
        if self.heap is not None:
            heapq.heappush(self.heap, (self.load[row], self._rank(row)))

    def _rank(self, row: int) -> int:
        return (row - self.start) % len(self.load)

    def _fits(self, row: int, needs: _Needs) -> bool:
        for resource, amount in needs:  # noqa: SIM110 - a generator here doubles the time
            if self.free[resource][row] < amount:
                return False
        return True

    def _eligible(self, request: Request) -> tuple[bytes, int]:
        """The nodes that static filters let through: a byte each, and as a set."""
        key = (request.driver, request.constraints)
        known = self.eligible.get(key)
        if known is None:
            mask = self.facts.eligible(request)
            known = self.eligible[key] = (mask.tobytes(), to_set(mask))
        return known

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
        nodes, driver, constraints = self.facts.nodes, request.driver, request.constraints
        best, best_key = NOWHERE, (0, 0)
        sign = 1 if request.strategy == "spread" else -1
        for row in rows:
            node = nodes[row]
            if not node.schedulable or (driver and driver not in node.drivers):
                continue
            if len(constraints) > 1 and not all(
                c.matches(node.name, node.labels) for c in constraints
            ):
                continue
            if self._fits(row, request.needs):
                if len(rows) == 1:
                    return row
                key = (sign * self.load[row], self._rank(row))
                if best == NOWHERE or key < best_key:
                    best, best_key = row, key
        return best

    def _first_of_heap(self, mask: bytes, needs: _Needs, misses_max: int) -> int | None:
        """The least loaded node that fits; None when the first ``misses_max`` do not."""
        if self.heap is None:
            # Sorted, which is a heap.
            self.heap = sorted((load, self._rank(row)) for row, load in enumerate(self.load))
        heap = self.heap
        passed: list[tuple[int, int]] = []
        found: int | None = None
        while heap and len(passed) < misses_max:
            load, rank = heap[0]
            row = (rank + self.start) % len(self.load)
            if self.load[row] == load:
                if mask[row] and self._fits(row, needs):
                    found = row
                    break
                passed.append(heap[0])
            heapq.heappop(heap)
        for entry in passed:
            heapq.heappush(heap, entry)
        return found

    def _least_loaded(self, request: Request, mask: bytes, rows: int) -> int:
        """What the heap's first nodes could not answer."""
        self._updated_levels()
        rows, wanted = self._with_enough(request.needs, rows)
        nodes = len(self.load)
        # Of n nodes, k of which fit, the heap is through after n/k, the set after k.
        if rows.bit_count() ** 2 > _HEAP_FAVOUR * nodes:
            row = self._first_of_heap(mask, request.needs, nodes)
            return NOWHERE if row is None else row
        return self._best_of_level(members_from(rows, self.start), wanted, spread=True)

    def _best_packed(self, request: Request, rows: int) -> int:
        """The most loaded node that fits."""
        load_levels = self._updated_levels()
        rows, wanted = self._with_enough(request.needs, rows)
        if rows.bit_count() <= _FEW:
            return self._best_of_level(list(lowest_from(rows, self.start)), wanted, spread=False)
        used = load_levels.at_least[0]
        while rows:
            level = load_levels.top(rows)
            if level & used:
                row = self._best_of_level(members_from(level, self.start), wanted, spread=False)
            else:
                # Empty nodes are all alike: the first that fits is it.
                row = _first_of_level(lowest_from(level, self.start), wanted)
            if row != NOWHERE:
                return row
            rows ^= level
        return NOWHERE

    def _with_enough(self, needs: _Needs, rows: int) -> tuple[int, _Wanted]:
        """Those of the rows that may have enough; and what to check on each."""
        wanted: _Wanted = []
        for resource, amount in needs:
            levels = self.levels.get(resource) or self._index(resource)
            rows &= levels.reaching(amount)
            wanted.append((self.free[resource], amount))
        return rows, wanted

    def _best_of_level(self, rows: Sequence[int], wanted: _Wanted, *, spread: bool) -> int:
        """The least (or the most) loaded row that fits; of equals the first."""
        self.looked += len(rows)
        best, best_load = NOWHERE, 0
        for row in rows:
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
            self.followers.append((self.load_levels.move, self.load))
        else:
            for row in self.moved:
                for move, column in self.followers:
                    move(row, column[row])
        self.moved.clear()
        return self.load_levels

    def _index(self, resource: str) -> Levels:
        """Levels for one more resource."""
        amounts = {amount for one in self.sample for name, amount in one.needs if name == resource}
        free = self.free[resource]
        levels = Levels(_cuts(amounts, max(free, default=0)), np.array(free, dtype=np.int64))
        self.levels[resource] = levels
        self.followers.append((levels.move, free))
        return levels


def _first_of_level(rows: Iterable[int], wanted: _Wanted) -> int:
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
