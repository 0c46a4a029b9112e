"""Reports that have the right types and yet no sense, refused before any of them is taken in."""

from typing import Final

from swarmctl.proto import limits
from swarmctl.proto.errors import ProtocolError
from swarmctl.proto.messages import InstanceReport, ReportedGroup
from swarmctl.proto.states import InstanceState

_STATES: Final = frozenset(int(one) for one in InstanceState)
_INCARNATION_MAX: Final = (1 << 63) - 1


def check_reports(reports: tuple[InstanceReport, ...]) -> None:
    """Refuse reports that no agent makes.

    Raises:
        ProtocolError: there is one.
    """
    for one in reports:
        if one.state == InstanceState.REMOVED:
            continue  # Of one that the agent never had, the rest is empty.
        if (
            one.state not in _STATES
            or not 0 < one.incarnation <= _INCARNATION_MAX
            or not 0 < one.slot <= limits.REPLICAS_MAX
            or min(one.attempt, one.restarts) < 0
        ):
            raise ProtocolError(
                f"not a report of an instance: {one.service}.{one.slot} in state {one.state}"
            )


def check_groups(groups: tuple[ReportedGroup, ...]) -> None:
    """Refuse groups that no agent makes.

    Raises:
        ProtocolError: there is one.
    """
    for one in groups:
        if one.state not in _STATES or one.state == InstanceState.REMOVED:
            raise ProtocolError(f"not a report of instances: a group in state {one.state}")
        if min(one.attempt, one.restarts, one.generation) < 0:
            raise ProtocolError("not a report of instances: a group with a number below 0")
