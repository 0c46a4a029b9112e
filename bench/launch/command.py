"""What ``swarmctl bench launch`` does once its options are read."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

from bench.launch import report
from bench.launch.progress import shown
from bench.launch.running import chosen, run

# As a shell says of a program that ended by Ctrl-C.
_INTERRUPTED = 130


def bench_launch(
    scenario: str, *, json_file: Path | None, plot_file: Path | None, **overrides: Any
) -> int:
    """Run a benchmark, show its report, write what is asked; the exit code.

    1 when the checker found something wrong, or what should come about did not; 130 when it was
    interrupted.

    Raises:
        InvalidSpec: the scenario or an option makes no sense.
        SwarmError: it could not be run to its end.
    """
    chosen_scenario = chosen(scenario, **overrides)
    if plot_file is not None:
        from bench.launch import plot

        plot.check_available()
    # Told to end, it ends what it has started, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with shown() as progress:
        found = run(chosen_scenario, progress)
    print(report.text(found))
    if json_file is not None:
        write(found, json_file)
    if plot_file is not None:
        plot.draw([found], plot_file)
        print(f"  drawn in {plot_file}", file=sys.stderr)
    return code_of(found)


def code_of(found: dict[str, Any]) -> int:
    """The exit code that a report deserves."""
    if found["interrupted"]:
        return _INTERRUPTED
    check = found["check"]
    whole = found["seconds_to_all_running"] is not None and not found["gave_up"]
    return 0 if whole and check is not None and check["passed"] else 1


def write(found: Any, path: Path) -> None:
    """Write a report, or a list of them, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
