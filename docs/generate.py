"""`python -m docs.generate`: parts of docs/ that are drawn from tables of the code and of results.

Each is kept between two comments in a page, so that the page reads well without being built; a
test compares them with the code.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from bench import anchors
from bench.faults.rows import table
from bench.net import report as net
from swarmctl.proto.states import FINAL, FORWARD, LIVE, NEXT_ATTEMPT, InstanceState

HERE = Path(__file__).parent
RESULTS = HERE.parent / "bench" / "results"
END = "<!-- end -->"


def instance_states() -> str:
    """The instance states as a table and a diagram."""
    lines = ["| state | may be followed by | uses the node's resources | ends the attempt |"]
    lines.append("| --- | --- | --- | --- |")
    for state in InstanceState:
        after = ", ".join(one.label for one in sorted(FORWARD[state])) or "nothing"
        live, final = ("yes" if state in states else "" for states in (LIVE, FINAL))
        lines.append(f"| `{state.label}` | {after} | {live} | {final} |")
    attempts = " or ".join(f"`{state.label}`" for state in sorted(NEXT_ATTEMPT))
    lines += ["", f"The next attempt, on the spot, begins at {attempts}.", ""]
    lines += ["```mermaid", "stateDiagram-v2"]
    for before in InstanceState:
        for after in sorted(FORWARD[before] - {InstanceState.REMOVED}):
            lines.append(f"    {before.label} --> {after.label}")
    lines += ["```", "", "Left out of the picture: `removed`, which may follow every state.", ""]
    return "\n".join(lines)


def faults() -> str:
    """The measured faults, as a table."""
    recorded = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    return table(list(recorded["rows"].values())) + "\n"


def simulated_worlds() -> str:
    """What the simulator's seeds have met, what was checked, and which planted bugs were found."""
    found = _results("seeds.json")
    seeds, plants = found["seeds"], found["plants"]
    fewest, most = seeds["events"]
    said = (
        f"{seeds['held']} of {seeds['run']} seeds held, from {seeds['first']} on, each with "
        f"{seeds['nodes']} nodes and {fewest:,} to {most:,} events, "
        f"{seeds['cpu_s']:.1f} s of CPU each; at rest {seeds['at_rest_s']:.0f} s after the last "
        "fault at the latest. How often each fault had its effect, and in how many of the seeds:"
    )
    checked = [
        (f"`{name}`", f"{one['checks']:,}", one["says"])
        for name, one in seeds["invariants"].items()
    ]
    sought = [
        (one["bug"].rstrip("."), f"{one['seeds']:,}", f"`{one['found_by']}`")
        for one in plants.values()
    ]
    sowed = (
        "Bugs that are planted on purpose, to see that the simulator finds such (`make soak "
        "PLANT=guard-nothing`; `tests/sim/world/plants.py` has their names, and a test keeps that "
        "each is found within 500 seeds):"
    )
    tables = (
        (said, _two_abreast(("fault", "times", "seeds"), _fired(seeds["faults"]))),
        ("What was checked, and how often:", _table(("invariant", "checks", ""), checked)),
        (sowed, _table(("bug", "seeds until found", "by"), sought)),
    )
    return "\n".join(f"{text}\n\n{table}" for text, table in tables)


def _fired(faults: dict[str, Any]) -> list[tuple[str, ...]]:
    return [(f"`{name}`", f"{one['fired']:,}", f"{one['seeds']}") for name, one in faults.items()]


def _two_abreast(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A long, narrow table as two beside each other."""
    half = (len(rows) + 1) // 2
    right = [*rows[half:], ("",) * len(head)][:half]
    return _table((*head, *head), [(*a, *b) for a, b in zip(rows[:half], right, strict=True)])


@frozen
class Part:
    """A part of a page: what it begins with, and what draws it."""

    page: Path
    source: str
    draw: Callable[[], str]

    @property
    def begin(self) -> str:
        """The comment before it."""
        return f"<!-- begin: drawn from {self.source} by `make docs` -->"

    def made_anew(self) -> str:
        """The whole page, with this part as it should be."""
        head, begin, rest = self.page.read_text(encoding="utf-8").partition(self.begin)
        _, end, tail = rest.partition(END)
        assert begin, f"{self.page.name} has lost its first marker"
        assert end, f"{self.page.name} has lost its second marker"
        return f"{head}{begin}\n\n{self.draw()}\n{END}{tail}"


def launches() -> str:
    """The launch targets beside what was measured."""
    return "\n".join(anchors.table(_results("anchors.json"))) + "\n"


def placing() -> str:
    """The scheduler's rates beside their targets, and the quality of its answers."""
    head = ("scenario", "placed", "a second", "target", "quality")
    return _table(head, [_placed(row) for row in _results("placement.json")["rows"]])


def _placed(row: dict[str, Any]) -> tuple[str, ...]:
    found = ", ".join(f"{name} {value:.4g}" for name, value in row["quality"].items())
    target = f"{row['target_per_s']:,}" if row["target_per_s"] else ""
    rate = f"{row['per_s']:,.0f}" + ("" if row["met"] else " **missed**")
    return (row["name"], f"{row['placed']:,}", rate, target, found)


def real_launches() -> str:
    """Containers and VMs beside the raw loops."""
    rows = [
        (
            row["kind"],
            str(row["count"]),
            f"{row['raw_per_s']:.3g}",
            f"{row['swarmctl_per_s']:.3g}",
            f"{row['ratio']:.2f}",
        )
        for row in _results("launch_real.json")["results"]
    ]
    return _table(("kind", "count", "raw, a second", "swarmctl, a second", "ratio"), rows)


def networks() -> str:
    """What each path between instances costs, and what was tried and blocked."""
    found = _results("net.json")
    forged = [
        (one["source"], one["what"], str(one["sent"]), str(one["arrived"]))
        for one in found["checks"]["spoofing"]
    ]
    blocked = _table(("sender", "frames with", "left its port", "arrived"), forged)
    return f"{_table(net.HEAD, net.rows(found))}\n{blocked}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


PARTS = (
    Part(HERE / "nomenclature.md", "swarmctl/proto/states.py", instance_states),
    Part(HERE / "reliability.md", "bench/results/faults.json", faults),
    Part(HERE / "reliability.md", "bench/results/seeds.json", simulated_worlds),
    Part(HERE / "benchmarks.md", "bench/results/anchors.json", launches),
    Part(HERE / "benchmarks.md", "bench/results/placement.json", placing),
    Part(HERE / "benchmarks.md", "bench/results/launch_real.json", real_launches),
    Part(HERE / "networks.md", "bench/results/net.json", networks),
)


if __name__ == "__main__":
    for part in PARTS:
        part.page.write_text(part.made_anew(), encoding="utf-8")
