"""``node drain``: what runs on nodes goes elsewhere, and the command looks on until it has.

Progress is a line a node to stderr when it changes: how many are left, and why those that stay do.
"""

import math
import sys
import time
from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.main import EXIT_INTERRUPTED
from swarmctl.cli.waiting import timeout_of
from swarmctl.client import Client
from swarmctl.proto.errors import PeerUnreachable

_LOOK_S: Final = 0.5
# A controller that was killed is back within a second or two; one that is not is gone.
_RECONNECT_S: Final = 15.0
# Lines in a log, at the most so often; on a terminal one line is written over.
_PLAIN_EVERY_S: Final = 2.0


@click.command("drain")
@click.option("--timeout", default="", metavar="TIME", help="Wait at most so long: 90s, 5m.")
@click.option(
    "--deadline",
    default="",
    metavar="TIME",
    help="After so long take away what is left, whatever its service allows.",
)
@click.option("-d", "--detach", is_flag=True, help="Answer when it is noted; it goes on alone.")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_nodes)
@click.pass_context
def drain(
    ctx: click.Context, timeout: str, deadline: str, detach: bool, names: tuple[str, ...]
) -> None:
    """Move what runs on nodes elsewhere, and place nothing new there.

    Of each service no more copies are away at a time than its update policy allows, one unless it
    says more, and what fits nowhere else stays; with --deadline only until then. It goes on until
    it is done, also when nobody looks on; 'node uncordon' ends it.
    """
    timeout_s, deadline_s = timeout_of(timeout), timeout_of(deadline, "--deadline")
    change: dict[str, Any] = {"names": list(names), "draining": True}
    if deadline_s != math.inf:
        change["deadline_s"] = deadline_s
    with clusters.connect(ctx) as client:
        client.call("node.change", change)
        if not detach:
            _look_on(client, names, timeout_s)
    for name in names:
        print(name)


def _look_on(client: Client, names: tuple[str, ...], timeout_s: float) -> None:
    began = time.monotonic()
    deadline = began + timeout_s
    shown = _Progress()
    try:
        while not _watched(client, names, deadline, shown):
            client.reconnect(_RECONNECT_S)
    except KeyboardInterrupt:
        shown.end()
        joined = " ".join(names)
        print(
            f"\nthe drain of {joined} goes on without you; see: swarmctl node ls", file=sys.stderr
        )
        print(f"undo: swarmctl node uncordon {joined}", file=sys.stderr)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    finally:
        shown.end()
    took_s = time.monotonic() - began
    print(f"drained: {', '.join(names)} ({took_s:.1f} s)", file=sys.stderr)


def _watched(client: Client, names: tuple[str, ...], deadline: float, shown: "_Progress") -> bool:
    """Whether it came to an end; False when the controller went away meanwhile."""
    params: dict[str, Any] = {"names": list(names)}
    if deadline != math.inf:
        params["timeout_s"] = max(0.1, deadline - time.monotonic())
    try:
        with client.stream("node.drained", params) as stream:
            while not stream.ended:
                item = stream.receive(_LOOK_S)
                if item is not None:
                    shown.show(item.data)
            _ = stream.result
            return True
    except PeerUnreachable:
        return False


class _Progress:
    """One line that is written over on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._open = False
        self._next = 0.0

    def show(self, views: dict[str, Any]) -> None:
        """Say how far it is."""
        now = time.monotonic()
        if not any(view["left"] for view in views.values()):
            return
        if not self._terminal and now < self._next:
            return
        self._next = now + _PLAIN_EVERY_S
        line = "; ".join(described(name, view) for name, view in views.items())
        if self._terminal:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave no half a line behind."""
        if self._open:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._open = False


def described(name: str, view: dict[str, Any]) -> str:
    """``n1: 5 left, 1 on the way out; web.2 stays: 1 other copy is away, …``."""
    line = f"{name}: {view['left']} left"
    if view["leaving"]:
        line += f", {view['leaving']} on the way out"
    for instance, why in view["staying"].items():
        return f"{line}; {instance} stays: {why}"
    return line
