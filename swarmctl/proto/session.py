"""The agent's session with its controller, as a table: what happened, and what follows.

A connection begins with a hello that carries the whole inventory; the welcome opens the session,
and from then on heartbeats, assignments and reports flow.  Whenever either side has lost the
thread (the controller does not know the connection, a template is missing, heartbeats stay
unanswered) the session begins again with a hello: there is no other repair.

The table knows no socket and no clock: the shell feeds it events and carries out its actions.
"""

from enum import Enum, auto
from typing import Final


class SessionState(Enum):
    """Where the session stands."""

    DISCONNECTED = "disconnected"
    GREETING = "greeting"  # hello is sent, welcome is awaited
    OPEN = "open"
    REFUSED = "refused"  # for good


class SessionEvent(Enum):
    """What may happen to it."""

    CONNECTED = auto()
    WELCOMED = auto()
    REFUSED = auto()  # for now: busy, not the leader
    REFUSED_FINALLY = auto()
    ASKED_FOR_HELLO = auto()  # the controller does not know us
    LOST_THREAD = auto()  # we need all of the assignment again
    SILENT = auto()  # nothing heard for too long
    DISCONNECTED = auto()


class SessionAction(Enum):
    """What the shell does about it."""

    NOTHING = auto()
    SAY_HELLO = auto()
    BEGIN = auto()  # heartbeats and reports
    LEAVE = auto()  # this connection, for the next address, after a pause
    GIVE_UP = auto()  # end, with the error


_D, _G, _O, _R = (
    SessionState.DISCONNECTED,
    SessionState.GREETING,
    SessionState.OPEN,
    SessionState.REFUSED,
)
_E, _A = SessionEvent, SessionAction

TABLE: Final[dict[tuple[SessionState, SessionEvent], tuple[SessionState, SessionAction]]] = {
    (_D, _E.CONNECTED): (_G, _A.SAY_HELLO),
    # The key is refused in the handshake, before there is a connection.
    (_D, _E.REFUSED_FINALLY): (_R, _A.GIVE_UP),
    # What else comes in belongs to a connection that is gone.
    (_D, _E.WELCOMED): (_D, _A.NOTHING),
    (_D, _E.REFUSED): (_D, _A.NOTHING),
    (_D, _E.ASKED_FOR_HELLO): (_D, _A.NOTHING),
    (_D, _E.LOST_THREAD): (_D, _A.NOTHING),
    (_D, _E.SILENT): (_D, _A.NOTHING),
    (_D, _E.DISCONNECTED): (_D, _A.NOTHING),
    (_G, _E.CONNECTED): (_G, _A.SAY_HELLO),
    (_G, _E.WELCOMED): (_O, _A.BEGIN),
    (_G, _E.REFUSED): (_D, _A.LEAVE),
    (_G, _E.REFUSED_FINALLY): (_R, _A.GIVE_UP),
    # It crossed our hello.
    (_G, _E.ASKED_FOR_HELLO): (_G, _A.NOTHING),
    # The welcome is followed by all of it anyway.
    (_G, _E.LOST_THREAD): (_G, _A.NOTHING),
    (_G, _E.SILENT): (_D, _A.LEAVE),
    (_G, _E.DISCONNECTED): (_D, _A.NOTHING),
    (_O, _E.CONNECTED): (_G, _A.SAY_HELLO),
    (_O, _E.WELCOMED): (_O, _A.NOTHING),
    (_O, _E.REFUSED): (_D, _A.LEAVE),
    (_O, _E.REFUSED_FINALLY): (_R, _A.GIVE_UP),
    (_O, _E.ASKED_FOR_HELLO): (_G, _A.SAY_HELLO),
    (_O, _E.LOST_THREAD): (_G, _A.SAY_HELLO),
    (_O, _E.SILENT): (_D, _A.LEAVE),
    (_O, _E.DISCONNECTED): (_D, _A.NOTHING),
    # The end: nothing brings it back.
    **{(_R, event): (_R, _A.NOTHING) for event in _E},
}


class SessionMachine:
    """One session: :data:`TABLE` and where we are in it."""

    def __init__(self) -> None:
        self.state = SessionState.DISCONNECTED

    @property
    def is_open(self) -> bool:
        """Whether heartbeats, assignments and reports flow."""
        return self.state is SessionState.OPEN

    def feed(self, event: SessionEvent) -> SessionAction:
        """Take ``event`` in; what to do about it."""
        self.state, action = TABLE[self.state, event]
        return action
