"""``swarmctl dev``: a controller and an agent as two processes, watched over by a third.

Two processes, not one, because they fail apart: either may be killed at any time and is started
again, with backoff, and what they started lives on.  One that never served is not tried again:
its error is ours.

Both hold the read end of a *lifeline* pipe whose write end is in this process alone, so however
it ends they end with it, and the next ``dev`` finds the folder and the port free.  The folder's
lock says who runs on it; a pid file beside each log is for people.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
from attrs import define, evolve, frozen

from swarmctl.cli.process import Serve, own_command
from swarmctl.folder import LOCK_NAME, PASSAGE_MODE, DataFolder
from swarmctl.proto.errors import (
    Conflict,
    DeadlineExceeded,
    EnvironmentFault,
    NotFound,
    SwarmError,
    from_wire,
)

if TYPE_CHECKING:
    import trio

CONTEXT: Final = "dev"
# A daemon that serves within this long is fine; a slow disk takes a second or two, a small machine
# at its work ten.
READY_S: Final = 60.0
# After the agent runs, its node is known to the controller within a second.
NODE_READY_S: Final = 30.0
_LOOK_S: Final = 0.05
# First wait before a daemon that died is started again, doubled up to the second value, and
# forgotten after it ran for the third.
_RESTART_MIN_S: Final = 0.1
_RESTART_MAX_S: Final = 5.0
_RESTART_RESET_S: Final = 10.0
# Daemons that were told to stop are killed after this.
STOP_S: Final = 15.0
# A log larger than this is put aside at the next start, in place of the one before.
_LOG_MAX_BYTES: Final = 16 * 1024 * 1024
# A line from a daemon that has started: an error's three texts at the most.
_LINE_MAX_BYTES: Final = 64 * 1024


@frozen
class DevOptions:
    """What was typed after ``swarmctl dev``."""

    data: Path
    listen: str
    drivers: str
    name: str
    labels: tuple[str, ...]
    images: Path | None
    log_level: str
    log_files: bool

    def arguments(self) -> list[str]:
        """The same as typed."""
        given = ["--data", str(self.data), "--listen", self.listen, "--drivers", self.drivers]
        given += ["--log-level", self.log_level]
        given += ["--name", self.name] if self.name else []
        given += ["--images", str(self.images)] if self.images else []
        for label in self.labels:
            given += ["--label", label]
        return given


# --- in the foreground -----------------------------------------------------------------------


def serving(options: DevOptions) -> Serve:
    """The coroutine that supervises both; it reports a summary for people."""

    async def serve(task_status: "trio.TaskStatus[dict[str, Any]]") -> None:
        await _supervise_both(options, task_status)

    return serve


async def _supervise_both(
    options: DevOptions, task_status: "trio.TaskStatus[dict[str, Any]]"
) -> None:
    import trio

    from swarmctl.cli import clusters

    with _own(options.data), _pid_file(options.data / "dev.pid", os.getpid()):
        lifeline_read, lifeline_write = os.pipe()
        try:
            async with trio.open_nursery() as nursery:
                daemons = _Daemons(options, lifeline_read)
                served = await nursery.start(daemons.keep, "controller", daemons.controller())
                # A port that was chosen for us is kept over restarts.
                daemons.options = evolve(options, listen=served["addresses"][0])
                await nursery.start(daemons.keep, "agent", daemons.agent())
                summary = await trio.to_thread.run_sync(_wait_node, options, abandon_on_cancel=True)
                # Only now: a start that fails leaves the context of another cluster as it was.
                context = clusters.from_file(options.data / "controller" / "admin.context")
                clusters.register(context, use=True)
                if not options.log_files:
                    show_summary(summary)
                    print("Ctrl-C stops it; instances run on.", file=sys.stderr)
                task_status.started(summary)
        finally:
            os.close(lifeline_write)
            os.close(lifeline_read)


def _own(folder: Path) -> DataFolder:
    try:
        return DataFolder.open(folder, "dev", PASSAGE_MODE)
    except Conflict as error:
        raise Conflict(
            f"swarmctl dev runs already ({error.what.partition(' by ')[2].removesuffix(' (dev)')})",
            str(folder),
            f"stop it with: {_stop_command(folder)}",
        ) from error


def _stop_command(folder: Path) -> str:
    from swarmctl.cli.process import default_data

    given = "" if folder == default_data("dev") else f" --data {folder}"
    return f"swarmctl dev --stop{given}"


@contextmanager
def _pid_file(path: Path, pid: int) -> Generator[None, None, None]:
    path.write_text(f"{pid}\n", encoding="ascii")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@define
class _Daemons:
    options: DevOptions
    lifeline_fd: int

    def controller(self) -> list[str]:
        options = self.options
        folder = options.data / "controller"
        return ["controller", "--data", str(folder), "--context-name", CONTEXT]

    def agent(self) -> list[str]:
        options = self.options
        arguments = ["agent", "--data", str(options.data / "agent"), "--drivers", options.drivers]
        arguments += ["--name", options.name] if options.name else []
        arguments += ["--images", str(options.images)] if options.images else []
        for label in options.labels:
            arguments += ["--label", label]
        return arguments

    async def keep(
        self,
        name: str,
        arguments: list[str],
        *,
        task_status: "trio.TaskStatus[dict[str, Any]]",
    ) -> None:
        """Run one daemon for ever.

        Raises:
            SwarmError: it did not serve the first time.
        """
        import structlog
        import trio

        log = structlog.get_logger(__name__)
        wait_s, served_once = _RESTART_MIN_S, False
        while True:
            started = trio.current_time()
            try:
                async with self._running(name, arguments) as (process, facts):
                    if not served_once:
                        served_once = True
                        task_status.started(facts)
                    ended = f"the {name} {_ending(await process.wait())}"
            except SwarmError as error:
                if not served_once:
                    raise
                ended = str(error)
            if trio.current_time() - started > _RESTART_RESET_S:
                wait_s = _RESTART_MIN_S
            log.warning(f"{ended}: starting it again", process=name, wait_s=wait_s)
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, _RESTART_MAX_S)

    @asynccontextmanager
    async def _running(
        self, name: str, arguments: list[str]
    ) -> "AsyncGenerator[tuple[trio.Process, dict[str, Any]], None]":
        """One run of a daemon, from when it serves; stopped when the block is left."""
        import trio

        log_file = open_log(self.options.data / f"{name}.log") if self.options.log_files else None
        notify_read, notify_write = os.pipe()
        try:
            process = await trio.lowlevel.open_process(
                [
                    *own_command(),
                    *arguments,
                    *self._way(name),
                    *("--log-level", self.options.log_level),
                    *("--notify-fd", str(notify_write), "--lifeline-fd", str(self.lifeline_fd)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(notify_write, self.lifeline_fd),
                # Ctrl-C is for this process, which then stops both in order.
                start_new_session=True,
            )
        finally:
            os.close(notify_write)
            if log_file is not None:
                log_file.close()
        try:
            with _pid_file(self.options.data / f"{name}.pid", process.pid):
                async with trio.lowlevel.FdStream(notify_read) as notes:
                    facts = await _answer(name, notes, process)
                yield process, facts
        finally:
            await _stop(process)

    def _way(self, name: str) -> list[str]:
        """How the controller listens, and how the agent finds it."""
        if name == "controller":
            return ["--listen", self.options.listen]
        token = self.options.data / "controller" / "join.token"
        # A revoked token is gone; a node that is enrolled needs none.
        join = ["--join", str(token)] if token.exists() else []
        return ["--controller", self.options.listen, *join]


async def _answer(
    name: str, notes: "trio.lowlevel.FdStream", process: "trio.Process"
) -> dict[str, Any]:
    """What a daemon says when it serves.

    Raises:
        SwarmError: why it does not.
    """
    import trio

    line = bytearray()
    with trio.move_on_after(READY_S) as waiting:
        while not line.endswith(b"\n") and len(line) < _LINE_MAX_BYTES:
            piece = await notes.receive_some(_LINE_MAX_BYTES)
            if not piece:
                ended = _ending(await process.wait())
                raise EnvironmentFault(f"the {name} {ended} before it served", hint="see its log")
            line += piece
    if waiting.cancelled_caught:
        raise DeadlineExceeded(f"the {name} does not serve after {READY_S:g} s", hint="see its log")
    return read_note(bytes(line))


def read_note(line: bytes) -> dict[str, Any]:
    """The facts in a daemon's one line (see cli/process.py).

    Raises:
        SwarmError: the error in it.
    """
    note: dict[str, Any] = json.loads(line)
    if "error" in note:
        raise from_wire(**note["error"])
    facts: dict[str, Any] = note["ready"]
    return facts


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


async def _stop(process: "trio.Process") -> None:
    """End a process that may have ended: politely, then by force."""
    import trio

    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
            with trio.move_on_after(STOP_S):
                await process.wait()
        if process.poll() is None:
            process.kill()
            await process.wait()


# --- the summary -----------------------------------------------------------------------------


def _wait_node(options: DevOptions) -> dict[str, Any]:
    """Wait until the node takes instances; what to show then."""
    from swarmctl.agent import enrol
    from swarmctl.cli import clusters
    from swarmctl.client import Client

    context = clusters.from_file(options.data / "controller" / "admin.context")
    deadline = time.monotonic() + NODE_READY_S
    with Client(context) as client:
        while True:
            nodes = client.call("node.list")
            # Other agents may have joined: the node meant is that of the agent started here.
            own = enrol.load(options.data / "agent")
            name = own.name if own is not None else options.name
            states = {one["node"]: one["state"] for one in nodes}
            if states.get(name) in ("ready", "sick", "cordoned"):
                break
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"node {name or '(no name yet)'} is {states.get(name, 'unknown')} after "
                    f"{NODE_READY_S:g} s",
                    hint=f"see {options.data / 'agent.log'}",
                )
            time.sleep(_LOOK_S)
        node = client.call("node.inspect", {"name": name})
    return {
        "controller": context.addresses[0],
        "node": name,
        "state": node["state"],
        "drivers": [
            [one["driver"], one["available"], one["version"] or one["reason"]]
            for one in node["driver_details"]
        ],
        "data": str(options.data),
    }


def show_summary(summary: dict[str, Any]) -> None:
    """Print what runs, and where."""
    print(f"controller  {summary['controller']}")
    print(f"node        {summary['node']}, {summary['state']}")
    for name, available, text in summary["drivers"]:
        note = text if available else f"not available: {text}"
        print(f"driver      {name}  {note}")
    print(f"context     {CONTEXT} (current)")
    print(f"data        {summary['data']}")


# --- in the background -----------------------------------------------------------------------


def detach(options: DevOptions) -> None:
    """Start ``dev`` in the background; returns when its node is ready, and shows the summary.

    Raises:
        SwarmError: why it could not start.
    """
    _own(options.data).close()
    log_path = options.data / "dev.log"
    notify_read, notify_write = os.pipe()
    with open_log(log_path) as log_file:
        process = subprocess.Popen(
            [
                *own_command(),
                *("dev", *options.arguments()),
                *("--log-files", "--notify-fd", str(notify_write)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(notify_write,),
            start_new_session=True,
        )
    os.close(notify_write)
    with open(notify_read, "rb") as notes:  # noqa: PTH123 - a descriptor, not a path
        line = _read_line(notes, process)
    if not line:
        ended = _ending(process.wait())
        raise EnvironmentFault(f"it {ended} before it was ready", hint=f"see {log_path}")
    show_summary(read_note(line))
    print(f"stop it     {_stop_command(options.data)}")


def _read_line(notes: IO[bytes], process: "subprocess.Popen[bytes]") -> bytes:
    readable, _, _ = select.select([notes], [], [], 2 * READY_S + NODE_READY_S)
    if not readable:
        process.terminate()
        raise DeadlineExceeded("it is not ready, and was stopped", hint="see the logs in --data")
    return notes.readline(_LINE_MAX_BYTES)


def open_log(path: Path) -> IO[bytes]:
    """A log to append to; one that has grown large is put aside first."""
    if path.exists() and path.stat().st_size > _LOG_MAX_BYTES:
        path.replace(path.with_suffix(".log.1"))
    path.touch(mode=0o600)
    return path.open("ab")


def stop(folder: Path) -> None:
    """Stop the ``dev`` that runs on ``folder``, and wait until it has ended.

    Raises:
        NotFound: none does.
        DeadlineExceeded: it does not end.
    """
    pid_fd = _holder(folder)
    try:
        signal.pidfd_send_signal(pid_fd, signal.SIGTERM)
        ended, _, _ = select.select([pid_fd], [], [], 2 * STOP_S)
        if not ended:
            raise DeadlineExceeded(
                f"it does not end after {2 * STOP_S:g} s", str(folder), "see its logs there"
            )
    except ProcessLookupError:
        pass  # It ended in this moment.
    finally:
        os.close(pid_fd)
    click.echo("stopped; instances run on, and are found again at the next start")


def _holder(folder: Path) -> int:
    """A descriptor of the process that holds the folder, which no other process can become."""
    nobody = NotFound("no swarmctl dev runs on this folder", str(folder), "nothing to stop")
    try:
        text = (folder / LOCK_NAME).read_text(encoding="ascii")
    except FileNotFoundError:
        raise nobody from None
    pid, _, purpose = text.strip().partition(" ")
    if not pid.isdecimal():
        raise nobody
    try:
        descriptor = os.pidfd_open(int(pid))
    except ProcessLookupError:
        raise nobody from None
    # Only now is it certain whose descriptor that is: the lock is held, and by the same text.
    held = _is_held(folder) and (folder / LOCK_NAME).read_text(encoding="ascii") == text
    if held and purpose == "dev":
        return descriptor
    os.close(descriptor)
    raise nobody


def _is_held(folder: Path) -> bool:
    try:
        DataFolder.open(folder, "dev").close()
    except Conflict:
        return True
    return False
