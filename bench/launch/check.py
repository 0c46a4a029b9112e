"""The independent checker: the nodes' own lists against the controller's view.

It reads what the simulated hosts hold, not what the agents reported, and compares that with
``instance.list`` and with the capacities.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from attrs import asdict, frozen

from bench.launch.scenario import Scenario
from swarmctl.client import Client
from swarmctl.proto import incarnation as incarnations


@frozen
class Check:
    """Counts that should all be zero, but for the first two."""

    on_nodes: int
    known_running: int
    missing: int
    unknown: int
    twice: int
    over_capacity: int

    @property
    def passed(self) -> bool:
        """Whether both sides agree, and nothing is wrong."""
        return not (self.missing or self.unknown or self.twice or self.over_capacity)

    def to_json(self) -> dict[str, int | bool]:
        """For the report."""
        return asdict(self) | {"passed": self.passed}


def check(scenario: Scenario, client: Client, files: Iterable[Path]) -> Check:
    """Compare both sides now, when nothing is under way."""
    on_nodes: dict[str, str] = {}
    slots: Counter[tuple[str, int]] = Counter()
    over = 0
    for path in files:
        with path.open(encoding="utf-8") as file:
            for line in file:
                over += _read_node(json.loads(line), scenario, on_nodes, slots)
    known = _known_running(client)
    return Check(
        on_nodes=len(on_nodes),
        known_running=len(known),
        missing=sum(on_nodes.get(one) != node for one, node in known.items()),
        unknown=sum(known.get(one) != node for one, node in on_nodes.items()),
        twice=sum(count - 1 for count in slots.values()),
        over_capacity=over,
    )


def _read_node(
    row: dict[str, object],
    scenario: Scenario,
    on_nodes: dict[str, str],
    slots: Counter[tuple[str, int]],
) -> int:
    """Take one node's list in; 1 when it holds more than it can."""
    running = 0
    instances = row["instances"]
    assert isinstance(instances, list)
    for _, incarnation, service, slot, phase in instances:
        if phase != "running":
            continue
        running += 1
        on_nodes[incarnations.label(incarnation)] = str(row["node"])
        slots[(service, slot)] += 1
    return int(
        any(
            running * need > scenario.capacity.get(name, running * need)
            for name, need in scenario.needs.items()
        )
    )


def _known_running(client: Client) -> dict[str, str]:
    known: dict[str, str] = {}
    with client.stream("instance.export", {}) as stream:
        for item in stream:
            known |= {one: node for one, node, state in item.data if state == "running"}
        _ = stream.result
    return known
