"""`python3 -m lab.demo up|down|net|net-down`: what `make demo`, `make down` and the others run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.config import paths_from
from lab.demo import down, networks, up
from lab.demo.cluster import Demo, default_data
from lab.faults import Interrupted, LabFault

DEFAULT_LISTEN = "tcp://127.0.0.1:7077"  # swarmctl's own default


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; wrong usage ends the program with code 2."""
    parser = argparse.ArgumentParser(prog="python3 -m lab.demo", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "net", "net-down"))
    parser.add_argument("--data", type=Path, default=default_data(), help="the demo's folder")
    parser.add_argument("--listen", default=DEFAULT_LISTEN, help="where its controller listens")
    parser.add_argument("--name", default="", help="the node's name, when not this machine's")
    parser.add_argument(
        "--keep-lab", action="store_true", help="down: leave the lab's daemons as they are"
    )
    parser.add_argument(
        "--lab", default=networks.LAB, help="net, net-down: what its hosts are called"
    )
    parser.add_argument(
        "--vms",
        nargs="?",
        const="small",
        default="",
        choices=("small", "debian"),
        help="net: and a small VM on each host, or a Debian on one, with a pod in it",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    chosen = parse(arguments)
    demo = Demo(chosen.data.absolute(), chosen.listen, chosen.name)
    try:
        if chosen.command == "net":
            return networks.up(paths_from(), chosen.lab, vms=chosen.vms)
        if chosen.command == "net-down":
            return networks.down(paths_from(), chosen.lab)
        if chosen.command == "up":
            return up.up(demo, paths_from())
        return down.down(demo, paths_from(), keep_lab=chosen.keep_lab)
    except LabFault as fault:
        print(f"demo: {fault.what}" + (f"\n  {fault.hint}" if fault.hint else ""), file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        target = "down" if chosen.command in ("up", "down") else "demo-net-down"
        print(f"demo: interrupted; `make {target}` takes away what is there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
