"""What to do with an instance that a node says it has: a pure decision (DESIGN 8.2, 8.5).

Unknown is not unwanted: an instance is taken away only when the store *knows* that it is not
wanted: its service has a newer holder of the slot, fewer slots, or a tombstone that covers it.
"""

from enum import Enum

from swarmctl.controller.records import SlotWish
from swarmctl.controller.state import ClusterState
from swarmctl.proto.messages import InstanceReport


class Verdict(Enum):
    """What becomes of a reported instance."""

    ADOPT = "adopt"
    REPLACES = "replaces"
    REMOVE = "remove"
    QUARANTINE = "quarantine"


def judge(state: ClusterState, report: InstanceReport, node: str) -> tuple[Verdict, str]:
    """The verdict on ``report`` from ``node``, and why in words.

    ``REPLACES`` is an adoption that takes the slot from an older holder.
    """
    key = (report.tenant, report.service)
    service = state.services.get(key)
    tombstone = state.tombstones.get(key)
    if tombstone is not None and report.incarnation <= tombstone.incarnation:
        return Verdict.REMOVE, "its service was deleted"
    if service is None:
        return Verdict.QUARANTINE, (
            f"service {report.service} is not known here: left alone until it is adopted or removed"
        )
    if report.slot > service.record.spec.replicas:
        return Verdict.REMOVE, f"{report.service} has {service.record.spec.replicas} replicas now"
    if service.record.wish(report.slot) is SlotWish.REMOVED:
        return Verdict.REMOVE, "it was removed by a user"
    holder = service.holders.get(report.slot)
    if holder is None or (holder.incarnation == report.incarnation and holder.node == node):
        return Verdict.ADOPT, "adopted"
    if holder.incarnation > report.incarnation:
        return Verdict.REMOVE, f"replaced by a newer one on {holder.node}"
    return Verdict.REPLACES, f"newer than the one on {holder.node}"
