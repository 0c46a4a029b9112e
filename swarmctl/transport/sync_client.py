"""The plain command line's end: blocking, with deadlines, without trio.

It tells apart what a user must do different things about, and quickly: nothing listens
(:class:`~swarmctl.proto.errors.NoController`, within milliseconds where TCP refuses), something
listens that is not our controller (HandshakeFailed), and a controller that refuses our key
(KeyRefused).
With several addresses each is tried in turn; the first that lets us in is used.
"""

import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

import zmq

from swarmctl.proto.errors import DeadlineExceeded, NoController, PeerUnreachable
from swarmctl.transport import bounds as limits
from swarmctl.transport.api import LinkFailure
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.context import ZmqContext, new_context
from swarmctl.transport.dealer import configure_dealer, read_dealer, start_connecting
from swarmctl.transport.endpoint import check_remote_endpoint
from swarmctl.transport.errors import (
    Backpressure,
    HandshakeFailed,
    InvalidEndpoint,
    KeyRefused,
    LinkLost,
    PayloadTooLarge,
)
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.monitor import LINK_EVENTS, Monitor, Phase, Progress


class SyncClient:
    """One connection to a controller; made by :func:`connect`, and a context manager."""

    def __init__(
        self,
        context: ZmqContext,
        endpoint: str,
        server_public_key: str,
        keypair: KeyPair,
        bounds: Bounds,
    ) -> None:
        self.endpoint = endpoint
        self._context = context
        self._bounds = bounds
        self._progress = Progress(endpoint)
        self._waiting: deque[bytes] = deque()
        self._socket = context.socket(zmq.DEALER)
        configure_dealer(
            self._socket, server_public_key, keypair, bounds, limits.HANDSHAKE_TIMEOUT_S
        )
        self._socket.set(zmq.HEARTBEAT_IVL, int(limits.CLIENT_PING_S * 1000))
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, int(limits.CLIENT_PING_TIMEOUT_S * 1000))
        self._monitor = Monitor(self._socket, LINK_EVENTS)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor.socket, zmq.POLLIN)

    def __enter__(self) -> "SyncClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; a payload that TCP has not taken yet is dropped.

        A second call does nothing; whoever sends or receives after it is told LinkLost.
        """
        if not self._socket.closed:
            self._close_sockets()
            self._context.term()

    def _close_sockets(self) -> None:
        self._monitor.close()
        self._socket.close()

    def send(self, payload: bytes) -> None:
        """Hand a payload to the connection.

        Raises:
            LinkLost: the connection is gone.
            Backpressure: the controller does not read.
            PayloadTooLarge: the payload is beyond the bound.
        """
        if len(payload) > self._bounds.payload_bytes:
            raise PayloadTooLarge(
                f"a payload of {len(payload)} bytes; the bound is {self._bounds.payload_bytes}"
            )
        self._observe()
        if self._progress.phase is not Phase.READY:
            raise self._lost()
        try:
            self._socket.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            self._observe()
            if self._progress.phase is not Phase.READY:
                raise self._lost() from None
            raise Backpressure("the controller does not read", self.endpoint) from None

    def receive(self, timeout_s: float) -> bytes:
        """Wait for the next payload.

        Raises:
            DeadlineExceeded: none came in time; the connection is still there.
            LinkLost: the connection ended, and all that had arrived was handed out.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._waiting:
                return self._waiting.popleft()
            # First what happened, then what arrived: what came before the end is not lost.
            self._observe()
            ended = self._progress.phase is not Phase.READY
            arrived, _ = read_dealer(
                self._socket, self._bounds.batch_max, self._bounds.payload_bytes
            )
            self._waiting.extend(arrived)
            if self._waiting:
                continue
            if ended:
                raise self._lost()
            if not self._poll_until(deadline):
                raise DeadlineExceeded(
                    f"the controller did not answer within {timeout_s:g} s", self.endpoint
                )

    def wait_readable(self, descriptors: Sequence[int], timeout_s: float) -> list[int]:
        """Wait until something may have arrived, or one of ``descriptors`` is readable.

        For who serves a terminal beside the connection; call ``receive`` with 0 afterwards.
        Returns the descriptors that are readable.
        """
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor.socket, zmq.POLLIN)
        for descriptor in descriptors:
            poller.register(descriptor, zmq.POLLIN)
        found = poller.poll(0 if self._waiting else int(timeout_s * 1000))
        return [ready for ready, _ in found if isinstance(ready, int)]

    def _lost(self) -> LinkLost:
        return LinkLost(
            "the connection to the controller was lost",
            self.endpoint,
            "it may have restarted; try again",
        )

    def _open(self, connect_timeout_s: float, handshake_timeout_s: float) -> None:
        """Connect; raises the failure."""
        start_connecting(self._socket, self.endpoint)
        self._wait_while(Phase.CONNECTING, connect_timeout_s)
        self._wait_while(Phase.HANDSHAKING, handshake_timeout_s)
        if self._progress.phase is not Phase.READY:
            raise self._progress.failure() or self._progress.late()

    def _wait_while(self, phase: Phase, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self._observe()
        while self._progress.phase is phase and self._poll_until(deadline):
            self._observe()

    def _poll_until(self, deadline: float) -> bool:
        """Wait for an event; False when the deadline has passed."""
        left_ms = int((deadline - time.monotonic()) * 1000)
        if left_ms <= 0:
            return False
        # Half a second at most in one go, so that Ctrl-C is felt.
        self._poller.poll(min(left_ms + 1, 500))
        return True

    def _observe(self) -> None:
        if self._socket.closed:
            raise self._lost()
        for event in self._monitor.read_nowait():
            self._progress.observe(event)


def connect(
    endpoints: str | Sequence[str],
    server_public_key: str,
    keypair: KeyPair,
    bounds: Bounds | None = None,
    *,
    connect_timeout_s: float = limits.CLIENT_CONNECT_TIMEOUT_S,
    handshake_timeout_s: float = limits.CLIENT_HANDSHAKE_TIMEOUT_S,
) -> SyncClient:
    """Connect to the first address that lets us in; the timeouts are for each address.

    Raises:
        NoController: nothing listens at any of them.
        KeyRefused: a controller is there and refuses our key.
        HandshakeFailed: something else is there.
        InvalidEndpoint: an address is malformed, or there is none.
    """
    addresses = [endpoints] if isinstance(endpoints, str) else list(endpoints)
    if not addresses:
        raise InvalidEndpoint("no controller's address is known")
    for address in addresses:
        check_remote_endpoint(address)
    failures: list[LinkFailure] = []
    context = new_context()
    for address in addresses:
        client = SyncClient(context, address, server_public_key, keypair, bounds or Bounds())
        try:
            client._open(connect_timeout_s, handshake_timeout_s)  # noqa: SLF001 - same module
        except (PeerUnreachable, HandshakeFailed, KeyRefused) as failure:
            client._close_sockets()  # noqa: SLF001 - same module
            failures.append(failure)
        except BaseException:
            client.close()
            raise
        else:
            return client
    context.term()
    raise _most_telling(failures)


def _most_telling(failures: list[LinkFailure]) -> LinkFailure:
    """Which of the failures at several addresses the user should read."""
    for kind in (KeyRefused, HandshakeFailed):
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    first = failures[0]
    where = ", ".join(failure.where for failure in failures)
    return NoController(first.what, where, first.hint)
