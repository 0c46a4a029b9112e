"""The controller's memory: durable intent joined with what the nodes report.

Everything here is derived: :class:`Service` from its record in the store, :class:`Instance` and
the session part of :class:`Node` from the nodes' reports.  It is changed by one task at a time,
in the event loop, between awaits; so there are no locks, and every function leaves it consistent.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import Factory, define, field

from swarmctl.controller.fencing import FenceBook
from swarmctl.controller.guests import Guests
from swarmctl.controller.instance import Instance, Placing, ServiceKey
from swarmctl.controller.networks import NetworkTable
from swarmctl.controller.pasts import Pasts
from swarmctl.controller.ports import Ports
from swarmctl.controller.records import NodeRecord, ServiceRecord, Tombstone
from swarmctl.controller.victims import Victims
from swarmctl.proto import digest, limits
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.messages import InstanceReport, NodeFacts, ReportedGroup
from swarmctl.proto.states import Desired, InstanceState, NodeState
from swarmctl.scheduler import Request
from swarmctl.spec import wire


@define(eq=False)
class Service:
    """A service: its record, and who holds its slots.

    ``old`` says that it was there before this controller's term: its slots are placed anew only
    after the takeover rule allows it (DESIGN 8.4); ``rolling`` that some holders may have an older
    template; ``job`` that its copies are to end; ``tally`` counts the holders by state; ``request``
    is the scheduler's, until placed.
    """

    record: ServiceRecord
    old: bool = False
    rolling: bool = False
    job: bool = False
    tally: list[int] = field(factory=lambda: [0] * len(InstanceState))
    template: bytes = b""
    encoded_template: bytes = b""
    amounts: Mapping[str, int] = field(factory=dict)
    request: Request | None = None
    holders: dict[int, Instance] = field(factory=dict)
    unplaced: dict[int, str] = field(factory=dict)
    history: deque[tuple[float, str]] = field(
        factory=lambda: deque(maxlen=limits.HISTORY_MAX), repr=False
    )

    def __attrs_post_init__(self) -> None:
        self.set_record(self.record)

    def set_record(self, record: ServiceRecord) -> None:
        """Take a new record in, and intern its template."""
        self.record = record
        before, encoded = self.template, self.encoded_template
        if not encoded or before:
            encoded = self.encoded_template = wire.encode_template(record.spec.template)
        self.template = wire.digest(encoded)
        self.job = record.spec.template.job
        self.request = None
        self.amounts = record.spec.template.resources.amounts()
        self.rolling = self.rolling or before != self.template

    @property
    def key(self) -> ServiceKey:
        """(tenant, name)."""
        return (self.record.spec.tenant, self.record.spec.name)


@define(eq=False)
class Node:
    """A registered node: its record, its session if it has one, and its instances.

    ``leaving`` are those of its instances that it was, or is to be, told to take away.
    ``lost`` are those that were lost with it, by incarnation, with state, since and reason before.
    ``heard_at`` is on the clock of :mod:`swarmctl.controller.listening`; ``report_sequence`` is
    the last report taken in, ``unacknowledged`` counts those not acknowledged yet; ``told_at`` is
    when the last assignment was sent; ``guarded``: its guard was alive at its last heartbeat;
    ``obstacles``: why nothing can be plugged into a network there, or into any (None).
    ``leased``: it had a lease when its session began; ``told_all`` and ``doubtful_since``: see
    :mod:`swarmctl.controller.forgetful`. ``rival`` is the boot of another process that
    wanted a session at ``rival_at`` while this one seemed to live.
    """

    record: NodeRecord
    facts: NodeFacts = field(factory=NodeFacts)
    state: NodeState = NodeState.JOINING
    reasons: tuple[str, ...] = ()
    peer: bytes | None = None
    boot: str = ""
    hello_sequence: int = 0
    reported: bool = False
    heard_at: float = 0.0
    joined_at: float = 0.0
    instances: dict[int, Instance] = field(factory=dict)
    known_templates: set[bytes] = field(factory=set)
    assignment_version: int = 0
    assignment_digest: int = 0
    inventory_digest: int = 0
    dirty: dict[int, Instance] = field(factory=dict)
    leaving: dict[int, Instance] = field(factory=dict)
    lost: dict[int, tuple[InstanceState, float, str]] = field(factory=dict)
    needs_full: bool = False
    report_sequence: int = 0
    unacknowledged: int = 0
    told_at: float = 0.0
    guarded: bool = False
    obstacles: dict[tuple[str, str] | None, str] = field(factory=dict)
    leased: bool = False
    told_all: bool = False
    doubtful_since: float | None = None
    rival: str = ""
    rival_at: float = 0.0

    @property
    def name(self) -> str:
        """As it enrolled."""
        return self.record.name

    @property
    def labels(self) -> dict[str, str]:
        """The agent's labels, overruled by the operators'."""
        return self.facts.labels | self.record.labels

    @property
    def standing(self) -> NodeState:
        """Its state as long as it is not lost."""
        if not self.reported:
            return NodeState.JOINING
        if self.record.draining:
            return NodeState.DRAINING
        if self.record.cordoned:
            return NodeState.CORDONED
        return NodeState.SICK if self.reasons else NodeState.READY

    @property
    def connected(self) -> bool:
        """Whether it has a live session."""
        return self.peer is not None and self.state is not NodeState.LOST


@define(eq=False)
class ClusterState:
    """All of it, and the few indexes that keep it joined.

    ``leaving`` counts the instances of a service that nodes were told to take away;
    ``quarantine`` holds those of services that nobody here knows, by incarnation;
    ``capacity_changed``: what found no node may find one now; ``braked``: what lost nodes had is
    not placed elsewhere for now; ``tally`` counts the holders of slots by state; ``ports`` are
    what instances have on tenant networks, ``guests`` the agents in VMs; ``victims`` what was
    preempted; ``pasts`` what slots went through; ``untold`` the plannings of which the nodes are to
    be told; ``hold`` why they are told nothing at all (:mod:`swarmctl.controller.holding`), empty
    when they are.
    """

    cluster_id: str
    term: int
    services: dict[ServiceKey, Service] = field(factory=dict)
    nodes: dict[str, Node] = field(factory=dict)
    tombstones: dict[ServiceKey, Tombstone] = field(factory=dict)
    templates: dict[bytes, bytes] = field(factory=dict)
    sequence: int = 0
    dirty_services: set[ServiceKey] = field(factory=set)
    ending: set[ServiceKey] = field(factory=set)  # Being deleted: nothing more is placed.
    dirty_nodes: set[str] = field(factory=set)
    leaving: Counter[ServiceKey] = field(factory=Counter)
    quarantine: dict[ServiceKey, dict[int, Instance]] = field(factory=dict)
    capacity_changed: bool = False
    braked: bool = False
    fences: FenceBook = field(factory=FenceBook)
    tally: list[int] = field(factory=lambda: [0] * len(InstanceState))
    victims: Victims = field(factory=Victims)
    pasts: Pasts = field(factory=Pasts)
    ports: Ports = Factory(lambda it: Ports(it.cluster_id, NetworkTable()), takes_self=True)
    guests: Guests = field(factory=Guests)
    untold: set[Placing] = field(factory=set)
    hold: str = ""

    def resend(self, node: Node) -> None:
        """Send the node all that it should have, not only what changed."""
        node.needs_full = True
        self.dirty_nodes.add(node.name)

    def begin_telling(self, wall_s: float) -> None:
        """Nodes are told now what was placed."""
        for placing in self.untold:
            placing.sent_at = wall_s
        self.untold.clear()

    def take_dirty_nodes(self) -> list[str]:
        """The nodes that something has changed for, to be told of it now."""
        names = list(self.dirty_nodes)
        self.dirty_nodes.clear()
        return names

    def repeat_removals(self, node: Node) -> None:
        """Tell the node once more what it has to take away: it may never have been told."""
        node.dirty.update(node.leaving)
        self.dirty_nodes.add(node.name)

    def _mark(self, instance: Instance, before: int) -> None:
        """Note that what its node should have of it has changed from the digest ``before``."""
        node = self.nodes[instance.node]
        node.assignment_digest = digest.replace(
            node.assignment_digest, before, instance.assignment_digest
        )
        node.dirty[instance.incarnation] = instance
        self.dirty_nodes.add(node.name)

    def add(self, instance: Instance) -> None:
        """Take an instance in, under its node and (unless it is on its way out) its service."""
        node = self.nodes[instance.node]
        assert instance.incarnation not in node.instances, f"{instance.incarnation} is there twice"
        node.instances[instance.incarnation] = instance
        self._mark(instance, 0)
        node.inventory_digest = digest.replace(node.inventory_digest, 0, instance.inventory_digest)
        if instance.template not in self.templates:
            self.fences.templates.add(instance.template)  # Taken for fenced, until it is known.
        if instance.template in self.fences.templates:
            self.fences.enter(instance)
        if instance.removing:
            self.leaving[instance.key] += 1
            node.leaving[instance.incarnation] = instance
        elif instance.quarantined:
            self.quarantine.setdefault(instance.key, {})[instance.incarnation] = instance
        else:
            self._hold(instance)

    def take_incarnations(self, count: int) -> range:
        """Names for ``count`` new instances."""
        first = self.sequence + 1
        self.sequence += count
        return incarnations.make_many(self.term, first, count)

    def add_placed(self, service: Service, placed: Sequence[Instance]) -> None:
        """Take in new instances of a service: as :meth:`add`, for many, at a third of its cost."""
        nodes, holders = self.nodes, service.holders
        entries = digest.assignment_entries(
            [(one.incarnation, one.desired, one.generation) for one in placed]
        )
        for one, mixed in zip(placed, entries, strict=True):
            assert one.slot not in holders, f"{one.name} has two holders"
            holders[one.slot] = one
            node, incarnation = nodes[one.node], one.incarnation
            node.instances[incarnation] = node.dirty[incarnation] = one
            node.assignment_digest = digest.replace(node.assignment_digest, 0, mixed)
        self.dirty_nodes.update([one.node for one in placed])
        service.tally[InstanceState.ASSIGNED] += len(placed)
        self.tally[InstanceState.ASSIGNED] += len(placed)
        if service.template in self.fences.templates:
            for one in placed:
                self.fences.enter(one)

    def _hold(self, instance: Instance) -> None:
        """It is the one that has its slot; whoever had it before was told to go."""
        service = self.services[instance.key]
        assert instance.slot not in service.holders, f"{instance.name} has two holders"
        service.holders[instance.slot] = instance
        if not instance.template:
            # Known by its labels only: taken for what its service is now.
            instance.template = service.template
        elif instance.template != service.template:
            service.rolling = True
        if instance.template in self.fences.templates:
            self.fences.enter(instance)
        service.tally[instance.state] += 1
        self.tally[instance.state] += 1

    def admit(self, instance: Instance) -> None:
        """A quarantined instance belongs to a service after all."""
        self._leave_quarantine(instance)
        self._mark(instance, 0)
        self._hold(instance)

    def _leave_quarantine(self, instance: Instance) -> None:
        if instance.quarantined:
            instance.quarantined = False
            found = self.quarantine[instance.key]
            del found[instance.incarnation]
            if not found:
                del self.quarantine[instance.key]

    def forget(self, instance: Instance) -> None:
        """The node has it no more."""
        node = self.nodes[instance.node]
        if instance.removing:
            self.leaving[instance.key] -= 1
            if not self.leaving[instance.key]:
                del self.leaving[instance.key]
        del node.instances[instance.incarnation]
        node.dirty.pop(instance.incarnation, None)
        node.leaving.pop(instance.incarnation, None)
        node.assignment_digest = digest.replace(
            node.assignment_digest, instance.assignment_digest, 0
        )
        node.inventory_digest = digest.replace(node.inventory_digest, instance.inventory_digest, 0)
        self._leave_quarantine(instance)
        self.release_slot(instance)
        if self.fences.leave(instance):
            self.dirty_services.add(instance.key)
        self.ports.leave(instance.incarnation)
        self.guests.gone(instance.incarnation)

    def release_slot(self, instance: Instance) -> None:
        """The slot is free, if this instance held it."""
        service = self.services.get(instance.key)
        if service is not None and service.holders.get(instance.slot) is instance:
            del service.holders[instance.slot]
            service.tally[instance.state] -= 1
            self.tally[instance.state] -= 1
            self.dirty_services.add(instance.key)

    def remove(self, instance: Instance) -> None:
        """Tell the node to take it away; its slot is free at once, its resources are not."""
        if instance.removing:
            return
        before = instance.assignment_digest
        self._keep_past(instance)
        instance.removing = True
        self.guests.revoke(instance.incarnation)
        self._leave_quarantine(instance)
        self.leaving[instance.key] += 1
        self.nodes[instance.node].leaving[instance.incarnation] = instance
        self._mark(instance, before)
        self.release_slot(instance)

    def _keep_past(self, instance: Instance) -> None:
        """What it went through counts where its slot runs next, if that is not asked for anew."""
        service = self.services.get(instance.key)
        if service is None or service.holders.get(instance.slot) is not instance:
            return
        if instance.departure or instance.state is InstanceState.LOST:
            node, seen = self.nodes[instance.node], (instance.state, instance.since, "")
            self.pasts.leave(instance, *node.lost.get(instance.incarnation, seen)[:2])
        else:
            self.pasts.drop(instance.key, instance.slot)

    def wish(self, instance: Instance, desired: Desired, generation: int) -> bool:
        """Tell the node what is wanted of it now, if that is news; whether it is."""
        if instance.desired is desired and instance.generation == generation:
            return False
        before = instance.assignment_digest
        instance.desired = desired
        instance.generation = generation
        self._mark(instance, before)
        return True

    def observe(self, instance: Instance, report: InstanceReport) -> None:
        """Take in what its node reports of it."""
        node = self.nodes[instance.node]
        before, state = instance.inventory_digest, instance.state
        instance.take(report)
        if instance.failures:
            self.pasts.watch(instance)
        node.inventory_digest = digest.replace(
            node.inventory_digest, before, instance.inventory_digest
        )
        self._retally(instance, state)

    def lose(self, node: Node, gone: Iterable[Instance], now: float, reason: str) -> None:
        """``node`` is silent: what these do is not known any more.

        What was seen of them is kept, and so is its digest, until :meth:`find_again`.
        """
        for instance in gone:
            state = instance.state
            node.lost[instance.incarnation] = (state, instance.since, instance.reason)
            instance.state, instance.since, instance.reason = InstanceState.LOST, now, reason
            self._retally(instance, state)
            self._keep_past(instance)

    def find_again(self, node: Node) -> list[Instance]:
        """What was lost with ``node`` is as it was seen last; those that this changes."""
        found: list[Instance] = []
        for incarnation, (state, since, reason) in node.lost.items():
            instance = node.instances.get(incarnation)
            if instance is None or instance.state is not InstanceState.LOST:
                continue
            instance.state, instance.since, instance.reason = state, since, reason
            self._retally(instance, InstanceState.LOST)
            found.append(instance)
        node.lost.clear()
        return found

    def _retally(self, instance: Instance, before: InstanceState) -> None:
        """Its state was ``before``."""
        if instance.state is not before:
            service = self.services.get(instance.key)
            if service is not None and service.holders.get(instance.slot) is instance:
                for tally in (service.tally, self.tally):
                    tally[before] -= 1
                    tally[instance.state] += 1

    def unsee(self, instance: Instance) -> None:
        """Its node cannot say yet whether it has it: it is counted as if it was never told of."""
        node = self.nodes[instance.node]
        node.inventory_digest = digest.replace(node.inventory_digest, instance.inventory_digest, 0)
        instance.reported = False

    def observe_group(
        self, node: Node, state: InstanceState, group: ReportedGroup
    ) -> tuple[list[tuple[Service, Instance, InstanceState]], bool]:
        """Take in what ``node`` reports of many instances at once: about 2 us each.

        Returns:
            Those of services whose state has changed, with the state before; and whether some are
            not known here.
        """
        unknown = False
        changed: list[tuple[Service, Instance, InstanceState]] = []
        seen: list[int] = []
        old = 0
        find, services, totals = node.instances.get, self.services.get, self.tally
        attempt, restarts = group.attempt, group.restarts
        since, generation = group.since, group.generation
        for incarnation, runtime_id in group.entries:
            instance = find(incarnation)
            if instance is None:
                unknown = True
                continue
            seen.append(incarnation)
            if instance.reported:
                old += instance.inventory_digest
                if instance.special:
                    instance.settle_plain()
            before = instance.state
            if before is not state:
                instance.state = state
                service = services(instance.key)
                if service is not None:
                    changed.append((service, instance, before))
                    if service.holders.get(instance.slot) is instance:
                        tally = service.tally
                        tally[before] -= 1
                        tally[state] += 1
                        totals[before] -= 1
                        totals[state] += 1
            instance.attempt, instance.restarts, instance.applied = attempt, restarts, generation
            instance.since = since
            instance.runtime_id = runtime_id
            instance.reported = True
        new = digest.total(digest.inventory_entries(seen, state, attempt, restarts))
        node.inventory_digest = digest.replace(node.inventory_digest, old, new)
        return changed, unknown

    def drop_service(self, key: ServiceKey) -> None:
        """A service was deleted: all that its slots held is told to go."""
        for instance in list(self.services[key].holders.values()):
            self.remove(instance)
        del self.services[key]
        self.dirty_services.discard(key)
        self.victims.forget(key)
        self.pasts.forget(key)

    def forget_templates(self) -> None:
        """Let go of the templates that no service and no instance has."""
        used = {service.template for service in self.services.values()}
        used.update(instance.template for instance in self.all_instances())
        self.templates = {name: it for name, it in self.templates.items() if name in used}
        self.ports.templates &= used

    def all_instances(self) -> Iterator[Instance]:
        """Every instance on every node."""
        for node in self.nodes.values():
            yield from node.instances.values()

    def instances_of(self, key: ServiceKey) -> Iterable[Instance]:
        """The holders of a service's slots, by slot."""
        holders = self.services[key].holders
        return [holders[slot] for slot in sorted(holders)]

    def counts(self, service: Service) -> dict[str, int]:
        """How many instances are in which state, ``pending`` those without a node."""
        found = _by_label(service.tally)
        if service.unplaced:
            found["pending"] = len(service.unplaced)
        completed = len(service.record.completed)
        if completed:
            # Of some the node is gone, and with it the instance.
            succeeded = InstanceState.SUCCEEDED.label
            found[succeeded] = max(completed, found.get(succeeded, 0))
        return found

    def totals(self) -> dict[str, int]:
        """How many holders of slots are in which state, in the whole cluster."""
        return _by_label(self.tally)


def _by_label(tally: list[int]) -> dict[str, int]:
    return {state.label: tally[state] for state in InstanceState if tally[state]}
