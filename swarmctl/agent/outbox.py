"""What the controller has yet to be told: the latest of each instance, nothing twice.

Reports are built when they are sent, so many changes of one instance make one report.
The digest of the inventory is that of what was sent: since a connection keeps its order, the
controller compares it with what it has taken in at the same point.
What a controller can be told in fewer words goes in groups: a launch of many copies, whose reports
differ by nothing but their names, costs both sides a tenth of that of single reports.
A removal is kept until it is acknowledged; everything else is told again by the inventory that
begins each session, and a lost report shows in the digest.
"""

from collections import deque
from itertools import islice
from typing import Final

from swarmctl.agent.instance import GENERATION_UNKNOWN, Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.transitions import Phase
from swarmctl.proto import digest, limits
from swarmctl.proto.messages import InstanceReport, Report, ReportedGroup

# Reports under way: with the size of a batch this bounds what a slow controller holds of a node.
REPORTS_UNDER_WAY_MAX = 32
# Heartbeats between two nudges, at the most: half a minute.
NUDGE_EVERY_MAX: Final = 16


_WAITING: Final = Phase.WAITING


class Outbox:
    """The reports of one supervisor; ``sequence`` is the last one's."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.sequence = 0
        self._under_way: deque[tuple[int, tuple[int, ...]]] = deque()
        # The last sequence that was used when :meth:`nudge` was asked before.
        self._nudged = 0
        # Nudges in a row, and how many calls the next one has to wait for.
        self._asked = 0
        self._nudge_in = 0
        self.inventory_digest = 0

    @property
    def waiting(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._supervisor.dirty or self._supervisor.unsent_gone)

    @property
    def full(self) -> bool:
        """Whether so much is under way that nothing more is sent until it is acknowledged."""
        return len(self._under_way) >= REPORTS_UNDER_WAY_MAX

    def next_report(self, *, groups: bool = False) -> Report | None:
        """The next batch to send, with ``groups`` if they are understood; None for no news."""
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
        found = self._take_dirty(limits.REPORT_BATCH - len(reports))
        grouped: tuple[ReportedGroup, ...] = ()
        if groups and len(found) > 1:
            grouped, found = self._grouped(found)
        reports += [self._built(instance) for instance in found]
        if not supervisor.dirty and not supervisor.unsent_gone:
            supervisor.urgent = False
        if not reports and not grouped:
            return None
        self.sequence += 1
        self._under_way.append((self.sequence, tuple(removed)))
        return Report(self.sequence, tuple(reports), groups=grouped)

    def _take_dirty(self, count_max: int) -> list[Instance]:
        supervisor = self._supervisor
        dirty, instances = supervisor.dirty, supervisor.instances
        if len(dirty) <= count_max:
            found = [instances[incarnation] for incarnation in dirty]
            dirty.clear()
            return found
        taken = list(islice(dirty, count_max))
        for incarnation in taken:
            del dirty[incarnation]
        return [instances[incarnation] for incarnation in taken]

    def _grouped(self, found: list[Instance]) -> tuple[tuple[ReportedGroup, ...], list[Instance]]:
        """Those of ``found`` that can be told in groups, as such, and the others."""
        others: list[Instance] = []
        alike: dict[tuple[int, int, int, float, int], list[Instance]] = {}
        for one in found:
            if (
                one.exit_code is not None
                or one.reason
                or one.addresses
                or one.ports
                or one.attachments
                or one.failures
                or one.health is not None
                or one.phase is _WAITING
                or not one.known
            ):
                others.append(one)
                continue
            applied = one.applied
            if applied == GENERATION_UNKNOWN:
                applied = one.generation
            key = (one.state, one.attempt, one.restarts, one.since, applied)
            them = alike.get(key)
            if them is None:
                alike[key] = [one]
            else:
                them.append(one)
        return tuple([self._group(key, them) for key, them in alike.items()]), others

    def _group(self, key: tuple[int, int, int, float, int], them: list[Instance]) -> ReportedGroup:
        """``them`` as a group: they are told, and their digests counted."""
        state, attempt, restarts, since, applied = key
        entries = tuple([(one.incarnation, one.runtime_id) for one in them])
        names = [incarnation for incarnation, _ in entries]
        digests = digest.inventory_entries(names, state, attempt, restarts)
        mixed = self.inventory_digest
        for one, after in zip(them, digests, strict=True):
            mixed += after - one.reported_digest
            one.reported_digest = after
        self.inventory_digest = digest.replace(mixed, 0, 0)
        return ReportedGroup(int(state), attempt, restarts, since, applied, entries)

    def take_back(self, report: Report) -> None:
        """``report``, the last one built, could not be sent: its news wait again."""
        supervisor = self._supervisor
        sequence, removed = self._under_way.pop()
        assert sequence == report.sequence, "taken back out of order"
        supervisor.unsent_gone.update(dict.fromkeys(removed))
        told = [one.incarnation for one in report.instances]
        told += [entry[0] for group in report.groups for entry in group.entries]
        for incarnation in told:
            if incarnation in supervisor.instances:
                supervisor.dirty[incarnation] = None

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
        self.sequence += 1
        self._under_way.append((self.sequence, ()))
        return Report(self.sequence, inventory, full=True)

    def acknowledged(self, sequence: int) -> None:
        """The controller has taken in every report up to ``sequence``."""
        while self._under_way and self._under_way[0][0] <= sequence:
            for incarnation in self._under_way.popleft()[1]:
                # Unless the controller asked once more while this was under way.
                if incarnation not in self._supervisor.unsent_gone:
                    self._supervisor.gone.pop(incarnation, None)

    def nudge(self) -> Report | None:
        """An empty report, when something sent before the last call is not acknowledged yet.

        An acknowledgement covers all reports before it.  Should one have been lost, this asks for
        another; what a lost report told, the digests show.  Asked for again, it waits twice as
        long: a controller that is late with thousands of answers must not be asked for thousands
        more.
        """
        overdue = bool(self._under_way) and self._under_way[0][0] <= self._nudged
        self._nudged = self.sequence
        if not overdue:
            self._asked, self._nudge_in = 0, 0
            return None
        if self._nudge_in:
            self._nudge_in -= 1
            return None
        self._nudge_in = min(2**self._asked, NUDGE_EVERY_MAX) - 1
        self._asked += 1
        # Not under way itself: the answer to what it asks for, however late, is answer enough.
        self.sequence += 1
        return Report(self.sequence, ())

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
