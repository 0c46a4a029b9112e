"""Commands in containers: ``runc exec``, with its pipes or a terminal in the agent's hands.

runc itself stays between the command and us, so its exit code is the command's.  It tells the
command's process id in a file; until then nothing has begun, and what runc says is an error of
ours rather than output.  Whoever leaves ends the command: nothing is left to run for nobody.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import signal
import struct
import subprocess
import termios
import tty as terminals
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from swarmctl.agent.drivers.api import LogChunk
from swarmctl.agent.drivers.oci import faults
from swarmctl.agent.drivers.oci.layout import Layout, Place
from swarmctl.agent.drivers.oci.programs import RUNC, environment, path_of
from swarmctl.agent.drivers.oci.state import read_pid
from swarmctl.proto.errors import DriverUnavailable

# `runc exec` takes 0.1 s on an idle machine.
BEGIN_S: Final = 30.0
BEGIN_PAUSE_S: Final = 0.01
# After its command's end runc has nothing to do.
END_S: Final = 5.0
READ_BYTES: Final = 64 * 1024
END_OF_TRANSMISSION: Final = b"\x04"


class Session:
    """A command that runs in a container; see :class:`swarmctl.agent.drivers.api.Terminal`.

    Args:
        process: the runc in between.
        pid_file: where that tells the command's process id.
        place: the container's.
        outputs: what the command prints, by stream.
        typed: where what is typed goes; None when nothing is.
        pty: the terminal's master side; None without one.
    """

    def __init__(
        self,
        process: trio.Process,
        pid_file: Path,
        place: Place,
        outputs: dict[str, trio.lowlevel.FdStream],
        typed: trio.abc.SendStream | None,
        pty: trio.lowlevel.FdStream | None,
    ) -> None:
        self._process = process
        self._pid_file = pid_file
        self._place = place
        self._outputs = outputs
        self._typed = typed
        self._pty = pty

    async def receive(self) -> LogChunk | None:
        """The next output, or None at the end."""
        while self._outputs:
            for name, stream in list(self._outputs.items()):
                data = _read(stream.fileno())
                if data:
                    await trio.lowlevel.checkpoint()
                    return LogChunk(name, data)
                if data is not None:
                    del self._outputs[name]
            await _wait_readable([stream.fileno() for stream in self._outputs.values()])
        return None

    async def send(self, data: bytes) -> None:
        """Type ``data``. What is typed after the end goes nowhere, as into any closed terminal."""
        if self._typed is None:
            await trio.lowlevel.checkpoint()
            return
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._typed.send_all(data)

    async def send_eof(self) -> None:
        """Close its standard input; on a terminal, by Ctrl-D."""
        if self._pty is not None:
            await self.send(END_OF_TRANSMISSION)
        elif self._typed is not None:
            await self._typed.aclose()

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size; nothing happens without one, or when it has ended."""
        await trio.lowlevel.checkpoint()
        if self._pty is None or self._process.returncode is not None:
            return
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._pty.fileno(), termios.TIOCSWINSZ, size)
        # It is not runc's controlling terminal, so the kernel does not tell it.
        self._process.send_signal(signal.SIGWINCH)

    async def exit_code(self) -> int | None:
        """After the end: the exit code."""
        with trio.move_on_after(END_S):
            return await self._process.wait()
        return None

    async def kill(self) -> None:
        """End the command; nothing happens when it has ended."""
        await trio.lowlevel.checkpoint()
        if self._process.returncode is None:
            _kill(self._pid_file, self._place)

    async def begin(self, where: str) -> None:
        """Return once the command runs, or ran.

        Raises:
            UserError: there is no such command in the container.
            LaunchFailed: runc fails.
            DriverUnavailable: runc hangs.
        """
        with trio.move_on_after(BEGIN_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
                # Not by inotify: a node has 128 of those, and each health check would need one.
                while not self._pid_file.exists():  # noqa: ASYNC110
                    await trio.sleep(BEGIN_PAUSE_S)
                nursery.cancel_scope.cancel()
        if self._pid_file.exists():
            return
        if self._process.returncode is None:
            raise DriverUnavailable(f"runc did not begin it within {BEGIN_S:g} s", where)
        words = b""
        while (chunk := await self.receive()) is not None:
            words += chunk.data
        raise faults.translate(words.decode(errors="replace"), where, "run a command in it")

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        await self._process.wait()
        scope.cancel()

    async def end(self) -> None:
        """End the command and runc, and close all that leads to them."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_S):
            await self.kill()
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        for stream in (self._pty, self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with trio.CancelScope(shield=True):  # closing a pipe waits for nothing
                    await stream.aclose()


@asynccontextmanager
async def open_session(
    layout: Layout,
    place: Place,
    command: tuple[str, ...],
    where: str,
    *,
    tty: bool,
    stdin: bool,
) -> AsyncGenerator[Session, None]:
    """Run ``command`` in the container, and end it when the context is left.

    Raises:
        UserError: there is no such command in the container.
        LaunchFailed: runc fails.
        DriverUnavailable: runc is not there, or hangs.
    """
    pid_file = layout.sessions / secrets.token_hex(16)
    arguments = [path_of(RUNC), "--root", str(layout.runtime), "exec", "--pid-file", str(pid_file)]
    arguments += ["--tty", "--env", "TERM=xterm"] if tty else []
    try:
        with faults.refusals("run a command in it", where):
            process, pty = await _spawn([*arguments, place.id, *command], tty=tty, stdin=stdin)
        session = _session(process, pty, pid_file, place)
        try:
            await session.begin(where)
            yield session
        finally:
            await session.end()
    finally:
        pid_file.unlink(missing_ok=True)


async def _spawn(
    command: list[str], *, tty: bool, stdin: bool
) -> tuple[trio.Process, trio.lowlevel.FdStream | None]:
    """Start runc with pipes, or with a terminal of its own of which we get the other side."""
    if not tty:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd="/",
            start_new_session=True,
        )
        return process, None
    master, slave = os.openpty()
    # Here: runc does so when it gets there, and what is typed before must not be echoed twice.
    terminals.setraw(slave)
    stream = trio.lowlevel.FdStream(master)
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment() | {"TERM": "xterm"},
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.aclose()
        raise
    finally:
        os.close(slave)
    return process, stream


def _session(
    process: trio.Process, pty: trio.lowlevel.FdStream | None, pid_file: Path, place: Place
) -> Session:
    if pty is not None:
        return Session(process, pid_file, place, {"stdout": pty}, pty, pty)
    outputs = {"stdout": process.stdout, "stderr": process.stderr}
    streams = {
        name: stream
        for name, stream in outputs.items()
        if isinstance(stream, trio.lowlevel.FdStream)
    }
    return Session(process, pid_file, place, streams, process.stdin, None)


def _kill(pid_file: Path, place: Place) -> None:
    """Kill the command, if it is there and surely that one: its number may be another's by now."""
    pid = read_pid(pid_file)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        if place.id in Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"):
            os.kill(pid, signal.SIGKILL)


def _read(descriptor: int) -> bytes | None:
    """What is there; empty at the end, None when there is nothing yet."""
    try:
        return os.read(descriptor, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        # How a terminal says that nobody has its other side open any more.
        if error.errno == errno.EIO:
            return b""
        raise


async def _wait_readable(descriptors: Collection[int]) -> None:
    """Wait until one of them has something, or has ended."""
    if not descriptors:
        await trio.lowlevel.checkpoint()
        return
    async with trio.open_nursery() as nursery:

        async def wait(descriptor: int) -> None:
            await trio.lowlevel.wait_readable(descriptor)
            nursery.cancel_scope.cancel()

        for descriptor in descriptors:
            nursery.start_soon(wait, descriptor)
