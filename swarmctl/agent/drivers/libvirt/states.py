"""What libvirt's states and events mean to an agent: two tables.

The numbers are libvirt's public ABI (``virDomainState``, ``virDomainShutoffReason``,
``virDomainEventType`` and its details).  They are written out here so that this module, and the
tests of it, need no libvirt; an integration test compares them with the library's.
"""

from enum import IntEnum
from typing import Final

from attrs import frozen

from swarmctl.agent.drivers.api import DriverEvent, EventKind, Phase


class DomainState(IntEnum):
    """``virDomainState``."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7


class ShutoffReason(IntEnum):
    """``virDomainShutoffReason``."""

    UNKNOWN = 0
    SHUTDOWN = 1
    DESTROYED = 2
    CRASHED = 3
    MIGRATED = 4
    SAVED = 5
    FAILED = 6
    FROM_SNAPSHOT = 7
    DAEMON = 8


class EventType(IntEnum):
    """``virDomainEventType``."""

    DEFINED = 0
    UNDEFINED = 1
    STARTED = 2
    SUSPENDED = 3
    RESUMED = 4
    STOPPED = 5
    SHUTDOWN = 6
    PMSUSPENDED = 7
    CRASHED = 8


class StoppedDetail(IntEnum):
    """``virDomainEventStoppedDetailType``."""

    SHUTDOWN = 0
    DESTROYED = 1
    CRASHED = 2
    MIGRATED = 3
    SAVED = 4
    FAILED = 5
    FROM_SNAPSHOT = 6


# States in which a domain has a QEMU process.
ACTIVE: Final = frozenset(
    {
        DomainState.NOSTATE,
        DomainState.RUNNING,
        DomainState.BLOCKED,
        DomainState.PAUSED,
        DomainState.SHUTDOWN,
        DomainState.PMSUSPENDED,
    }
)
_PAUSED_REASONS: Final = {1: "by a user", 5: "I/O error, such as a full disk", 10: "it panicked"}

# How a domain ended: its exit code, and the words for it.
_ENDS: Final[dict[ShutoffReason, tuple[int, str]]] = {
    ShutoffReason.UNKNOWN: (1, "ended while libvirtd was not watching (it or the host restarted)"),
    ShutoffReason.SHUTDOWN: (0, "the guest shut down"),
    ShutoffReason.DESTROYED: (1, "destroyed: it was ended by force"),
    ShutoffReason.CRASHED: (1, "crashed: the guest panicked or its QEMU process died"),
    ShutoffReason.MIGRATED: (1, "migrated away behind the agent's back"),
    ShutoffReason.SAVED: (1, "saved to a file behind the agent's back"),
    ShutoffReason.FAILED: (1, "failed: QEMU did not start"),
    ShutoffReason.FROM_SNAPSHOT: (1, "reverted to a snapshot behind the agent's back"),
    ShutoffReason.DAEMON: (1, "ended by libvirtd"),
}
_STOPPED: Final[dict[StoppedDetail, ShutoffReason]] = {
    StoppedDetail.SHUTDOWN: ShutoffReason.SHUTDOWN,
    StoppedDetail.DESTROYED: ShutoffReason.DESTROYED,
    StoppedDetail.CRASHED: ShutoffReason.CRASHED,
    StoppedDetail.MIGRATED: ShutoffReason.MIGRATED,
    StoppedDetail.SAVED: ShutoffReason.SAVED,
    # libvirt says "failed" when QEMU's monitor closes without a word: the process died.
    StoppedDetail.FAILED: ShutoffReason.CRASHED,
    StoppedDetail.FROM_SNAPSHOT: ShutoffReason.FROM_SNAPSHOT,
}


@frozen
class Condition:
    """What a domain's state means: see :class:`swarmctl.agent.drivers.api.Found`."""

    phase: Phase
    exit_code: int | None = None
    reason: str = ""


def is_active(state: int) -> bool:
    """Whether a domain in ``state`` has a QEMU process."""
    return state in ACTIVE


def condition(state: int, reason: int, *, was_started: bool) -> Condition:
    """The meaning of a domain's (state, reason).

    Args:
        state: a ``virDomainState``; one that this release does not know counts as running.
        reason: libvirt's reason for it.
        was_started: whether the domain ever ran; without it, "off for no known reason" is
            a domain that was only defined.
    """
    if state in (DomainState.SHUTOFF, DomainState.CRASHED):
        if reason == ShutoffReason.UNKNOWN and not was_started:
            return Condition(Phase.CREATED)
        crashed = state == DomainState.CRASHED
        exit_code, words = _end(ShutoffReason.CRASHED if crashed else reason)
        return Condition(Phase.EXITED, exit_code, words)
    if state == DomainState.SHUTDOWN:
        return Condition(Phase.STOPPING)
    if state == DomainState.PAUSED and reason in _PAUSED_REASONS:
        return Condition(Phase.RUNNING, None, f"paused: {_PAUSED_REASONS[reason]}")
    return Condition(Phase.RUNNING)


def driver_event(incarnation: int, event: int, detail: int, at: float) -> DriverEvent | None:
    """The agent's event for libvirt's lifecycle ``event``, or None if it changes nothing."""
    if event == EventType.STARTED:
        return DriverEvent(EventKind.STARTED, incarnation, at)
    if event == EventType.UNDEFINED and detail == 0:  # 1 is a renaming
        return DriverEvent(EventKind.REMOVED, incarnation, at)
    if event == EventType.STOPPED:
        known = detail in StoppedDetail.__members__.values()
        reason = _STOPPED[StoppedDetail(detail)] if known else ShutoffReason.UNKNOWN
        exit_code, words = _end(reason)
        return DriverEvent(EventKind.EXITED, incarnation, at, exit_code, words)
    return None


def _end(reason: int) -> tuple[int, str]:
    known = reason in ShutoffReason.__members__.values()
    return _ENDS[ShutoffReason(reason) if known else ShutoffReason.UNKNOWN]
