"""The controller's end over TCP: a ROUTER with CURVE on trio.

Theory of operation. There is no queue of our own: ``receive_batch`` drains the socket itself, so
what nobody reads stays in libzmq up to the peer's high-water mark and then holds up that peer's
TCP connection, and a cancelled receive loses nothing. Two background tasks answer handshakes
(:mod:`~swarmctl.transport.zap`) and read connection events (:mod:`~swarmctl.transport.monitor`).
``send`` is synchronous; ``ROUTER_MANDATORY`` makes it raise for an absent peer and for a full
queue instead of dropping silently; afterwards it kicks the receiver, whose wake-up it may have
eaten.

Who sent it. libzmq attaches to each message the user id that the authenticator gave to that
*connection*: the public key. It is read from every message (under a microsecond), not from a
table keyed by the routing id, since a peer may choose its routing id, and with it another's
place in such a table. Only routing ids that libzmq made are accepted (five bytes, the first 0,
never repeated before 4 billion connections): a peer that names itself is dropped and counted.
What remains keyed by the routing id is the peer's *user* (from ``authorize``); a message whose
key differs from the entry's is treated as a new peer's. So a revoked or re-assigned key takes
effect at once, by :meth:`ZmqListener.reauthorise`, without waiting for a new handshake.

What is not as it should be (several frames, too large, a revoked user) is counted and dropped.
A frame far beyond the bound, a wrong mechanism or key, or noise on the port ends that connection
inside libzmq and disturbs no other.
"""

import contextlib
import os
import socket as sockets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
import zmq

from swarmctl.transport import bounds as limits
from swarmctl.transport.api import Arrival, Authorize, Listener, PeerId
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.context import ZmqSocket, new_context
from swarmctl.transport.dealer import PROBES
from swarmctl.transport.endpoint import check_endpoint
from swarmctl.transport.errors import (
    AddressInUse,
    CannotListen,
    InvalidEndpoint,
)
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.listener import ListenerBase
from swarmctl.transport.monitor import Monitor
from swarmctl.transport.readiness import Readable, running
from swarmctl.transport.zap import DOMAIN, Authenticator

# What libzmq's ROUTER makes itself: a zero byte and a 32-bit counter.
_ROUTING_ID_BYTES = 5
# Computed once: combining pyzmq's flags costs as much as sending.
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

_EVENTS = int(
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class ZmqListener(ListenerBase):
    """See :class:`swarmctl.transport.api.Listener`; made by :func:`open_listener`."""

    def __init__(
        self, endpoints: Sequence[str], keypair: KeyPair, authorize: Authorize, bounds: Bounds
    ) -> None:
        super().__init__(authorize, bounds)
        # Closed in the order last in, first out: the socket before its authenticator.
        with contextlib.ExitStack() as stack:
            context = new_context()
            stack.callback(context.term)
            self._authenticator = Authenticator(context, authorize, self._count_verdict)
            stack.callback(self._authenticator.close)
            self._socket = context.socket(zmq.ROUTER)
            stack.callback(self._socket.close)
            _configure(self._socket, keypair, bounds)
            self._readable = Readable(self._socket)
            stack.callback(self._readable.closing)
            self._monitor = Monitor(self._socket, _EVENTS)
            stack.callback(self._monitor.close)
            self._monitor_readable = Readable(self._monitor.socket)
            stack.callback(self._monitor_readable.closing)
            self.endpoints = tuple(_bind(self._socket, endpoint) for endpoint in endpoints)
            self._resources = stack.pop_all()

    @property
    def endpoint(self) -> str:
        """The first address listened on, with its real port."""
        return self.endpoints[0]

    def close(self) -> None:
        """Close everything; queued payloads are dropped."""
        self._resources.close()

    # --- receiving ----------------------------------------------------------------------------

    async def receive_batch(self) -> list[Arrival]:
        """See :meth:`swarmctl.transport.api.Listener.receive_batch`."""
        # The only checkpoint before a message is taken; none comes after it.
        await trio.lowlevel.checkpoint()
        while True:
            batch = self.receive_nowait()
            if batch or self._connections.any_departed():
                return batch
            await self._readable.wait()

    def receive_nowait(self) -> list[Arrival]:
        """See :meth:`swarmctl.transport.api.Listener.receive_nowait`."""
        batch: list[Arrival] = []
        size = 0
        receive = self._socket.recv
        # Dropped messages count too, so that a flood of bad ones does not hold the loop.
        for _ in range(self._bounds.batch_max):
            try:
                routing_id = receive(_NOBLOCK)
            except zmq.Again:
                break
            arrival = self._read_message(routing_id)
            if arrival is not None:
                batch.append(arrival)
                size += len(arrival.payload)
                if size >= limits.BATCH_MAX_BYTES:
                    break
        self._count("received", len(batch), size)
        return batch

    def _read_message(self, routing_id: bytes) -> Arrival | None:
        # A message is whole in the queue before its first frame, which the ROUTER puts before
        # it, can be read: none of these waits.
        frame = self._socket.recv(_NOBLOCK, copy=False)
        if frame.more:
            while frame.more:
                frame = self._socket.recv(_NOBLOCK, copy=False)
            return self._drop("dropped_frames")
        if len(routing_id) != _ROUTING_ID_BYTES or routing_id[0] != 0:
            return self._drop("dropped_routing_id")
        payload: bytes = frame.bytes
        if len(payload) > self._bounds.payload_bytes:
            return self._drop("dropped_oversize")
        public_key = frame.get("User-Id")
        peer = self._connections.peers.get(PeerId(routing_id))
        if peer is None or peer.public_key != public_key or peer.user_id is None:
            descriptor = int(frame.get(zmq.SRCFD))
            return self._admit(PeerId(routing_id), str(public_key), descriptor, payload)
        return Arrival(PeerId(routing_id), peer.user_id, payload)

    def _drop(self, counter: str) -> Arrival | None:
        self._counts[counter] += 1
        return None

    # --- sending ------------------------------------------------------------------------------

    def send(self, peer: PeerId, payload: bytes) -> None:
        """See :meth:`swarmctl.transport.api.Listener.send`."""
        self._check_send(peer, payload)
        try:
            self._socket.send(peer, _NOBLOCK_AND_MORE)
            self._socket.send(payload, _NOBLOCK)
        except zmq.Again:
            raise self._backpressure(peer) from None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise self._unreachable(peer) from None
        finally:
            # The send may have eaten the receiver's wake-up.
            self._readable.kick()
        self._count("sent", 1, len(payload))

    # --- who may stay -------------------------------------------------------------------------

    def disconnect(self, peer: PeerId) -> bool:
        """End a peer's connection by shutting its TCP socket; libzmq sees that as a hang-up.

        libzmq has no call for it. The descriptor belongs to its I/O thread, which may close it
        at any time; so it is duplicated first, and then checked (by reading the events once more)
        that the connection had not ended by then: after that the duplicate is the right one.
        """
        self._refresh()
        if not self._connections.holds(peer):
            return False
        descriptor = self._connections.peers[peer].descriptor
        try:
            connection = sockets.socket(fileno=os.dup(descriptor))
        except OSError:
            # Closed in this moment: gone, which is what was asked for.
            return False
        with connection:
            self._refresh()
            if not self._connections.holds(peer):
                return False
            try:
                connection.shutdown(sockets.SHUT_RDWR)
            except OSError:
                # The other end was faster.
                return False
        return True

    # --- background ---------------------------------------------------------------------------

    async def watch(self) -> None:
        """Read connection events until cancelled."""
        while True:
            self._refresh()
            await self._monitor_readable.wait()

    async def authenticate(self) -> None:
        """Answer handshakes until cancelled."""
        await self._authenticator.run()

    def _refresh(self) -> None:
        """Read the connection events that wait; a closed listener keeps its last counters."""
        if self._monitor.socket.closed:
            return
        for event in self._monitor.read_nowait():
            if event.kind == zmq.EVENT_ACCEPTED:
                self._counts["connections"] += 1
                self._connections.opened(event.value)
            elif event.kind == zmq.EVENT_DISCONNECTED:
                if not self._connections.closed(event.value):
                    self._counts["connections_silent"] += 1
            else:
                self._counts["handshakes_broken"] += 1
        # Here and not in the background task: others call this too, and then it sees nothing.
        if self._connections.any_departed():
            self._readable.wake()


def _configure(socket: ZmqSocket, keypair: KeyPair, bounds: Bounds) -> None:
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.ROUTER_MANDATORY, 1),
        (zmq.SNDHWM, bounds.send_hwm),
        (zmq.RCVHWM, bounds.receive_hwm),
        (zmq.MAXMSGSIZE, bounds.payload_bytes + limits.FRAME_SLACK_BYTES),
        (zmq.BACKLOG, limits.ACCEPT_BACKLOG),
        (zmq.HANDSHAKE_IVL, int(limits.HANDSHAKE_TIMEOUT_S * 1000)),
        (zmq.CURVE_SERVER, 1),
        *PROBES,
    ):
        socket.set(option, value)
    socket.set(zmq.CURVE_SECRETKEY, keypair.secret.encode("ascii"))
    socket.set_string(zmq.ZAP_DOMAIN, DOMAIN)
    # Without an authenticator nobody comes in, rather than everybody.
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)


def _bind(socket: ZmqSocket, endpoint: str) -> str:
    """Listen on an address; returns it with its real port."""
    socket.set(zmq.IPV6, int("[" in endpoint))
    try:
        socket.bind(check_endpoint(endpoint))
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUse(
                "another process listens on this address",
                endpoint,
                "stop it, or choose another port",
            ) from None
        if error.errno == zmq.EINVAL:
            raise InvalidEndpoint(f"not an address: {error.strerror}", endpoint) from None
        raise CannotListen(f"cannot listen there: {error.strerror}", endpoint) from None
    return socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


@asynccontextmanager
async def open_listener(
    endpoint: str | Sequence[str],
    keypair: KeyPair,
    authorize: Authorize,
    bounds: Bounds | None = None,
) -> AsyncIterator[Listener]:
    """Listen on one or several addresses (``tcp://HOST:PORT``; port 0 takes a free one).

    Raises:
        AddressInUse: another process listens there.
        CannotListen: the address is not ours, or not permitted.
        InvalidEndpoint: not an address.
    """
    endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
    listener = ZmqListener(endpoints, keypair, authorize, bounds or Bounds())
    try:
        async with running(listener.authenticate, listener.watch):
            yield listener
    finally:
        listener.close()
