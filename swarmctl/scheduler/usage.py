"""What is allocated, as columns beside those of ``facts``; and the view that a plan works on.

``Usage`` is a sum and nothing else, so it is the same whatever the order of the changes that led
to it.  Planning works on a fork and leaves the original as it was.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from swarmctl.scheduler.facts import LOAD_PER_INSTANCE, Facts, Ints


class Usage:
    """Units, load and number of instances allocated, by row.

    Attributes:
        used: units by resource, then by row.
        load: see ``score``; by row.
        instances: by row.
    """

    def __init__(self, used: dict[str, Ints], load: Ints, instances: Ints) -> None:
        self.used = used
        self.load = load
        self.instances = instances

    @classmethod
    def empty(cls, facts: Facts) -> "Usage":
        """Nothing allocated."""
        used = {name: np.zeros(len(facts), dtype=np.int64) for name in facts.resources}
        return cls(used, np.zeros(len(facts), dtype=np.int64), np.zeros(len(facts), dtype=np.int64))

    def moved(self, before: Facts, after: Facts) -> "Usage":
        """The same sums under other rows; nodes that were not there before have nothing."""
        came_from = np.array([before.row_of.get(node.name, -1) for node in after.nodes], dtype=int)
        stayed = came_from >= 0
        moved = Usage.empty(after)
        for name, column in self.used.items():
            moved.used[name][stayed] = column[came_from[stayed]]
        moved.instances[stayed] = self.instances[came_from[stayed]]
        return moved.refreshed(after)

    def refreshed(self, facts: Facts) -> "Usage":
        """The same sums when the nodes' capacities have changed, and so what a unit weighs."""
        used = {
            name: self.used.get(name, np.zeros(len(facts), dtype=np.int64))
            for name in facts.resources
        }
        return Usage(used, _load(facts, used, self.instances), self.instances)

    def free(self, facts: Facts, resource: str) -> Ints:
        """Units of a resource that are free, by row; negative where a node shrank."""
        if resource not in self.used:
            return np.zeros(len(facts), dtype=np.int64)
        return facts.capacity[resource] - self.used[resource]

    def fork(self) -> "Usage":
        """A copy to try things on."""
        used = {name: column.copy() for name, column in self.used.items()}
        return Usage(used, self.load.copy(), self.instances.copy())

    def add(self, facts: Facts, row: int, needs: Iterable[tuple[str, int]], copies: int) -> None:
        """Allocate (or, for negative copies, free) on one node."""
        load = LOAD_PER_INSTANCE
        for resource, amount in needs:
            self.used[resource][row] += amount * copies
            per_unit = facts.load_per_unit.get(resource)
            if per_unit is not None:
                load += per_unit.item(row) * amount
        self.load[row] += load * copies
        self.instances[row] += copies

    def add_rows(
        self, facts: Facts, rows: Ints, counts: Ints, needs: Iterable[tuple[str, int]]
    ) -> None:
        """Allocate ``counts`` copies on ``rows``, which are distinct."""
        load = np.full(len(rows), LOAD_PER_INSTANCE)
        for resource, amount in needs:
            self.used[resource][rows] += counts * amount
            per_unit = facts.load_per_unit.get(resource)
            if per_unit is not None:
                load += per_unit[rows] * amount
        self.load[rows] += counts * load
        self.instances[rows] += counts


def _load(facts: Facts, used: Mapping[str, Ints], instances: Ints) -> Ints:
    load = instances * LOAD_PER_INSTANCE
    for resource, per_unit in facts.load_per_unit.items():
        load = load + used[resource] * per_unit
    return load


class Follower(Protocol):
    """Something derived from the columns, to be told of changes to them."""

    def note_changed(self, rows: Iterable[int]) -> None:
        """Usage of these rows has changed."""


class View:
    """Nodes, what is allocated on them, and where each service's copies are.

    Attributes:
        facts: the nodes.
        usage: what is allocated; a plan's own fork, or the snapshot's.
        index: what finds nodes fast (see ``index``), if there is one yet.
    """

    def __init__(
        self,
        facts: Facts,
        usage: Usage,
        copies_before: Callable[[str], Mapping[str, int]],
        index: Follower | None = None,
    ) -> None:
        self.facts = facts
        self.usage = usage
        self.index = index
        self._copies_before = copies_before
        self._copies_added: dict[str, dict[int, int]] = {}

    def free(self, resource: str) -> Ints:
        """Units of a resource that are free, by row; negative where a node shrank."""
        return self.usage.free(self.facts, resource)

    def allocate_rows(self, rows: Ints, counts: Ints, needs: Sequence[tuple[str, int]]) -> None:
        """Take what ``counts`` copies on ``rows``, which are distinct, need."""
        self.usage.add_rows(self.facts, rows, counts, needs)
        if self.index is not None:
            self.index.note_changed(rows.tolist())

    def copies(self, service: str) -> Ints:
        """How many copies of the service each node has, by row."""
        counts = np.zeros(len(self.facts), dtype=np.int64)
        row_of = self.facts.row_of
        for name, count in self._copies_before(service).items():
            if name in row_of:
                counts[row_of[name]] = count
        for row, count in self._copies_added.get(service, {}).items():
            counts[row] += count
        return counts

    def note_copies(self, service: str, rows: Iterable[int], counts: Iterable[int]) -> None:
        """Remember copies placed in this view, for the requests after it."""
        added = self._copies_added.setdefault(service, {})
        for row, count in zip(rows, counts, strict=True):
            added[row] = added.get(row, 0) + count
