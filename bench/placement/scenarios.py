"""The scenarios: clusters and requests made from a seed, and what a good answer is.

Sizes of requests and nodes are those of everyday fleets: 64 processors and 256 GiB a node.
``shapes`` has those in which a controller asks; ``quality`` says what is checked.
"""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from bench.placement import quality
from swarmctl.scheduler import Affinity, Constraint, Node, Plan, Request, Snapshot, plan
from swarmctl.scheduler.model import Strategy

_GIB = 1 << 30
_CAPACITY = {"cpu_millis": 64_000, "memory_bytes": 256 * _GIB, "disk_bytes": 2_000 * _GIB}
SMALL = {"cpu_millis": 250, "memory_bytes": _GIB // 2}
_RACK_NODES = 50
Figures = dict[str, float]
STRATEGIES: tuple[Strategy, ...] = ("binpack", "spread")


@attrs.frozen
class Result:
    """One measurement.

    Attributes:
        name: of the scenario.
        placed: copies that got a node.
        seconds: for the plan alone.
        quality: what was found of the answer, by name; whatever must hold has been checked.
        target_per_s: the rate to reach; 0 where none is set.
    """

    name: str
    placed: int
    seconds: float
    quality: Figures
    target_per_s: int

    @property
    def per_s(self) -> float:
        """Copies placed in a second."""
        return self.placed / self.seconds


def cluster(count: int) -> Snapshot:
    """A snapshot of identical nodes, laid out and ready."""
    snapshot = Snapshot(
        Node(
            f"node-{i:06}",
            {"rack": f"r{i // _RACK_NODES}", "zone": f"z{i % 3}", "serial": f"s{i}"},
            _CAPACITY,
        )
        for i in range(count)
    )
    warm_up(snapshot)
    return snapshot


def warm_up(snapshot: Snapshot) -> None:
    """Have the columns and the index in place, as on a controller that runs."""
    for strategy in STRATEGIES:
        request = Request(service="first", slots=(1,), strategy=strategy)
        requests = [attrs.evolve(request, service=f"first-{i}") for i in range(64)]
        result = plan(snapshot, requests)
        snapshot.commit(result)
        for placement in result.placements:
            snapshot.free(placement.node, placement.service, {})


def timed(
    name: str,
    target_per_s: int,
    snapshot: Snapshot,
    requests: Sequence[Request],
    check: Callable[[Plan], Figures],
) -> Result:
    """Plan once, measure, and check the answer."""
    start = time.perf_counter()
    result = plan(snapshot, requests)
    seconds = time.perf_counter() - start
    snapshot.commit(result)
    found = {"over_capacity": quality.over_capacity(snapshot), **check(result)}
    return Result(name, len(result.placements), seconds, found, target_per_s)


def identical(nodes: int, copies: int) -> Result:
    """Identical copies of one service."""
    wanted = Request(service="web", slots=range(1, copies + 1), resources=SMALL)
    name = f"{nodes:,} nodes, {copies:,} identical"
    return timed(name, 2_000_000, cluster(nodes), [wanted], quality.evenness)


def constrained(nodes: int, copies: int) -> Result:
    """Identical copies of one service with one constraint."""
    wanted = Request(
        service="web",
        slots=range(1, copies + 1),
        resources=SMALL,
        constraints=(Constraint.parse("node.labels.zone != z2"),),
    )
    name = f"{nodes:,} nodes, {copies:,}, one constraint"
    return timed(name, 2_000_000, cluster(nodes), [wanted], quality.evenness)


def all_different(nodes: int, strategy: Strategy) -> Result:
    """Services of one copy, all different, until the cluster is full."""
    source = random.Random(1)  # noqa: S311 - a seeded scenario, not a secret
    requests = [
        Request(
            service=f"s{i}",
            slots=(1,),
            resources={
                "cpu_millis": source.randrange(100, 8_000),
                "memory_bytes": source.randrange(_GIB // 4, 32 * _GIB),
                "disk_bytes": source.randrange(_GIB, 100 * _GIB),
            },
            strategy=strategy,
        )
        for i in range(nodes * 14)
    ]
    snapshot = cluster(nodes)
    name = f"{nodes:,} nodes, all different, {strategy}"
    return timed(name, 150_000, snapshot, requests, partial(quality.packing, snapshot, strategy))


def only_one_fits(nodes: int, copies: int) -> Result:
    """All nodes but one are full; the index is in place from the requests before."""
    source = random.Random(2)  # noqa: S311 - a seeded scenario, not a secret
    snapshot = cluster(nodes)
    for i in range(nodes):
        left = 64_000 if i == nodes // 2 else source.randrange(0, 40)
        snapshot.allocate(f"node-{i:06}", "old", {"cpu_millis": 64_000 - left})
    requests = [
        Request(
            service=f"s{i}",
            slots=(1,),
            resources={"cpu_millis": source.randrange(40, 60), "memory_bytes": 1 << 20},
            strategy="binpack",
        )
        for i in range(copies)
    ]
    snapshot.commit(plan(snapshot, requests[:100]))
    name = f"{nodes:,} nodes, only one fits"
    return timed(name, 40_000, snapshot, requests[100:], quality.all_placed)


def pinned(nodes: int, copies: int) -> Result:
    """Services of one copy, each pinned to one node by a label."""
    source = random.Random(3)  # noqa: S311 - a seeded scenario, not a secret
    requests = [
        Request(
            service=f"s{i}",
            slots=(1,),
            resources=SMALL,
            constraints=(Constraint.parse(f"node.labels.serial == s{source.randrange(nodes)}"),),
        )
        for i in range(copies)
    ]
    name = f"{nodes:,} nodes, pinned by a unique label"
    return timed(name, 500_000, cluster(nodes), requests, quality.all_placed)


def anti_affinity(nodes: int, services: int, copies: int) -> Result:
    """Services whose copies keep away from each other."""
    requests = [
        Request(
            service=f"s{i}",
            slots=range(copies),
            resources=SMALL,
            anti_affinity=(Affinity(f"s{i}", required=True),),
        )
        for i in range(services)
    ]
    name = f"{nodes:,} nodes, {services} x {copies} with anti-affinity"
    return timed(name, 50_000, cluster(nodes), requests, quality.all_apart)


def affinity(nodes: int, services: int, copies: int) -> Result:
    """Services that must be beside a cache that every tenth node has."""
    snapshot = cluster(nodes)
    for i in range(0, nodes, 10):
        snapshot.allocate(f"node-{i:06}", "cache", SMALL)
    requests = [
        Request(
            service=f"s{i}",
            slots=range(copies),
            resources=SMALL,
            affinity=(Affinity("cache", required=True),),
        )
        for i in range(services)
    ]
    name = f"{nodes:,} nodes, {services} x {copies} with affinity"
    return timed(name, 50_000, snapshot, requests, quality.all_placed)


def spread(nodes: int, services: int, copies: int) -> Result:
    """Services spread over racks."""
    requests = [
        Request(
            service=f"s{i}",
            slots=range(copies),
            resources=SMALL,
            spread=("node.labels.rack",),
        )
        for i in range(services)
    ]
    snapshot = cluster(nodes)

    name = f"{nodes:,} nodes, {services} x {copies} spread over racks"
    return timed(name, 50_000, snapshot, requests, partial(quality.skew, snapshot, "rack"))
