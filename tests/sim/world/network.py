"""The wires: what is lost, late, doubled or out of order, and who cannot reach whom.

Clients' connections behave like TCP: what arrives, arrives once and in order.  Between agents and
controllers payloads may also be doubled and overtake each other: messages of the session are to
bear that (DESIGN 1.3).
"""

from zlib import crc32

import trio

from swarmctl.proto import codec
from swarmctl.proto.messages import Assign
from swarmctl.transport.memory import Direction, MemoryNetwork, Stray

# A network of one building.
_USUAL_S = (0.0005, 0.005)


class Network(MemoryNetwork):
    """The network of one run. Rates (0 to 1) and ``slow_s`` are set by faults."""

    def __init__(self, books, random):
        super().__init__()
        self.books = books
        self.random = random
        self.names = {}
        self.tcp_only = set()
        self.drop = 0.0
        self.duplicate = 0.0
        self.reorder = 0.0
        self.slow = 0.0
        self.slow_s = 0.0
        self.fate = self._decide
        self._by = {}
        # The last assignment to each node's key, with its term, while they are kept.
        self.assignments = None
        self.unblocked = trio.Event()

    def calm(self):
        """No more faults."""
        self.drop = self.duplicate = self.reorder = self.slow = 0.0
        self.unblock()

    def block(self, *, endpoint=None, public_key=None, direction=None, fault=None):
        """As on any network; ``fault`` is what is counted for each payload that vanishes."""
        super().block(endpoint=endpoint, public_key=public_key, direction=direction)
        self._by[self._partitions[-1]] = fault

    def unblock(self):
        """All of it."""
        self._by.clear()
        super().unblock()
        self.unblocked.set()
        self.unblocked = trio.Event()

    def blocks(self, *, endpoint=None, public_key=None, fault=None):  # noqa: ARG002 - as block's
        """Whether a partition is made for just that."""
        wanted = (endpoint, public_key)
        return any((one.endpoint, one.public_key) == wanted for one in self._partitions)

    def _decide(self, passage):
        name = self.names.get(passage.public_key, "?")
        way = "->" if passage.direction is Direction.TO_LISTENER else "<-"
        random, books = self.random, self.books
        books.trace.note("sent", name, way, len(passage.payload), crc32(passage.payload))
        if self.assignments is not None and passage.direction is Direction.TO_LINK:
            self._keep_assignment(passage)
        if self.drop and random.random() < self.drop:
            books.fire("drop", name)
            return None
        delay_s = random.uniform(*_USUAL_S)
        if self.slow and random.random() < self.slow:
            books.fire("delay", name)
            delay_s += random.uniform(0.0, self.slow_s)
        if passage.public_key in self.tcp_only:
            return delay_s
        if self.duplicate and random.random() < self.duplicate:
            books.fire("duplicate", name)
            return Stray((delay_s, delay_s + random.expovariate(2.0)))
        if self.reorder and random.random() < self.reorder:
            books.fire("reorder", name)
            return Stray((delay_s + random.expovariate(2.0),))
        return delay_s

    def _keep_assignment(self, passage):
        message = codec.decode(passage.payload)
        if isinstance(message, Assign):
            self.assignments[passage.public_key] = (message.term, passage.payload)

    def deliver(self, public_key, payload):
        """To a link, on the connection that it has now; whether it has one."""
        for wire in self.wires.values():
            if wire.public_key == public_key:
                wire._put(Direction.TO_LINK, trio.current_time(), payload)
                return True
        return False

    def fate_of(self, wire, direction, payload):
        """Count what a partition swallows, apart from what is dropped."""
        fate = super().fate_of(wire, direction, payload)
        where = wire.endpoint, wire.public_key
        self._count_lost(where[1], [p for p in self._partitions if p.covers(*where, direction)])
        return fate

    async def _connect(self, endpoint, server_public_key, keypair, connect_timeout_s):
        """A handshake goes both ways."""
        lost_by = [one for one in self._partitions if one.parts(endpoint, keypair.public)]
        self._count_lost(keypair.public, lost_by)
        return await super()._connect(endpoint, server_public_key, keypair, connect_timeout_s)

    def _count_lost(self, public_key, partitions):
        if partitions:
            name = self.names.get(public_key, "?")
            self.books.fire("partitioned", name)
            for fault in filter(None, dict.fromkeys(map(self._by.get, partitions))):
                self.books.fire(fault, name)
