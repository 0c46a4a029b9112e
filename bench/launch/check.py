"""The independent checker: the nodes' own lists against the controller's view.

It reads what the simulated hosts hold, not what the agents reported, and compares that with
``instance.export``, with the capacities that the machines have, and with what the services ask
of their places.  Nothing here trusts the scheduler's books.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, define, evolve, field, frozen

from swarmctl.client import Client
from swarmctl.proto import incarnation as incarnations
from swarmctl.scheduler import parse_constraints
from swarmctl.spec.models import ServiceSpec

# A node's own list, as a fleet process writes it: node, capacity, labels, and the instances as
# [driver, incarnation, service, slot, phase].
NodeList = dict[str, Any]


@frozen
class Check:
    """Counts that should all be zero, but for the first two.

    ``replaced`` are instances that ran before a controller or a connection was lost, and do not
    any more.
    """

    on_nodes: int
    known_running: int
    missing: int
    unknown: int
    twice: int
    over_capacity: int
    misplaced: int
    replaced: int = 0

    @property
    def passed(self) -> bool:
        """Whether both sides agree, and nothing is wrong."""
        wrong = (self.missing, self.unknown, self.twice, self.over_capacity, self.misplaced)
        return not any(wrong) and not self.replaced

    @property
    def may_be_under_way(self) -> bool:
        """Whether what is wrong can come of two looks that were not at one moment, all of it."""
        return bool(self.missing or self.unknown) and evolve(self, missing=0, unknown=0).passed

    def to_json(self) -> dict[str, int | bool]:
        """For the report."""
        return asdict(self) | {"passed": self.passed}


def check(specs: Iterable[ServiceSpec], client: Client, files: Iterable[Path]) -> Check:
    """Compare both sides now, when nothing is under way."""
    return compare(specs, known_running(client), read_lists(files))


def read_lists(files: Iterable[Path]) -> Iterator[NodeList]:
    """What fleet processes have written, node by node."""
    for path in files:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def known_running(client: Client) -> dict[str, str]:
    """What the controller knows to run: incarnation to node."""
    known: dict[str, str] = {}
    with client.stream("instance.export", {}) as stream:
        for item in stream:
            known |= {one: node for one, node, state in item.data if state == "running"}
        _ = stream.result
    return known


def compare(
    specs: Iterable[ServiceSpec], known: Mapping[str, str], lists: Iterable[NodeList]
) -> Check:
    """Compare what the controller knows with the nodes' lists.

    ``missing`` are known to run and are not there, ``unknown`` run where the controller does not
    know it, ``twice`` are copies too many of a slot, ``over_capacity`` are nodes that hold more
    than they have, ``misplaced`` are instances where their service does not allow them.
    """
    book = _Book({spec.name: spec for spec in specs})
    for row in lists:
        book.take(row)
    return Check(
        on_nodes=len(book.on_nodes),
        known_running=len(known),
        missing=sum(book.on_nodes.get(one) != node for one, node in known.items()),
        unknown=sum(known.get(one) != node for one, node in book.on_nodes.items()),
        twice=sum(count - 1 for count in book.slots.values()),
        over_capacity=book.over_capacity,
        misplaced=book.misplaced,
    )


@define
class _Book:
    """What the nodes have, counted as their lists are read."""

    specs: dict[str, ServiceSpec]
    on_nodes: dict[str, str] = field(factory=dict)
    slots: Counter[tuple[str, int]] = field(factory=Counter)
    over_capacity: int = 0
    misplaced: int = 0

    def take(self, row: NodeList) -> None:
        """Count one node's list in."""
        node = str(row["node"])
        here: Counter[str] = Counter()
        for _, incarnation, service, slot, phase in row["instances"]:
            if phase != "running":
                continue
            here[service] += 1
            self.on_nodes[incarnations.label(incarnation)] = node
            self.slots[(service, slot)] += 1
        used: defaultdict[str, int] = defaultdict(int)
        for service, count in here.items():
            spec = self.specs.get(service)
            if spec is None:
                continue  # Counted as unknown, if the controller does not know it either.
            for name, need in spec.template.resources.amounts().items():
                used[name] += need * count
            self.misplaced += _misplaced(spec, count, node, row["labels"])
        capacity = row["capacity"]
        # A machine that does not say how much it has of the usual is not judged by it.
        self.over_capacity += any(
            amount > capacity.get(name, amount if name.endswith(("_bytes", "_millis")) else 0)
            for name, amount in used.items()
        )


def _misplaced(spec: ServiceSpec, count: int, node: str, labels: Mapping[str, str]) -> int:
    """How many of ``count`` instances on a node their service does not allow there."""
    placement = spec.placement
    for constraint in parse_constraints(placement.constraints):
        if not constraint.matches(node, labels):
            return count
    allowed = placement.max_replicas_per_node or count
    if any(term.required and term.service == spec.name for term in placement.anti_affinity):
        allowed = 1
    return max(0, count - allowed)


def skew(specs: Iterable[ServiceSpec], lists: Iterable[NodeList]) -> int:
    """The widest difference between places of a service that is to be spread over a label."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    spread = {
        spec.name: [one.removeprefix("node.labels.") for one in spec.placement.spread]
        for spec in specs
        if spec.placement.spread and not spec.placement.constraints
    }
    places: defaultdict[str, set[str]] = defaultdict(set)
    for row in lists:
        for label, value in row["labels"].items():
            places[label].add(value)
        for _, _, service, _, phase in row["instances"]:
            for label in spread.get(service, ()) if phase == "running" else ():
                counts.setdefault((service, label), Counter())[row["labels"].get(label, "")] += 1
    return max(
        (
            max(found.values()) - min(found.get(place, 0) for place in places[label])
            for (_, label), found in counts.items()
        ),
        default=0,
    )
