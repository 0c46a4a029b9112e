"""Two results side by side: ``python -m bench.launch.compare BASE [NEW]``.

Each is a report, a list of reports, or a folder with reports; runs are matched by scenario and
size.  A ratio is new over base; whether more is better depends on the figure, so the table says.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from swarmctl.proto.errors import InvalidSpec, SwarmError

RESULTS: Final = Path(__file__).parent.parent / "results"
# Ratios nearer to 1 than this are noise on a machine that does other things too.
_NOISE: Final = 0.05

Report = dict[str, Any]
Key = tuple[str, int, int]

# Figure, path in a report, whether more is better.
_FIGURES: Final = (
    ("instances/s", ("instances_per_s",), True),
    ("latency p50 ms", ("latency_ms", "p50"), False),
    ("latency p99 ms", ("latency_ms", "p99"), False),
    ("controller CPU s", ("controller_cpu_s",), False),
    ("controller peak MiB", ("controller_peak_rss_mib",), False),
    ("joins/s", ("found", "join_storm", "joins_per_s"), True),
    ("idle CPU share", ("found", "idle", "controller_cpu_share"), False),
    ("KiB an agent", ("found", "idle", "controller_kib_per_agent"), False),
    ("failover: accepted s", ("found", "failover", "seconds_to_first_accepted"), False),
    ("failover: all back s", ("found", "failover", "seconds_to_all_back"), False),
    ("churn: running p99 ms", ("found", "churn", "running_p99_ms"), False),
    ("one request ms", ("found", "one_change", "request_durable_p50_ms"), False),
    ("scale +1, work ms", ("found", "one_change", "scale_stages_ms"), False),
)


@frozen
class Ratio:
    """One figure of one scenario in both."""

    scenario: str
    figure: str
    base: float
    new: float
    more_is_better: bool

    @property
    def ratio(self) -> float:
        """New over base."""
        return self.new / self.base

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``same``."""
        if abs(self.ratio - 1.0) < _NOISE:
            return "same"
        return "better" if (self.ratio > 1.0) == self.more_is_better else "worse"


def load(path: Path) -> dict[Key, Report]:
    """The reports in a file or a folder, by scenario and size.

    Raises:
        InvalidSpec: it cannot be read, or is no report.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found: dict[Key, Report] = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidSpec(f"no report can be read: {error}", str(file)) from error
        for one in content if isinstance(content, list) else [content]:
            if isinstance(one, dict) and "launch_curve" in one and "scenario" in one:
                found[(one["scenario"]["name"], one["nodes"], one["instances"])] = one
    if not found:
        raise InvalidSpec("there is no launch report in it", str(path))
    return found


def ratios(base: dict[Key, Report], new: dict[Key, Report]) -> list[Ratio]:
    """Every figure that both have, for every run that both have."""
    return [
        Ratio(f"{key[0]} {key[2]:,}/{key[1]:,}", figure, before, after, more_is_better)
        for key in base
        if key in new
        for figure, path, more_is_better in _FIGURES
        if (before := _at(base[key], path)) and (after := _at(new[key], path)) is not None
    ]


def _at(report: Report, path: tuple[str, ...]) -> float | None:
    found: Any = report
    for name in path:
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return float(found) if isinstance(found, int | float) else None


def table(rows: list[Ratio]) -> Iterator[str]:
    """The comparison as text."""
    yield f"{'scenario instances/nodes':32}{'figure':24}{'base':>12}{'new':>12}{'ratio':>8}"
    for row in rows:
        yield (
            f"{row.scenario:32}{row.figure:24}{row.base:>12,.2f}{row.new:>12,.2f}"
            f"{row.ratio:>8.2f}  {row.verdict}"
        )


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path), default=RESULTS)
def main(base: Path, new: Path) -> None:
    """Print the ratios of NEW (bench/results unless given) to BASE."""
    try:
        rows = ratios(load(base), load(new))
    except SwarmError as error:
        raise click.ClickException(str(error)) from error
    if not rows:
        raise click.ClickException("no scenario of the same size is in both")
    for line in table(rows):
        print(line)


if __name__ == "__main__":
    main()
