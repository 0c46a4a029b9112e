"""Live progress on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_EVERY_S: Final = 1.0


class Progress(Protocol):
    """How a run tells where it is."""

    def phase(self, name: str, total: int) -> None:
        """Something begins that counts up to ``total`` (0: nothing is counted)."""

    def running(self, count: int, seconds: float) -> None:
        """So many run, after so many seconds."""


class Lines:
    """For a pipe or a file: a line a phase, and one a second within."""

    def __init__(self) -> None:
        self._total = 0
        self._said_at = -_LINE_EVERY_S

    def phase(self, name: str, total: int) -> None:
        """See :class:`Progress`."""
        self._total = total
        self._said_at = time.monotonic()
        _say(f"{name} {total:,}" if total else name)

    def running(self, count: int, seconds: float) -> None:
        """See :class:`Progress`."""
        done = count >= self._total
        if done or time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            _say(f"{seconds:8.2f} s  {count:>9,} of {self._total:,} running")


class Bars:
    """For a terminal."""

    def __init__(self, bar: "Bar") -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def phase(self, name: str, total: int) -> None:
        """See :class:`Progress`."""
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(name, total=total or None, took="")

    def running(self, count: int, seconds: float) -> None:
        """See :class:`Progress`."""
        if self._task is not None:
            self._bar.update(self._task, completed=count, took=f"{seconds:.2f} s")


@contextmanager
def shown() -> Iterator[Progress]:
    """Progress as stderr can show it."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[took]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield Bars(bar)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
