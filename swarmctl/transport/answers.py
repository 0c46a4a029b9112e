"""Answers on their way to clients: none is lost while its connection lives.

A send never waits, and a peer takes so many messages at a time: a client that looks away for a
moment, or whose I/O thread does not get its turn, has a full queue, though it asked for all of
them and will read them. What a peer does not take at once waits here, in order, and is offered
again shortly. What waits is bounded: a client that asks and never reads has its connection ended,
so that it knows that what it asked is lost.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import structlog
import trio

from swarmctl.proto import codec, limits
from swarmctl.proto.errors import PeerUnreachable
from swarmctl.proto.messages import Message
from swarmctl.transport.api import PeerId
from swarmctl.transport.errors import Backpressure

_log = structlog.get_logger(__name__)

# Between two offers: a client reads a full queue in some 10 ms. Doubled up to the second while
# nobody takes anything, so that a client that was stopped costs nothing.
_OFFER_MIN_S: Final = 0.002
_OFFER_MAX_S: Final = 0.1


class Answers:
    """What waits, by peer.

    Args:
        send: to a peer; raises Backpressure when it takes no more, PeerUnreachable when it is gone.
        end: ends the connection of a peer.
    """

    def __init__(
        self, send: Callable[[PeerId, bytes], None], end: Callable[[PeerId], object]
    ) -> None:
        self._send = send
        self._end = end
        self._waiting: dict[PeerId, deque[bytes]] = {}
        self._waiting_bytes = 0
        self._some = trio.Event()

    @property
    def waiting(self) -> int:
        """How many answers wait."""
        return sum(len(queue) for queue in self._waiting.values())

    def send(self, peer: PeerId, message: Message) -> None:
        """Send an answer now or, if the peer takes no more, as soon as it does.

        Raises:
            PeerUnreachable: it has gone, or reads nothing of what it asks for.
            MessageTooLarge, InternalError: see :func:`swarmctl.proto.codec.encode`.
        """
        payload = codec.encode(message)
        queue = self._waiting.get(peer)
        if queue is None:
            try:
                self._send(peer, payload)
            except Backpressure:
                queue = self._waiting[peer] = deque()
                self._some.set()
            else:
                return
        if (
            len(queue) >= limits.RPC_TOTAL
            or self._waiting_bytes + len(payload) > limits.ANSWERS_BYTES
        ):
            _log.warning("a client does not read its answers", peer=peer.hex(), waiting=len(queue))
            self.peer_departed(peer)
            self._end(peer)
            raise PeerUnreachable("the peer does not read its answers", peer.hex())
        queue.append(payload)
        self._waiting_bytes += len(payload)

    def peer_departed(self, peer: PeerId) -> None:
        """Its connection has ended: forget what waits for it."""
        for payload in self._waiting.pop(peer, ()):
            self._waiting_bytes -= len(payload)

    async def run(self) -> None:
        """Offer what waits until cancelled."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            pause_s = _OFFER_MIN_S
            while self._waiting:
                await trio.sleep(pause_s)
                taken = [self._offer(peer) for peer in list(self._waiting)]
                pause_s = _OFFER_MIN_S if any(taken) else min(_OFFER_MAX_S, 2 * pause_s)

    def _offer(self, peer: PeerId) -> bool:
        """Send what a peer takes of its answers; whether it took any."""
        queue = self._waiting[peer]
        before = len(queue)
        try:
            while queue:
                self._send(peer, queue[0])
                self._waiting_bytes -= len(queue.popleft())
        except Backpressure:
            return len(queue) < before
        except PeerUnreachable as error:
            _log.debug("answers not delivered", error=str(error))
        self.peer_departed(peer)
        return True
