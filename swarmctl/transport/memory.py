"""The transport inside one process, for tests and simulations: no sockets, no threads.

A :class:`MemoryNetwork` stands for the wires. Listeners and links made from it keep the contract
of :mod:`swarmctl.transport.api`, with the same bounds, the same errors and the same supervision
(:class:`~swarmctl.transport.link.SupervisedLink`); time is trio's clock, so it runs under an
autojump clock, and nothing here depends on a hash or a random number: with trio's own scheduling
seeded, one program has one result.

A test makes trouble on the wires: :meth:`MemoryNetwork.sever` cuts connections,
:meth:`MemoryNetwork.block` makes a partition (of one direction or both: payloads vanish, dials
time out, and the pings end the connection after a while, as on TCP), and ``network.fate`` decides
for each payload whether it is delayed or lost. Order on a connection is kept, as TCP does, but for
payloads that ``fate`` declares a :class:`Stray`.
"""

import enum
import itertools
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from swarmctl.transport import bounds as limits
from swarmctl.transport.api import Arrival, Authorize, Link, Listener, PeerId
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.due_queue import DueQueue
from swarmctl.transport.endpoint import check_endpoint, check_remote_endpoint
from swarmctl.transport.errors import AddressInUse, Backpressure, LinkLost
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.link import Backoff, SupervisedLink, supervised
from swarmctl.transport.listener import ListenerBase
from swarmctl.transport.monitor import handshake_failed, key_refused, nothing_listens

# Where ports for "port 0" begin: a number that looks like a port in messages.
_FIRST_FREE_PORT = 40_001


class Direction(enum.Enum):
    """Which way a payload goes."""

    TO_LISTENER = "to-listener"
    TO_LINK = "to-link"

    # As there is one object of each: an enumeration's own hashes its name, in Python.
    __hash__ = object.__hash__


@attrs.frozen
class Passage:
    """One payload on a wire; ``number`` counts all payloads of the network from 0."""

    endpoint: str
    public_key: str
    direction: Direction
    payload: bytes
    number: int


@attrs.frozen
class Stray:
    """What no TCP connection does: a payload arrives once for each of ``delays_s``, in any order.

    The protocol above has to bear it all the same: messages may be repeated and late (DESIGN 1.3).
    """

    delays_s: tuple[float, ...]


Fate = Callable[[Passage], float | Stray | None]
"""Says how many seconds a payload takes, or None to lose it."""


def _deliver_at_once(_passage: Passage) -> float:
    return 0.0


class _Wire:
    """One connection between a link and a listener."""

    def __init__(
        self, network: "MemoryNetwork", listener: "MemoryListener", endpoint: str, public_key: str
    ) -> None:
        self.network = network
        self.listener = listener
        self.endpoint = endpoint
        self.public_key = public_key
        self.number = next(network.serial)
        # As libzmq makes them: a zero and a counter.
        self.peer_id = PeerId(b"\0" + self.number.to_bytes(4, "big"))
        self.queues = {Direction.TO_LISTENER: listener.queue, Direction.TO_LINK: DueQueue[_Wire]()}
        self.under_way = dict.fromkeys(Direction, 0)
        self._last_due = dict.fromkeys(Direction, 0.0)
        self.ended = False
        self.blocked_since = math.inf
        self.changed = trio.Event()

    def push(self, direction: Direction, payload: bytes, room: int) -> bool:
        """Put a payload on the wire; False when ``room`` payloads are under way already."""
        if self.under_way[direction] >= room:
            return False
        fate = self.network.fate_of(self, direction, payload)
        if isinstance(fate, Stray):
            for delay_s in fate.delays_s:
                self._put(direction, trio.current_time() + delay_s, payload)
        elif fate is not None:
            due = max(trio.current_time() + fate, self._last_due[direction])
            self._last_due[direction] = due
            self._put(direction, due, payload)
        return True

    def _put(self, direction: Direction, due: float, payload: bytes) -> None:
        self.under_way[direction] += 1
        self.queues[direction].put(due, self, payload)

    def end(self) -> None:
        """End the connection, for both ends; what is under way still arrives."""
        if self.ended:
            return
        self.ended = True
        self.network.wires.pop(self.number, None)
        self.listener.wire_ended(self)
        self.note_change()

    def lose_under_way(self) -> None:
        """Lose what is not there yet, both ways."""
        for direction, queue in self.queues.items():
            self.under_way[direction] -= queue.lose_under_way(self)

    def note_change(self) -> None:
        """Wake whoever waits on the connection."""
        self.queues[Direction.TO_LINK].wake()
        self.changed.set()
        self.changed = trio.Event()


class _MemoryConnection:
    """A link's end of a wire; see :class:`swarmctl.transport.link.Connection`."""

    def __init__(self, wire: _Wire, bounds: Bounds) -> None:
        self.malformed = 0
        self._wire = wire
        self._bounds = bounds

    def send(self, payload: bytes) -> None:
        wire = self._wire
        if wire.ended:
            raise LinkLost("the connection to the controller is lost", wire.endpoint)
        room = self._bounds.send_hwm + wire.listener.receive_hwm
        if not wire.push(Direction.TO_LISTENER, payload, room):
            raise Backpressure("the controller does not read what is sent to it", wire.endpoint)

    def receive_nowait(self, count_max: int) -> list[bytes]:
        batch: list[bytes] = []
        queue = self._wire.queues[Direction.TO_LINK]
        while len(batch) < count_max and (taken := queue.take()) is not None:
            self._wire.under_way[Direction.TO_LINK] -= 1
            if len(taken[1]) > self._bounds.payload_bytes:
                self.malformed += 1
            else:
                batch.append(taken[1])
        return batch

    async def wait_readable(self) -> None:
        await self._wire.queues[Direction.TO_LINK].wait()

    async def wait_ended(self) -> None:
        while not self._wire.ended:
            pings_fail_at = self._wire.blocked_since + limits.PING_TIMEOUT_S
            with trio.move_on_at(pings_fail_at):
                await self._wire.changed.wait()
            if trio.current_time() >= self._wire.blocked_since + limits.PING_TIMEOUT_S:
                self._wire.end()

    def close(self) -> None:
        self._wire.end()
        # It may have ended before, and its waiter may have looked at it since.
        self._wire.queues[Direction.TO_LINK].wake()


class MemoryListener(ListenerBase):
    """See :class:`swarmctl.transport.api.Listener`; made by :meth:`MemoryNetwork.open_listener`."""

    def __init__(
        self,
        network: "MemoryNetwork",
        endpoints: tuple[str, ...],
        keypair: KeyPair,
        authorize: Authorize,
        bounds: Bounds,
    ) -> None:
        super().__init__(authorize, bounds)
        self.endpoints = endpoints
        self.keypair = keypair
        self.queue = DueQueue[_Wire]()
        self._network = network
        self._wires: dict[PeerId, _Wire] = {}

    @property
    def endpoint(self) -> str:
        """The first address listened on."""
        return self.endpoints[0]

    @property
    def receive_hwm(self) -> int:
        """How many payloads of one peer it holds."""
        return self._bounds.receive_hwm

    async def receive_batch(self) -> list[Arrival]:
        """See :meth:`swarmctl.transport.api.Listener.receive_batch`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        others_had_their_turn = False
        while True:
            batch = self.receive_nowait()
            if batch or self._connections.any_departed():
                if not others_had_their_turn:
                    # Shielded: what is taken is handed out.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return batch
            await self.queue.wait()
            others_had_their_turn = True

    def receive_nowait(self) -> list[Arrival]:
        """See :meth:`swarmctl.transport.api.Listener.receive_nowait`."""
        batch: list[Arrival] = []
        size = 0
        for _ in range(self._bounds.batch_max):
            if size >= limits.BATCH_MAX_BYTES or (taken := self.queue.take()) is None:
                break
            wire, payload = taken
            wire.under_way[Direction.TO_LISTENER] -= 1
            if len(payload) > self._bounds.payload_bytes:
                self._counts["dropped_oversize"] += 1
                continue
            arrival = self._admit(wire.peer_id, wire.public_key, wire.number, payload)
            if arrival is not None:
                batch.append(arrival)
                size += len(payload)
        self._count("received", len(batch), size)
        return batch

    def send(self, peer: PeerId, payload: bytes) -> None:
        """See :meth:`swarmctl.transport.api.Listener.send`."""
        self._check_send(peer, payload)
        wire = self._wires.get(peer)
        if wire is None:
            raise self._unreachable(peer)
        if not wire.push(Direction.TO_LINK, payload, 2 * self._bounds.send_hwm):
            raise self._backpressure(peer)
        self._count("sent", 1, len(payload))

    def disconnect(self, peer: PeerId) -> bool:
        """See :meth:`swarmctl.transport.api.Listener.disconnect`."""
        wire = self._wires.get(peer)
        if wire is None:
            return False
        wire.end()
        return True

    def let_in(self, endpoint: str, public_key: str) -> _Wire | None:
        """The handshake: a new connection, or None if the key is refused."""
        self._counts["connections"] += 1
        allowed = self._authorize(public_key) is not None
        self._count_verdict(allowed=allowed)
        if not allowed:
            self._counts["connections_silent"] += 1
            return None
        wire = _Wire(self._network, self, endpoint, public_key)
        self._wires[wire.peer_id] = wire
        self._connections.opened(wire.number)
        self._network.wires[wire.number] = wire
        self._network.apply_partitions(wire)
        return wire

    def count_broken_handshake(self) -> None:
        """A link came with the wrong key for us."""
        self._counts["connections"] += 1
        self._counts["connections_silent"] += 1
        self._counts["handshakes_broken"] += 1

    def wire_ended(self, wire: _Wire) -> None:
        """A connection is gone."""
        self._wires.pop(wire.peer_id, None)
        if not self._connections.closed(wire.number):
            self._counts["connections_silent"] += 1
        self.queue.wake()

    def close(self) -> None:
        """End all connections."""
        for wire in list(self._wires.values()):
            wire.end()

    def _refresh(self) -> None:
        """Nothing to do: the table is always up to date here."""


@attrs.frozen
class _Partition:
    """What a block covers; None stands for all."""

    endpoint: str | None
    public_key: str | None
    direction: Direction | None

    def covers(self, endpoint: str, public_key: str, direction: Direction) -> bool:
        return self.direction in (None, direction) and self.parts(endpoint, public_key)

    def parts(self, endpoint: str, public_key: str) -> bool:
        """Whether it covers any direction."""
        return self.endpoint in (None, endpoint) and self.public_key in (None, public_key)


class MemoryNetwork:
    """The wires between the listeners and links of one test."""

    def __init__(self) -> None:
        self.fate: Fate = _deliver_at_once
        self.serial = itertools.count(1)
        self.wires: dict[int, _Wire] = {}
        self._listeners: dict[str, MemoryListener] = {}
        self._partitions: list[_Partition] = []
        self._passages = itertools.count()
        self._free_port = itertools.count(_FIRST_FREE_PORT)

    # --- trouble ------------------------------------------------------------------------------

    def sever(self, *, endpoint: str | None = None, public_key: str | None = None) -> int:
        """Cut the connections of an endpoint or a link's key (None: all); returns how many.

        What is under way is lost. Links connect again at once.
        """
        cut = [
            wire
            for wire in self.wires.values()
            if endpoint in (None, wire.endpoint) and public_key in (None, wire.public_key)
        ]
        for wire in cut:
            wire.lose_under_way()
            wire.end()
        return len(cut)

    def block(
        self,
        *,
        endpoint: str | None = None,
        public_key: str | None = None,
        direction: Direction | None = None,
    ) -> None:
        """Make payloads vanish, silently, from now on; None stands for all."""
        self._partitions.append(_Partition(endpoint, public_key, direction))
        for wire in self.wires.values():
            self.apply_partitions(wire)

    def unblock(self) -> None:
        """Lift all blocks."""
        self._partitions.clear()
        for wire in self.wires.values():
            self.apply_partitions(wire)

    def apply_partitions(self, wire: _Wire) -> None:
        """Bring a wire's blocked time up to date."""
        blocked = self._is_blocked(wire.endpoint, wire.public_key)
        if blocked is math.isinf(wire.blocked_since):
            wire.blocked_since = trio.current_time() if blocked else math.inf
            wire.note_change()

    def _is_blocked(self, endpoint: str, public_key: str) -> bool:
        """Whether any direction is blocked: then neither pings nor handshakes come back."""
        return any(partition.parts(endpoint, public_key) for partition in self._partitions)

    def fate_of(self, wire: _Wire, direction: Direction, payload: bytes) -> float | Stray | None:
        """How long a payload takes; None when it is lost."""
        passage = Passage(wire.endpoint, wire.public_key, direction, payload, next(self._passages))
        if any(p.covers(wire.endpoint, wire.public_key, direction) for p in self._partitions):
            return None
        return self.fate(passage)

    # --- the two ends -------------------------------------------------------------------------

    @asynccontextmanager
    async def open_listener(
        self,
        endpoint: str | Sequence[str],
        keypair: KeyPair,
        authorize: Authorize,
        bounds: Bounds | None = None,
    ) -> AsyncIterator[Listener]:
        """As :func:`swarmctl.transport.zmq_listener.open_listener`."""
        await trio.lowlevel.checkpoint()
        wanted = [endpoint] if isinstance(endpoint, str) else list(endpoint)
        endpoints = tuple(self._assign_port(check_endpoint(address)) for address in wanted)
        for address in endpoints:
            if address in self._listeners:
                raise AddressInUse("another process listens on this address", address)
        listener = MemoryListener(self, endpoints, keypair, authorize, bounds or Bounds())
        self._listeners.update(dict.fromkeys(endpoints, listener))
        try:
            yield listener
        finally:
            for address in endpoints:
                del self._listeners[address]
            listener.close()

    def _assign_port(self, endpoint: str) -> str:
        host, _, port = endpoint.rpartition(":")
        return f"{host}:{next(self._free_port)}" if port in ("0", "*") else endpoint

    @asynccontextmanager
    async def open_link(
        self,
        endpoints: str | Sequence[str],
        server_public_key: str,
        keypair: KeyPair,
        bounds: Bounds | None = None,
        *,
        connect_timeout_s: float = limits.CONNECT_TIMEOUT_S,
        backoff: Backoff | None = None,
        random_: random.Random | None = None,
    ) -> AsyncIterator[Link]:
        """As :func:`swarmctl.transport.zmq_link.open_link`; jitter has a fixed seed."""
        bounds = bounds or Bounds()

        async def dial(endpoint: str) -> _MemoryConnection:
            wire = await self._connect(endpoint, server_public_key, keypair, connect_timeout_s)
            return _MemoryConnection(wire, bounds)

        addresses = [endpoints] if isinstance(endpoints, str) else endpoints
        link = SupervisedLink(
            dial,
            [check_remote_endpoint(address) for address in addresses],
            bounds,
            backoff or Backoff(),
            # Seeded by the key, so that two links do not jitter alike, and a run repeats.
            random_ or random.Random(keypair.public),  # noqa: S311
        )
        async with supervised(link):
            yield link

    async def _connect(
        self, endpoint: str, server_public_key: str, keypair: KeyPair, connect_timeout_s: float
    ) -> _Wire:
        await trio.lowlevel.checkpoint()
        if self._is_blocked(endpoint, keypair.public):
            await trio.sleep(connect_timeout_s)
            raise nothing_listens(endpoint)
        listener = self._listeners.get(endpoint)
        if listener is None:
            raise nothing_listens(endpoint)
        if listener.keypair.public != server_public_key:
            listener.count_broken_handshake()
            raise handshake_failed(endpoint)
        wire = listener.let_in(endpoint, keypair.public)
        if wire is None:
            raise key_refused(endpoint)
        return wire
