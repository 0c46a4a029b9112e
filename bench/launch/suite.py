"""``make bench``: the scenarios that fit in ten minutes, their JSON files and one picture.

Each scenario runs in processes of its own, which are gone before the next begins.  The short form
is a minute or two, with sizes for a laptop that does other things too; curves against size are
launches of the same kind at growing numbers of nodes and instances.
"""

import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from bench.launch import plot, report
from bench.launch.command import code_of, write
from bench.launch.compare import RESULTS, load
from bench.launch.progress import Progress, shown
from bench.launch.running import chosen, run
from swarmctl.proto.errors import SwarmError

# Scenario and what is changed in it.
Step = tuple[str, dict[str, Any]]

_WHOLE: Final[tuple[Step, ...]] = (
    ("keynote", {}),
    ("one_by_one", {}),
    ("heterogeneous", {}),
    ("failures", {}),
    ("full", {}),
    ("churn", {}),
    ("overload", {}),
    ("join_storm", {}),
    ("failover", {}),
    ("idle", {"seconds": 20.0}),
)
_SHORT: Final[tuple[Step, ...]] = (
    ("small", {}),
    ("keynote", {"nodes": 100, "containers": 1000, "vms": 500}),
    ("one_by_one", {"nodes": 50, "containers": 1000, "vms": 500}),
    ("heterogeneous", {"nodes": 100}),
    ("failures", {"nodes": 100, "containers": 1000, "vms": 500}),
    ("full", {"nodes": 10, "containers": 1267, "services": 10}),
    ("churn", {"nodes": 50, "containers": 1000, "services": 100, "seconds": 10.0}),
    ("overload", {"nodes": 50, "containers": 50, "services": 5, "seconds": 2.0}),
    ("join_storm", {"nodes": 100, "containers": 500, "services": 5, "processes": 1}),
    ("failover", {"nodes": 100, "containers": 500, "services": 5, "processes": 1}),
    ("idle", {"nodes": 100, "processes": 1, "seconds": 10.0}),
)
# Against nodes with one number of instances, and the other way round.
_WHOLE_SIZES: Final = (
    *((nodes, 10_000) for nodes in (100, 300, 1_000, 3_000, 10_000)),
    *((1_000, instances) for instances in (1_000, 3_000, 30_000, 100_000)),
)
# Minutes each: up to where the scenarios of a million and two end.
_LONG_SIZES: Final = tuple(
    (5_000, instances) for instances in (1_000, 10_000, 100_000, 300_000, 1_000_000, 2_000_000)
)
_SHORT_SIZES: Final = (*((nodes, 1_000) for nodes in (10, 30, 100)), (100, 300), (100, 2_000))


@click.command()
@click.option("--short", is_flag=True, help="A minute or two, in small sizes.")
@click.option(
    "--only", multiple=True, metavar="NAME", help="Of the scenarios only these; sizes: the curves."
)
@click.option("--no-sizes", is_flag=True, help="Without the curves against size.")
@click.option("--long", is_flag=True, help="Only the curves, up to two million instances.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="The folder.")
def main(*, short: bool, only: tuple[str, ...], no_sizes: bool, long: bool, output: Path) -> None:
    """Run the scenarios, write a JSON file for each, sizes.json, and launch.svg."""
    steps = [step for step in (_SHORT if short else _WHOLE) if not only or step[0] in only]
    without = no_sizes or (only and "sizes" not in only)
    sizes = () if without else (_SHORT_SIZES if short else _WHOLE_SIZES)
    if long:
        steps, sizes = [], (*_WHOLE_SIZES, *_LONG_SIZES)
    began = time.monotonic()
    reports: list[dict[str, Any]] = []
    failed: list[str] = []
    with shown() as progress:
        for name, overrides in steps:
            found = _measured(name, overrides, progress)
            if found is None or code_of(found):
                failed.append(name)
            if found is not None:
                print(report.text(found), flush=True)
                write(found, output / f"{name}.json")
                reports.append(found)
        grown = [_sized(nodes, instances, progress) for nodes, instances in sizes]
    if grown:
        write(grown, output / "sizes.json")
    _draw(reports or _earlier(output), grown, output / "launch.svg")
    print(f"{len(reports)} scenarios in {time.monotonic() - began:.0f} s, in {output}")
    if failed:
        print(f"not as they should be: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def _measured(name: str, overrides: dict[str, Any], progress: Progress) -> dict[str, Any] | None:
    """One scenario's report; None when it broke off, which is told and does not end the others."""
    try:
        found = run(chosen(name, **overrides), progress)
    except SwarmError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    if found["interrupted"]:
        raise KeyboardInterrupt
    return found


def _earlier(output: Path) -> list[dict[str, Any]]:
    """The scenarios' reports of an earlier run, for the picture."""
    return [one for one in load(output).values() if one["scenario"]["name"] != "custom"]


def _sized(nodes: int, instances: int, progress: Progress) -> dict[str, Any]:
    return run(chosen("", nodes=nodes, containers=instances, vms=0), progress)


def _draw(reports: list[dict[str, Any]], sizes: list[dict[str, Any]], path: Path) -> None:
    launches = [one for one in reports if one["running"]]
    try:
        plot.check_available()
    except SwarmError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return
    if launches:
        plot.draw(launches, path, sizes)


if __name__ == "__main__":
    main()
