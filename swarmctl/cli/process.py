"""A daemon as a process: it tells who started it that it serves, and stops when it is told to.

Whoever starts a daemon may hand it two descriptors. To *notify* it writes one line of JSON, once:
``{"ready": …}`` when it serves, or ``{"error": …}`` when it cannot, so that the starter shows the
error as its own. The *lifeline* it only reads: its end means that the starter is gone, however
that ended, and the daemon stops as it does on SIGTERM.
"""

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import structlog
import trio
from attrs import define

from swarmctl import garbage
from swarmctl.cli import logs
from swarmctl.proto.errors import SwarmError, sole_error

_log = structlog.get_logger(__name__)

Serve = Callable[["trio.TaskStatus[dict[str, Any]]"], Awaitable[None]]


@define
class Notifier:
    """The descriptor on which a starter waits; -1 when nobody does."""

    descriptor: int = -1

    def ready(self, facts: dict[str, Any]) -> None:
        """Say that it serves, and what a starter should know."""
        self._say({"ready": facts})

    def failed(self, error: SwarmError) -> bool:
        """Hand the error to the starter; False when there is none who would show it."""
        return self._say(
            {
                "error": {
                    "code": error.code,
                    "what": error.what,
                    "where": error.where,
                    "hint": error.hint,
                }
            }
        )

    def _say(self, message: dict[str, Any]) -> bool:
        if self.descriptor < 0:
            return False
        try:
            os.write(self.descriptor, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            return False  # The starter has gone: nobody waits any more.
        finally:
            os.close(self.descriptor)
            self.descriptor = -1
        return True


def run_daemon(name: str, level: str, serve: Serve, *, notify_fd: int, lifeline_fd: int) -> None:
    """Run ``serve`` until it ends, a signal comes, or the starter is gone.

    Args:
        name: the daemon's, for its log.
        level: of its log.
        serve: reports its facts by ``task_status`` once it serves.
        notify_fd: see the module; -1 is none.
        lifeline_fd: likewise.

    Raises:
        SwarmError: why it could not serve, or serves no more.
    """
    logs.configure(name, level)
    garbage.tune()
    notifier = Notifier(notify_fd)
    try:
        trio.run(_run, serve, notifier, lifeline_fd)
    except BaseException as error:
        cause = sole_error(error)
        if isinstance(cause, SwarmError) and notifier.failed(cause):
            raise click.exceptions.Exit(cause.exit_code) from error
        raise


async def _run(serve: Serve, notifier: Notifier, lifeline_fd: int) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_heed_signals, nursery.cancel_scope)
        if lifeline_fd >= 0:
            nursery.start_soon(_heed_lifeline, lifeline_fd, nursery.cancel_scope)
        async with trio.open_nursery() as inner:
            facts = await inner.start(_served, serve)
            notifier.ready(facts)
        nursery.cancel_scope.cancel()


async def _served(serve: Serve, *, task_status: "trio.TaskStatus[dict[str, Any]]") -> None:
    await serve(task_status)


async def _heed_signals(
    scope: trio.CancelScope, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancel on the first signal; a second one finds the default, and ends the process."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        wanted.append(signal.SIGHUP)
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        async for number in signals:
            _log.info("stopping", signal=signal.Signals(number).name)
            scope.cancel()
            return


async def _heed_lifeline(descriptor: int, scope: trio.CancelScope) -> None:
    stream = trio.lowlevel.FdStream(descriptor)
    async with stream:
        while await stream.receive_some(1):
            pass
    scope.cancel()


def own_command() -> list[str]:
    """How to start another swarmctl of the same installation."""
    if getattr(sys, "frozen", False):
        return [sys.executable]
    # -P: a module in the folder that the user happens to be in is not ours.
    return [sys.executable, "-P", "-m", "swarmctl"]


def default_data(name: str) -> Path:
    """Where a daemon keeps its data when nobody says."""
    if os.geteuid() == 0:
        return Path("/var/lib/swarmctl") / name
    return Path.home() / ".local/share/swarmctl" / name
