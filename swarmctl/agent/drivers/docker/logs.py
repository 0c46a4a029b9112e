"""The output of containers.

Following has a trap: when a container ends while dockerd waits for more of its output, dockerd
(before 23.0) may end the answer without the last lines.
So followed lines are asked for with their times, and at the end of the answer everything later
than the last line seen is asked for once more.  Of a container with a terminal, whose output is
not framed by lines, the end is taken as dockerd gives it; so are lines that were in a log file
that dockerd rotated away in the same moment.
"""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import urlencode

import trio
from attrs import define, field

from swarmctl.agent.drivers.api import LogChunk
from swarmctl.agent.drivers.docker.faults import translate
from swarmctl.agent.drivers.docker.report import epoch
from swarmctl.agent.drivers.docker.streams import FRAME_HEADER_BYTES, STREAMS
from swarmctl.agent.drivers.docker.wire import Endpoint, Refusal, request
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed

# Docker splits lines at 16 KiB; a frame far beyond that is not one.
FRAME_MAX_BYTES: Final = 1024 * 1024
# The times of stdout's and stderr's lines may be out of order in the file by a little.
DISORDER_S: Final = 1.0
_STAMP: Final = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d) ")


def stamp_of(data: bytes) -> float:
    """The time that a stamped line begins with, epoch seconds; 0 when it begins with none."""
    match = _STAMP.match(data)
    return epoch(match[0].decode().rstrip()) if match else 0.0


@define
class Lines:
    """Takes frames of one stamped line each, and leaves out those that it had before.

    Lines of a stream may share a time (parts of a long one do), so they are counted.
    """

    _buffer: bytearray = field(factory=bytearray)
    _last: dict[str, tuple[bytes, int]] = field(factory=dict)
    _skip: dict[str, tuple[bytes, int]] = field(factory=dict)

    @property
    def last_at(self) -> float:
        """The time of the last line seen; 0 when there was none."""
        return max((stamp_of(stamp + b" ") for stamp, _ in self._last.values()), default=0.0)

    def again(self) -> None:
        """From now on, leave out what was seen so far."""
        self._skip = dict(self._last)
        self._buffer.clear()

    def feed(self, data: bytes, *, keep_stamps: bool) -> list[LogChunk]:
        """The new lines in ``data``; those of one stream in a row are one chunk.

        Raises:
            LaunchFailed: these are no frames.
        """
        self._buffer += data
        runs: list[tuple[str, bytes, bytearray]] = []
        start = 0
        while len(self._buffer) - start >= FRAME_HEADER_BYTES:
            body = start + FRAME_HEADER_BYTES
            size = int.from_bytes(self._buffer[start + 4 : body], "big")
            if self._buffer[start] not in STREAMS or size > FRAME_MAX_BYTES:
                raise LaunchFailed("Docker's output is not framed as expected")
            if len(self._buffer) - body < size:
                break
            frame = bytes(self._buffer[body : body + size])
            stream = STREAMS[self._buffer[start]]
            start = body + size
            stamp, _, line = frame.partition(b" ")
            if self._is_new(stream, stamp):
                if not runs or runs[-1][0] != stream:
                    runs.append((stream, stamp, bytearray()))
                runs[-1][2].extend(frame if keep_stamps else line)
        del self._buffer[:start]
        return [
            LogChunk(stream, bytes(text), stamp_of(stamp + b" ") if keep_stamps else 0.0)
            for stream, stamp, text in runs
        ]

    def _is_new(self, stream: str, stamp: bytes) -> bool:
        skipped, times = self._skip.get(stream, (b"", 0))
        # Docker's times have all nine digits here, so they sort as text.
        if stamp < skipped:
            return False
        if stamp == skipped and times:
            self._skip[stream] = (skipped, times - 1)
            return False
        last, count = self._last.get(stream, (b"", 0))
        self._last[stream] = (stamp, count + 1 if stamp == last else 1)
        return True


async def read_logs(
    endpoint: Endpoint,
    container_id: str,
    where: str,
    *,
    tty: bool,
    follow: bool,
    tail: int | None,
    timestamps: bool,
) -> AsyncGenerator[LogChunk, None]:
    """A container's output; see :class:`swarmctl.agent.drivers.api.Logs`."""
    options: dict[str, Any] = {
        "stdout": 1,
        "stderr": 1,
        "follow": int(follow),
        "timestamps": int(timestamps or not tty),
        "tail": "all" if tail is None else tail,
    }
    lines = Lines()
    async with aclosing(_bodies(endpoint, container_id, where, options)) as bodies:
        async for data in bodies:
            if tty:
                yield LogChunk("stdout", data, stamp_of(data))
                continue
            for chunk in lines.feed(data, keep_stamps=timestamps):
                yield chunk
    if tty or not follow:
        return
    lines.again()
    options["follow"] = 0
    if lines.last_at:
        options |= {"since": f"{lines.last_at - DISORDER_S:.6f}", "tail": "all"}
    # Removed at its end, it has nothing more to tell.
    rest = _bodies(endpoint, container_id, where, options, gone_is_empty=True)
    async with aclosing(rest) as bodies:
        async for data in bodies:
            for chunk in lines.feed(data, keep_stamps=timestamps):
                yield chunk


async def _bodies(
    endpoint: Endpoint,
    container_id: str,
    where: str,
    options: dict[str, Any],
    *,
    gone_is_empty: bool = False,
) -> AsyncGenerator[bytes, None]:
    path = f"/containers/{container_id}/logs?{urlencode(options)}"
    try:
        async with request(endpoint, "GET", path) as answer, aclosing(answer.chunks()) as chunks:
            async for data in chunks:
                yield data
    except Refusal as refusal:
        if refusal.status == 404 and gone_is_empty:
            return
        raise translate(refusal.status, refusal.text, where, "read its output") from None
    except trio.BrokenResourceError:
        raise DriverUnavailable("dockerd closed the connection", where) from None
