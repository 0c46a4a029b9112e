"""The authenticator of a listener: ZAP (RFC 27), answered in the event loop.

libzmq asks once for each CURVE handshake, over ``inproc://zeromq.zap.01`` of the listener's own
context, and holds that handshake until the answer. All requests that wait are answered in one go.
In the loop rather than in a thread, because the look-up costs microseconds: measured, both carry
the same 2,000 joins a second (CURVE's arithmetic is the bound), and ``authorize`` needs no lock.

The user id given to libzmq is the peer's *public key*: it comes back with every message of that
connection, and what user that key stands for can be asked again at any time.
"""

from typing import Protocol

import zmq

from swarmctl.transport.api import Authorize
from swarmctl.transport.bounds import BATCH_MAX
from swarmctl.transport.context import ZmqContext
from swarmctl.transport.keys import encode_z85
from swarmctl.transport.readiness import Readable

DOMAIN = "swarmctl"
_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
# version, request id, domain, address, routing id, mechanism, and CURVE's one credential
_CURVE_REQUEST_FRAMES = 7
_KEY_BYTES = 32


class Verdict(Protocol):
    """Hears whether a key was let in."""

    def __call__(self, *, allowed: bool) -> None:
        """Take note of one verdict."""


class Authenticator:
    """Answers every handshake by ``authorize``; ``decided`` hears each verdict."""

    def __init__(self, context: ZmqContext, authorize: Authorize, decided: Verdict) -> None:
        self._authorize = authorize
        self._decided = decided
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self._readable = Readable(self._socket)

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            self._answer_waiting()
            await self._readable.wait()

    def close(self) -> None:
        """Stop answering; libzmq then refuses every handshake."""
        self._readable.closing()
        self._socket.close()

    def _answer_waiting(self) -> None:
        for _ in range(BATCH_MAX):
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(self._answer(request), zmq.NOBLOCK)

    def _answer(self, request: list[bytes]) -> list[bytes]:
        request_id = request[1] if len(request) > 1 else b""
        key = _public_key(request)
        allowed = key is not None and self._authorize(key) is not None
        self._decided(allowed=allowed)
        if key is None or not allowed:
            # The client is told "400" and nothing else: why is for the controller's log.
            return [_VERSION, request_id, b"400", b"refused", b"", b""]
        return [_VERSION, request_id, b"200", b"OK", key.encode("ascii"), b""]


def _public_key(request: list[bytes]) -> str | None:
    """The Z85 public key of a CURVE request; None for any other mechanism."""
    if len(request) != _CURVE_REQUEST_FRAMES or request[0] != _VERSION or request[5] != b"CURVE":
        return None
    credential = request[6]
    return encode_z85(credential) if len(credential) == _KEY_BYTES else None
