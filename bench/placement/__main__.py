"""Measure placing and print a table: ``python -m bench.placement [--small]``.

The exit code is 1 when a rate is below its target and ``--check`` is given: absolute rates
depend on the machine, so the default only shows them.
"""

import argparse
import sys

from bench.placement.scenarios import run


def main() -> int:
    """Run the scenarios one after the other, each shown as soon as it is done."""
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few seconds instead of a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    options = parser.parse_args()
    missed = 0
    print(f"{'scenario':<52}{'placed':>10}{'per s':>14}{'target':>12}  quality")
    for result in run(small=options.small):
        below = result.per_s < result.target_per_s
        missed += below
        mark = "  (below target)" if below else ""
        print(
            f"{result.name:<52}{result.placed:>10,}{result.per_s:>14,.0f}"
            f"{result.target_per_s:>12,}  {result.quality}{mark}",
            flush=True,
        )
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
