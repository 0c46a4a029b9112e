"""A controller's pure parts, joined with nodes made of data: no sockets, clocks or threads."""

from attrs import define, evolve, field

from swarmctl.controller import templates
from swarmctl.controller.meters import Meters
from swarmctl.controller.placing import Fleet
from swarmctl.controller.reconciler import Reconciler
from swarmctl.controller.records import NodeRecord, ServiceRecord
from swarmctl.controller.sessions import Sessions
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.proto import digest
from swarmctl.proto.errors import PeerUnreachable
from swarmctl.proto.messages import (
    Assign,
    DriverFacts,
    Heartbeat,
    Hello,
    InstanceReport,
    NodeFacts,
    Report,
)
from swarmctl.proto.states import Desired, InstanceState
from swarmctl.spec.models import ContainerSpec, Placement, Resources, ServiceSpec, Template

CLUSTER = "c1"
LOST_AFTER_S = 5.0


def spec(name="web", replicas=1, *, image="box", cpu_millis=100, placement=None, job=False):
    """A small service."""
    template = Template(
        container=ContainerSpec(image), resources=Resources(cpu_millis=cpu_millis), job=job
    )
    return ServiceSpec(name, template, replicas, placement=placement or Placement())


def record(a_spec, **changes):
    """Its record."""
    return ServiceRecord(a_spec, 0.0, 0.0, **changes)


@define
class FakeNode:
    """What an agent does with assignments, at once and without drivers."""

    name: str
    cpu_millis: int = 4000
    peer: bytes = b""
    term: int = 0
    instances: dict[int, InstanceReport] = field(factory=dict)
    assigned: dict[int, tuple[int, int]] = field(factory=dict)
    refused: list = field(factory=list)
    templates: dict[bytes, bytes] = field(factory=dict)
    sequence: int = 0
    parent: str = ""
    facts: dict[str, str] = field(factory=dict)
    tokens: dict[int, str] = field(factory=dict)
    listed: bool = True
    forgotten: tuple[int, ...] = ()

    def hello(self):
        """The message that begins its session."""
        facts = NodeFacts(
            {"name": self.name},
            {"cpu_millis": self.cpu_millis},
            (DriverFacts("docker", available=True, listed=self.listed),),
            parent=self.parent,
            facts=self.facts,
        )
        return Hello(
            1,
            "0",
            self.name,
            "boot",
            CLUSTER,
            self.term,
            facts,
            tuple(self.instances.values()),
            templates=self.templates,
            forgotten=self.forgotten,
        )

    def take(self, assign):
        """Converge on an assignment; what to report."""
        if assign.term < self.term:
            self.refused.append(assign)
            return ()
        self.term = assign.term
        self.templates.update(assign.templates)
        self.tokens.update(assign.tokens)
        if assign.full:
            self.assigned.clear()
        changed = {}
        for group in assign.groups:
            for index, entry in enumerate(group.entries):
                slot, incarnation, desired, generation, restarts = entry
                self.assigned[incarnation] = (desired, generation)
                before = self.instances.get(incarnation)
                attempt = before.attempt if before else 1
                if before and before.generation != generation:
                    attempt += 1
                wanted = (
                    InstanceState.RUNNING if desired == Desired.RUNNING else InstanceState.STOPPED
                )
                changed[incarnation] = InstanceReport(
                    incarnation,
                    wanted,
                    attempt,
                    restarts,
                    service=group.service,
                    slot=slot,
                    tenant=group.tenant,
                    generation=generation,
                    template=group.template,
                    driver=group.driver,
                    attachments=group.attachments[index] if group.attachments else (),
                )
        self.instances.update(changed)
        for incarnation in assign.removed:
            self.assigned.pop(incarnation, None)
            self.instances.pop(incarnation, None)
            changed[incarnation] = InstanceReport(incarnation, InstanceState.REMOVED)
        return tuple(changed.values())

    def heartbeat(self):
        """With true digests."""
        self.sequence += 1
        return Heartbeat(
            self.sequence,
            self.term,
            digest.total(
                digest.assignment_entry(incarnation, *wish)
                for incarnation, wish in self.assigned.items()
            ),
            digest.total(
                digest.inventory_entry(one.incarnation, one.state, one.attempt, one.restarts)
                for one in self.instances.values()
            ),
        )


class Harness:
    """One controller's memory, and the nodes that outlive it."""

    def __init__(self, nodes=(), *, term=1):
        self.nodes = {node.name: node for node in nodes}
        self.records = {}
        self.now = 0.0
        # How long what is taken in may have lain in the sockets.
        self.waited_s = 0.0
        self.lost = []
        self._peers = 0
        self.start(term)

    def start(self, term):
        """A controller starts from the durable records alone."""
        self.state = ClusterState(CLUSTER, term)
        self.fleet = Fleet()
        self.outbox = []
        self.sessions = Sessions(
            self.state,
            self.fleet,
            self._send,
            Meters(),
            wake=lambda: None,
            now=lambda: self.now,
            arrival=lambda: (self.now, self.now - self.waited_s),
            wall=lambda: 1000.0 + self.now,
        )
        self.reconciler = Reconciler(self.state, self.fleet, Meters(), lambda: 1000.0 + self.now)
        for node in self.nodes.values():
            known = Node(NodeRecord(node.name, "k" * 40, 0.0), heard_at=self.now)
            self.state.nodes[node.name] = known
            self.fleet.node_changed(known)
            node.peer = b""
        for one in self.records.values():
            service = Service(one, old=True)
            self.state.services[service.key] = service
            templates.know(self.state, service)
        self.sessions.losses.take_over(self.now)

    def _send(self, peer, message):
        for node in self.nodes.values():
            if node.peer == peer:
                self.outbox.append((node, message))
                return
        raise PeerUnreachable("gone")

    def connect(self, name):
        """A node says hello."""
        node = self.nodes[name]
        self._peers += 1
        if node.peer:
            self.sessions.peer_departed(node.peer)
        node.peer = b"peer%d" % self._peers
        self.sessions.on_message(node.peer, f"node:{name}", node.hello())

    def disconnect(self, name):
        """Its connection ends."""
        node = self.nodes[name]
        peer, node.peer = node.peer, b""
        self.sessions.peer_departed(peer)

    def beat(self):
        """Time passes, and connected nodes say that they live."""
        self.now += 2.0
        for node in self.nodes.values():
            if node.peer:
                self.sessions.on_message(node.peer, f"node:{node.name}", node.heartbeat())
        self.sessions.losses.check_lost(LOST_AFTER_S)

    def settle_if_due(self):
        """The takeover rule, as the daemon applies it."""
        if not self.reconciler.settled and self.sessions.losses.settle(LOST_AFTER_S):
            self.reconciler.settle()

    def step(self, *, deliver=True):
        """One cycle, and what the nodes answer."""
        self.settle_if_due()
        self.reconciler.cycle()
        self.sessions.flush()
        messages, self.outbox = self.outbox, []
        for node, message in messages:
            if deliver and isinstance(message, Assign) and node.peer:
                reports = node.take(message)
                if reports:
                    node.sequence += 1
                    self.sessions.on_message(
                        node.peer, f"node:{node.name}", Report(node.sequence, reports)
                    )

    def run(self, cycles=12):
        """Until nothing moves any more."""
        for _ in range(cycles):
            self.step()
            self.beat()

    def apply(self, a_spec, **changes):
        """Commit a service, as the handlers do."""
        key = (a_spec.tenant, a_spec.name)
        before = self.records.get(key)
        after = evolve(before, spec=a_spec, **changes) if before else record(a_spec, **changes)
        self.save(after)

    def save(self, after):
        """Commit a record."""
        key = (after.spec.tenant, after.spec.name)
        self.records[key] = after
        service = self.state.services.get(key)
        if service is None:
            service = self.state.services[key] = Service(after)
        else:
            service.set_record(after)
        templates.know(self.state, service)
        self.state.dirty_services.add(key)

    def running(self, name="web"):
        """Slot to the nodes that run it."""
        found = {}
        for node in self.nodes.values():
            for one in node.instances.values():
                if one.service == name and one.state == InstanceState.RUNNING:
                    found.setdefault(one.slot, []).append(node.name)
        return found


def cluster(*names, cpu_millis=4000, term=1):
    """A settled cluster of connected nodes."""
    harness = Harness([FakeNode(name, cpu_millis) for name in names], term=term)
    for name in names:
        harness.connect(name)
    harness.step()
    return harness
