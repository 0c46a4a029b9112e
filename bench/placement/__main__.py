"""Measure placing and print a table: ``python -m bench.placement [--small] [--json FILE]``.

Each scenario is run three times, and its median shown, with what was found of the answer; the file
has all of it and the machine.  The garbage collector is set as in a daemon.
The exit code is 1 when a rate is below its target and ``--check`` is given: absolute rates
depend on the machine, so the default only shows them.
"""

import argparse
import json
import sys
from pathlib import Path

from bench.placement.report import measure, report, rows
from swarmctl import garbage

RESULTS = Path(__file__).parent.parent / "results" / "placement.json"


def main() -> int:
    """Run the scenarios one after the other, each shown as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few seconds instead of a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (default 3)")
    parser.add_argument("--json", type=Path, default=None, help="where to, instead of results/")
    options = parser.parse_args()
    garbage.tune()
    measured = []
    print(f"{'scenario':<52}{'placed':>10}{'per s':>14}{'target':>12}  quality")
    for scenario in rows(small=options.small):
        row = measure(scenario, options.rounds)
        measured.append(row)
        mark = "" if row["met"] else "  (below target)"
        found = ", ".join(f"{name} {value:.6g}" for name, value in row["quality"].items())
        print(
            f"{row['name']:<52}{row['placed']:>10,}{row['per_s']:>14,.0f}"
            f"{row['target_per_s']:>12,}  {found}{mark}",
            flush=True,
        )
    whole = report(measured, options.rounds, small=options.small)
    for name, ratio in whole["ratios"].items():
        print(f"{name}: {ratio['value']:.2f} (at most {ratio['at_most']:g})")
    path = options.json or (None if options.small else RESULTS)
    if path is not None:
        path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return 1 if options.check and not whole["all_met"] else 0


if __name__ == "__main__":
    sys.exit(main())
