"""Placing many different plain requests: an index that finds each one's node in microseconds.

The index is built for a run of requests from the columns, kept in step as the run is placed, and
written back once at the end.  How a request is answered:

* pinned by a constraint to a value that few nodes have: those nodes are looked at;
* ``binpack``: the sets of nodes that have enough of each resource are intersected (see
  ``levels``), and of what is left the most loaded node that fits is it.
* ``spread``: a heap of nodes by load; the first that fits is it.  On a full cluster the heap's
  first nodes do not fit: after a few of them the sets are asked here too.

Every answer is exact: the cuts decide how fast a node is found, never which.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from swarmctl.scheduler.facts import LOAD_PER_INSTANCE, LOAD_SCALE
from swarmctl.scheduler.levels import Levels, lowest_from, members_from, to_set
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import View

# Cuts a resource: more of them mean fewer nodes that look right and are not, and more to update.
_CUTS_MAX: Final = 32
# Cuts of load, evenly from an empty node to a full one: few enough nodes between two of them.
_LOAD_CUTS: Final = 16
# Requests that the cuts are chosen from: enough for 32 cuts that part them evenly.
_SAMPLE: Final = 1_000
# Nodes with a value up to which looking at each is faster than the sets.
_PINNED_MAX: Final = 16
# Nodes of the heap that do not fit before the sets are asked.
_HEAP_MISSES_MAX: Final = 32
# Taking a node from the heap and putting it back costs as much as looking at so many of a set.
_HEAP_FAVOUR: Final = 4

_NOWHERE: Final = -1
_Needs = Sequence[tuple[str, int]]
# Free units by row, and how many of them are needed.
_Wanted = list[tuple[list[int], int]]
# The rows of a request's copies; a single copy's row alone (a list each would cost more to keep
# than the row takes to find).
Rows = int | list[int]


def place_run(view: View, requests: Sequence[Request], start: int) -> list[Rows]:
    """Choose nodes for plain requests, one after the other, and allocate them.

    Args:
        view: changed: what is placed is allocated in it.
        requests: plain ones.
        start: the row from which ties are counted.

    Returns:
        For each request the rows of its copies; fewer than slots when no more fit. A single copy
        has its row alone.
    """
    run = _Run(view, requests, start)
    chosen = [run.place(request) for request in requests]
    run.write_back(chosen)
    return chosen


class _Columns(dict[str, list[int]]):
    """Free units by resource, then by row; a resource's column is made when first asked for."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view

    def __missing__(self, resource: str) -> list[int]:
        column: list[int] = self.view.free(resource).tolist()
        self[resource] = column
        return column


class _Run:
    """The index of one run; see the module's docstring."""

    def __init__(self, view: View, requests: Sequence[Request], start: int) -> None:
        self.view = view
        self.start = start
        # Every so many requests: cuts decide about speed alone.
        self.sample = requests[:: max(1, len(requests) // _SAMPLE)]
        self.free = _Columns(view)
        self.load: list[int] = view.usage.load.tolist()
        self.per_unit = {
            resource: column.tolist() for resource, column in view.facts.load_per_unit.items()
        }
        self.heap: list[tuple[int, int]] | None = None
        self.load_levels: Levels | None = None
        self.levels: dict[str, Levels] = {}
        # For each of them: how to tell it of a change, and the column that it is about.
        self.followers: list[tuple[Callable[[int, int], None], list[int]]] = []
        # Rows that the levels do not know the last of yet.
        self.moved: list[int] = []
        # Answers of the facts, at hand: eligible nodes by static filters, rows by attribute, value.
        self.eligible: dict[tuple[object, ...], tuple[bytes, int]] = {}
        self.by_value: dict[str, Mapping[str | None, Sequence[int]]] = {}

    def place(self, request: Request) -> Rows:
        """The rows of a request's copies, allocated."""
        if len(request.slots) == 1:
            row = self._find(request)
            if row == _NOWHERE:
                return []
            self._take(row, request.needs)
            return row
        rows: list[int] = []
        for _ in request.slots:
            row = self._find(request)
            if row == _NOWHERE:
                break
            self._take(row, request.needs)
            rows.append(row)
        return rows

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
            mask = self.view.facts.eligible(request)
            known = self.eligible[key] = (mask.tobytes(), to_set(mask))
        return known

    def _pinned(self, request: Request) -> Sequence[int] | None:
        """The rows of a value that few nodes have and the request must have; None without one."""
        for constraint in request.constraints:
            if constraint.operator == "==":
                by_value = self.by_value.get(constraint.attribute)
                if by_value is None:
                    by_value = self.view.facts.grouping(constraint.attribute).rows
                    self.by_value[constraint.attribute] = by_value
                rows = by_value.get(constraint.values[0], ())
                if len(rows) <= _PINNED_MAX:
                    return rows
        return None

    def _best_pinned(self, request: Request, rows: Sequence[int]) -> int:
        nodes, driver, constraints = self.view.facts.nodes, request.driver, request.constraints
        fit = []
        for row in rows:
            node = nodes[row]
            if not node.schedulable or (driver and driver not in node.drivers):
                continue
            if len(constraints) > 1 and not all(
                c.matches(node.name, node.labels) for c in constraints
            ):
                continue
            if self._fits(row, request.needs):
                fit.append(row)
        if len(fit) < 2:
            return fit[0] if fit else _NOWHERE
        sign = 1 if request.strategy == "spread" else -1
        return min(fit, key=lambda row: (sign * self.load[row], self._rank(row)))

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
            return _NOWHERE if row is None else row
        return self._best_of_level(members_from(rows, self.start), wanted, spread=True)

    def _best_packed(self, request: Request, rows: int) -> int:
        """The most loaded node that fits."""
        load_levels = self._updated_levels()
        rows, wanted = self._with_enough(request.needs, rows)
        used = load_levels.at_least[0]
        while rows:
            level = load_levels.top(rows)
            if level & used:
                row = self._best_of_level(members_from(level, self.start), wanted, spread=False)
            else:
                # Empty nodes are all alike: the first that fits is it.
                row = _first_of_level(lowest_from(level, self.start), wanted)
            if row != _NOWHERE:
                return row
            rows ^= level
        return _NOWHERE

    def _with_enough(self, needs: _Needs, rows: int) -> tuple[int, _Wanted]:
        """Those of the rows that may have enough; and what to check on each."""
        wanted: _Wanted = []
        for resource, amount in needs:
            levels = self.levels.get(resource) or self._index(resource)
            rows &= levels.reaching(amount)
            wanted.append((self.free[resource], amount))
        return rows, wanted

    def _best_of_level(self, rows: Iterable[int], wanted: _Wanted, *, spread: bool) -> int:
        """The least (or the most) loaded row that fits; of equals the first."""
        best, best_load = _NOWHERE, 0
        for row in rows:
            for free, amount in wanted:
                if free[row] < amount:
                    break
            else:
                load = self.load[row]
                if best == _NOWHERE or (load < best_load if spread else load > best_load):
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
        levels = Levels(_cuts(amounts), np.array(free, dtype=np.int64))
        self.levels[resource] = levels
        self.followers.append((levels.move, free))
        return levels

    def write_back(self, chosen: Iterable[Rows]) -> None:
        """Bring the view's columns up to what the run has placed."""
        usage, capacity = self.view.usage, self.view.facts.capacity
        rows: list[int] = []
        for one in chosen:
            if isinstance(one, int):
                rows.append(one)
            else:
                rows.extend(one)
        usage.instances += np.bincount(np.array(rows, dtype=np.int64), minlength=len(self.load))
        usage.load = np.array(self.load, dtype=np.int64)
        for resource, free in self.free.items():
            if resource in usage.used:
                usage.used[resource] = capacity[resource] - np.array(free, dtype=np.int64)


def _first_of_level(rows: Iterable[int], wanted: _Wanted) -> int:
    for row in rows:
        for free, amount in wanted:
            if free[row] < amount:
                break
        else:
            return row
    return _NOWHERE


def _cuts(amounts: set[int]) -> list[int]:
    """Cuts at the amounts asked for, or at evenly chosen ones of them when there are many."""
    distinct = sorted(amounts)
    if len(distinct) <= _CUTS_MAX:
        return distinct
    return [distinct[len(distinct) * i // _CUTS_MAX] for i in range(_CUTS_MAX)]
