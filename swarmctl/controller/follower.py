"""A controller that does not lead: it passes clients on to the one that does.

Each client's connection gets one of its own to the leader, and payloads go over both ways as they
are; so reads, writes and streams are the leader's answers, whichever controller a client asked
(docs/adr/0012). A client that asks while nobody leads waits for a leader as long as a request may
take. When the leader changes or is lost, the client's connection is ended: what was under way may
or may not have been done, as when the leader itself was asked.

Agents are told that this one does not lead, and go on to the next address. Connections that come
from another follower are not passed on: two that each take the other for the leader must not send a
request in circles.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

import structlog
import trio
from attrs import define, field

from swarmctl.controller.access import ADMIN, role_of, user_id
from swarmctl.controller.election import Place, View
from swarmctl.controller.shared import RELAY
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import Busy, NotLeader, PeerError, ProtocolError, SwarmError
from swarmctl.proto.messages import Failure, Message, Refuse, Request
from swarmctl.transport.api import Arrival, Link, Listener, PeerId
from swarmctl.transport.errors import LinkLost

_log = structlog.get_logger(__name__)

# How long a client's request waits for a leader: an election takes this long at most, and clients
# wait for their answers no longer than twice that.
LEADER_WAIT_S: Final = 8.0
# The same while etcd cannot be asked, so that nobody can be elected.
FAULT_WAIT_S: Final = 1.0
# A client that comes in the moment when the leader changes asks again after this long.
_RETRY_MS: Final = 250
# Payloads of one client that wait for the connection to the leader.
_WAITING_MAX: Final = 64
# Clients that are passed on at once; each costs two sockets.
_RELAYS_MAX: Final = 1_000

OpenRelay = Callable[[Sequence[str]], AbstractAsyncContextManager[Link]]


@define(eq=False)
class _Relay:
    """One client on its way to the leader."""

    peer: PeerId
    put: trio.MemorySendChannel[bytes]
    get: trio.MemoryReceiveChannel[bytes]
    scope: trio.CancelScope = field(factory=trio.CancelScope)


class Follower:
    """See the module's docstring; :meth:`run` serves until cancelled.

    Args:
        listener: where clients and agents come in.
        open_link: a connection to the leader, as a controller.
        view: who leads now.
        wait_change: waits until that is another.
    """

    def __init__(
        self,
        listener: Listener,
        open_link: OpenRelay,
        view: Callable[[], View],
        wait_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._listener = listener
        self._open_link = open_link
        self._view = view
        self._wait_change = wait_change
        self._relays: dict[PeerId, _Relay] = {}

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                for arrival in await self._listener.receive_batch():
                    self._take(nursery, arrival)
                for peer in self._listener.take_departed():
                    relay = self._relays.get(peer)
                    if relay is not None:
                        relay.scope.cancel()

    # --- taking in ----------------------------------------------------------------------------

    def _take(self, nursery: trio.Nursery, arrival: Arrival) -> None:
        if role_of(arrival.user_id) != ADMIN:
            self._send(arrival.peer, _refusal("this controller follows another one"))
            return
        if arrival.user_id == user_id(ADMIN, RELAY):
            self._answer(arrival.peer, arrival.payload, _later("asked by another controller"))
            return
        relay = self._relays.get(arrival.peer)
        if relay is None:
            if len(self._relays) >= _RELAYS_MAX:
                why = _later("too many clients are passed on")
                self._answer(arrival.peer, arrival.payload, why)
                return
            put, get = trio.open_memory_channel[bytes](_WAITING_MAX)
            relay = self._relays[arrival.peer] = _Relay(arrival.peer, put, get)
            nursery.start_soon(self._run_relay, relay)
        try:
            relay.put.send_nowait(arrival.payload)
        except trio.WouldBlock:
            why = _later("too many requests wait for the leader")
            self._answer(arrival.peer, arrival.payload, why)

    def _answer(self, peer: PeerId, payload: bytes, refusal: Refuse | Busy) -> None:
        """Refuse what cannot be passed on; only requests wait for an answer."""
        try:
            message = codec.decode(payload)
        except ProtocolError as error:
            self._send(peer, Refuse(error.code, error.what[: limits.TEXT_MAX_CHARS]))
            return
        if isinstance(message, Request):
            retry_ms = refusal.retry_ms if isinstance(refusal, Busy) else 0
            code, what, where, hint = refusal.code, refusal.what, refusal.where, refusal.hint
            self._send(peer, Failure(message.id, code, what, where, hint, retry_ms))

    def _send(self, peer: PeerId, message: Message) -> None:
        self._pass_back(peer, codec.encode(message))

    def _pass_back(self, peer: PeerId, payload: bytes) -> bool:
        """Whether the client took it."""
        try:
            self._listener.send(peer, payload)
        except SwarmError as error:
            _log.debug("answer not delivered", error=str(error))
            return False
        return True

    # --- passing on ---------------------------------------------------------------------------

    async def _run_relay(self, relay: _Relay) -> None:
        try:
            with relay.scope:
                await self._pass_on(relay)
        finally:
            del self._relays[relay.peer]
        if not relay.scope.cancelled_caught:
            self._listener.disconnect(relay.peer)

    async def _pass_on(self, relay: _Relay) -> None:
        """Until the leader is lost or another, or none is found in time."""
        deadline = trio.current_time() + LEADER_WAIT_S
        while True:
            leader = await self._leader(deadline)
            if leader is None:
                break
            async with self._open_link(leader.addresses) as link:
                with trio.move_on_at(deadline):
                    await self._first_of(link.wait_connected, partial(self._until_not, leader.id))
                if self._leads(leader.id) and link.connected:
                    await self._exchange(relay, link, leader.id)
                    return
            if trio.current_time() >= deadline:
                break
        why = self._view().fault or "no controller leads just now"
        while True:
            try:
                self._answer(relay.peer, relay.get.receive_nowait(), _refusal(why))
            except trio.WouldBlock:
                return

    async def _leader(self, deadline: float) -> Place | None:
        while trio.current_time() < deadline:
            view = self._view()
            if view.leader is not None and view.guard is None:
                return view.leader
            if view.fault:
                deadline = min(deadline, trio.current_time() + FAULT_WAIT_S)
            with trio.move_on_at(deadline):
                await self._wait_change()
        return None

    def _leads(self, leader_id: str) -> bool:
        leader = self._view().leader
        return leader is not None and leader.id == leader_id

    async def _until_not(self, leader_id: str) -> None:
        while self._leads(leader_id):
            await self._wait_change()

    async def _first_of(self, *waits: Callable[[], Awaitable[object]]) -> None:
        async with trio.open_nursery() as nursery:

            async def run(wait: Callable[[], Awaitable[object]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            for wait in waits:
                nursery.start_soon(run, wait)

    async def _exchange(self, relay: _Relay, link: Link, leader_id: str) -> None:
        async def forward() -> None:
            try:
                async for payload in relay.get:
                    link.send(payload)
            except (PeerError, Busy) as error:
                _log.info("not passed on", error=str(error))

        async def back() -> None:
            try:
                while True:
                    for payload in await link.receive_batch():
                        if not self._pass_back(relay.peer, payload):
                            return
            except LinkLost as error:
                _log.info("leader lost", error=str(error))

        await self._first_of(forward, back, partial(self._until_not, leader_id))


def _refusal(why: str) -> Refuse:
    """Not final: an agent goes on to the next address, a client tries again."""
    hint = "try again in a few seconds"
    return Refuse(NotLeader.code, why[: limits.TEXT_MAX_CHARS], "", hint, final=False)


def _later(why: str) -> Busy:
    """Nothing of it was done, and soon somebody can: the client asks again by itself."""
    return Busy(f"this controller does not lead: {why}", hint="try again", retry_ms=_RETRY_MS)
