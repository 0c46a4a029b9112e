"""The agent's end over TCP: a DEALER with CURVE on trio.

Theory of operation. Every attempt gets a fresh socket, and libzmq's own reconnecting is off (its
interval is an hour): after a refused key libzmq gives a connection up for ever, after other
failures it tries again by itself, and in both cases the new connection would be a new peer to the
listener without our session knowing. With one socket a connection there is one rule for all: the
socket's monitor says how it went (:class:`~swarmctl.transport.monitor.Progress`), and
:class:`~swarmctl.transport.link.SupervisedLink` decides what next.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio
import zmq

from swarmctl.transport import bounds as limits
from swarmctl.transport.api import Link
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.context import ZmqContext, shared_context
from swarmctl.transport.dealer import configure_dealer, read_dealer, start_connecting
from swarmctl.transport.endpoint import check_remote_endpoint
from swarmctl.transport.errors import Backpressure, LinkLost
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.link import Backoff, SupervisedLink, supervised
from swarmctl.transport.monitor import LINK_EVENTS, Monitor, Phase, Progress
from swarmctl.transport.readiness import Readable


@attrs.frozen
class _Target:
    """What all attempts of one link have in common."""

    context: ZmqContext
    server_public_key: str
    keypair: KeyPair
    bounds: Bounds
    connect_timeout_s: float
    handshake_timeout_s: float

    async def dial(self, endpoint: str) -> "_ZmqConnection":
        """One attempt: a ready connection, or the failure raised."""
        connection = _ZmqConnection(self, endpoint)
        try:
            await connection.wait_ready()
        except BaseException:
            connection.close()
            raise
        return connection


class _ZmqConnection:
    """One DEALER with one connection; see :class:`swarmctl.transport.link.Connection`."""

    def __init__(self, target: _Target, endpoint: str) -> None:
        self._target = target
        self._progress = Progress(endpoint)
        self.malformed = 0
        with contextlib.ExitStack() as stack:
            self._socket = target.context.socket(zmq.DEALER)
            stack.callback(self._socket.close)
            configure_dealer(
                self._socket,
                target.server_public_key,
                target.keypair,
                target.bounds,
                target.handshake_timeout_s + limits.HANDSHAKE_MARGIN_S,
            )
            self._readable = Readable(self._socket)
            stack.callback(self._readable.closing)
            self._monitor = Monitor(self._socket, LINK_EVENTS)
            stack.callback(self._monitor.close)
            self._monitor_readable = Readable(self._monitor.socket)
            stack.callback(self._monitor_readable.closing)
            start_connecting(self._socket, endpoint)
            self._resources = stack.pop_all()

    async def wait_ready(self) -> None:
        """Wait for TCP, then for the handshake, each with its own deadline; raise a failure."""
        target = self._target
        for phase, timeout_s in (
            (Phase.CONNECTING, target.connect_timeout_s),
            (Phase.HANDSHAKING, target.handshake_timeout_s),
        ):
            with trio.move_on_after(timeout_s):
                await self._wait_while(phase)
            # What had come when we were late ourselves is not the other end's lateness.
            self._observe()
        if self._progress.phase is not Phase.READY:
            raise self._progress.failure() or self._progress.late()

    async def wait_ended(self) -> None:
        """Wait until the connection is lost."""
        await self._wait_while(Phase.READY)

    async def _wait_while(self, phase: Phase) -> None:
        self._observe()
        while self._progress.phase is phase:
            await self._monitor_readable.wait()
            self._observe()

    def _observe(self) -> None:
        for event in self._monitor.read_nowait():
            self._progress.observe(event)

    def send(self, payload: bytes) -> None:
        """Queue a payload; raises Backpressure, or LinkLost."""
        try:
            self._socket.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            # No connection and a full queue look the same to a DEALER; the monitor tells them
            # apart. If this reads the loss first, its waiter must hear of it too.
            self._observe()
            if self._progress.phase is not Phase.READY:
                self._monitor_readable.wake()
                raise LinkLost(
                    "the connection to the controller is lost", self._progress.endpoint
                ) from None
            raise Backpressure(
                "the controller does not read what is sent to it", self._progress.endpoint
            ) from None
        finally:
            self._readable.kick()

    def receive_nowait(self, count_max: int) -> list[bytes]:
        """What has arrived, up to ``count_max``."""
        batch, malformed = read_dealer(self._socket, count_max, self._target.bounds.payload_bytes)
        self.malformed += malformed
        return batch

    async def wait_readable(self) -> None:
        """Wait for a payload or for the end; may return without either."""
        try:
            await self._readable.wait()
        except trio.ClosedResourceError:
            # The supervisor closed it; the link knows by now that it is lost.
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Let go of it; wakes whoever waits."""
        self._resources.close()


@asynccontextmanager
async def open_link(
    endpoints: str | Sequence[str],
    server_public_key: str,
    keypair: KeyPair,
    bounds: Bounds | None = None,
    *,
    connect_timeout_s: float = limits.CONNECT_TIMEOUT_S,
    handshake_timeout_s: float = limits.HANDSHAKE_TIMEOUT_S,
    backoff: Backoff | None = None,
    random_: random.Random | None = None,
    context: ZmqContext | None = None,
) -> AsyncIterator[Link]:
    """Keep a connection to one of several controllers' addresses (``tcp://HOST:PORT``).

    Returns at once; :meth:`~swarmctl.transport.api.Link.wait_connected` waits for the connection.

    Raises:
        InvalidEndpoint: an address is malformed, or there is none.
    """
    addresses = [endpoints] if isinstance(endpoints, str) else endpoints
    target = _Target(
        context or shared_context(),
        server_public_key,
        keypair,
        bounds or Bounds(),
        connect_timeout_s,
        handshake_timeout_s,
    )
    link = SupervisedLink(
        target.dial,
        [check_remote_endpoint(address) for address in addresses],
        target.bounds,
        backoff or Backoff(),
        # Jitter needs no secrecy.
        random_ or random.Random(),  # noqa: S311
    )
    async with supervised(link):
        yield link
