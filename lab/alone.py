"""Making one thing of the lab's by itself: without a word for a test, or as a command."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

from lab import procs
from lab.config import Paths, paths_from
from lab.faults import Interrupted, LabFault
from lab.report import Report, Step
from lab.state import exclusive

T = TypeVar("T")
Make = Callable[[Paths, Step], T]


def quietly(name: str, make: Make[T], paths: Paths) -> T:
    """What ``make`` makes; for who holds the lab already.

    Raises:
        LabFault: it cannot be made.
    """
    with Report(io.StringIO()) as report, report.step(name) as step:
        return make(paths, step)


def command(name: str, make: Make[T]) -> int:
    """Make what is missing, with a line for each thing done; the exit code."""
    paths, report = paths_from(), Report()
    procs.heed_interrupts()
    try:
        with exclusive(paths), report, report.step(name) as step:
            make(paths, step)
    except LabFault as fault:
        if not report.failures:  # Else it was said there.
            report.say(f"{name}: {fault.what}" + (f"; {fault.hint}" if fault.hint else ""))
        return 1
    except (Interrupted, KeyboardInterrupt):
        report.say(f"{name}: interrupted; run it again to go on")
        return 130
    return 0
