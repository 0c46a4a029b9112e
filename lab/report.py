"""What the operator sees: one line a step, with progress where it takes long, and its time.

Theory of operation. Steps run in threads beside each other, so a step owns no line of the
terminal: the terminal has one live line that tells what is in hand, and finished steps are printed
above it. Without a terminal there is no live line; a step in hand is mentioned every few seconds
instead, so that a log shows where the time goes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from lab.faults import LabFault

LIVE_AFTER_S = 0.3  # a step shorter than this never flashes on the terminal
MENTION_EVERY_S = 5.0  # in a log: often enough to see it lives, rare enough to read
REFRESH_S = 0.2

MARKS = {"done": "ok", "kept": "--", "failed": "!!"}


class Step:
    """One thing that the lab does, from its first word to its outcome."""

    def __init__(self, name: str, started: float) -> None:
        self.name = name
        self.started = started
        self.doing = "starting"
        self.outcome = ""
        self.mark = "done"

    def progress(self, text: str) -> None:
        """Say what is in hand, e.g. ``downloading, 43 %``."""
        self.doing = text

    def done(self, text: str) -> None:
        """Say what was done."""
        self.outcome, self.mark = text, "done"

    def kept(self, text: str) -> None:
        """Say what was found as it should be, and left alone."""
        self.outcome, self.mark = text, "kept"


class Report:
    """Prints steps as they go; safe to use from several threads."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self.failures: list[tuple[str, LabFault]] = []
        self._lock = threading.RLock()
        self._active: list[Step] = []
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None
        self._line_shown = False

    def __enter__(self) -> Report:
        self._ticker = threading.Thread(target=self._tick, name="lab-report", daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._ticker:
            self._ticker.join()
        with self._lock:
            self._clear()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and print its outcome; a LabFault is printed, counted and passed on."""
        step = Step(name, time.monotonic())
        with self._lock:
            self._active.append(step)
        try:
            yield step
        except LabFault as fault:
            self._fail(step, fault)
            raise
        except (OSError, subprocess.SubprocessError) as error:
            # A full disk, a tool that failed: the machine's fault as well, told the same way.
            wrapped = LabFault(f"{error}", "see the reason above; run it again when it is mended")
            self._fail(step, wrapped)
            raise wrapped from error
        except BaseException:
            with self._lock:
                self._active.remove(step)
            raise
        else:
            self._finish(step)

    def say(self, text: str) -> None:
        """Print one line above whatever is in hand."""
        with self._lock:
            self._clear()
            print(text, file=self.stream, flush=True)

    def _fail(self, step: Step, fault: LabFault) -> None:
        step.outcome, step.mark = fault.what, "failed"
        self._finish(step)
        if fault.hint:
            self.say(f"     what to do: {fault.hint}")
        self.failures.append((step.name, fault))

    def _finish(self, step: Step) -> None:
        with self._lock:
            self._active.remove(step)
            self.say(format_step(step, time.monotonic() - step.started))

    def _tick(self) -> None:
        mentioned = time.monotonic()
        while not self._stop.wait(REFRESH_S):
            now = time.monotonic()
            with self._lock:
                slow = [s for s in self._active if now - s.started > LIVE_AFTER_S]
                if self.live:
                    self._show(slow, now)
                elif slow and now - mentioned > MENTION_EVERY_S:
                    mentioned = now
                    for step in slow:
                        self.say(f"  .. {format_progress(step, now)}")

    def _show(self, steps: list[Step], now: float) -> None:
        self._clear()
        if steps:
            width = shutil.get_terminal_size().columns - 1
            text = "  " + "; ".join(format_progress(step, now) for step in steps)
            print(text[:width], end="", file=self.stream, flush=True)
            self._line_shown = True

    def _clear(self) -> None:
        if self._line_shown:
            print("\r\033[K", end="", file=self.stream, flush=True)
            self._line_shown = False


def format_step(step: Step, elapsed_s: float) -> str:
    """The line of a finished step."""
    return (
        f"  {MARKS[step.mark]} {step.name + ':':<10} {step.outcome or 'done'} ({elapsed_s:.1f} s)"
    )


def format_progress(step: Step, now: float) -> str:
    """What a step has in hand, and for how long."""
    return f"{step.name}: {step.doing} ({now - step.started:.0f} s)"


def table(rows: list[list[str]]) -> str:
    """Rows as aligned columns, the first one being the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
