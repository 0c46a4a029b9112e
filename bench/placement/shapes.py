"""The shapes in which a controller asks: a plan and its commit, again and again.

By default a controller's services would rather have their copies on different nodes: an
anti-affinity of weight 25 to themselves, when they have more than one.
"""

import random
import statistics
import time

import attrs

from bench.placement import quality
from bench.placement.scenarios import SMALL, Result, cluster
from swarmctl.scheduler import Affinity, Request, Snapshot, plan

# The weight that a controller gives (swarmctl.controller.placing).
_APART_WEIGHT = 25
_GIB = 1 << 30
# What one change of a cluster of whatever size may cost: 5 ms.
_CHANGES_PER_S = 200


def service(number: int, copies: int, first_slot: int = 1) -> Request:
    """A service as a controller asks for it."""
    own = Affinity(f"s{number}", weight=_APART_WEIGHT)
    slots = list(range(first_slot, first_slot + copies))
    wishes = (own,) if copies > 1 or first_slot > 1 else ()
    return Request(service=f"s{number}", slots=slots, resources=SMALL, anti_affinity=wishes)


def _plan_and_commit(snapshot: Snapshot, requests: list[Request]) -> float:
    """Seconds for both; all must be placed."""
    start = time.perf_counter()
    result = plan(snapshot, requests)
    snapshot.commit(result)
    seconds = time.perf_counter() - start
    quality.all_placed(result)
    return seconds


def services(nodes: int, count: int, copies: int, batch: int, target_per_s: int) -> Result:
    """So many services, ``batch`` of them in a plan."""
    snapshot = cluster(nodes)
    requests = [service(number, copies) for number in range(count)]
    seconds = sum(
        _plan_and_commit(snapshot, requests[i : i + batch]) for i in range(0, count, batch)
    )
    most = max(max(snapshot.copies(one.service).values()) for one in requests)
    assert copies > nodes or most == 1, "copies of a service share a node although there is room"
    found = {
        "over_capacity": quality.over_capacity(snapshot),
        "us_a_service": seconds / count * 1e6,
        "most_of_a_service_on_a_node": most,
    }
    name = f"{nodes:,} nodes, {count:,} services x {copies:,}, {batch:,} a plan"
    return Result(name, count * copies, seconds, found, target_per_s)


def scale_by_one(nodes: int, count: int, copies: int) -> Result:
    """One copy more of one service, beside all the copies that run: plan and commit."""
    snapshot = cluster(nodes)
    _plan_and_commit(snapshot, [service(number, copies) for number in range(count)])
    each = [
        _plan_and_commit(snapshot, [service(i % count, 1, copies + 1 + i // count)])
        for i in range(21)
    ]
    found = {
        "over_capacity": quality.over_capacity(snapshot),
        "ms_first": each[0] * 1e3,
        "ms_median": statistics.median(each) * 1e3,
        "ms_max": max(each) * 1e3,
    }
    name = f"{nodes:,} nodes, {count:,} x {copies:,} run, scale +1"
    return Result(name, 1, statistics.median(each), found, _CHANGES_PER_S)


def call(nodes: int, *, apart: bool, calls: int = 101) -> Result:
    """The fixed cost of a plan and its commit: one copy of one service."""
    snapshot = cluster(nodes)
    requests = [service(number, 1, 2 if apart else 1) for number in range(calls)]
    each = [_plan_and_commit(snapshot, [one]) for one in requests]
    found = {"us_median": statistics.median(each) * 1e6, "us_max": max(each) * 1e6}
    wish = "keeps apart" if apart else "plain"
    name = f"{nodes:,} nodes, one copy a plan, {wish}"
    return Result(name, 1, statistics.median(each), found, _CHANGES_PER_S)


def different(nodes: int, batch: int, batches: int) -> Result:
    """Few different services of one copy at a time, as a quiet controller gets them."""
    source = random.Random(4)  # noqa: S311 - a seeded scenario, not a secret
    snapshot = cluster(nodes)
    requests = [
        attrs.evolve(
            service(number, 1),
            resources={"cpu_millis": source.randrange(1, 999), "memory_bytes": _GIB},
        )
        for number in range(batch * batches)
    ]
    seconds = sum(
        _plan_and_commit(snapshot, requests[i : i + batch]) for i in range(0, len(requests), batch)
    )
    found = {"ms_a_plan": seconds / batches * 1e3}
    name = f"{nodes:,} nodes, different, {batch:,} a plan"
    return Result(name, len(requests), seconds, found, 15_000)


def changes(nodes: int, count: int) -> Result:
    """Single allocations and frees told to the snapshot."""
    snapshot = cluster(nodes)
    names = [f"node-{i % nodes:06}" for i in range(count)]
    start = time.perf_counter()
    for name in names:
        snapshot.allocate(name, "web", SMALL)
    for name in names:
        snapshot.free(name, "web", SMALL)
    seconds = time.perf_counter() - start
    found = {"us_a_change": seconds / count / 2 * 1e6}
    return Result(f"{nodes:,} nodes, single changes", 2 * count, seconds, found, 333_000)
