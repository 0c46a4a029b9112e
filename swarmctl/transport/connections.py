"""Which peer is on which TCP connection of a listener, and which peers are gone.

libzmq (without its draft interface) never says which *peer* departed, only which descriptor was
closed; and a message tells the descriptor that it came over. This table joins the two.

Descriptors are reused, so order matters. libzmq's I/O thread reports the end of a connection
before it closes the descriptor; so whoever reads all waiting events right before he attributes a
peer to a descriptor never attributes it to an earlier connection. The other way round is
possible: a peer that is gone while its last message is still queued may be attributed to a later
connection of the same number, until that one's own peer speaks: a connection has one peer, so the
earlier claimant is gone.
"""

import attrs

from swarmctl.transport.api import PeerId
from swarmctl.transport.bounds import DEPARTED_MAX


@attrs.define(slots=True)
class Peer:
    """A peer that has sent something; ``user_id`` is None once it is revoked."""

    public_key: str
    user_id: str | None
    descriptor: int


@attrs.define
class Connections:
    """The peers of a listener, their connections, and those departed but not yet taken."""

    peers: dict[PeerId, Peer] = attrs.field(factory=dict)
    _live: dict[int, PeerId | None] = attrs.field(factory=dict)
    # A dict for its order: the oldest is dropped when it is full.
    _departed: dict[PeerId, None] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self._live)

    def opened(self, descriptor: int) -> None:
        """A connection was accepted."""
        self.closed(descriptor)
        self._live[descriptor] = None

    def closed(self, descriptor: int) -> bool:
        """A connection ended; its peer has departed. False if none had ever spoken."""
        peer_id = self._live.pop(descriptor, None)
        if peer_id is not None:
            self.depart(peer_id)
        return peer_id is not None

    def claim(self, peer_id: PeerId, peer: Peer) -> None:
        """A peer spoke for the first time, over a connection."""
        if peer.descriptor not in self._live:
            # Gone already: what it sent is delivered, and it departs right after.
            self._remember_departed(peer_id)
            return
        earlier = self._live[peer.descriptor]
        if earlier is not None and earlier != peer_id:
            self.depart(earlier)
        self._live[peer.descriptor] = peer_id
        self.peers[peer_id] = peer

    def depart(self, peer_id: PeerId) -> None:
        """Forget a peer and remember that it departed."""
        if self.peers.pop(peer_id, None) is not None:
            self._remember_departed(peer_id)

    def holds(self, peer_id: PeerId) -> bool:
        """Whether the peer's connection is live and its own."""
        peer = self.peers.get(peer_id)
        return peer is not None and self._live.get(peer.descriptor) == peer_id

    def any_departed(self) -> bool:
        """Whether :meth:`take_departed` would give something."""
        return bool(self._departed)

    def take_departed(self) -> list[PeerId]:
        """Peers departed since the last call."""
        departed = list(self._departed)
        self._departed.clear()
        return departed

    def _remember_departed(self, peer_id: PeerId) -> None:
        if len(self._departed) >= DEPARTED_MAX:
            del self._departed[next(iter(self._departed))]
        self._departed[peer_id] = None
