"""The scenarios: clusters and requests made from a seed, and what a good answer is.

Sizes of requests and nodes are those of everyday fleets: 64 processors and 256 GiB a node.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import attrs

from swarmctl.scheduler import Affinity, Constraint, Node, Plan, Request, Snapshot, plan
from swarmctl.scheduler.model import Strategy

_GIB = 1 << 30
_CAPACITY = {"cpu_millis": 64_000, "memory_bytes": 256 * _GIB, "disk_bytes": 2_000 * _GIB}
_SMALL = {"cpu_millis": 250, "memory_bytes": _GIB // 2}
_RACK_NODES = 50
STRATEGIES: tuple[Strategy, ...] = ("binpack", "spread")


@attrs.frozen
class Result:
    """One measurement.

    Attributes:
        name: of the scenario.
        placed: copies that got a node.
        seconds: for the plan alone.
        quality: what was checked of the answer, in words.
        target_per_s: the rate to reach.
    """

    name: str
    placed: int
    seconds: float
    quality: str
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
    check: Callable[[Plan], str],
) -> Result:
    """Plan once, measure, and check the answer."""
    start = time.perf_counter()
    result = plan(snapshot, requests)
    seconds = time.perf_counter() - start
    snapshot.commit(result)
    check_capacity(snapshot)
    return Result(name, len(result.placements), seconds, check(result), target_per_s)


def check_capacity(snapshot: Snapshot) -> None:
    """Not one unit over any resource.

    Raises:
        AssertionError: a node has more allocated than it has.
    """
    for name, node in snapshot.nodes.items():
        for resource, used in snapshot.allocated(name).items():
            assert used <= node.capacity[resource], f"{name} is over its {resource}"


def identical(nodes: int, copies: int) -> Result:
    """Identical copies of one service."""
    wanted = Request(service="web", slots=range(1, copies + 1), resources=_SMALL)
    name = f"{nodes:,} nodes, {copies:,} identical"
    return timed(name, 2_000_000, cluster(nodes), [wanted], _evenness)


def constrained(nodes: int, copies: int) -> Result:
    """Identical copies of one service with one constraint."""
    wanted = Request(
        service="web",
        slots=range(1, copies + 1),
        resources=_SMALL,
        constraints=(Constraint.parse("node.labels.zone != z2"),),
    )
    name = f"{nodes:,} nodes, {copies:,}, one constraint"
    return timed(name, 2_000_000, cluster(nodes), [wanted], _evenness)


def _evenness(result: Plan) -> str:
    counts = Counter(p.node for p in result.placements).values()
    return f"nodes within {max(counts) - min(counts)} of each other"


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
    return timed(name, 150_000, snapshot, requests, lambda _: _fullness(snapshot))


def _fullness(snapshot: Snapshot) -> str:
    """How full the nodes in use are, in the resource that there is least of."""
    used: Counter[str] = Counter()
    capacity: Counter[str] = Counter()
    for name, node in snapshot.nodes.items():
        allocated = snapshot.allocated(name)
        if allocated:
            used.update(allocated)
            capacity.update(node.capacity)
    return f"used nodes {max(used[r] / capacity[r] for r in used):.1%} full"


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
    return timed(name, 40_000, snapshot, requests[100:], _all_placed)


def pinned(nodes: int, copies: int) -> Result:
    """Services of one copy, each pinned to one node by a label."""
    source = random.Random(3)  # noqa: S311 - a seeded scenario, not a secret
    requests = [
        Request(
            service=f"s{i}",
            slots=(1,),
            resources=_SMALL,
            constraints=(Constraint.parse(f"node.labels.serial == s{source.randrange(nodes)}"),),
        )
        for i in range(copies)
    ]
    name = f"{nodes:,} nodes, pinned by a unique label"
    return timed(name, 500_000, cluster(nodes), requests, _all_placed)


def _all_placed(result: Plan) -> str:
    assert not result.unplaced, result.unplaced[0].rejection.text
    return "all placed"


def anti_affinity(nodes: int, services: int, copies: int) -> Result:
    """Services whose copies keep away from each other."""
    requests = [
        Request(
            service=f"s{i}",
            slots=range(copies),
            resources=_SMALL,
            anti_affinity=(Affinity(f"s{i}", required=True),),
        )
        for i in range(services)
    ]
    name = f"{nodes:,} nodes, {services} x {copies} with anti-affinity"
    return timed(name, 50_000, cluster(nodes), requests, _all_placed)


def affinity(nodes: int, services: int, copies: int) -> Result:
    """Services that must be beside a cache that every tenth node has."""
    snapshot = cluster(nodes)
    for i in range(0, nodes, 10):
        snapshot.allocate(f"node-{i:06}", "cache", _SMALL)
    requests = [
        Request(
            service=f"s{i}",
            slots=range(copies),
            resources=_SMALL,
            affinity=(Affinity("cache", required=True),),
        )
        for i in range(services)
    ]
    name = f"{nodes:,} nodes, {services} x {copies} with affinity"
    return timed(name, 50_000, snapshot, requests, _all_placed)


def spread(nodes: int, services: int, copies: int) -> Result:
    """Services spread over racks."""
    requests = [
        Request(
            service=f"s{i}",
            slots=range(copies),
            resources=_SMALL,
            spread=("node.labels.rack",),
        )
        for i in range(services)
    ]
    snapshot = cluster(nodes)

    def skew(result: Plan) -> str:
        worst = 0
        for batch in result.placements.batches():
            counts = Counter(snapshot.nodes[node].labels["rack"] for node in batch.nodes)
            fewest = min(counts.values()) if len(counts) * _RACK_NODES >= nodes else 0
            worst = max(worst, max(counts.values()) - fewest)
        assert worst <= 1
        return f"racks within {worst} of each other"

    name = f"{nodes:,} nodes, {services} x {copies} spread over racks"
    return timed(name, 50_000, snapshot, requests, skew)


def small_batches(nodes: int, size: int, batches: int) -> Result:
    """Plan and commit few different requests at a time, as a quiet controller does."""
    source = random.Random(4)  # noqa: S311 - a seeded scenario, not a secret
    snapshot = cluster(nodes)
    seconds = 0.0
    for batch in range(batches):
        requests = [
            Request(
                service=f"s{batch}.{i}",
                slots=(1,),
                resources={"cpu_millis": source.randrange(1, 999), "memory_bytes": _GIB},
            )
            for i in range(size)
        ]
        start = time.perf_counter()
        snapshot.commit(plan(snapshot, requests))
        seconds += time.perf_counter() - start
    quality = f"{seconds / batches * 1e3:.2f} ms a plan and commit"
    target = 200 if size == 1 else 15_000
    return Result(f"{nodes:,} nodes, {size} at a time", size * batches, seconds, quality, target)


def changes(nodes: int, count: int) -> Result:
    """Single allocations and frees told to the snapshot."""
    snapshot = cluster(nodes)
    names = [f"node-{i % nodes:06}" for i in range(count)]
    start = time.perf_counter()
    for name in names:
        snapshot.allocate(name, "web", _SMALL)
    for name in names:
        snapshot.free(name, "web", _SMALL)
    seconds = time.perf_counter() - start
    quality = f"{seconds / count / 2 * 1e6:.1f} us a change"
    return Result(f"{nodes:,} nodes, single changes", 2 * count, seconds, quality, 333_000)


def run(*, small: bool) -> Iterator[Result]:
    """All scenarios, the large ones only when not ``small``."""
    yield identical(1_000, 10_000)
    yield constrained(5_000, 100_000)
    for strategy in STRATEGIES:
        yield all_different(1_000 if small else 10_000, strategy)
    for nodes in (1_000, 10_000) if small else (1_000, 10_000, 100_000):
        yield only_one_fits(nodes, 1_100)
    yield pinned(10_000, 10_000 if small else 100_000)
    for services, copies in ((1, 2_000), (100, 20), (20, 100)):
        yield anti_affinity(5_000, services, copies)
        yield affinity(5_000, services, copies)
        yield spread(5_000, services, copies)
    yield small_batches(10_000, 1, 20 if small else 200)
    yield small_batches(10_000, 100, 5 if small else 50)
    yield changes(10_000, 10_000)
