"""What happens to connections, as libzmq's socket monitor tells it.

A monitor is a stream of events from libzmq's I/O thread. :class:`Monitor` reads it without
waiting, :class:`Progress` is the state machine of one outgoing connection over these events,
shared by the link and the plain client. It knows no trio.
"""

import enum
import itertools
import struct
from collections.abc import Iterator

import attrs
import zmq

from swarmctl.proto.errors import PeerUnreachable
from swarmctl.transport.bounds import MONITOR_HWM
from swarmctl.transport.context import ZmqSocket
from swarmctl.transport.errors import HandshakeFailed, HandshakeLate, KeyRefused

_serial = itertools.count(1)
_HEADER = struct.Struct("=HI")


@attrs.frozen(slots=True)
class MonitorEvent:
    """One event; ``value`` is a descriptor, an errno or a status, depending on the kind."""

    kind: int
    value: int


class Monitor:
    """The event stream of one socket."""

    def __init__(self, socket: ZmqSocket, events: int) -> None:
        self._watched = socket
        address = f"inproc://monitor-{next(_serial)}"
        socket.monitor(address, events)
        self.socket: ZmqSocket = socket.context.socket(zmq.PAIR)
        self.socket.set(zmq.LINGER, 0)
        # When this queue is full, libzmq's I/O thread waits for us: hence the generous bound.
        self.socket.set(zmq.RCVHWM, MONITOR_HWM)
        self.socket.connect(address)

    def read_nowait(self) -> Iterator[MonitorEvent]:
        """Give the events that wait; ends when there is none."""
        while True:
            try:
                header = self.socket.recv(zmq.NOBLOCK)
                self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            kind, value = _HEADER.unpack(header)
            yield MonitorEvent(kind, value)

    def close(self) -> None:
        """Stop the stream; call this before the watched socket is closed."""
        self._watched.monitor(None, 0)
        self.socket.close()


class Phase(enum.Enum):
    """Where an outgoing connection is."""

    CONNECTING = "connecting"
    HANDSHAKING = "handshaking"
    READY = "ready"
    ABSENT = "absent"
    BROKEN = "broken"
    REFUSED = "refused"
    LOST = "lost"


_BEFORE_TCP = {
    zmq.EVENT_CONNECTED: Phase.HANDSHAKING,
    # A refused or unroutable address closes its socket, an unresolvable name is only "retried".
    zmq.EVENT_CLOSED: Phase.ABSENT,
    zmq.EVENT_CONNECT_RETRIED: Phase.ABSENT,
    zmq.EVENT_DISCONNECTED: Phase.ABSENT,
}
_BEFORE_READY = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Phase.READY,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Phase.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Phase.BROKEN,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Phase.BROKEN,
    zmq.EVENT_DISCONNECTED: Phase.BROKEN,
    zmq.EVENT_CLOSED: Phase.BROKEN,
}
_AFTER_READY = {
    zmq.EVENT_DISCONNECTED: Phase.LOST,
    zmq.EVENT_CLOSED: Phase.LOST,
}
# (phase, event) -> phase; a pair that is not here changes nothing. The last four phases are final.
TRANSITIONS: dict[Phase, dict[int, Phase]] = {
    Phase.CONNECTING: {int(kind): phase for kind, phase in _BEFORE_TCP.items()},
    Phase.HANDSHAKING: {int(kind): phase for kind, phase in _BEFORE_READY.items()},
    Phase.READY: {int(kind): phase for kind, phase in _AFTER_READY.items()},
    Phase.ABSENT: {},
    Phase.BROKEN: {},
    Phase.REFUSED: {},
    Phase.LOST: {},
}
LINK_EVENTS = int(
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@attrs.define
class Progress:
    """The state of one outgoing connection to ``endpoint``."""

    endpoint: str
    phase: Phase = Phase.CONNECTING

    def observe(self, event: MonitorEvent) -> None:
        """Take one event in."""
        self.phase = TRANSITIONS[self.phase].get(event.kind, self.phase)

    def failure(self) -> PeerUnreachable | HandshakeFailed | KeyRefused | None:
        """The error that this phase means; None while it is on its way or ready."""
        if self.phase is Phase.REFUSED:
            return key_refused(self.endpoint)
        if self.phase is Phase.BROKEN:
            return handshake_failed(self.endpoint)
        if self.phase in (Phase.ABSENT, Phase.LOST):
            return nothing_listens(self.endpoint)
        return None

    def late(self) -> PeerUnreachable | HandshakeLate:
        """The error for a connection that did not become ready in time."""
        if self.phase is Phase.HANDSHAKING:
            return HandshakeLate.at(self.endpoint)
        return PeerUnreachable(
            "the address does not answer", self.endpoint, "check the network and the address"
        )


def nothing_listens(endpoint: str) -> PeerUnreachable:
    """No process listens at the address, or the address does not exist."""
    return PeerUnreachable(
        "no controller listens there", endpoint, "is the controller running, and the port right?"
    )


def handshake_failed(endpoint: str) -> HandshakeFailed:
    """The other end ended the handshake."""
    return HandshakeFailed(
        "what listens there is not the controller whose key we hold",
        endpoint,
        "a context or token made by another cluster? fetch the present one",
    )


def key_refused(endpoint: str) -> KeyRefused:
    """The controller does not let this key in."""
    return KeyRefused(
        "the controller refuses our key",
        endpoint,
        "the key was revoked or never enrolled; ask for a new context or token",
    )
