"""What the controller has yet to be told: the latest of each instance, nothing twice.

Reports are built when they are sent, so many changes of one instance make one report.
The digest of the inventory is that of what was sent: since a connection keeps its order, the
controller compares it with what it has taken in at the same point.
A removal is kept until it is acknowledged; everything else is told again by the inventory that
begins each session, and a lost report shows in the digest.
"""

from collections import deque

from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.proto import digest, limits
from swarmctl.proto.messages import InstanceReport, Report

# Reports under way: with the size of a batch this bounds what a slow controller holds of a node.
REPORTS_UNDER_WAY_MAX = 32


class Outbox:
    """The reports of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._sequence = 0
        self._under_way: deque[tuple[int, tuple[int, ...]]] = deque()
        self.inventory_digest = 0

    @property
    def waiting(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._supervisor.dirty or self._supervisor.unsent_gone)

    @property
    def full(self) -> bool:
        """Whether so much is under way that nothing more is sent until it is acknowledged."""
        return len(self._under_way) >= REPORTS_UNDER_WAY_MAX

    def next_report(self) -> Report | None:
        """The next batch to send; None when there is nothing to tell."""
        supervisor = self._supervisor
        reports: list[InstanceReport] = []
        removed: list[int] = []
        while supervisor.unsent_gone and len(reports) < limits.REPORT_BATCH:
            incarnation = next(iter(supervisor.unsent_gone))
            del supervisor.unsent_gone[incarnation]
            instance = supervisor.gone[incarnation]
            reports.append(instance.report())
            removed.append(incarnation)
            self._count(instance, 0)
        dirty, instances = supervisor.dirty, supervisor.instances
        while dirty and len(reports) < limits.REPORT_BATCH:
            incarnation = next(iter(dirty))
            del dirty[incarnation]
            reports.append(self._built(instances[incarnation]))
        if not dirty and not supervisor.unsent_gone:
            supervisor.urgent = False
        if not reports:
            return None
        self._sequence += 1
        self._under_way.append((self._sequence, tuple(removed)))
        return Report(self._sequence, tuple(reports))

    def take_back(self, report: Report) -> None:
        """``report``, the last one built, could not be sent: its news wait again."""
        supervisor = self._supervisor
        sequence, removed = self._under_way.pop()
        assert sequence == report.sequence, "taken back out of order"
        supervisor.unsent_gone.update(dict.fromkeys(removed))
        for one in report.instances:
            if one.incarnation in supervisor.instances:
                supervisor.dirty[one.incarnation] = None

    def inventory(self) -> tuple[InstanceReport, ...]:
        """All that the node has, as a session begins or the controller asks for it.

        What was under way is forgotten; removals are told again.
        """
        supervisor = self._supervisor
        self._under_way.clear()
        supervisor.dirty.clear()
        self.inventory_digest = 0
        for instance in supervisor.instances.values():
            instance.reported_digest = 0
        for incarnation, instance in supervisor.gone.items():
            instance.reported_digest = 0
            supervisor.unsent_gone[incarnation] = None
        return tuple([self._built(instance) for instance in supervisor.instances.values()])

    def full_report(self) -> Report:
        """All that the node has, as a report."""
        inventory = self.inventory()
        self._sequence += 1
        self._under_way.append((self._sequence, ()))
        return Report(self._sequence, inventory, full=True)

    def acknowledged(self, sequence: int) -> None:
        """The controller has taken in every report up to ``sequence``."""
        while self._under_way and self._under_way[0][0] <= sequence:
            for incarnation in self._under_way.popleft()[1]:
                # Unless the controller asked once more while this was under way.
                if incarnation not in self._supervisor.unsent_gone:
                    self._supervisor.gone.pop(incarnation, None)

    def _built(self, instance: Instance) -> InstanceReport:
        self._count(
            instance,
            digest.inventory_entry(
                instance.incarnation, instance.state, instance.attempt, instance.restarts
            ),
        )
        return instance.report()

    def _count(self, instance: Instance, after: int) -> None:
        self.inventory_digest = digest.replace(
            self.inventory_digest, instance.reported_digest, after
        )
        instance.reported_digest = after
