"""What arrives at the controller, in the order in which it is handled: users before nodes.

Theory of operation.  The sockets give every peer its turn.  So behind a storm of ten thousand
nodes that come back, each with a hello that takes half a millisecond, a user's request would wait
for seconds, although to read a message takes a twentieth of that.  Therefore all that has arrived
is read first; what users ask is handled at once (simple requests have a queue of their own,
:mod:`swarmctl.transport.intake`), and what nodes say goes into a :class:`Backlog`, in its order.
Between two looks at the sockets a slice of that is handled: as many as users' messages came, so
that neither side starves the other.  What waits is bounded; beyond that the sockets are left
alone, and each node's own queue holds what it says.

A peer's departure waits behind what the peer has said.
"""

from collections import deque
from functools import partial
from time import perf_counter
from typing import Final

import structlog
import trio

from swarmctl.controller.access import ADMIN, role_of
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers import nodes
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import (
    Busy,
    EnvironmentFault,
    InternalError,
    ProtocolError,
    SwarmError,
)
from swarmctl.proto.messages import Enrol, Heartbeat, Message, Refuse, Report
from swarmctl.transport.answers import Answers
from swarmctl.transport.api import Arrival, Listener, PeerId
from swarmctl.transport.bounds import BATCH_MAX, BATCH_MAX_BYTES
from swarmctl.transport.bulk import BulkServer

_log = structlog.get_logger(__name__)
# Users' messages handled before other tasks get their turn: about 5 ms of work.
_MESSAGES_A_TURN: Final = 200
# Nodes' messages likewise: of hellos it is some 20 ms of work.
_SLICE: Final = 50
# After heartbeats the sockets are left alone for so long, so that many are read at one waking: to
# wake costs as much as to answer three. A request waits by as much at the most.
_REST_S: Final = 0.002


class Backlog:
    """What nodes have said and is not handled yet, with the departures between it.

    ``messages_max`` and ``bytes_max`` bound it: when it :attr:`is_full` nothing should be added.
    """

    def __init__(
        self,
        messages_max: int = limits.BACKLOG_MESSAGES,
        bytes_max: int = limits.BACKLOG_BYTES,
    ) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._waiting: deque[Arrival | PeerId] = deque()
        self._waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether no more should be read."""
        return len(self._waiting) >= self._messages_max or self._waiting_bytes >= self._bytes_max

    def add(self, one: Arrival | PeerId) -> None:
        """What a node said; or a peer whose connection has ended."""
        self._waiting.append(one)
        if isinstance(one, Arrival):
            self._waiting_bytes += len(one.payload)

    def take(self) -> Arrival | PeerId:
        """The next; there is one."""
        one = self._waiting.popleft()
        if isinstance(one, Arrival):
            self._waiting_bytes -= len(one.payload)
        return one


class Receiver:
    """See the module's docstring; :meth:`run` receives until cancelled.

    Args:
        cluster: which takes in what nodes say.
        listener: where it arrives.
        answers: on their way to clients.
    """

    def __init__(self, cluster: Cluster, listener: Listener, answers: Answers) -> None:
        self._cluster = cluster
        self._listener = listener
        self._answers = answers
        self._backlog = Backlog()
        self._enrolments = 0
        self._malformed_by: dict[PeerId, int] = {}
        self._last_was_heartbeat = False
        self.malformed = 0
        # Peers that have gone so far.
        self.departed = 0

    async def run(self, server: BulkServer, nursery: trio.Nursery) -> None:
        """Receive until cancelled; requests are for ``server``, enrolments are tasks."""
        while True:
            asked, emptied = await self._read()
            slice_ = min(len(self._backlog), max(_SLICE, len(asked)))
            whole = emptied and slice_ == len(self._backlog)
            self._note_taken(len(asked) + slice_, emptied=whole)
            for number, arrival in enumerate(asked, 1):
                self._take(server, nursery, arrival)
                if number % _MESSAGES_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
            for number in range(1, slice_ + 1):
                one = self._backlog.take()
                if isinstance(one, Arrival):
                    self._take(server, nursery, one)
                else:
                    self._depart(server, one)
                if number % _MESSAGES_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
            if not self._backlog:
                self._cluster.listening.done()
                if self._last_was_heartbeat:
                    self._last_was_heartbeat = False
                    await trio.sleep(_REST_S)

    async def _read(self) -> tuple[list[Arrival], bool]:
        """What users ask, and whether all that had arrived was read; the rest is in the backlog."""
        asked: list[Arrival] = []
        if not self._backlog:
            arrivals = await self._listener.receive_batch()
        else:
            await trio.lowlevel.checkpoint()
            if self._backlog.is_full:
                return asked, False
            arrivals = self._listener.receive_nowait()
        for arrival in arrivals:
            if role_of(arrival.user_id) == ADMIN:
                asked.append(arrival)
            else:
                self._backlog.add(arrival)
        for peer in self._listener.take_departed():
            self._backlog.add(peer)
        size_bytes = sum(len(arrival.payload) for arrival in arrivals)
        return asked, len(arrivals) < BATCH_MAX and size_bytes < BATCH_MAX_BYTES

    def _note_taken(self, count: int, *, emptied: bool) -> None:
        """Our own delays are not the nodes' silence: see listening."""
        # Nodes may have two connections each, and there are clients; what waits here comes first.
        peers = 2 * len(self._cluster.state.nodes) + BATCH_MAX + len(self._backlog)
        self._cluster.listening.took(count, peers, emptied=emptied)

    def _depart(self, server: BulkServer, peer: PeerId) -> None:
        """Its connection has ended."""
        self.departed += 1
        self._malformed_by.pop(peer, None)
        server.peer_departed(peer)
        self._answers.peer_departed(peer)
        self._cluster.sessions.peer_departed(peer)
        self._cluster.caller.fail_peer(peer, "the agent's connection has ended")

    # --- a message ---------------------------------------------------------------------------

    def _take(self, server: BulkServer, nursery: trio.Nursery, arrival: Arrival) -> None:
        """Take a message in, whatever it is: a bad one harms its sender only."""
        try:
            self._handle(server, nursery, arrival)
        except ProtocolError as error:
            self._refuse_malformed(arrival, error)
        except Exception as error:  # noqa: BLE001 - one peer's message must not end the controller for all: it is logged with its trace, and the peer begins again
            _log.exception("message not handled", user=arrival.user_id)
            text = f"{type(error).__name__}: {error}"[: limits.TEXT_MAX_CHARS]
            self.try_send(arrival.peer, Refuse(InternalError.code, text))
            self._end_connection(arrival.peer)

    def _handle(self, server: BulkServer, nursery: trio.Nursery, arrival: Arrival) -> None:
        cluster = self._cluster
        began = perf_counter()
        message = codec.decode(arrival.payload)
        self._last_was_heartbeat = isinstance(message, Heartbeat)
        if cluster.sessions.on_message(arrival.peer, arrival.user_id, message):
            if isinstance(message, Report):
                cluster.meters.add("acknowledge", perf_counter() - began)
            return
        if cluster.caller.on_message(arrival.peer, message):
            return
        if isinstance(message, Enrol):
            self._begin_enrolment(nursery, arrival, message)
            return
        if isinstance(message, Refuse):
            _log.warning("refused by an agent", user=arrival.user_id, what=message.what)
            return
        answer = partial(self._answers.send, arrival.peer)
        size_bytes = len(arrival.payload)
        if not server.on_message(arrival.peer, arrival.user_id, message, answer, size_bytes):
            raise ProtocolError(f"a {type(message).__name__} is not for a controller")

    def _refuse_malformed(self, arrival: Arrival, error: ProtocolError) -> None:
        """Answered and counted; the session goes on (DESIGN 7), unless it is all that comes."""
        self.malformed += 1
        count = self._malformed_by[arrival.peer] = self._malformed_by.get(arrival.peer, 0) + 1
        _log.warning("malformed message", user=arrival.user_id, error=str(error))
        self.try_send(arrival.peer, Refuse(error.code, error.what[: limits.TEXT_MAX_CHARS]))
        if count >= limits.MALFORMED_MAX:
            self._end_connection(arrival.peer)

    def _end_connection(self, peer: PeerId) -> None:
        self._cluster.sessions.peer_departed(peer)
        self._listener.disconnect(peer)

    # --- enrolments ----------------------------------------------------------------------------

    def _begin_enrolment(self, nursery: trio.Nursery, arrival: Arrival, request: Enrol) -> None:
        if self._enrolments >= limits.ENROLMENTS_MAX:
            self.try_send(arrival.peer, Refuse(Busy.code, "too many nodes enrol at once"))
            return
        self._enrolments += 1
        nursery.start_soon(self._enrol, arrival, request)

    async def _enrol(self, arrival: Arrival, request: Enrol) -> None:
        try:
            answer: Message = await nodes.enrol(self._cluster, arrival.user_id, request)
        except SwarmError as error:
            # What is wrong here (a full disk) may be mended; what is wrong there stays so.
            final = not isinstance(error, EnvironmentFault)
            answer = Refuse(error.code, error.what, error.where, error.hint, final)
        finally:
            self._enrolments -= 1
        self.try_send(arrival.peer, answer)

    def try_send(self, peer: bytes, message: Message) -> None:
        """Send to a peer that may have gone meanwhile: it asks again when it is back."""
        try:
            self._cluster.send(peer, message)
        except SwarmError as error:
            _log.debug("answer not delivered", error=str(error))
