"""``--wait``: watch services become what was asked for, and say so while it takes.

On a terminal a line a service with a bar, redrawn; elsewhere a plain line at most every two
seconds.  Both go to stderr: what a command prints stays its own.
"""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from attrs import frozen

from swarmctl.cli.main import EXIT_INTERRUPTED
from swarmctl.cli.standing import say_hold
from swarmctl.client import Client
from swarmctl.proto.errors import InvalidSpec, PeerUnreachable

_F = TypeVar("_F", bound=Callable[..., Any])

# A commit waits for a disk, and a stack of thousands of services for a few of them.
COMMIT_TIMEOUT_S: Final = 60.0
# A log of a build should not drown in progress.
PLAIN_EVERY_S: Final = 2.0
# A controller that was killed is back within a second or two; one that is not is gone.
_RECONNECT_S: Final = 15.0
_LOOK_S: Final = 0.5
# More bars than this fill the screen: from there on all are one.
BARS_MAX: Final = 12
# States in the order in which an instance goes through them.
_ORDER: Final = (
    "running",
    "succeeded",
    "starting",
    "preparing",
    "assigned",
    "pending",
    "stopping",
    "stopped",
    "leaving",
    "failed",
    "lost",
    "rejected",
)
# The states that count as done, by what is waited for.
_DONE: Final = {
    "running": ("running", "succeeded"),
    "stopped": ("stopped", "succeeded", "failed"),
    "gone": (),
}

Counts = dict[str, dict[str, int]]


@frozen
class Waiting:
    """What to wait for, and what to say when the user will not.

    ``names`` are services or instances; ``meanwhile`` and ``undo`` complete the sentences "…
    goes on" and "undo: …".
    """

    names: tuple[str, ...]
    condition: str = "running"
    timeout_s: float = math.inf
    meanwhile: str = ""
    undo: str = ""


def wait_options(command: _F) -> _F:
    """``--wait``, ``--detach`` and ``--timeout``."""
    for decorate in (
        click.option(
            "--timeout", default="", metavar="TIME", help="Wait at most so long: 90s, 5m."
        ),
        click.option(
            "--wait/--detach",
            " /-d",
            "wait",
            default=None,
            help="Wait until it is done (the default on a terminal), or only until it is noted.",
        ),
    ):
        command = decorate(command)
    return command


def shall_wait(wait: bool | None) -> bool:
    """What was asked for, or what is usual: to wait when somebody looks on."""
    return sys.stdout.isatty() if wait is None else wait


def timeout_of(text: str, option: str = "--timeout") -> float:
    """What ``option`` says, in seconds; endless when it is empty.

    Raises:
        InvalidSpec: it is not a time.
    """
    from swarmctl.spec.sizes import parse_duration

    if not text:
        return math.inf
    try:
        return parse_duration(text)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, option, error.hint) from error


def wait_for(client: Client, waiting: Waiting) -> None:
    """Wait, and show how it goes.

    Raises:
        WaitExpired, NothingFits, LaunchFailed: it did not become so.
        Exit: the user had enough; what goes on was said.
    """
    if not waiting.names:
        return
    params: dict[str, Any] = {"names": list(waiting.names), "for": waiting.condition}
    if waiting.timeout_s != math.inf:
        params["timeout_s"] = waiting.timeout_s
    began = time.monotonic()
    say_hold(client.call("cluster.info"))
    try:
        with progress(waiting) as show:
            counts = _watch(client, params, show)
    except KeyboardInterrupt:
        _say_what_goes_on(waiting)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    took_s = time.monotonic() - began
    for name, states in counts.items():
        line = "gone" if waiting.condition == "gone" else summary(states, waiting.condition)
        print(f"{name}: {line} ({took_s:.1f} s)", file=sys.stderr)


def _watch(client: Client, params: dict[str, Any], show: Callable[[Counts], None]) -> Counts:
    """The counts at the end. A controller that starts anew meanwhile is asked again."""
    deadline = time.monotonic() + float(params.get("timeout_s", math.inf))
    while True:
        try:
            with client.stream("service.wait", params) as stream:
                counts: Counts = {}
                while not stream.ended:
                    item = stream.receive(_LOOK_S)
                    counts = item.data if item is not None else counts
                    # Also without news: a line may be due by now.
                    show(counts)
                result: Counts = stream.result
                return result
        except PeerUnreachable:
            client.reconnect(_RECONNECT_S)
            if "timeout_s" in params:
                params["timeout_s"] = max(0.1, deadline - time.monotonic())


def _say_what_goes_on(waiting: Waiting) -> None:
    names = " ".join(waiting.names)
    what = waiting.meanwhile or f"{names} goes on"
    print(f"\n{what} without you; see: swarmctl ps {names}", file=sys.stderr)
    if waiting.undo:
        print(f"undo: {waiting.undo}", file=sys.stderr)


def progress(waiting: Waiting) -> "_Plain | _Bars":
    """Something that shows counts while it is open."""
    return _Bars(waiting.condition) if sys.stderr.isatty() else _Plain(waiting.condition)


def summaries(counts: Counts, condition: str) -> dict[str, str]:
    """A line of text for each name."""
    return {name: summary(states, condition) for name, states in counts.items()}


def summary(states: dict[str, int], condition: str) -> str:
    """``12 of 40 running, 8 starting, 20 pending``."""
    wanted = states.get("wanted", 0)
    order = dict.fromkeys((*_DONE[condition], *_ORDER))
    rest = [(state, states[state]) for state in order if states.get(state)]
    rest += [(state, n) for state, n in states.items() if state not in (*_ORDER, "wanted")]
    if condition == "gone":
        left = sum(count for _, count in rest)
        return f"{left} left" if left else "gone"
    parts = [f"{count} {state}" for state, count in rest]
    if not parts:
        return "none" if not wanted else f"0 of {wanted}"
    if states.get(rest[0][0]) != wanted:
        parts[0] = f"{rest[0][1]} of {wanted} {rest[0][0]}"
    return ", ".join(parts)


def done_of(states: dict[str, int], condition: str) -> int:
    """How many are as waited for."""
    return sum(states.get(state, 0) for state in _DONE[condition])


def _complete(counts: Counts, condition: str) -> bool:
    """Whether there is nothing left to wait for; the summary says that better."""
    if condition == "gone":
        return not any(
            n for states in counts.values() for key, n in states.items() if key != "wanted"
        )
    return all(done_of(states, condition) == states.get("wanted", 0) for states in counts.values())


class _Plain:
    """Lines for a log."""

    def __init__(self, condition: str) -> None:
        self._condition = condition
        self._next = time.monotonic() + PLAIN_EVERY_S
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Callable[[Counts], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        pass

    def _show(self, counts: Counts) -> None:
        if time.monotonic() < self._next or _complete(counts, self._condition):
            return
        self._next = time.monotonic() + PLAIN_EVERY_S
        lines = summaries(counts, self._condition)
        for name, line in lines.items():
            if self._shown.get(name) != line:
                print(f"{name}: {line}", file=sys.stderr, flush=True)
        self._shown = lines


class _Bars:
    """Bars that are redrawn, and leave no trace."""

    def __init__(self, condition: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._condition = condition
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._most: dict[str, int] = {}

    def __enter__(self) -> Callable[[Counts], None]:
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, counts: Counts) -> None:
        if len(counts) > BARS_MAX:
            counts = {f"{len(counts)} services": _added(counts)}
        for name, states in counts.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, text="")
            total = states.get("wanted", 0)
            done = done_of(states, self._condition)
            if self._condition == "gone":
                left = sum(n for state, n in states.items() if state != "wanted")
                total = self._most[name] = max(self._most.get(name, 0), left)
                done = total - left
            self._progress.update(
                self._tasks[name],
                total=max(1, total),
                completed=done if total else 1,
                text=summary(states, self._condition),
            )


def _added(counts: Counts) -> dict[str, int]:
    totals: dict[str, int] = {}
    for states in counts.values():
        for state, count in states.items():
            totals[state] = totals.get(state, 0) + count
    return totals
