"""The agent's session: every state with every event."""

import itertools

import pytest

from swarmctl.proto.session import (
    TABLE,
    SessionAction,
    SessionEvent,
    SessionMachine,
    SessionState,
)

PAIRS = list(itertools.product(SessionState, SessionEvent))


def test_every_pair_is_decided():
    """No event can come in a state for which nothing was thought of."""
    assert set(PAIRS) == set(TABLE)


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_pair_keeps_the_rules(state, event):
    """What must hold of each transition, whatever the table says."""
    after, action = TABLE[state, event]

    # Refused for good is the end, and the only way to it gives up.
    if state is SessionState.REFUSED:
        assert (after, action) == (SessionState.REFUSED, SessionAction.NOTHING)
    assert (action is SessionAction.GIVE_UP) == (
        after is SessionState.REFUSED and state is not SessionState.REFUSED
    )
    # Only a welcome to our hello opens; a hello always awaits one.
    assert (action is SessionAction.BEGIN) == (
        state is SessionState.GREETING and event is SessionEvent.WELCOMED
    )
    assert (action is not SessionAction.SAY_HELLO) or after is SessionState.GREETING
    # A connection that is left or lost is not used any more.
    if action is SessionAction.LEAVE or event is SessionEvent.DISCONNECTED:
        assert after in (SessionState.DISCONNECTED, SessionState.REFUSED)


def test_every_state_but_refused_can_be_left_for_an_open_session():
    """From wherever it is, a session comes back when the controller does."""
    for state in SessionState:
        if state is SessionState.REFUSED:
            continue
        machine = SessionMachine()
        machine.state = state
        for event in (
            SessionEvent.DISCONNECTED,
            SessionEvent.CONNECTED,
            SessionEvent.WELCOMED,
        ):
            machine.feed(event)
        assert machine.is_open
