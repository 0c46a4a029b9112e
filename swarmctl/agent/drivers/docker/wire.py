"""Long answers of dockerd on trio: events, output, terminals and pulls.

Short requests go through the SDK in threads (:mod:`.calls`).  An answer that lasts as long as a
container does would hold a thread each, and a thread that reads cannot be cancelled; so these are
read here, straight from dockerd's socket, by a small HTTP/1.1 client: one request a connection,
an answer that is chunked, of known length or until the end, or an upgrade to a raw stream.
Closing the connection is how dockerd learns that nobody reads any more.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from attrs import define, field, frozen

from swarmctl.proto.errors import DriverUnavailable, InvalidSpec
from swarmctl.proto.limits import STREAM_CHUNK_BYTES

DEFAULT_SOCKET: Final = "unix:///var/run/docker.sock"
# One read of the socket, which becomes one chunk of output at the most.
READ_BYTES: Final = STREAM_CHUNK_BYTES
# dockerd's header is a few hundred bytes; more is not dockerd.
HEADER_MAX_BYTES: Final = 32 * 1024
# A line that says a chunk's size, with its extensions.
CHUNK_LINE_MAX_BYTES: Final = 1024
# One JSON object of a stream: an event with all of a container's labels.
JSON_MAX_BYTES: Final = 1024 * 1024
# The text of an error's body that is read at all.
ERROR_MAX_BYTES: Final = 64 * 1024


@frozen
class Endpoint:
    """Where dockerd listens: ``path`` of a Unix socket, or ``host`` and ``port``."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"tcp://{self.host}:{self.port}"


def parse_endpoint(url: str) -> Endpoint:
    """Read a ``DOCKER_HOST``.

    Raises:
        InvalidSpec: neither ``unix://PATH`` nor ``tcp://HOST:PORT``: an agent's dockerd is its own.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme == "unix" and parts.path:
        return Endpoint(path=parts.path)
    if parts.scheme in ("tcp", "http") and parts.hostname and port:
        return Endpoint(host=parts.hostname, port=port)
    raise InvalidSpec(
        f"{url!r} is not an address of dockerd", "docker host", "unix:///PATH or tcp://HOST:PORT"
    )


class Refusal(Exception):
    """dockerd answered with an error: ``status`` and its explanation, for the caller to judge."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


@define
class Answer:
    """An answer that is under way."""

    status: int
    headers: dict[str, str]
    _stream: trio.abc.HalfCloseableStream
    _buffer: bytearray = field(factory=bytearray)

    @property
    def upgraded(self) -> bool:
        """Whether what follows is a raw stream in both directions."""
        is_raw = self.headers.get("content-type", "").startswith("application/vnd.docker.raw")
        return self.status == 101 or (is_raw and "transfer-encoding" not in self.headers)

    async def send(self, data: bytes) -> None:
        """Write to the raw stream."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """End our half of the raw stream."""
        await self._stream.send_eof()

    async def receive_some(self) -> bytes:
        """Bytes as they come; empty at the end. For an answer without chunks."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        return bytes(await self._stream.receive_some(READ_BYTES))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body, in the pieces in which it arrives."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := await self._chunk_size():
                while size:
                    if not self._buffer:
                        await self._fill()
                    data = bytes(self._buffer[:size])
                    del self._buffer[:size]
                    size -= len(data)
                    yield data
                await self._line(CHUNK_LINE_MAX_BYTES)
            return
        left = int(self.headers.get("content-length", "-1"))
        while left and (data := await self.receive_some()):
            left -= len(data)
            yield data

    async def objects(self) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a body that is one after the other.

        Raises:
            DriverUnavailable: it is something else.
        """
        decoder = json.JSONDecoder()
        text = ""
        pending = b""
        async for data in self.chunks():
            # A chunk may end within a character; dockerd ends objects by a newline.
            pending += data
            whole, newline, pending = pending.rpartition(b"\n")
            text += (whole + newline).decode(errors="replace")
            while text := text.lstrip():
                try:
                    value, end = decoder.raw_decode(text)
                except ValueError:
                    break  # the rest of the object is still to come
                text = text[end:]
                yield value
            if len(text) + len(pending) > JSON_MAX_BYTES:
                raise DriverUnavailable("dockerd sends something that is not JSON", "docker")

    async def text(self) -> str:
        """The whole body of an error, as text."""
        body = b""
        async for data in self.chunks():
            body += data
            if len(body) > ERROR_MAX_BYTES:
                break
        return body.decode(errors="replace")

    async def read_header(self) -> None:
        """Take the status line and the header from the stream."""
        status_line = await self._line(HEADER_MAX_BYTES)
        parts = status_line.split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise DriverUnavailable("what answers there does not speak HTTP", "docker")
        self.status = int(parts[1])
        budget = HEADER_MAX_BYTES
        while line := await self._line(budget):
            budget -= len(line)
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()

    async def _chunk_size(self) -> int:
        line = await self._line(CHUNK_LINE_MAX_BYTES)
        try:
            return int(line.partition(b";")[0], 16)
        except ValueError:
            raise DriverUnavailable(f"dockerd sent a bad chunk: {line!r}", "docker") from None

    async def _line(self, limit: int) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > limit:
                raise DriverUnavailable("dockerd sent a line without end", "docker")
            await self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def _fill(self) -> None:
        data = await self._stream.receive_some(READ_BYTES)
        if not data:
            raise trio.BrokenResourceError("dockerd closed the connection")
        self._buffer += data


def unreachable(error: OSError, endpoint: Endpoint) -> DriverUnavailable:
    """The error for a connection that could not be made."""
    where = str(endpoint)
    if isinstance(error, PermissionError):
        return DriverUnavailable(
            "may not connect to dockerd", where, "run as root, or join the group docker"
        )
    if isinstance(error, TimeoutError):
        return DriverUnavailable("dockerd does not answer", where, "is dockerd hung?")
    return DriverUnavailable(f"dockerd is not there: {error}", where, "is dockerd running?")


async def connect(endpoint: Endpoint) -> trio.SocketStream:
    """A connection to dockerd.

    Raises:
        DriverUnavailable: nobody listens there, or we may not.
    """
    try:
        if endpoint.path:
            return await trio.open_unix_socket(endpoint.path)
        return await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except OSError as error:
        raise unreachable(error, endpoint) from error


@asynccontextmanager
async def request(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    body: Any = None,
    headers: dict[str, str] | None = None,
    upgrade: bool = False,
    answer_within_s: float = 10.0,
) -> AsyncGenerator[Answer, None]:
    """Send one request; the answer is open as long as the context is.

    Args:
        endpoint: where dockerd listens.
        method: such as ``GET``.
        path: with version and query.
        body: sent as JSON; None sends an empty one.
        headers: further ones.
        upgrade: ask for a raw stream in place of an answer.
        answer_within_s: how long the header of the answer may take.

    Raises:
        DriverUnavailable: dockerd is not there, closes the connection, or does not answer in time.
        Refusal: it answered with an error.
    """
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: docker", f"Content-Length: {len(payload)}"]
    lines += ["Content-Type: application/json"] if payload else []
    lines += ["Connection: Upgrade", "Upgrade: tcp"] if upgrade else ["Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    stream: trio.SocketStream | None = None
    try:
        try:
            with trio.fail_after(answer_within_s):
                stream = await connect(endpoint)
                answer = Answer(0, {}, stream)
                await stream.send_all(head + payload)
                await answer.read_header()
                if answer.status >= 400:
                    raise Refusal(answer.status, _explanation(await answer.text()))
        except trio.TooSlowError:
            raise DriverUnavailable(
                f"dockerd did not answer within {answer_within_s:g} s", str(endpoint)
            ) from None
        except trio.BrokenResourceError as error:
            raise DriverUnavailable(
                "dockerd closed the connection without an answer", str(endpoint)
            ) from error
        yield answer
    finally:
        if stream is not None:
            stream.socket.close()


def _explanation(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text
