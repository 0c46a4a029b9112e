"""Placing many different plain requests: an index that finds each one's node in microseconds.

The index is built for a run of requests from the columns, kept in step as the run is placed, and
written back once at the end.  How a request is answered:

* pinned by a constraint to a value that few nodes have: those nodes are looked at;
* ``spread``: a heap of nodes by load; the first that fits is it.  On a full cluster the heap's
  first nodes do not fit: after a few of them,
* as for ``binpack``: the sets of nodes that have enough of each resource are intersected (see
  ``levels``), and of what is left the most (for ``spread`` the least) loaded node that fits is it.

Every answer is exact: the cuts decide how fast a node is found, never which.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from swarmctl.scheduler.facts import LOAD_PER_INSTANCE, LOAD_SCALE
from swarmctl.scheduler.levels import Levels, members_from, to_set
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import View

# Cuts a resource: more of them mean fewer nodes that look right and are not, and more to update.
_CUTS_MAX: Final = 32
# Cuts of load, evenly from an empty node to a full one: few enough nodes between two of them.
_LOAD_CUTS: Final = 48
# Nodes with a value up to which looking at each is faster than the sets.
_PINNED_MAX: Final = 16
# Nodes of the heap that do not fit before the sets are asked.
_HEAP_MISSES_MAX: Final = 8

_NOWHERE: Final = -1
_Needs = Sequence[tuple[str, int]]


def place_run(view: View, requests: Sequence[Request], start: int) -> list[list[int]]:
    """Choose nodes for plain requests, one after the other, and allocate them.

    Args:
        view: changed: what is placed is allocated in it.
        requests: plain ones.
        start: the row from which ties are counted.

    Returns:
        For each request the rows of its copies; fewer than slots when no more fit.
    """
    run = _Run(view, requests, start)
    chosen = [run.place(request) for request in requests]
    run.write_back(chosen)
    return chosen


class _Run:
    """The index of one run; see the module's docstring."""

    def __init__(self, view: View, requests: Sequence[Request], start: int) -> None:
        self.view = view
        self.start = start
        self.amounts: dict[str, set[int]] = {}
        for request in requests:
            for resource, amount in request.needs:
                self.amounts.setdefault(resource, set()).add(amount)
        self.free: dict[str, list[int]] = {
            resource: view.free(resource).tolist() for resource in self.amounts
        }
        self.load: list[int] = view.usage.load.tolist()
        self.per_unit: dict[str, list[int]] = {
            resource: column.tolist()
            for resource, column in view.facts.load_per_unit.items()
            if resource in self.amounts
        }
        self.heap: list[tuple[int, int]] | None = None
        self.levels: dict[str, Levels] = {}
        self.load_levels: Levels | None = None
        # Rows that the levels do not know the last of yet.
        self.moved: list[int] = []
        self.eligible: dict[tuple[object, ...], tuple[bytes, int]] = {}

    def place(self, request: Request) -> list[int]:
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
            pinned = self.view.facts.rows_pinned(request)
            if pinned is not None and len(pinned) <= _PINNED_MAX:
                return self._best_pinned(request, pinned)
        mask, rows = self._eligible(request)
        if request.strategy == "spread":
            row = self._first_of_heap(mask, request.needs)
            if row is not None:
                return row
        return self._best_of_sets(request, rows)

    def _take(self, row: int, needs: _Needs) -> None:
        load = LOAD_PER_INSTANCE
        for resource, amount in needs:
            self.free[resource][row] -= amount
            if resource in self.per_unit:
                load += self.per_unit[resource][row] * amount
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

    def _best_pinned(self, request: Request, rows: Sequence[int]) -> int:
        facts = self.view.facts
        fit = []
        for row in rows:
            node = facts.nodes[row]
            if (
                node.schedulable
                and (not request.driver or request.driver in node.drivers)
                and self._fits(row, request.needs)
                and (
                    len(request.constraints) == 1
                    or all(c.matches(node.name, node.labels) for c in request.constraints)
                )
            ):
                fit.append(row)
        if len(fit) > 1:
            return min(fit, key=self._key(request))
        return fit[0] if fit else _NOWHERE

    def _key(self, request: Request) -> Callable[[int], tuple[int, int]]:
        sign = 1 if request.strategy == "spread" else -1
        return lambda row: (sign * self.load[row], self._rank(row))

    def _first_of_heap(self, mask: bytes, needs: _Needs) -> int | None:
        """The least loaded node that fits; None when the first few do not."""
        if self.heap is None:
            # Sorted, which is a heap.
            self.heap = sorted((load, self._rank(row)) for row, load in enumerate(self.load))
        heap = self.heap
        passed: list[tuple[int, int]] = []
        found: int | None = None
        while heap and len(passed) < _HEAP_MISSES_MAX:
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

    def _best_of_sets(self, request: Request, rows: int) -> int:
        self._update_levels()
        assert self.load_levels is not None
        for resource, amount in request.needs:
            rows &= self.levels[resource].reaching(amount)
        narrow = self.load_levels.bottom if request.strategy == "spread" else self.load_levels.top
        key = self._key(request)
        while rows:
            level = narrow(rows)
            fit = [row for row in members_from(level, self.start) if self._fits(row, request.needs)]
            if fit:
                return min(fit, key=key)
            rows ^= level
        return _NOWHERE

    def _update_levels(self) -> None:
        if self.load_levels is None:
            full = len(self.view.facts.load_per_unit) * LOAD_SCALE
            # The first cut parts the empty nodes from the others.
            cuts = [1, *(full * i // _LOAD_CUTS for i in range(1, _LOAD_CUTS))]
            self.load_levels = Levels(cuts, np.array(self.load, dtype=np.int64))
            for resource, amounts in self.amounts.items():
                free = np.array(self.free[resource], dtype=np.int64)
                self.levels[resource] = Levels(_cuts(amounts), free)
        else:
            for row in self.moved:
                self.load_levels.move(row, self.load[row])
                for resource, levels in self.levels.items():
                    levels.move(row, self.free[resource][row])
        self.moved.clear()

    def write_back(self, chosen: Iterable[list[int]]) -> None:
        """Bring the view's columns up to what the run has placed."""
        usage, capacity = self.view.usage, self.view.facts.capacity
        counts = np.bincount(
            np.array([row for rows in chosen for row in rows], dtype=np.int64),
            minlength=len(self.load),
        )
        usage.instances += counts
        usage.load = np.array(self.load, dtype=np.int64)
        for resource, free in self.free.items():
            if resource in usage.used:
                usage.used[resource] = capacity[resource] - np.array(free, dtype=np.int64)


def _cuts(amounts: set[int]) -> list[int]:
    """Cuts at the amounts asked for, or at evenly chosen ones of them when there are many."""
    distinct = sorted(amounts)
    if len(distinct) <= _CUTS_MAX:
        return distinct
    return [distinct[len(distinct) * i // _CUTS_MAX] for i in range(_CUTS_MAX)]
