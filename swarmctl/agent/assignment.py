"""What the controller wants of this node, taken in: an input of the supervisor.

An assignment of a lower term than the highest seen, or of another cluster, is refused (DESIGN
8.1).
A *full* one replaces what is wanted: an instance that it neither lists nor removes is not known
to the controller, and what is not known is not unwanted (DESIGN 8.5): it is left alone and
reported until it is assigned again or removed by name.
"""

from collections.abc import Iterable, Mapping

from swarmctl.agent import fast_path
from swarmctl.agent.instance import GENERATION_UNKNOWN, Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.transitions import Phase
from swarmctl.proto.errors import Conflict, PeerError, ProtocolError
from swarmctl.proto.messages import Assign, AssignedGroup
from swarmctl.proto.states import Desired, InstanceState
from swarmctl.spec import wire

# Journal keys below this have term 0, which no incarnation has: templates are kept there.
TEMPLATE_KEYS_END = 1 << 40

_DESIRED = {int(one): one for one in Desired}


class StaleAssignment(PeerError):
    """It comes from a controller that has been superseded, or from before the present one."""

    code = "stale"


def apply(supervisor: Supervisor, message: Assign, now: float) -> None:
    """Take ``message`` in.

    Raises:
        StaleAssignment: its term is lower than the highest seen, or its version than the last.
        Conflict: it is another cluster's.
        ProtocolError: an entry says what no controller says.
    """
    _check(supervisor, message)
    supervisor.now = now
    if message.term > supervisor.term:
        supervisor.term = supervisor.actions.term = message.term
    supervisor.version = message.version
    if message.templates:
        learn(supervisor, message.templates)
    for group, entries in fast_path.admit(supervisor, message.groups):
        if group.template in supervisor.templates:
            _apply_entries(supervisor, group, entries, message.tokens)
        else:
            supervisor.missing_templates.add(group.template)
    for incarnation in message.removed:
        remove(supervisor, incarnation)
    if message.full:
        listed = {entry[1] for group in message.groups for entry in group.entries}
        listed.update(message.removed)
        _quarantine_others(supervisor, listed)


def _check(supervisor: Supervisor, message: Assign) -> None:
    if supervisor.cluster_id and message.cluster_id != supervisor.cluster_id:
        raise Conflict(
            f"an assignment of cluster {message.cluster_id[:8]} came to a node of cluster "
            f"{supervisor.cluster_id[:8]}"
        )
    if message.term < supervisor.term:
        raise StaleAssignment(f"term {message.term} is over: {supervisor.term} was seen")
    if message.term == supervisor.term and message.version < supervisor.version:
        raise StaleAssignment(
            f"version {message.version} came after {supervisor.version} of term {message.term}"
        )
    for group in message.groups:
        for entry in group.entries:
            if min(entry) < 0 or entry[2] not in _DESIRED:
                name = f"{group.service}.{entry[0]}"
                raise ProtocolError(f"not an assignment of {name}: {entry[2]}")
        if len(group.attachments) not in (0, len(group.entries)):
            raise ProtocolError(f"an assignment of {group.service} says of some where they go")


def learn(supervisor: Supervisor, encoded_by_digest: Mapping[bytes, bytes]) -> None:
    """Templates that came along, or were found; new ones are remembered in the journal."""
    templates, puts, health = supervisor.templates, supervisor.actions.puts, supervisor.health
    supervisor.missing_templates.difference_update(encoded_by_digest)
    key = supervisor.template_key
    for digest, encoded in encoded_by_digest.items():
        if templates.get(digest) is not None:
            continue
        try:
            template = templates[digest] = wire.decode_template(encoded)
        except ProtocolError:
            # Of a newer release: its instances are rejected one by one, with that reason.
            templates[digest] = None
            continue
        if template.checked is not None:
            health.in_use = True
        key += 1
        puts[key] = digest + encoded
    assert key < TEMPLATE_KEYS_END, "a cluster has no 2**40 templates"
    supervisor.template_key = key


def _apply_entries(
    supervisor: Supervisor,
    group: AssignedGroup,
    entries: Iterable[fast_path.Entry],
    tokens: Mapping[int, str],
) -> None:
    instances = supervisor.instances
    # None of them, or all, see _check.
    ports = dict(zip((entry[1] for entry in group.entries), group.attachments, strict=False))
    for slot, incarnation, desired, generation, restarts in entries:
        instance = instances.get(incarnation)
        if instance is None:
            instance = Instance(
                incarnation,
                group.service,
                slot,
                group.tenant,
                group.template,
                group.driver,
                _DESIRED[desired],
                generation,
                restarts=restarts,
                failures=group.failures.get(incarnation, 0),
                attachments=ports.get(incarnation, ()),
                token=tokens.get(incarnation, ""),
                received_at=supervisor.now,
            )
            _admit(supervisor, instance)
        elif not instance.removing:
            instance.token = tokens.get(incarnation, "") or instance.token
            if not instance.known and ports:
                instance.attachments = ports.get(incarnation, ())
            _change(supervisor, instance, group, desired, generation)


def _admit(supervisor: Supervisor, instance: Instance) -> None:
    instance.since = supervisor.now + supervisor.wall_offset_s
    supervisor.instances[instance.incarnation] = instance
    supervisor.reassign(instance)
    driver = instance.driver
    # A driver that this node lacks has nothing to list; the launch will say that it lacks.
    if driver in supervisor.listed or driver not in supervisor.drivers:
        instance.phase = Phase.NEW
        supervisor.step(instance)
    else:
        reason = supervisor.down.get(driver, "")
        supervisor.show(instance, InstanceState.ASSIGNED, reason)
        supervisor.put(instance)


def _change(
    supervisor: Supervisor, instance: Instance, group: AssignedGroup, desired: int, generation: int
) -> None:
    if instance.known and instance.desired == desired and instance.generation == generation:
        return
    became_known = not instance.known
    instance.known = True
    instance.orphaned = False
    instance.desired = _DESIRED[desired]
    instance.generation = generation
    if became_known:
        # Found without a journal: the labels say who it is, this says from what it was made.
        instance.template = group.template
        instance.driver = group.driver
        if instance.applied == GENERATION_UNKNOWN:
            instance.applied = generation
    supervisor.reassign(instance)
    if became_known and instance.phase == Phase.RUNNING:
        supervisor.runs(instance, was_well=True)
    supervisor.mark(instance, urgent=became_known)
    supervisor.put(instance)
    supervisor.step(instance)


def remove(supervisor: Supervisor, incarnation: int) -> None:
    """The controller wants ``incarnation`` gone; one that is gone already is reported so."""
    instance = supervisor.instances.get(incarnation)
    if instance is None:
        if incarnation not in supervisor.gone:
            absent = Instance(incarnation, "", 0, state=InstanceState.REMOVED)
            supervisor.gone[incarnation] = absent
        supervisor.unsent_gone[incarnation] = None
        supervisor.urgent = True
    elif not instance.removing:
        instance.removing = True
        instance.orphaned = False
        supervisor.reassign(instance)
        supervisor.put(instance)
        supervisor.step(instance)


def _quarantine_others(supervisor: Supervisor, listed: set[int]) -> None:
    for instance in supervisor.instances.values():
        if instance.known and not instance.removing and instance.incarnation not in listed:
            instance.known = False
            supervisor.reassign(instance)
            supervisor.unwritten[instance.incarnation] = instance
            supervisor.mark(instance)
