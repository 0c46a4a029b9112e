"""What a VM printed on its serial console, read from the file that virtlogd writes.

virtlogd bounds that file: at its limit (2 MiB by default) it becomes ``console.log.0``, the one
before that ``.1``, and so on, and a new file begins.  A reader that follows notices by the file's
inode.  A file does not tell when it grew in a way that all file systems agree on, so it is looked
at a few times a second, only while somebody follows.

The file has no times.  With ``timestamps`` a line read while following gets the time at which it
was read, and a line from before gets the file's last change: the latest that it can be.
"""

import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import trio

from swarmctl.agent.drivers.api import LogChunk
from swarmctl.proto.limits import STREAM_CHUNK_BYTES

FOLLOW_POLL_S: Final = 0.2
# virtlogd keeps 3 by default; an administrator may keep more, nobody reads more.
BACKUPS_MAX: Final = 9
# Read of one part; virtlogd's bound is 2 MiB unless it was raised or switched off.
PART_MAX_BYTES: Final = 8 * 1024 * 1024


class _Stamper:
    """Puts a time before each line, across chunks."""

    def __init__(self) -> None:
        self._line_begins = True

    def __call__(self, data: bytes, at: float) -> bytes:
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        prefix = stamp.replace("+00:00", "Z").encode() + b" "
        out = []
        for line in data.splitlines(keepends=True):
            out.append(prefix + line if self._line_begins else line)
            self._line_begins = line.endswith(b"\n")
        return b"".join(out)


def history(path: Path, tail: int | None) -> tuple[bytes, int, int]:
    """Output so far, of which the last ``tail`` lines; with the file's inode and length. Blocks."""
    data, inode, length = b"", 0, 0
    for part in (path, *(path.with_name(f"{path.name}.{i}") for i in range(BACKUPS_MAX))):
        if tail is not None and data.count(b"\n") > tail:
            break
        try:
            with part.open("rb") as file:
                status = os.fstat(file.fileno())
                file.seek(max(0, status.st_size - PART_MAX_BYTES))
                content = file.read(PART_MAX_BYTES)
                end = file.tell()
        except FileNotFoundError:
            if part != path:
                break
            continue  # being rotated: the new one is about to appear
        data = content + data
        if part == path:
            inode, length = status.st_ino, end
    return (data if tail is None else last_lines(data, tail)), inode, length


def last_lines(data: bytes, count: int) -> bytes:
    """The last ``count`` lines; an unfinished one at the end counts."""
    lines = data.splitlines(keepends=True)
    return b"".join(lines[max(0, len(lines) - count) :])


def grown(path: Path, inode: int, offset: int) -> tuple[bytes, int, int]:
    """What came after ``offset``, a rotation in between included; the new inode and offset."""
    current, rotated = path, path.with_name(f"{path.name}.0")
    try:
        if path.stat().st_ino != inode and rotated.exists() and rotated.stat().st_ino == inode:
            current = rotated
        with current.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != inode:
                offset = 0  # a new file, and the old one is gone
            file.seek(offset)
            data = file.read(STREAM_CHUNK_BYTES)
    except FileNotFoundError:
        return b"", inode, offset
    if current is rotated and not data:
        return b"", 0, 0  # the old one is read to its end; go on with the new one
    return data, status.st_ino, offset + len(data)


async def read(
    path: Path,
    *,
    follow: bool,
    tail: int | None,
    timestamps: bool,
    has_ended: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[LogChunk, None]:
    """The output of the console whose log is ``path``; see ``Logs`` in the driver contract.

    Args:
        path: the log file; it need not be there yet.
        follow: whether to go on until ``has_ended`` says so and all is read.
        tail: how many lines from before, all with None.
        timestamps: whether each line begins with its time.
        has_ended: whether nothing will be written any more.
    """
    stamp = _Stamper()

    def chunk(data: bytes, at: float) -> LogChunk:
        return LogChunk("stdout", stamp(data, at) if timestamps else data, at)

    data, inode, offset = await trio.to_thread.run_sync(history, path, tail)
    changed = await trio.to_thread.run_sync(_changed_at, path)
    for start in range(0, len(data), STREAM_CHUNK_BYTES):
        yield chunk(data[start : start + STREAM_CHUNK_BYTES], changed)
    while follow:
        ended = await has_ended()  # asked first: what it printed last is read after this
        data, inode, offset = await _read_on(path, inode, offset)
        if data:
            yield chunk(data, time.time())
        elif ended:
            return
        else:
            await trio.sleep(FOLLOW_POLL_S)


async def _read_on(path: Path, inode: int, offset: int) -> tuple[bytes, int, int]:
    data, now, reached = await trio.to_thread.run_sync(grown, path, inode, offset)
    if not data and now == 0 and inode != 0:
        return await trio.to_thread.run_sync(grown, path, 0, 0)
    return data, now, reached


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
