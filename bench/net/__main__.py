"""Measure networks: ``python -m bench.net [--json FILE] [--seconds N]``; needs root, and OVN.

Takes some minutes, and everything that it started away at its end, also after Ctrl-C.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from bench.net.report import HEAD, failures, rows
from bench.net.run import measure, measure_ready
from lab.faults import LabFault
from lab.report import table


def main() -> int:
    """Measure, print, write the JSON; 1 when something passes that must not, or the other way."""
    parser = argparse.ArgumentParser(prog="python -m bench.net", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what was found")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it (.svg, .png)")
    parser.add_argument("--seconds", type=int, default=5, help="how long each path is loaded")
    parser.add_argument("--pings", type=int, default=200, help="round trips of each path")
    parser.add_argument("--no-vms", action="store_true", help="containers alone")
    parser.add_argument("--ready", action="store_true", help="only how soon pods' ports are ready")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.ready:
            return _only_ready(options.json)
        found = measure(options.seconds, options.pings, vms=not options.no_vms)
    except LabFault as fault:
        print(f"net: {fault.what}" + (f"\n  {fault.hint}" if fault.hint else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("net: interrupted; nothing is left", file=sys.stderr)
        return 130
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        from bench.net.plot import draw

        draw(found, options.plot)
    print(table([list(HEAD), *map(list, rows(found))]))
    for words in failures(found):
        print(f"net: {words}; see checks in the JSON", file=sys.stderr)
    return 1 if failures(found) else 0


def _only_ready(file: Path | None) -> int:
    """Measure that, and put it into the JSON beside what is there."""
    found = measure_ready()
    print(json.dumps(found, indent=1))
    if file is not None:
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps(before | found, indent=1) + "\n", encoding="utf-8")
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
