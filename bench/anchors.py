"""The table of launch targets, measured in rounds: ``python -m bench.anchors [--only NAME]``.

Each scenario that has a target runs whole, ``--rounds`` times; a round is added to
``results/anchors.json`` as soon as it is done, so that a run can be broken off and gone on with.
``--count FILE`` measures nothing and counts a report of ``make bench`` as a round.
``--table`` measures nothing and prints the table of what is there, for ``docs/benchmarks.md``:
the median of the rounds beside the target, and the spread.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from bench.launch.command import code_of
from bench.launch.compare import RESULTS
from bench.launch.progress import shown
from bench.launch.report import text
from bench.launch.running import chosen, run

Report = dict[str, Any]
Round = dict[str, Any]


@frozen
class Target:
    """A figure of a scenario's report and what it is to be.

    ``path`` leads to it in the report; ``at_most`` says on which side of ``limit`` it should be.
    """

    scenario: str
    figure: str
    path: tuple[str, ...]
    limit: float
    at_most: bool = True

    @property
    def key(self) -> str:
        """How a round calls it."""
        return f"{self.scenario}: {self.figure}"

    def met(self, value: float) -> bool:
        """Whether ``value`` is on the right side."""
        return value <= self.limit if self.at_most else value >= self.limit


TARGETS: Final = (
    Target("keynote", "all running, s", ("seconds_to_all_running",), 1.0),
    Target("c1m", "all running, s", ("seconds_to_all_running",), 25.0),
    Target("c1m", "controller CPU, µs an instance", ("controller_cpu_us_per_instance",), 12.0),
    Target("c2m", "all running, s", ("seconds_to_all_running",), 60.0),
    Target("c2m", "controller peak, MiB", ("controller_peak_rss_mib",), 1536.0),
    Target("one_by_one", "requests durable/s", ("requests_per_s",), 15_000.0, at_most=False),
    Target("one_by_one", "running/s", ("instances_per_s",), 15_000.0, at_most=False),
    Target("one_by_one", "one alone, ms", ("found", "one_change", "request_durable_p50_ms"), 5.0),
    Target("join_storm", "joins/s", ("found", "join_storm", "joins_per_s"), 1_500.0, at_most=False),
    Target("idle", "controller, share of a core", ("found", "idle", "controller_cpu_share"), 0.25),
    Target("idle", "KiB an agent", ("found", "idle", "controller_kib_per_agent"), 45.0),
    Target("idle", "KiB above bare pyzmq", ("found", "idle", "above_bare_kib_per_agent"), 12.0),
    Target("failover", "accepted, s", ("found", "failover", "seconds_to_first_accepted"), 3.0),
    Target("failover", "placed on all, s", ("found", "failover", "seconds_to_placed_on_all"), 10.0),
    Target("failover", "replaced", ("found", "failover", "instances_replaced"), 0.0),
)
_SCENARIOS: Final = tuple(dict.fromkeys(target.scenario for target in TARGETS))


def figures(report: Report) -> Round:
    """What the targets ask of one run, by key; what the run did not get to is None."""
    submitted_s = report["seconds_to_submitted"]
    report = report | {"requests_per_s": report["requests"] / submitted_s if submitted_s else None}
    name = report["scenario"]["name"]
    return {target.key: _at(report, target.path) for target in TARGETS if target.scenario == name}


def as_round(report: Report) -> Round:
    """What is kept of one run."""
    passed = report["check"] is not None and report["check"]["passed"]
    about = {"scenario": report["scenario"]["name"], "measured": report["measured"]}
    return about | {"check_passed": passed} | figures(report) | {"machine": report["machine"]}


def _at(report: Report, path: tuple[str, ...]) -> float | None:
    found: Any = report
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return None if found is None else float(found)


def table(rounds: list[Round]) -> Iterator[str]:
    """The rounds as a table in Markdown, a line a target."""
    yield "| scenario | figure | target | median | rounds | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for target in TARGETS:
        values = [one[target.key] for one in rounds if target.key in one]
        if not values:
            continue
        known = [value for value in values if value is not None]
        # A run that did not get there is worse than any value.
        median = statistics.median(known) if len(known) == len(values) else None
        mark = "met" if median is not None and target.met(median) else "**missed**"
        yield (
            f"| {target.scenario} | {target.figure} | {'≤' if target.at_most else '≥'} "
            f"{_number(target.limit)} | {_number(median)} | "
            f"{', '.join(map(_number, values))} | {mark} |"
        )


def _number(value: float | None) -> str:
    if value is None:
        return "not reached"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _read(path: Path) -> list[Round]:
    found: list[Round] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return found


def _write(path: Path, done: list[Round]) -> None:
    path.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.option(
    "--only", multiple=True, type=click.Choice(_SCENARIOS), help="Of the scenarios these."
)
@click.option("--rounds", default=3, show_default=True, help="How often each.")
@click.option("--fresh", is_flag=True, help="Forget the earlier rounds of what is measured.")
@click.option(
    "--count",
    "counted",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="A report that is a round, too.",
)
@click.option("--table", "only_table", is_flag=True, help="Measure nothing.")
@click.option("--file", type=click.Path(path_type=Path), default=RESULTS / "anchors.json")
def main(
    *,
    only: tuple[str, ...],
    rounds: int,
    fresh: bool,
    counted: tuple[Path, ...],
    only_table: bool,
    file: Path,
) -> None:
    """Measure the table of launch targets, and print it."""
    done = _read(file)
    names = [name for name in _SCENARIOS if not only or name in only]
    if fresh:
        done = [one for one in done if one["scenario"] not in names]
    if counted:
        done += [as_round(json.loads(one.read_text(encoding="utf-8"))) for one in counted]
        _write(file, done)
    failed = False
    with shown() as progress:
        for _ in range(0 if only_table or counted else rounds):
            for name in names:
                found = run(chosen(name), progress)
                print(text(found), flush=True)
                failed |= bool(code_of(found))
                done.append(as_round(found))
                _write(file, done)
                # What the last one leaves to the kernel to tidy up is not the next one's.
                time.sleep(1.0)
    print("\n".join(table(done)))
    sys.exit(failed)


if __name__ == "__main__":
    main()
