"""Measure all faults, or some: ``python -m bench.faults [--only NAME…] [--rounds N]``."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.faults import fleet, nodes, several
from bench.faults import machine as machines
from bench.faults.rows import Row, record, summary, table
from bench.launch.report import machine

FAULTS: Final = nodes.FAULTS | machines.FAULTS | fleet.FAULTS | several.FAULTS
RESULTS: Final = Path(__file__).parents[1] / "results" / "faults.json"


def measure(name: str) -> Row:
    """One round of one fault, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="swarmctl-fault-") as folder:
        return FAULTS[name](Path(folder) / "cluster")


def main() -> int:
    """Measure, print, write the JSON; 1 when an outcome did not come."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was recorded, and end")
    options = parser.parse_args()
    recorded = json.loads(options.output.read_text()) if options.output.exists() else {"rows": {}}
    if options.table:
        print(table(list(recorded["rows"].values())))
        return 0
    failed = []
    for name in options.only:
        rounds: list[Row] = []
        for number in range(options.rounds):
            try:
                rounds.append(measure(name))
            except AssertionError as error:
                print(f"{name}, round {number + 1}: {error}", file=sys.stderr)
                failed.append(name)
        if rounds:
            measured = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            row = summary(rounds) | {"measured": measured, "machine": machine()}
            record(recorded, name, row)
            print(f"{name}: noticed {row['noticed_s']}, healed {row['healed_s']}", flush=True)
        # In the table's order, whichever were measured just now.
        recorded["rows"] = {key: recorded["rows"][key] for key in FAULTS if key in recorded["rows"]}
        options.output.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    print(table([recorded["rows"][name] for name in options.only if name in recorded["rows"]]))
    if failed:
        print("failed:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
