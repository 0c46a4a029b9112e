"""What both listeners share: who may speak, the counters, and what is known of each peer.

A peer is met when its first payload is read; ``authorize`` is asked then (the key may have been
revoked since the handshake) and the answer is kept with the peer. A peer whose key stands for
nobody is *revoked*: what it sends is counted and dropped, what is sent to it is refused, and its
connection is ended.
"""

from abc import ABC, abstractmethod
from collections import Counter

from swarmctl.proto.errors import PeerUnreachable
from swarmctl.transport.api import Arrival, Authorize, ListenerStatistics, PeerId
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.connections import Connections, Peer
from swarmctl.transport.errors import Backpressure, PayloadTooLarge


class ListenerBase(ABC):
    """The part of a listener that does not depend on what carries it."""

    def __init__(self, authorize: Authorize, bounds: Bounds) -> None:
        self._authorize = authorize
        self._bounds = bounds
        self._counts: Counter[str] = Counter()
        self._connections = Connections()

    @abstractmethod
    def disconnect(self, peer: PeerId) -> bool:
        """See :meth:`swarmctl.transport.api.Listener.disconnect`."""

    @abstractmethod
    def _refresh(self) -> None:
        """Bring the table of connections up to date."""

    def take_departed(self) -> list[PeerId]:
        """See :meth:`swarmctl.transport.api.Listener.take_departed`."""
        return self._connections.take_departed()

    def forget_user(self, user_id: str) -> int:
        """See :meth:`swarmctl.transport.api.Listener.forget_user`."""
        return self._revoke(
            [id_ for id_, peer in self._connections.peers.items() if peer.user_id == user_id]
        )

    def reauthorise(self) -> int:
        """See :meth:`swarmctl.transport.api.Listener.reauthorise`."""
        return self._revoke(
            [
                id_
                for id_, peer in self._connections.peers.items()
                if peer.user_id is not None and self._authorize(peer.public_key) != peer.user_id
            ]
        )

    def _revoke(self, peer_ids: list[PeerId]) -> int:
        # All first, so that none speaks while the connections are being ended one by one.
        for peer_id in peer_ids:
            self._connections.peers[peer_id].user_id = None
        for peer_id in peer_ids:
            self.disconnect(peer_id)
        return len(peer_ids)

    def statistics(self) -> ListenerStatistics:
        """The counters at this moment."""
        self._refresh()
        return ListenerStatistics(peers=len(self._connections.peers), **self._counts)

    def _admit(
        self, peer_id: PeerId, public_key: str, descriptor: int, payload: bytes
    ) -> Arrival | None:
        """Make an arrival of a payload, or drop it if its sender may not speak."""
        peer = self._connections.peers.get(peer_id)
        if peer is None or peer.public_key != public_key:
            peer = self._meet(peer_id, Peer(public_key, self._authorize(public_key), descriptor))
        if peer.user_id is None:
            self._counts["dropped_revoked"] += 1
            return None
        return Arrival(peer_id, peer.user_id, payload)

    def _meet(self, peer_id: PeerId, peer: Peer) -> Peer:
        self._refresh()
        self._connections.claim(peer_id, peer)
        if peer.user_id is None:
            self.disconnect(peer_id)
        return peer

    def _check_send(self, peer: PeerId, payload: bytes) -> None:
        """Refuse what must not be sent, whatever the state of the connection."""
        if len(payload) > self._bounds.payload_bytes:
            raise PayloadTooLarge(
                f"a payload of {len(payload)} bytes; the bound is {self._bounds.payload_bytes}"
            )
        known = self._connections.peers.get(peer)
        if known is not None and known.user_id is None:
            raise self._unreachable(peer, "the peer's key was revoked")

    def _unreachable(
        self, peer: PeerId, what: str = "the peer is not connected"
    ) -> PeerUnreachable:
        self._counts["unreachable"] += 1
        return PeerUnreachable(what, peer.hex())

    def _backpressure(self, peer: PeerId) -> Backpressure:
        self._counts["backpressure"] += 1
        return Backpressure("the peer does not read what is sent to it", peer.hex())

    def _count(self, direction: str, messages: int, size_bytes: int) -> None:
        self._counts[direction] += messages
        self._counts[f"{direction}_bytes"] += size_bytes

    def _count_verdict(self, *, allowed: bool) -> None:
        self._counts["handshakes_allowed" if allowed else "handshakes_refused"] += 1
