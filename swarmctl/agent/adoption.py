"""What is there already, taken in: the journal at start, and lists of what a driver has.

Adoption comes before action: until a driver has said what it has, nothing is launched on it.
An instance that runs is adopted as it is, whether the journal knows it or only its labels do.
Nothing that runs is ever stopped because nobody knows it (DESIGN 8.5); what was created and never
started, and nobody knows, is a create that outlived its caller, and is taken away after a grace.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from swarmctl.agent import assignment, backoff
from swarmctl.agent.drivers.api import Found
from swarmctl.agent.drivers.api import Phase as Seen
from swarmctl.agent.instance import Instance, Standing, from_journal
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.transitions import AFTER, BUSY, Happened, Phase
from swarmctl.proto.errors import ProtocolError
from swarmctl.proto.states import InstanceState
from swarmctl.spec import wire
from swarmctl.spec.models import Template

# A create that nobody waits for any more is left this long: its assignment may be on the way.
ORPHAN_GRACE_S: Final = 30.0

_RESTING: Final = {
    Standing.WAITING: Phase.WAITING,
    Standing.STOPPED: Phase.STOPPED,
    Standing.FINISHED: Phase.FINISHED,
}


def restore(
    supervisor: Supervisor, records: Mapping[int, bytes], term: int, cluster_id: str, now: float
) -> None:
    """Take the journal in, before anything else.

    Raises:
        StorageFault: a record is damaged.
    """
    supervisor.now = now
    supervisor.term = term
    supervisor.cluster_id = cluster_id
    templates: dict[bytes, tuple[int, bytes]] = {}
    for key, data in records.items():
        if key < assignment.TEMPLATE_KEYS_END:
            supervisor.template_key = max(supervisor.template_key, key)
            templates[data[: wire.DIGEST_BYTES]] = (key, data[wire.DIGEST_BYTES :])
        else:
            supervisor.instances[key] = from_journal(key, data)
    used = {instance.template for instance in supervisor.instances.values()}
    for digest, (key, encoded) in templates.items():
        if digest in used:
            template = supervisor.templates[digest] = _readable(encoded)
            checked = template is not None and template.checked is not None
            supervisor.health.in_use |= checked
        else:
            supervisor.actions.deletes.add(key)
    for instance in supervisor.instances.values():
        supervisor.templates.setdefault(instance.template, None)
        supervisor.reassign(instance)


def show_without_driver(supervisor: Supervisor, node: str) -> tuple[str, ...]:
    """Say of what the journal has of drivers that the agent was not given that nobody sees to it.

    It may run, so it is not gone; only with its driver can it be looked at, stopped or removed.
    What was rejected for want of a driver was never made, and is as it was.

    Args:
        supervisor: the machine, restored.
        node: the node's name.

    Returns:
        What is wrong with the node, by driver.
    """
    unseen: dict[str, list[Instance]] = {}
    for instance in list(supervisor.instances.values()):
        if instance.driver in supervisor.drivers:
            continue
        if instance.state == InstanceState.REJECTED and instance.standing == Standing.FINISHED:
            _rest(supervisor, instance)
        else:
            unseen.setdefault(instance.driver, []).append(instance)
    option = f"--drivers {','.join(sorted({*supervisor.drivers, *unseen}))}"
    for driver, instances in unseen.items():
        reason = (
            f"the agent runs without driver {driver}: start it with {option}, "
            f"or take the node out with: swarmctl node rm {node}"
        )
        for instance in instances:
            supervisor.show(instance, instance.state, reason)
    return tuple(
        f"driver {driver} is missing, which the agent's journal has {len(instances)} of: "
        f"start the agent with {option}"
        for driver, instances in unseen.items()
    )


def _readable(encoded: bytes) -> Template | None:
    try:
        return wire.decode_template(encoded)
    except ProtocolError:
        return None  # Written by a newer release; the controller sends it again if it matters.


def listed(
    supervisor: Supervisor, driver: str, asked_at: int, found: Iterable[Found], now: float
) -> None:
    """The driver has said all that it has.

    Args:
        supervisor: the machine.
        driver: whose list it is.
        asked_at: ``supervisor.serial`` when the driver was asked; what was observed since then,
            or is under way, is newer than the list.
        found: the list.
        now: the time.
    """
    supervisor.now = now
    supervisor.listed.add(driver)
    present: set[int] = set()
    for one in found:
        present.add(one.incarnation)
        instance = supervisor.instances.get(one.incarnation)
        if instance is None:
            _admit_stranger(supervisor, driver, one)
        elif instance.phase not in BUSY and instance.serial <= asked_at:
            _match(supervisor, instance, one)
    for instance in list(supervisor.instances.values()):
        if (
            instance.driver == driver
            and instance.incarnation not in present
            and instance.phase not in BUSY
            and instance.serial <= asked_at
        ):
            _miss(supervisor, instance)


def _admit_stranger(supervisor: Supervisor, driver: str, found: Found) -> None:
    """One of ours that neither the journal nor an assignment has."""
    instance = Instance(
        found.incarnation,
        found.service,
        found.slot,
        found.tenant,
        _template_of(supervisor, found),
        driver,
        known=False,
        state=InstanceState.PREPARING,
        since=found.started_at,
        runtime_id=found.runtime_id,
        addresses=found.addresses,
        ports=found.port_labels,
        started_at=found.started_at,
    )
    supervisor.instances[found.incarnation] = instance
    supervisor.touch(instance)
    if supervisor.was_removed(found.incarnation):
        # A call that was given up made it again after its removal: the removal stands.
        instance.removing = True
    if found.phase is Seen.CREATED:
        instance.phase = Phase.NEW
        instance.orphaned = True
        supervisor.schedule(instance, ORPHAN_GRACE_S)
        supervisor.show(instance, InstanceState.PREPARING, "created, never started, not known")
    elif found.phase is Seen.EXITED:
        instance.phase = Phase.EXITED
        instance.exit_code = found.exit_code
        state = InstanceState.SUCCEEDED if found.exit_code == 0 else InstanceState.FAILED
        supervisor.show(instance, state, found.reason)
    else:
        instance.phase = Phase.RUNNING
        supervisor.show(instance, InstanceState.RUNNING, "")
    supervisor.step(instance)


def _template_of(supervisor: Supervisor, found: Found) -> bytes:
    """The digest of what it was made of; empty where that is not known, or cannot be read."""
    made_of = wire.digest(found.template)
    if supervisor.templates.get(made_of) is not None:
        return made_of
    template = _readable(found.template)
    if template is None:
        return b""
    encoded = wire.encode_template(template)
    made_of = wire.digest(encoded)
    if supervisor.templates.get(made_of) is None:
        assignment.learn(supervisor, {made_of: encoded})
        supervisor.missing_templates.add(made_of)  # By the controller: the next hello tells it.
    return made_of


def _match(supervisor: Supervisor, instance: Instance, found: Found) -> None:
    """The driver has an instance that we know."""
    if instance.orphaned:
        _match_orphan(supervisor, instance, found)
        return
    before = (instance.addresses, instance.ports, instance.runtime_id)
    moved = before != (found.addresses, found.port_labels, found.runtime_id)
    instance.addresses, instance.runtime_id = found.addresses, found.runtime_id
    instance.ports = found.port_labels
    if found.phase in (Seen.RUNNING, Seen.STOPPING):
        if instance.phase != Phase.RUNNING:
            _found_running(supervisor, instance, found)
        elif moved:
            supervisor.mark(instance)
    elif found.phase is Seen.EXITED:
        _found_exited(supervisor, instance, found)
    elif instance.phase == Phase.RUNNING:
        supervisor.exited(instance, None, 0.0, "it was made anew behind our back")
    elif instance.phase == Phase.UNSEEN:
        _resume(supervisor, instance)


def _match_orphan(supervisor: Supervisor, instance: Instance, found: Found) -> None:
    """A create that nobody waits for: taken away after its grace, unless it was started."""
    if found.phase is Seen.CREATED:
        if instance.due <= supervisor.now:
            instance.removing = True
            supervisor.step(instance)
        return
    instance.orphaned = False
    instance.phase = Phase.UNSEEN
    _match(supervisor, instance, found)


def _found_running(supervisor: Supervisor, instance: Instance, found: Found) -> None:
    supervisor.touch(instance)
    # One that had ended, or was never known to run, has begun another attempt; one from the
    # journal runs as it did before.
    settled = instance.phase != Phase.UNSEEN or instance.standing != Standing.ACTIVE
    if settled and instance.state not in (InstanceState.PREPARING, InstanceState.STARTING):
        instance.attempt += 1
    instance.phase = AFTER.get((instance.phase, Happened.STARTED), Phase.RUNNING)
    instance.started_at = found.started_at
    instance.exit_code = None
    instance.due = 0.0
    instance.waits_for_driver = False
    # One that was well when the agent ended is not taken for one that has just begun.
    well = instance.restored and not settled and instance.state == InstanceState.RUNNING
    supervisor.runs(instance, was_well=well)
    if instance.restored and found.started_at:
        instance.since = found.started_at
    supervisor.step(instance)


def _found_exited(supervisor: Supervisor, instance: Instance, found: Found) -> None:
    if instance.phase == Phase.UNSEEN and instance.standing != Standing.ACTIVE:
        _rest(supervisor, instance)
    elif instance.phase in (Phase.UNSEEN, Phase.NEW, Phase.RUNNING):
        instance.started_at = found.started_at
        instance.phase = Phase.RUNNING
        supervisor.touch(instance)
        supervisor.exited(instance, found.exit_code, found.finished_at, found.reason)


def _miss(supervisor: Supervisor, instance: Instance) -> None:
    """The driver does not have an instance that we know."""
    if instance.phase == Phase.UNSEEN:
        _resume(supervisor, instance)
    elif instance.phase == Phase.RUNNING:
        supervisor.exited(instance, None, 0.0, "it is gone, and not by us")
    if not instance.known and not instance.removing and instance.phase not in BUSY:
        supervisor.drop(instance, "it is gone, and not by us")


def _resume(supervisor: Supervisor, instance: Instance) -> None:
    """From the journal, and nothing of it runs."""
    if instance.standing != Standing.ACTIVE:
        _rest(supervisor, instance)
        return
    if instance.restored:
        # The attempt that the journal tells of may have run before.
        instance.attempt += 1
        instance.state = InstanceState.PREPARING
    instance.phase = Phase.NEW
    supervisor.mark(instance)
    supervisor.step(instance)


def _rest(supervisor: Supervisor, instance: Instance) -> None:
    """From the journal, and it was at rest then."""
    instance.phase = _RESTING[instance.standing]
    if instance.phase == Phase.WAITING:
        supervisor.schedule(instance, backoff.delay_s(instance.failures))
    supervisor.mark(instance)
    supervisor.step(instance)
