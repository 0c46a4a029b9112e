"""The launch of what is new and meets no trouble, many at a time: the agent's hot path.

Of a million instances nearly all go one way: assigned for the first time, wanted to run, on a
driver that has said what it has, from a template that can be read; and then they run.  For these
the machine's steps are known beforehand: the tables of :mod:`swarmctl.agent.transitions` are what
they are taken from (see the assertions), and what each step would do to an instance is done at
once.  Whatever is different in any way is left to :class:`~swarmctl.agent.supervisor.Supervisor`,
one by one; a property test says that both ways end alike.

The budget, in microseconds of CPU an instance, where a message brings some twenty that share no
template; ``python -m bench.agent_path`` measures it, and it was twice that before:

=========  ======  =======================================================================
decode        4    bytes to messages, checked by columns (:mod:`swarmctl.proto.columns`)
admit         7    templates learnt, :func:`admit`
journal       4    a record each, in one write
launch        4    what the simulated driver does, :func:`launched`
report        3    grouped by what they have in common (:mod:`swarmctl.agent.outbox`)
tasks         3    a message wakes the session twice, the agent's loop and the reporting once
=========  ======  =======================================================================
"""

from collections.abc import Mapping, Sequence
from sys import intern
from typing import Final

from swarmctl.agent.drivers.api import Found, Launch, Started
from swarmctl.agent.drivers.api import Phase as Seen
from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.transitions import AFTER, STEPS, Goal, Happened, Phase, Step
from swarmctl.proto import digest
from swarmctl.proto.errors import SwarmError
from swarmctl.proto.messages import AssignedGroup
from swarmctl.proto.states import Desired, InstanceState

Entry = tuple[int, int, int, int, int]

# The way that is taken here in one go. A table that says otherwise is a defect of this module.
assert STEPS[Phase.NEW][Goal.RUN] is Step.LAUNCH, "what is new is launched"
assert AFTER[Phase.LAUNCHING, Happened.LAUNCHED] is Phase.RUNNING, "what is launched runs"
assert STEPS[Phase.RUNNING][Goal.RUN] is Step.NOTHING, "what runs and should is left alone"

# Looked up once: an enumeration's member costs as much as three of this module's lines.
_RUN: Final = Goal.RUN
_LAUNCHING: Final = Phase.LAUNCHING
_RUNNING: Final = Phase.RUNNING
_PREPARING: Final = InstanceState.PREPARING
_SEEN_RUNNING: Final = InstanceState.RUNNING
_WANTED: Final = Desired.RUNNING
assert not _WANTED, "what is wanted to run is told by a zero"


def admit(
    supervisor: Supervisor, groups: Sequence[AssignedGroup]
) -> list[tuple[AssignedGroup, Sequence[Entry]]]:
    """Take in and launch what is new in ``groups``; what of them is left to do one by one."""
    instances, templates = supervisor.instances, supervisor.templates
    usable = supervisor.listed & supervisor.drivers
    received_at = supervisor.now
    since = received_at + supervisor.wall_offset_s
    begun: dict[str, list[Launch]] = {name: [] for name in usable}
    fresh: dict[int, Instance] = {}
    left: list[tuple[AssignedGroup, Sequence[Entry]]] = []
    # What is left comes last: all that is said of one instance has to stay in its order.
    aside: set[int] = set()
    for group in groups:
        template, driver = templates.get(group.template), intern(group.driver)
        # What has ports on tenant networks is never a matter of microseconds.
        if template is None or driver not in usable or group.attachments or group.failures:
            left.append((group, group.entries))
            aside.update([entry[1] for entry in group.entries])
            continue
        service, tenant, name = intern(group.service), intern(group.tenant), group.template
        launches = begun[driver]
        others: list[Entry] = []
        for entry in group.entries:
            slot, incarnation, desired, generation, restarts = entry
            if desired or incarnation in instances or incarnation in aside:
                others.append(entry)
                aside.add(incarnation)
                continue
            # NEW and RUN: a launch, as Supervisor._launch begins it.
            one = Instance(incarnation, service, slot, tenant, name, driver, _WANTED, generation)
            one.restarts, one.applied = restarts, generation
            one.phase, one.state, one.since = _LAUNCHING, _PREPARING, since
            one.received_at = received_at
            instances[incarnation] = fresh[incarnation] = one
            launches.append(Launch(service, slot, incarnation, template, tenant))
        if others:
            left.append((group, others))
    for driver, launches in begun.items():
        if launches:
            supervisor.actions.launches.setdefault(driver, []).extend(launches)
    _count(supervisor, fresh)
    return left


def _count(supervisor: Supervisor, fresh: Mapping[int, Instance]) -> None:
    """Enter new instances in the books: the assignment's digest, the journal, the reports."""
    entries = digest.assignment_entries(
        [(incarnation, _WANTED, one.generation) for incarnation, one in fresh.items()]
    )
    for one, entry in zip(fresh.values(), entries, strict=True):
        one.assigned_digest = entry
    supervisor.unwritten.update(fresh)
    supervisor.dirty.update(dict.fromkeys(fresh))
    mixed = digest.total(entries)
    supervisor.assignment_digest = digest.replace(supervisor.assignment_digest, 0, mixed)


def launched(
    supervisor: Supervisor, launches: Sequence[Launch], started: Started, now: float
) -> None:
    """Launches have ended, each in its way; ``started`` is in the order of ``launches``."""
    supervisor.now = now
    instances, dirty = supervisor.instances, supervisor.dirty
    since, at = now + supervisor.wall_offset_s, started.at
    # Whether one has to be watched its template says: that is looked up one by one.
    straight = not supervisor.health.in_use
    for launch, answer in zip(launches, started.answers, strict=True):
        incarnation = launch.incarnation
        one = instances.get(incarnation)
        if not (
            straight
            and one is not None
            and one.phase is _LAUNCHING
            and one.early_exit is None
            and type(answer) is str
            and one.goal is _RUN
        ):
            ended(supervisor, launch, answer, at, now)
            continue
        # LAUNCHED, and then nothing is to be done: as Supervisor.launched says it.
        supervisor.serial = one.serial = supervisor.serial + 1
        one.runtime_id, one.started_at = answer, at
        one.addresses = one.ports = ()
        one.refusals, one.waits_for_driver, one.exit_code = 0, False, None
        one.phase, one.state, one.since, one.reason = _RUNNING, _SEEN_RUNNING, since, ""
        dirty[incarnation] = None
        supervisor.urgent = True


def ended(
    supervisor: Supervisor, launch: Launch, answer: str | SwarmError, at: float, now: float
) -> None:
    """One launch has ended in whatever way."""
    if isinstance(answer, SwarmError):
        supervisor.launch_failed(launch.incarnation, answer, now)
        return
    found = Found(
        launch.incarnation,
        launch.service,
        launch.slot,
        answer,
        Seen.RUNNING,
        started_at=at,
        tenant=launch.tenant,
    )
    supervisor.launched(launch.incarnation, found, now)
