"""The contract of the transport: what a listener and a link promise, whatever carries them.

*Listener*: the controller's end. Many peers, each known by a :data:`PeerId` that is new for every
connection, and by the user whose key it proved in the handshake.
*Link*: an agent's end, to one controller at a time out of several addresses.

Promises of both:

- A payload arrives whole, once and in order, or not at all; what was under way when a
  connection ended may be lost, and the layer above repeats it.
- ``send`` never waits and never queues to an absent peer: it raises at once.
- ``receive_batch`` loses nothing when it is cancelled.
- One task at a time receives; a second one gets :class:`trio.BusyResourceError`.
"""

from collections.abc import Callable, Sequence
from typing import NewType, Protocol

import attrs

from swarmctl.proto.errors import PeerUnreachable
from swarmctl.transport.errors import HandshakeFailed, KeyRefused

PeerId = NewType("PeerId", bytes)

Authorize = Callable[[str], str | None]
"""Gives the user id of a public key (Z85), or None to refuse it.

It is called in the event loop for each handshake, so it is a look-up, without I/O.
"""

LinkFailure = PeerUnreachable | HandshakeFailed | KeyRefused


@attrs.frozen(slots=True)
class Arrival:
    """One payload, from whom."""

    peer: PeerId
    user_id: str
    payload: bytes


@attrs.frozen
class ListenerStatistics:
    """Counters of a listener since it opened.

    Attributes:
        peers: how many are known now; the only one that goes down.
        connections: accepted, before any handshake.
        connections_silent: ended before a valid message was read: noise, port scans, refused
            keys, broken handshakes.
        handshakes_refused: of keys that ``authorize`` does not know.
        handshakes_broken: given up half-way: wrong mechanism, wrong server key, a hang-up.
            (libzmq does not report noise in place of its greeting: that is silent only.)
        dropped_frames: messages of more or less than one frame.
        dropped_oversize: payloads beyond the bound.
        dropped_routing_id: messages of peers that chose their own routing id.
        dropped_revoked: messages of peers whose key stands for nobody any more.
        unreachable: sends to absent or revoked peers.
        backpressure: sends to peers that do not read.
    """

    peers: int = 0
    connections: int = 0
    connections_silent: int = 0
    received: int = 0
    received_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    handshakes_allowed: int = 0
    handshakes_refused: int = 0
    handshakes_broken: int = 0
    dropped_frames: int = 0
    dropped_oversize: int = 0
    dropped_routing_id: int = 0
    dropped_revoked: int = 0
    unreachable: int = 0
    backpressure: int = 0


@attrs.frozen
class LinkStatistics:
    """Counters of a link since it opened."""

    connections: int = 0
    failures: int = 0
    received: int = 0
    sent: int = 0
    malformed: int = 0


class Listener(Protocol):
    """The end that many peers connect to."""

    @property
    def endpoint(self) -> str:
        """The first address listened on, with its real port."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All addresses listened on."""

    async def receive_batch(self) -> list[Arrival]:
        """Wait until something arrived, then hand out all that is waiting, up to a bound.

        The list is empty when the only news is that peers departed (:meth:`take_departed`).
        """

    def receive_nowait(self) -> list[Arrival]:
        """What is waiting, up to the same bound; empty when nothing is."""

    def take_departed(self) -> list[PeerId]:
        """Peers whose connection ended since the last call; each had sent something before.

        It is a hint: a machine that lost its power sends no FIN, and only heartbeats tell.
        """

    def send(self, peer: PeerId, payload: bytes) -> None:
        """Hand a payload to a peer's queue.

        Raises:
            PeerUnreachable: the peer is not connected, or its key was revoked.
            Backpressure: the peer does not read fast enough.
            PayloadTooLarge: the payload is beyond the bound.
        """

    def disconnect(self, peer: PeerId) -> bool:
        """End a peer's connection; False when it is gone already or cannot be found."""

    def forget_user(self, user_id: str) -> int:
        """Treat all peers of a user as revoked: drop what they send, end their connections.

        ``authorize`` should refuse the key from now on, or the user is back at once.
        Returns how many peers there were.
        """

    def reauthorise(self) -> int:
        """Ask ``authorize`` again about every peer; forget those refused, or given another user.

        Returns how many were forgotten.
        """

    def statistics(self) -> ListenerStatistics:
        """The counters at this moment."""


class Link(Protocol):
    """The end that connects: one connection at a time, made anew whenever it is lost.

    A new connection is a new peer to the listener, so the session must say hello again. It
    cannot miss that: a connection carries nothing before the caller has *adopted* it by
    :meth:`wait_connected`; once it is lost, ``send`` and ``receive_batch`` raise LinkLost until
    the caller adopts the next.
    """

    @property
    def connection(self) -> int:
        """How many connections were made so far; the last one is alive if ``connected``."""

    @property
    def connected(self) -> bool:
        """Whether a connection is alive now (adopted or not)."""

    @property
    def endpoint(self) -> str:
        """The address of the live connection, or the one tried last."""

    @property
    def has_others(self) -> bool:
        """Whether there are other addresses than :attr:`endpoint`."""

    @property
    def last_failure(self) -> LinkFailure | None:
        """Why the last attempt failed; None after a success."""

    async def wait_connected(self) -> int:
        """Wait for a live connection and adopt it; returns its number."""

    async def wait_lost(self) -> None:
        """Wait until the adopted connection is gone; at once if there is none."""

    async def wait_failure(self) -> LinkFailure:
        """Wait for the next failed attempt and tell why it failed."""

    async def receive_batch(self) -> list[bytes]:
        """Wait until something arrived on the adopted connection, then hand out all that waits.

        Raises:
            LinkLost: it is gone, and all that had arrived on it was handed out.
        """

    def send(self, payload: bytes) -> None:
        """Hand a payload to the adopted connection.

        Raises:
            LinkLost: there is none, or it is gone; nothing was queued.
            Backpressure: the listener does not read fast enough.
            PayloadTooLarge: the payload is beyond the bound.
        """

    def use_next(self) -> None:
        """Give up the present address for the next one, as when it is not the leader's."""

    def use_addresses(self, endpoints: Sequence[str]) -> None:
        """From now on these are the controllers' addresses; a live connection stays.

        Raises:
            InvalidEndpoint: one is malformed, or there is none; it is as it was.
        """

    def statistics(self) -> LinkStatistics:
        """The counters at this moment."""
