"""What the agent does about an instance: two tables and nothing else.

An instance has a *goal* (what the controller wants, folded into five words) and a *phase* (what
the agent knows of it, including the one operation that may be under way).
:data:`STEPS` says what to do next for each pair; it is level-triggered: after whatever happened,
the supervisor looks up the pair again and does what it says, so a missed, repeated or reordered
input does no harm.
:data:`AFTER` says which phase follows when a driver's event or an operation's end comes in; a
pair that is not in it changes nothing.

The observed states that users see (:class:`~swarmctl.proto.states.InstanceState`) are coarser and
are set along the way.
"""

from enum import IntEnum
from typing import Final


class Phase(IntEnum):
    """What the agent knows of an instance; numbers index the tables."""

    UNSEEN = 0  # the driver has not been asked yet whether it is there
    NEW = 1  # nothing runs; it may have been created
    LAUNCHING = 2  # a launch is under way
    RUNNING = 3
    EXITED = 4  # it ended, and nobody has judged yet what that means
    WAITING = 5  # for the next attempt's time
    STOPPING = 6  # a stop is under way
    STOPPED = 7  # at somebody's request
    FINISHED = 8  # by itself, for good
    REMOVING = 9  # a remove is under way


class Goal(IntEnum):
    """What is wanted of an instance; numbers index the tables."""

    RUN = 0
    RESTART = 1  # run, and what runs now began before the user asked for a restart
    STOP = 2
    GONE = 3
    LEAVE = 4  # unknown to the controller: not ours to touch (DESIGN 8.5)


class Step(IntEnum):
    """What to do next."""

    NOTHING = 0
    LAUNCH = 1
    STOP = 2
    REMOVE = 3
    CANCEL = 4  # the launch that is under way
    JUDGE = 5  # apply the restart policy to an end
    SETTLE = 6  # it does not run and should not: say so


class Happened(IntEnum):
    """What may come in about an instance, from its driver or from an operation's end."""

    STARTED = 0  # event: it runs
    EXITED = 1  # event, or found so: it ended
    VANISHED = 2  # event, or not found: the daemon has it no more
    LAUNCHED = 3
    ENDED_IN_LAUNCH = 4
    LAUNCH_CANCELLED = 5
    STOP_DONE = 6
    STOP_FAILED = 7
    REMOVE_FAILED = 8
    DUE = 9  # the wait for the next attempt is over


# Phases in which one operation is under way: there is never a second one.
BUSY: Final = frozenset({Phase.LAUNCHING, Phase.STOPPING, Phase.REMOVING})

_N, _L, _S, _R = Step.NOTHING, Step.LAUNCH, Step.STOP, Step.REMOVE
_C, _J, _E = Step.CANCEL, Step.JUDGE, Step.SETTLE

# Rows by phase; columns RUN, RESTART, STOP, GONE, LEAVE.
STEPS: Final[tuple[tuple[Step, Step, Step, Step, Step], ...]] = (
    (_N, _N, _N, _N, _N),  # UNSEEN: the list will tell
    (_L, _L, _E, _R, _N),  # NEW
    (_N, _N, _C, _C, _N),  # LAUNCHING
    (_N, _S, _S, _S, _N),  # RUNNING
    (_J, _L, _E, _R, _N),  # EXITED
    (_N, _L, _E, _R, _N),  # WAITING
    (_N, _N, _N, _N, _N),  # STOPPING
    (_L, _L, _N, _R, _N),  # STOPPED
    (_N, _L, _E, _R, _N),  # FINISHED
    (_N, _N, _N, _N, _N),  # REMOVING
)

_P, _H = Phase, Happened

AFTER: Final[dict[tuple[Phase, Happened], Phase]] = {
    # It runs though we did not start it just now: a call that its caller gave up came through
    # late, or somebody started it by hand. What is wanted decides what follows.
    **{
        (phase, _H.STARTED): _P.RUNNING
        for phase in (_P.NEW, _P.EXITED, _P.WAITING, _P.STOPPED, _P.FINISHED)
    },
    (_P.NEW, _H.EXITED): _P.EXITED,
    (_P.RUNNING, _H.EXITED): _P.EXITED,
    (_P.RUNNING, _H.VANISHED): _P.EXITED,
    (_P.LAUNCHING, _H.LAUNCHED): _P.RUNNING,
    (_P.LAUNCHING, _H.ENDED_IN_LAUNCH): _P.EXITED,
    (_P.LAUNCHING, _H.LAUNCH_CANCELLED): _P.NEW,
    (_P.STOPPING, _H.STOP_DONE): _P.STOPPED,
    (_P.STOPPING, _H.EXITED): _P.EXITED,  # stopped because it was unhealthy
    # Whether it still runs is not known: stop is repeatable, so it is tried again.
    (_P.STOPPING, _H.STOP_FAILED): _P.RUNNING,
    (_P.REMOVING, _H.REMOVE_FAILED): _P.EXITED,
    (_P.WAITING, _H.DUE): _P.NEW,
}
