"""Commands in containers, and Docker's way to send two streams over one.

Without a terminal Docker multiplexes stdout and stderr in frames (one byte of stream, three of
nothing, four of length); with one there is a single raw stream.
"""

import contextlib
import os
import signal
from collections import deque
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field

from swarmctl.agent.drivers.api import LogChunk
from swarmctl.agent.drivers.docker.calls import Calls, Missing, Taken
from swarmctl.agent.drivers.docker.wire import Answer
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, SwarmError

FRAME_HEADER_BYTES: Final = 8
STREAMS: Final = {0: "stdout", 1: "stdout", 2: "stderr"}
# Resizing, or asking for an exec's exit code.
EXEC_CALL_S: Final = 10.0
# An exec can be resized, and has an exit code, a moment after dockerd says so.
EXEC_SETTLES_S: Final = 2.0
EXEC_PAUSE_S: Final = 0.02
# What closes a terminal's input: Ctrl-D.
END_OF_TRANSMISSION: Final = b"\x04"


@define
class Demultiplexer:
    """Takes frames apart; what has arrived of a frame is passed on without waiting for the rest."""

    _header: bytearray = field(factory=bytearray)
    _stream: str = ""
    _left: int = 0

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The pieces of output in ``data``; frames of the same stream in a row are one piece.

        Raises:
            LaunchFailed: these are no frames.
        """
        pieces: list[tuple[str, bytearray]] = []
        view = memoryview(data)
        while view:
            if self._left:
                taken = view[: self._left]
                if not pieces or pieces[-1][0] != self._stream:
                    pieces.append((self._stream, bytearray()))
                pieces[-1][1].extend(taken)
                self._left -= len(taken)
                view = view[len(taken) :]
                continue
            missing = FRAME_HEADER_BYTES - len(self._header)
            self._header += view[:missing]
            view = view[missing:]
            if len(self._header) == FRAME_HEADER_BYTES:
                if self._header[0] not in STREAMS or any(self._header[1:4]):
                    raise LaunchFailed("Docker's output is not framed as expected")
                self._stream = STREAMS[self._header[0]]
                self._left = int.from_bytes(self._header[4:], "big")
                self._header.clear()
        return [(stream, bytes(piece)) for stream, piece in pieces]


class ExecTerminal:
    """A command that runs in a container; see :class:`swarmctl.agent.drivers.api.Terminal`."""

    def __init__(
        self, calls: Calls, answer: Answer, exec_id: str, where: str, *, tty: bool
    ) -> None:
        self._calls = calls
        self._answer = answer
        self._exec_id = exec_id
        self._where = where
        self._tty = tty
        self._code: int | None = None
        self._demultiplexer = Demultiplexer()
        self._waiting: deque[tuple[str, bytes]] = deque()

    async def receive(self) -> LogChunk | None:
        """The next output, or None at the end."""
        while not self._waiting:
            try:
                data = await self._answer.receive_some()
            except trio.BrokenResourceError:
                raise DriverUnavailable("dockerd closed the connection", self._where) from None
            if not data:
                return None
            if self._tty:
                self._waiting.append(("stdout", data))
            else:
                self._waiting.extend(self._demultiplexer.feed(data))
        stream, piece = self._waiting.popleft()
        return LogChunk(stream, piece)

    async def send(self, data: bytes) -> None:
        """Type ``data``. What is typed after the end goes nowhere, as into any closed terminal."""
        try:
            await self._answer.send(data)
        except trio.BrokenResourceError:
            pass  # the end itself is told by receive

    async def send_eof(self) -> None:
        """Close its standard input: by half-closing, or by Ctrl-D on a terminal."""
        if self._tty:
            await self.send(END_OF_TRANSMISSION)
            return
        try:
            await self._answer.send_eof()
        except trio.BrokenResourceError:
            pass  # as above

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size; nothing happens when the command has ended."""
        last: SwarmError | Missing | Taken | None = None
        with trio.move_on_after(EXEC_SETTLES_S):
            while True:
                try:
                    await self._calls.run(
                        lambda client: client.exec_resize(self._exec_id, rows, columns),
                        where=self._where,
                        doing="resize its terminal",
                        deadline_s=EXEC_CALL_S,
                    )
                except (LaunchFailed, Missing, Taken) as error:
                    last = error  # it has not started yet, or ended: which of them, time tells
                else:
                    return
                await trio.sleep(EXEC_PAUSE_S)
        if await self._running():
            raise DriverUnavailable(f"could not resize the terminal: {last}", self._where)

    async def exit_code(self) -> int | None:
        """After the end: the exit code; None when dockerd does not know it (any more)."""
        with trio.move_on_after(EXEC_SETTLES_S):
            while await self._running():  # noqa: ASYNC110 - dockerd has no event for it
                await trio.sleep(EXEC_PAUSE_S)
            return self._code
        return None

    async def kill(self) -> None:
        """End the command by force: Docker has no way, but its process is one of this machine's.

        A dockerd of another machine, or beyond our view of processes, leaves it running.
        """
        with contextlib.suppress(Missing, Taken):
            await self._calls.run(
                lambda client: _kill(client.exec_inspect(self._exec_id)),
                where=self._where,
                doing="end a command in it",
                deadline_s=EXEC_CALL_S,
            )

    async def _running(self) -> bool:
        """Whether it still runs; when not, its exit code is kept."""
        try:
            info = await self._calls.run(
                lambda client: client.exec_inspect(self._exec_id),
                where=self._where,
                doing="ask for the exit code",
                deadline_s=EXEC_CALL_S,
            )
        except Missing:
            return False  # its container was removed
        code = info.get("ExitCode")
        if info.get("Running") or code is None:
            return True
        self._code = int(code)
        return False


def _kill(info: dict[str, Any]) -> None:
    """Kill the process of an exec, if it is there and surely that one."""
    pid, container_id = info.get("Pid"), info.get("ContainerID")
    if not info.get("Running") or not pid or not container_id:
        return
    try:
        # The number could be another process's by now, or of another machine.
        if container_id in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"):
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
