"""Measure networks: ``python -m bench.net [--json FILE] [--seconds N]``; needs root, and OVN.

Takes some minutes, and everything that it started away at its end, also after Ctrl-C.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bench.net import checks, paths, world
from bench.net.paths import Path as Way
from bench.net.report import ACROSS, HEAD, ONE_HOST, WORDS, failures, report, rows
from lab.faults import LabFault
from lab.report import Report, table
from lab.swarm import Swarm

LAB = "benchnet"
CONTAINERS = (
    world.Member("a", "h1", "front"),
    world.Member("b", "h1", "front"),
    world.Member("c", "h2", "front"),
    world.Member("friend", "h1", "back"),
    world.Member("other", "h2", "back"),
)


def main() -> int:
    """Measure, print, write the JSON; 1 when something passes that must not, or the other way."""
    parser = argparse.ArgumentParser(prog="python -m bench.net", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what was found")
    parser.add_argument("--seconds", type=int, default=5, help="how long each path is loaded")
    parser.add_argument("--pings", type=int, default=200, help="round trips of each path")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        found = measure(options.seconds, options.pings)
    except LabFault as fault:
        print(f"net: {fault.what}" + (f"\n  {fault.hint}" if fault.hint else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("net: interrupted; nothing is left", file=sys.stderr)
        return 130
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table([list(HEAD), *map(list, rows(found))]))
    for words in failures(found):
        print(f"net: {words}; see checks in the JSON", file=sys.stderr)
    return 1 if failures(found) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def measure(seconds: int, pings: int) -> dict[str, Any]:
    """Make a swarm, measure on it, and take it away.

    Raises:
        LabFault: something of it fails.
    """
    with (
        Report(sys.stderr) as said,
        tempfile.TemporaryDirectory(prefix="bench-net-") as name,
        _swarm(said) as swarm,
    ):
        folder = Path(name)
        with said.step("containers") as step:
            world.make_networks(swarm)
            world.launch(swarm, folder, CONTAINERS)
            step.done(f"{len(CONTAINERS)} on 2 networks")
        made = world.look(swarm)
        ends = made.ends
        ways = [
            Way(ONE_HOST, ends["a.1"], ends["b.1"], across=False),
            Way(ACROSS, ends["a.1"], ends["c.1"], across=True),
        ]
        found: dict[str, dict[str, Any]] = {}
        with said.step("passing") as step:
            reached = [checks.reach(ends["a.1"], ends[name]) for name in ("b.1", "c.1")]
            cut_off = [checks.cut_off(ends["a.1"], ends["other.1"], ends["friend.1"])]
            step.done("the same network and another one")
        with said.step("spoofing") as step:
            forgeries = []
            for attempt in checks.attempts(made, "a.1", "b.1"):
                step.progress(attempt.what)
                forgeries.append(checks.forge(attempt, ends["a.1"], ends["c.1"], made.macs["c.1"]))
            step.done(", ".join(f"{one.what}: {one.arrived} of {one.sent}" for one in forgeries))
        for way in ways:
            with said.step(way.name) as step:
                step.progress(WORDS[way.name])
                found[way.name] = paths.measure(way, swarm, seconds, pings)
                step.done(f"{found[way.name]['throughput_mbit_per_s']:.0f} Mbit/s")
        return report(found, reached, cut_off, forgeries)


@contextmanager
def _swarm(said: Report) -> Iterator[Swarm]:
    """A swarm; Ctrl-C is not heeded while it is taken away."""
    swarm = Swarm(LAB, 2, ("oci",))
    try:
        with said.step("hosts") as step:
            step.progress("2 hosts, a controller, 2 agents")
            swarm.start()
            step.done("2 hosts with OVN, a controller, 2 agents")
        yield swarm
    finally:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in _INTERRUPTS}
        with said.step("the end") as step:
            swarm.close()
            step.done("all is taken away")
        for number, handler in before.items():
            signal.signal(number, handler)


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
