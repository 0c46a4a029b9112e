"""The nodes as columns: everything that placing reads and that placing does not change.

Rows are the nodes sorted by name, so that the same set of nodes gives the same rows whatever the
order in which they joined; every tie between nodes is broken by row.
A ``Facts`` never changes.  What is expensive and not always needed (which nodes have a label's
value, which satisfy a list of constraints) is worked out when first asked for and kept.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Final

import attrs
import numpy as np
import numpy.typing as npt

from swarmctl.scheduler.constraint import Constraint, attribute_value
from swarmctl.scheduler.model import Node, Request

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Load is counted in parts of 2**52 per resource: fine enough to tell one mebibyte of a tebibyte
# apart, and small enough that a thousandfold overcommitted node still fits in 64 bits.
LOAD_SCALE: Final = 1 << 52
# What makes a node loaded.  The others are scarce on some nodes only, and say little.
LOAD_RESOURCES: Final = ("cpu_millis", "memory_bytes")
# Each instance weighs as much as 1/256 of a resource, whatever it reserves: instances without
# reservations are spread by their number, as if they took 16 MiB of a node of 4 GiB.
LOAD_PER_INSTANCE: Final = LOAD_SCALE >> 8
# Lists of constraints whose nodes are remembered; a cluster has few, a flood of them is bounded.
_MASKS_MAX: Final = 256


@attrs.frozen(eq=False)
class Grouping:
    """The nodes by their value of one attribute.

    Attributes:
        values: each value once, in the order of the first row that has it; None is "no such label".
        group_of: by row, the index of its value.
        rows: by value, its rows in order.
    """

    values: tuple[str | None, ...]
    group_of: Ints
    rows: Mapping[str | None, tuple[int, ...]]


class Facts:
    """The nodes of a snapshot at one moment; see the module's docstring.

    Attributes:
        nodes, names: by row.
        row_of: row by name.
        resources: every resource that a node advertises or that is allocated somewhere.
        capacity: units by resource, then by row.
        load_per_unit: load that one unit adds, by load resource, then by row.
        schedulable: by row.
        driver_masks, groupings, nested, grouped, eligible_masks: answers given before, kept.
    """

    def __init__(self, nodes: Iterable[Node], extra_resources: Iterable[str] = ()) -> None:
        self.nodes: list[Node] = sorted(nodes, key=lambda node: node.name)
        self.names = [node.name for node in self.nodes]
        self.row_of = {name: row for row, name in enumerate(self.names)}
        names = {*LOAD_RESOURCES, *extra_resources}
        names.update(name for node in self.nodes for name in node.capacity)
        self.resources = tuple(sorted(names))
        self.capacity: dict[str, Ints] = {
            name: np.array([node.capacity.get(name, 0) for node in self.nodes], dtype=np.int64)
            for name in self.resources
        }
        self.load_per_unit = {name: _load_per_unit(self.capacity[name]) for name in LOAD_RESOURCES}
        self.schedulable: Bools = np.array(
            [node.schedulable for node in self.nodes], dtype=np.bool_
        )
        self.driver_masks: dict[str, Bools] = {}
        self.groupings: dict[str, Grouping] = {}
        self.nested: dict[tuple[str, ...], list[tuple[Ints, int]]] = {}
        self.grouped: dict[tuple[tuple[str, ...], int], tuple[Ints, Ints]] = {}
        self.eligible_masks: dict[tuple[object, ...], Bools] = {}

    def __len__(self) -> int:
        return len(self.nodes)

    def with_node(self, node: Node) -> "Facts":
        """A copy in which one node, already there by name, is replaced."""
        row = self.row_of[node.name]
        old = self.nodes[row]
        if node.capacity.keys() - self.capacity.keys():
            others = (kept for kept in self.nodes if kept is not old)
            return Facts([*others, node], self.resources)
        new = copy.copy(self)
        new.nodes = self.nodes.copy()
        new.nodes[row] = node
        # Most changes are of health: thousands of nodes that are lost together change nothing else.
        if node.capacity != old.capacity:
            new.capacity = {name: column.copy() for name, column in self.capacity.items()}
            for name, column in new.capacity.items():
                column[row] = node.capacity.get(name, 0)
            new.load_per_unit = {
                name: _load_per_unit(new.capacity[name]) for name in LOAD_RESOURCES
            }
        new.schedulable = self.schedulable.copy()
        new.schedulable[row] = node.schedulable
        new.driver_masks = self.driver_masks if node.drivers == old.drivers else {}
        same_labels = node.labels == old.labels
        new.groupings = self.groupings if same_labels else {}
        new.nested = self.nested if same_labels else {}
        new.grouped = self.grouped if same_labels else {}
        new.eligible_masks = {}
        return new

    def forgetting(self, name: str) -> "Facts":
        """A copy in which no row goes by that name; its layout is stale from here on."""
        new = copy.copy(self)
        new.row_of = self.row_of.copy()
        new.row_of.pop(name, None)
        return new

    def load_of(self, needs: Iterable[tuple[str, int]]) -> Ints:
        """The load that one instance with these needs adds, by row."""
        load = np.full(len(self.nodes), LOAD_PER_INSTANCE, dtype=np.int64)
        for resource, amount in needs:
            if resource in self.load_per_unit:
                load += self.load_per_unit[resource] * amount
        return load

    def with_driver(self, driver: str) -> Bools:
        """Which nodes have the driver; an empty name is any."""
        mask = self.driver_masks.get(driver)
        if mask is None:
            has = [not driver or driver in node.drivers for node in self.nodes]
            mask = self.driver_masks[driver] = np.array(has, dtype=np.bool_)
        return mask

    def grouping(self, attribute: str) -> Grouping:
        """The nodes by their value of a canonical attribute."""
        grouping = self.groupings.get(attribute)
        if grouping is None:
            grouping = self.groupings[attribute] = self._group(attribute)
        return grouping

    def _group(self, attribute: str) -> Grouping:
        rows: dict[str | None, list[int]] = {}
        for row, node in enumerate(self.nodes):
            rows.setdefault(attribute_value(attribute, node.name, node.labels), []).append(row)
        group_of = np.zeros(len(self.nodes), dtype=np.int64)
        for group, members in enumerate(rows.values()):
            group_of[members] = group
        return Grouping(tuple(rows), group_of, {v: tuple(members) for v, members in rows.items()})

    def nested_groups(self, labels: tuple[str, ...]) -> list[tuple[Ints, int]]:
        """For each label: the group of each row, and how many groups there are.

        A value counts within the values of the labels before it: rack r1 of one zone is another
        group than rack r1 of another zone.
        """
        nested = self.nested.get(labels)
        if nested is None:
            nested = []
            outer = np.zeros(len(self.nodes), dtype=np.int64)
            for label in labels:
                grouping = self.grouping(label)
                combined = outer * len(grouping.values) + grouping.group_of
                distinct, outer = np.unique(combined, return_inverse=True)
                nested.append((outer, len(distinct)))
            if len(self.nested) >= _MASKS_MAX:
                self.nested.clear()
            self.nested[labels] = nested
        return nested

    def rows_by_group(self, labels: tuple[str, ...], start: int) -> tuple[Ints, Ints]:
        """The rows by innermost group of ``nested_groups``, and where each group's begin.

        Rows of a group stand in their order from row ``start`` upwards and then from 0.
        """
        known = self.grouped.get((labels, start))
        if known is None:
            turns = np.roll(np.arange(len(self.nodes)), -start)
            group_of, groups = self.nested_groups(labels)[-1]
            rows = turns[np.argsort(group_of[turns], kind="stable")]
            known = rows, np.searchsorted(group_of[rows], np.arange(groups))
            if len(self.grouped) >= _MASKS_MAX:
                self.grouped.clear()
            self.grouped[(labels, start)] = known
        return known

    def satisfying(self, constraint: Constraint) -> Bools:
        """Which nodes satisfy one constraint."""
        rows = self.grouping(constraint.attribute).rows
        mask = np.full(len(self.nodes), not constraint.wants_value, dtype=np.bool_)
        for value in constraint.values:
            mask[list(rows.get(value, ()))] = constraint.wants_value
        return mask

    def eligible(self, request: Request) -> Bools:
        """Which nodes are schedulable, have the driver and satisfy every constraint."""
        key = (request.driver, request.constraints)
        mask = self.eligible_masks.get(key)
        if mask is None:
            mask = self.schedulable & self.with_driver(request.driver)
            for constraint in request.constraints:
                mask &= self.satisfying(constraint)
            if len(self.eligible_masks) >= _MASKS_MAX:
                self.eligible_masks.clear()
            self.eligible_masks[key] = mask
        return mask


def _load_per_unit(capacity: Ints) -> Ints:
    """Whole parts of LOAD_SCALE a unit: whole, so that load is an exact sum in any order."""
    per_unit = np.zeros(len(capacity), dtype=np.int64)
    np.floor_divide(LOAD_SCALE, capacity, out=per_unit, where=capacity > 0)
    return per_unit
