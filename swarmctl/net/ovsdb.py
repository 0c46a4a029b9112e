"""A connection to an OVSDB server: JSON-RPC (RFC 7047) on a trio stream.

Requests are answered in the order in which a server likes, and told apart by their ids; the server
asks now and then whether we are alive (``echo``), which :meth:`OvsdbConnection.serve` answers. It
is also how a dead server is noticed: we ask, too, when nothing was heard for a while.

Messages follow each other without a mark between them, and every one is an object. So what has come
is looked at only when it ends in a brace: of an answer of megabytes that is seldom before its end.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import trio
from attrs import frozen

from swarmctl.net.tls import Credentials, tls_context
from swarmctl.proto.errors import DriverUnavailable, InvalidSpec, ProtocolError

# Past that silence the server is asked, and after as long again given up.
PROBE_S: Final = 5.0
# What a lost server has sent before is read within that.
LAST_WORD_S: Final = 0.5
# One answer: 100,000 ports are about 60 MB.
MESSAGE_MAX_BYTES: Final = 512 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024


class Framing:
    """Cuts a stream of bytes into JSON messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._decoder = json.JSONDecoder()

    def feed(self, data: bytes | bytearray) -> list[Any]:
        """Take in what came; the messages that are whole now.

        Raises:
            ProtocolError: a message is too long, or not text.
        """
        self._buffer += data
        if len(self._buffer) > MESSAGE_MAX_BYTES:
            raise ProtocolError(f"a message of the server exceeds {MESSAGE_MAX_BYTES} bytes")
        if not data.rstrip().endswith(b"}"):
            return []
        try:
            text = self._buffer.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("a message of the server is not text") from error
        place, messages = 0, []
        while place < len(text):
            try:
                message, end = self._decoder.raw_decode(text, place)
            except json.JSONDecodeError:
                break  # the brace was one inside
            messages.append(message)
            place = end
            while place < len(text) and text[place].isspace():
                place += 1
        self._buffer = bytearray(text[place:].encode())
        return messages


@frozen
class Remote:
    """Where a server is: ``unix:PATH``, ``tcp:HOST:PORT`` or ``ssl:HOST:PORT``."""

    scheme: str
    place: str
    port: int = 0

    def __str__(self) -> str:
        return ":".join((self.scheme, self.place, *([str(self.port)] if self.port else [])))


def parse_remote(remote: str) -> Remote:
    """Read such an address.

    Raises:
        InvalidSpec: it is none.
    """
    scheme, _, rest = remote.partition(":")
    if scheme == "unix" and rest:
        return Remote(scheme, rest)
    host, _, port = rest.rpartition(":")
    if scheme in ("tcp", "ssl") and host and port.isascii() and port.isdecimal():
        return Remote(scheme, host.strip("[]"), int(port))
    raise InvalidSpec(
        f'"{remote}" is not an address of OVN\'s northbound database',
        hint="write unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT",
    )


async def connect(remote: Remote, credentials: Credentials | None = None) -> trio.abc.Stream:
    """Open a stream; ``credentials`` are for ``ssl:``.

    Raises:
        OSError: nobody is there, or not whom we believe.
        InvalidSpec: the credentials cannot be used.
    """
    if remote.scheme == "unix":
        return await trio.open_unix_socket(remote.place)
    if remote.scheme == "tcp":
        return await trio.open_tcp_stream(remote.place, remote.port)
    context = tls_context(credentials)
    stream = await trio.open_ssl_over_tcp_stream(remote.place, remote.port, ssl_context=context)
    shaken = False
    try:
        await stream.do_handshake()
        shaken = True
    except trio.BrokenResourceError as error:
        raise ConnectionError(_lost_by(error)) from error
    finally:
        if not shaken:
            await trio.aclose_forcefully(stream)
    return stream


def _lost_by(error: BaseException) -> str:
    """What a stream broke by, for people: of TLS mostly the other end's word."""
    cause = error.__cause__
    said = (getattr(cause, name, "") for name in ("verify_message", "reason"))
    return next(filter(None, said), str(cause or ""))


def _lost(by: str) -> DriverUnavailable:
    return DriverUnavailable(f"the connection to the server was lost{f': {by}' if by else ''}")


class _Call:
    """One request under way."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: dict[str, Any] | None = None


class OvsdbConnection:
    """One stream, from its opening to its loss; :meth:`serve` runs as long as it is used."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._calls: dict[int, _Call] = {}
        self._last_id = 0
        self._heard_s = trio.current_time()
        self._is_lost = False
        self._lost_by = ""
        self._sending = trio.Lock()

    async def serve(self) -> None:
        """Read what comes until the connection is lost, and wake everybody who waits."""
        framing = Framing()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe, nursery.cancel_scope)
                while data := await self._stream.receive_some(_READ_BYTES):
                    self._heard_s = trio.current_time()
                    for message in framing.feed(data):
                        await self._take(message)
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError as group:
            self._lost_by = _lost_by(group.exceptions[0])
        except* (trio.ClosedResourceError, DriverUnavailable):
            pass  # a lost connection, as the end of the stream is
        except* ProtocolError:
            pass  # what follows cannot be understood: as good as lost
        finally:
            self._is_lost = True
            for call in self._calls.values():
                call.done.set()
            await trio.aclose_forcefully(self._stream)

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._is_lost

    async def aclose(self) -> None:
        """Give it up."""
        self._is_lost = True
        await trio.aclose_forcefully(self._stream)

    async def transact(self, database: str, operations: Sequence[Any]) -> list[Any]:
        """One transaction; the result of each operation, and an error at the end if any.

        Raises:
            DriverUnavailable: the connection is or gets lost; then it is not known whether it
                was done.
        """
        answer = await self._call("transact", [database, *operations])
        if not isinstance(answer.get("result"), list):
            raise ProtocolError(f"the server refuses a transaction: {answer.get('error')}")
        result: list[Any] = answer["result"]
        return result

    async def _call(self, method: str, params: Sequence[Any]) -> dict[str, Any]:
        self._last_id += 1
        number, call = self._last_id, _Call()
        self._calls[number] = call
        try:
            if not self._is_lost:
                await self._send({"id": number, "method": method, "params": params})
                await call.done.wait()
        except DriverUnavailable:
            # A server that closes the door says why to who reads, not to who writes.
            with trio.move_on_after(LAST_WORD_S):
                await call.done.wait()
            if not self._lost_by:
                raise
        finally:
            del self._calls[number]
        if call.answer is None:
            raise _lost(self._lost_by)
        return call.answer

    async def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message, separators=(",", ":")).encode()
        async with self._sending:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _lost(_lost_by(error)) from error
            except trio.Cancelled:
                # Half a message may be out: nothing that follows would be understood.
                await trio.aclose_forcefully(self._stream)
                raise

    async def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if message.get("method") == "echo":
            await self._send({"id": message.get("id"), "result": message["params"], "error": None})
            return
        call = self._calls.get(message.get("id", 0))
        if call is not None:
            call.answer = message
            call.done.set()

    async def _probe(self, serving: trio.CancelScope) -> None:
        """Ask when nothing was heard, and give up when nothing comes back."""
        while True:
            await trio.sleep_until(self._heard_s + PROBE_S)
            if trio.current_time() < self._heard_s + PROBE_S:
                continue
            with trio.move_on_after(PROBE_S) as patience:
                await self._call("echo", [])
            if patience.cancelled_caught:
                serving.cancel()
                return
