"""Instance states, desired states and node states, and which transition may follow which.

Within one attempt an instance only moves forward (DESIGN 2); a restart on the spot begins the
next attempt at ``preparing``.
The table is data: tests walk all pairs, and the diagram in ``docs/nomenclature.md`` is drawn
from it.
"""

from enum import Enum, IntEnum
from typing import Final


class InstanceState(IntEnum):
    """Observed state of an instance; the number is its wire form, never renumber."""

    PENDING = 0
    ASSIGNED = 1
    PREPARING = 2
    STARTING = 3
    RUNNING = 4
    STOPPING = 5
    STOPPED = 6
    SUCCEEDED = 7
    FAILED = 8
    LOST = 9
    REJECTED = 10
    REMOVED = 11

    @property
    def label(self) -> str:
        """As tables and JSON show it."""
        return self.name.lower()


class Desired(IntEnum):
    """What the controller wants of an instance that a node holds."""

    RUNNING = 0
    STOPPED = 1

    @property
    def label(self) -> str:
        """As tables and JSON show it."""
        return self.name.lower()


class NodeState(Enum):
    """State of a node as ``node ls`` shows it."""

    JOINING = "joining"
    READY = "ready"
    SICK = "sick"
    DRAINING = "draining"
    CORDONED = "cordoned"
    LOST = "lost"


_S = InstanceState

# The end states of an attempt; only a new attempt or removal follows.
FINAL: Final = frozenset({_S.STOPPED, _S.SUCCEEDED, _S.FAILED, _S.LOST, _S.REJECTED, _S.REMOVED})

# States in which the node has (or is making) something that uses its resources.
LIVE: Final = frozenset({_S.ASSIGNED, _S.PREPARING, _S.STARTING, _S.RUNNING, _S.STOPPING})

FORWARD: Final[dict[InstanceState, frozenset[InstanceState]]] = {
    _S.PENDING: frozenset({_S.ASSIGNED, _S.REJECTED, _S.REMOVED}),
    _S.ASSIGNED: frozenset({_S.PREPARING, _S.STOPPING, _S.LOST, _S.REJECTED, _S.REMOVED}),
    _S.PREPARING: frozenset({_S.STARTING, _S.STOPPING, _S.FAILED, _S.LOST, _S.REMOVED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.STOPPING, _S.FAILED, _S.LOST, _S.REMOVED}),
    _S.RUNNING: frozenset({_S.STOPPING, _S.SUCCEEDED, _S.FAILED, _S.LOST, _S.REMOVED}),
    _S.STOPPING: frozenset({_S.STOPPED, _S.SUCCEEDED, _S.FAILED, _S.LOST, _S.REMOVED}),
    _S.STOPPED: frozenset({_S.REMOVED}),
    _S.SUCCEEDED: frozenset({_S.REMOVED}),
    _S.FAILED: frozenset({_S.REMOVED}),
    _S.LOST: frozenset({_S.REMOVED}),
    _S.REJECTED: frozenset({_S.REMOVED}),
    _S.REMOVED: frozenset(),
}

# Where the next attempt may begin: on the spot, by the agent.
NEXT_ATTEMPT: Final = frozenset({_S.PREPARING, _S.STARTING})


def may_follow(before: InstanceState, after: InstanceState, *, same_attempt: bool) -> bool:
    """Whether a report of ``after`` may replace ``before``.

    Skipping states is fine (reports are coalesced), going back within an attempt is not.
    """
    if not same_attempt:
        return before is not _S.REMOVED
    if before is after:
        return True
    reachable, frontier = set[InstanceState](), {before}
    while frontier:
        reachable |= frontier
        frontier = {after for one in frontier for after in FORWARD[one]} - reachable
    return after in reachable
