"""The output of containers, from the log files that conmon writes.

A line of such a file is ``TIME STREAM F|P TEXT`` (the form of Kubernetes' logs); ``P`` is a piece
whose line goes on, so that what was printed is the texts one after another, with a newline after
each ``F``.  Following reads on when the folder tells of a change, over from a file that was put
aside to its successor, and ends once the end of the container is recorded and all was read.
"""

import os
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen

from swarmctl.agent.drivers.api import LogChunk
from swarmctl.agent.drivers.oci.layout import Place
from swarmctl.agent.drivers.oci.rotation import log_files
from swarmctl.agent.drivers.oci.watch import CONTENT, watch

READ_BYTES: Final = 256 * 1024
_LINE: Final = re.compile(
    rb"(?P<stamp>\S+) (?P<stream>stdout|stderr) (?P<kind>[FP]) (?P<text>.*)", re.DOTALL
)
_WHOLE: Final = re.compile(rb"^\S+ std(?:out|err) F ", re.MULTILINE)
_FRACTION: Final = re.compile(r"\.(\d{1,6})\d*")


@frozen
class Line:
    """A line of a container, or a piece of one: whether it ``begins`` and ``ends`` a line."""

    stamp: str
    stream: str
    text: bytes
    begins: bool
    ends: bool

    @property
    def at(self) -> float:
        """When it was printed, epoch seconds. conmon writes nine digits; six can be read."""
        return datetime.fromisoformat(_FRACTION.sub(r".\1", self.stamp)).timestamp()


@define
class Parser:
    """Takes a file's bytes in any pieces; lines that were cut off are left out."""

    _buffer: bytes = b""
    _open: set[str] = field(factory=set)

    def feed(self, data: bytes) -> list[Line]:
        """The lines that are whole now."""
        *whole, self._buffer = (self._buffer + data).split(b"\n")
        found = []
        for raw in whole:
            match = _LINE.fullmatch(raw)
            if match is None:
                continue
            stream, ends = match["stream"].decode(), match["kind"] == b"F"
            text = match["text"] + (b"\n" if ends else b"")
            stamp = match["stamp"].decode("ascii", "replace")
            found.append(Line(stamp, stream, text, stream not in self._open, ends))
            (self._open.discard if ends else self._open.add)(stream)
        return found

    def cut(self) -> None:
        """What comes now is another file: a line does not go on there."""
        self._buffer = b""


def last_lines(lines: Sequence[Line], count: int) -> Sequence[Line]:
    """The last ``count`` lines with all their pieces; one without its end counts, too."""
    seen = 0
    for index in range(len(lines) - 1, -1, -1):
        seen += lines[index].ends or index == len(lines) - 1
        if seen > count:
            return lines[index + 1 :]
    return lines


def chunks_of(lines: Iterable[Line], *, timestamps: bool) -> list[LogChunk]:
    """The lines as they are handed out: those of one stream in a row are one chunk."""
    runs: list[tuple[Line, bytearray]] = []
    for line in lines:
        if not runs or runs[-1][0].stream != line.stream:
            runs.append((line, bytearray()))
        if timestamps and line.begins:
            runs[-1][1].extend(line.stamp.encode() + b" ")
        runs[-1][1].extend(line.text)
    return [
        LogChunk(first.stream, bytes(text), first.at if timestamps else 0.0) for first, text in runs
    ]


class Reader:
    """Reads a container's log files, each to its end, the oldest first; blocks for the disk only.

    Args:
        place: whose.
        tail: begin with the oldest file that is needed for so many lines.
    """

    def __init__(self, place: Place, tail: int | None) -> None:
        self._place = place
        self._parser = Parser()
        self._file = -1
        self._read: set[int] = set()
        self._skip = self._not_needed(tail)

    def _not_needed(self, tail: int | None) -> int:
        """How many of the oldest files the tail does not reach."""
        if tail is None:
            return 0
        files = [path for path in log_files(self._place) if path.exists()]
        found = 0
        for index in range(len(files) - 1, -1, -1):
            if found > tail:
                return index + 1
            found += len(_WHOLE.findall(_content(files[index])))
        return 0

    def lines(self) -> list[Line]:
        """The next lines; none when there are none (yet)."""
        while True:
            data = self._piece()
            if not data:
                successor = self._successor()
                if successor is None:
                    return []
                # Only now is it sure that nothing more is written into this one.
                data = self._piece()
                if not data:
                    self._advance(successor)
                    continue
            found = self._parser.feed(data)
            if found:
                return found

    def _piece(self) -> bytes:
        return os.read(self._file, READ_BYTES) if self._file >= 0 else b""

    def _successor(self) -> Path | None:
        """The oldest file that was not read yet."""
        present: dict[int, Path] = {}
        for path in log_files(self._place):
            try:
                present[path.stat().st_ino] = path
            except FileNotFoundError:
                continue
        self._read &= present.keys()
        unread = [path for inode, path in present.items() if inode not in self._read]
        if self._file < 0 and self._skip:
            self._read.update(list(present)[: self._skip])
            unread, self._skip = unread[self._skip :], 0
        return unread[0] if unread else None

    def _advance(self, path: Path) -> None:
        try:
            opened = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return  # put aside just now; it is found under its next name
        self.close()
        self._file = opened
        self._parser.cut()
        self._read.add(os.fstat(opened).st_ino)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


async def read_logs(
    place: Place, *, follow: bool, tail: int | None, timestamps: bool
) -> AsyncGenerator[LogChunk, None]:
    """A container's output; see :class:`swarmctl.agent.drivers.api.Logs`."""
    with ExitStack() as stack:
        changes = (
            stack.enter_context(watch([place.folder, place.exit.parent], CONTENT))
            if follow
            else None
        )
        reader = await trio.to_thread.run_sync(Reader, place, tail)
        stack.callback(reader.close)
        if tail is not None:
            for chunk in chunks_of(await _so_far(reader, tail), timestamps=timestamps):
                yield chunk
        while True:
            # Before reading: what was printed before the end is in the file by then.
            ended = place.exit.exists() or not place.folder.exists()
            lines = await trio.to_thread.run_sync(reader.lines)
            for chunk in chunks_of(lines, timestamps=timestamps):
                yield chunk
            if lines:
                continue
            if changes is None or ended:
                return
            await changes.changes()


async def _so_far(reader: Reader, tail: int) -> Sequence[Line]:
    """The last lines of what there is now; the reader stands behind them."""
    kept: Sequence[Line] = ()
    while True:
        lines = await trio.to_thread.run_sync(reader.lines)
        if not lines:
            return kept
        kept = last_lines([*kept, *lines], tail) if tail else ()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
