"""Which scenarios there are, medians of several measurements, and the file."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bench.launch.report import machine
from bench.placement import scenarios, shapes
from bench.placement.scenarios import STRATEGIES, Result

Scenario = Callable[[], Result]
Row = dict[str, Any]


def rows(*, small: bool) -> Iterator[Scenario]:
    """All scenarios: first the table of targets, then what a controller asks.

    The large ones are left out, or made small, when ``small``.
    """
    yield partial(scenarios.identical, 1_000, 10_000)
    yield partial(scenarios.constrained, 5_000, 100_000)
    for strategy in STRATEGIES:
        yield partial(scenarios.all_different, 1_000 if small else 10_000, strategy)
    for nodes in (1_000, 10_000) if small else (1_000, 10_000, 100_000):
        yield partial(scenarios.only_one_fits, nodes, 1_100)
    yield partial(scenarios.pinned, 10_000, 10_000 if small else 100_000)
    for services, copies in ((1, 2_000), (100, 20), (20, 100)):
        yield partial(scenarios.anti_affinity, 5_000, services, copies)
        yield partial(scenarios.affinity, 5_000, services, copies)
        yield partial(scenarios.spread, 5_000, services, copies)
    yield from _controller(small=small)


def _controller(*, small: bool) -> Iterator[Scenario]:
    part = 10 if small else 1
    yield partial(shapes.services, 1_000, 100, 150, 100, 0)
    yield partial(shapes.services, 5_000, 1_000 // part, 1_000, 1_000, 2_000_000)
    yield partial(shapes.services, 5_000, 15_000 // part, 1, 1_000, 150_000)
    for copies in (3, 10, 30, 100):
        yield partial(shapes.services, 5_000, 1_000 // part, copies, 1_000, 50_000)
    yield partial(shapes.different, 10_000, 100, 50 // part)
    for count, copies in ((1_000 // part, 1_000), (1, 1_000_000 // part)):
        yield partial(shapes.scale_by_one, 10_000 // part, count, copies)
    for apart in (False, True):
        for nodes in CURVE_NODES:
            yield partial(shapes.call, nodes, apart=apart)
    yield partial(shapes.changes, 10_000, 10_000)


# Sizes of clusters at which the fixed cost of a plan is measured.
CURVE_NODES = (100, 1_000, 10_000)


def measure(scenario: Scenario, rounds: int) -> Row:
    """The median of some rounds by rate, with what was found in that one."""
    results = sorted((scenario() for _ in range(rounds)), key=lambda result: result.per_s)
    median = results[(rounds - 1) // 2]
    return {
        "name": median.name,
        "placed": median.placed,
        "per_s": statistics.median(result.per_s for result in results),
        "per_s_rounds": [result.per_s for result in results],
        "us_each": 1e6 / median.per_s,
        "target_per_s": median.target_per_s,
        "met": median.per_s >= median.target_per_s,
        "quality": median.quality,
    }


def report(measured: Sequence[Row], rounds: int, *, small: bool) -> Row:
    """All rows, what they are in proportion to each other, and the machine."""
    ratios = {
        name: {"value": value, "at_most": at_most, "met": value <= at_most}
        for name, value, at_most in _ratios(measured)
    }
    return {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rounds": rounds,
        "small": small,
        "machine": machine(),
        "rows": list(measured),
        "ratios": ratios,
        "all_met": all(one["met"] for one in (*measured, *ratios.values())),
    }


def _ratios(measured: Sequence[Row]) -> Iterator[tuple[str, float, float]]:
    """Name, value and the most it may be."""
    rate = {row["name"]: row["per_s"] for row in measured}
    fits = [value for name, value in rate.items() if "only one fits" in name]
    if len(fits) > 1:
        yield "only one fits: the fewest nodes' rate over the most nodes'", fits[0] / fits[-1], 3
    for wish in ("plain", "keeps apart"):
        costs = [1 / value for name, value in rate.items() if name.endswith(f"a plan, {wish}")]
        if len(costs) == len(CURVE_NODES):
            growth = costs[-1] / costs[0]
            linear = CURVE_NODES[-1] / CURVE_NODES[0]
            yield f"one copy a plan, {wish}: cost of {linear:g} x the nodes", growth, linear
