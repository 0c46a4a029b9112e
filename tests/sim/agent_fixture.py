"""A real agent over the memory transport and a simulated host, and a controller that is a script.

The fake controller keeps its half of the digests, so that a test can ask whether both sides
agree, and records all that the agent says.
"""

import random
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from swarmctl.agent.config import AgentConfig
from swarmctl.agent.daemon import Edges, run_agent
from swarmctl.agent.drivers.api import Owner
from swarmctl.agent.drivers.sim import SimDriver, SimHost, SimSettings
from swarmctl.agent.journal import MemoryJournal
from swarmctl.credentials import JoinToken
from swarmctl.proto import codec, digest, incarnation
from swarmctl.proto.errors import PeerUnreachable, SwarmError
from swarmctl.proto.messages import (
    PROTOCOL_VERSION,
    Assign,
    AssignedGroup,
    Enrol,
    Enrolled,
    FactsChanged,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Refuse,
    Report,
    ReportAck,
    SayHello,
    Welcome,
)
from swarmctl.proto.states import Desired, InstanceState
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Template
from swarmctl.transport import keys
from swarmctl.transport.memory import MemoryNetwork
from swarmctl.transport.rpc import RpcCaller

ENDPOINT = "tcp://10.0.0.1:7077"
CLUSTER = "c" * 16
# Virtual seconds: generous, they cost nothing.
PATIENCE_S = 600


def template(*command: str, image: str = "box", **fields) -> Template:
    """A container that does what the simulation's orders in ``command`` say."""
    return Template(container=ContainerSpec(image, command), **fields)


def inc(sequence: int, term: int = 1) -> int:
    return incarnation.make(term, sequence)


class FakeController:
    """Answers agents as a controller does, without any policy of its own."""

    def __init__(self, network: MemoryNetwork, endpoint: str = ENDPOINT, term: int = 1):
        self.network = network
        self.endpoint = endpoint
        self.keypair = keys.generate()
        self.token_keypair = keys.generate()
        self.pinned: dict[str, str] = {self.token_keypair.public: "token"}
        self.term = term
        self.protocol = PROTOCOL_VERSION
        self.version = 0
        self.peer = None
        self.hellos: list[Hello] = []
        self.reports: list[Report] = []
        self.beats: list[Heartbeat] = []
        self.facts: list[FactsChanged] = []
        self.seen: dict[int, list] = {}
        self.now: dict[int, object] = {}
        self.wanted: dict[int, tuple] = {}
        self.attachments: dict[int, tuple] = {}
        self.removed: set[int] = set()
        self.templates: dict[bytes, bytes] = {}
        self.known: set[bytes] = set()
        self.ack_reports = True
        self.ack_beats = True
        self.refuse: Refuse | None = None
        self.refuse_enrol: Refuse | None = None
        self.undelivered = 0
        self.caller = RpcCaller()
        self.listener = None
        self.changed = trio.Event()

    @property
    def token(self) -> JoinToken:
        return JoinToken(
            "t1",
            (self.endpoint,),
            self.keypair.public,
            self.token_keypair.public,
            self.token_keypair.secret,
        )

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        async with self.network.open_listener(
            self.endpoint, self.keypair, self.pinned.get
        ) as self.listener:
            task_status.started()
            while True:
                for arrival in await self.listener.receive_batch():
                    self.on_message(arrival.peer, codec.decode(arrival.payload))
                self.listener.take_departed()
                self.changed.set()
                self.changed = trio.Event()

    def send(self, message, peer=None):
        try:
            self.listener.send(peer or self.peer, codec.encode(message))
        except PeerUnreachable:
            self.undelivered += 1  # The agent has gone; it will say hello.

    def on_message(self, peer, message):  # noqa: C901 - one case a message: a script, not logic
        match message:
            case Enrol() if self.refuse_enrol is not None:
                self.send(self.refuse_enrol, peer)
            case Enrol():
                self.pinned[message.public_key] = message.node
                self.send(Enrolled(message.node, CLUSTER), peer)
            case Hello():
                self.hellos.append(message)
                if self.refuse is not None:
                    self.send(self.refuse, peer)
                    return
                self.peer = peer
                self.known.clear()
                self.now.clear()
                for report in message.inventory:
                    self.take(report)
                self.send(Welcome(self.protocol, CLUSTER, self.term, 2.0, 5.0), peer)
                self.assign_all()
            case _ if peer != self.peer:
                self.send(SayHello(), peer)
            case Heartbeat():
                self.beats.append(message)
                if self.ack_beats and not message.quiet:
                    self.send(HeartbeatAck(message.sequence))
            case Report():
                self.reports.append(message)
                if message.full:
                    self.now.clear()
                for report in message.instances:
                    self.take(report)
                if self.ack_reports:
                    self.send(ReportAck(message.sequence))
            case FactsChanged():
                self.facts.append(message)
            case _:
                assert self.caller.on_message(peer, message), message

    def take(self, report):
        self.seen.setdefault(report.incarnation, []).append(report)
        if report.state == InstanceState.REMOVED:
            self.now.pop(report.incarnation, None)
            self.removed.discard(report.incarnation)
        else:
            self.now[report.incarnation] = report

    # --- what it wants ------------------------------------------------------------------------

    def want(
        self,
        sequence,
        spec,
        *,
        desired=Desired.RUNNING,
        generation=0,
        service="web",
        restarts=0,
        term=1,
        attachments=(),
    ):
        encoded = wire.encode_template(spec)
        name = wire.digest(encoded)
        self.templates[name] = encoded
        entry = (sequence, inc(sequence, term), int(desired), generation, restarts)
        self.wanted[inc(sequence, term)] = (service, name, entry)
        self.attachments[inc(sequence, term)] = attachments

    def unwant(self, sequence):
        del self.wanted[inc(sequence)]
        self.removed.add(inc(sequence))

    def assign_all(self):
        """Send everything."""
        self.send(self.message(self.wanted, full=True, removed=tuple(sorted(self.removed))))

    def assign(self, *sequences, removed=()):
        """Send a change."""
        chosen = {inc(one): self.wanted[inc(one)] for one in sequences}
        gone = tuple(inc(one) for one in removed)
        self.send(self.message(chosen, full=False, removed=gone))

    def message(self, wanted, *, full, removed=()):
        self.version += 1
        groups: dict[tuple, list] = {}
        for service, name, entry in wanted.values():
            groups.setdefault((service, name), []).append(entry)
        new = {name: self.templates[name] for _, name in groups if name not in self.known}
        self.known.update(new)
        return Assign(
            CLUSTER,
            self.term,
            self.version,
            full,
            new,
            tuple(
                AssignedGroup(
                    service, "default", name, "sim", tuple(entries), self.attached(entries)
                )
                for (service, name), entries in groups.items()
            ),
            removed,
        )

    def attached(self, entries):
        """What a group says of its entries' attachments: nothing where none has any."""
        found = tuple(self.attachments[entry[1]] for entry in entries)
        return found if any(found) else ()

    # --- what it sees -------------------------------------------------------------------------

    async def until(self, condition, what=""):
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await self.changed.wait()
        return what

    async def until_state(self, sequence, state, **fields):
        def reached():
            report = self.now.get(inc(sequence))
            return (
                report is not None
                and report.state == state
                and all(getattr(report, name) == value for name, value in fields.items())
            )

        await self.until(reached)
        return self.now[inc(sequence)]

    async def until_gone(self, sequence):
        await self.until(
            lambda: any(
                one.state == InstanceState.REMOVED for one in self.seen.get(inc(sequence), ())
            )
        )

    @property
    def assignment_digest(self):
        return digest.total(
            digest.assignment_entry(entry[1], entry[2], entry[3])
            for _, _, entry in self.wanted.values()
        )

    @property
    def inventory_digest(self):
        return digest.total(
            digest.inventory_entry(one.incarnation, one.state, one.attempt, one.restarts)
            for one in self.now.values()
        )

    async def until_agreed(self):
        """A heartbeat comes whose digests are ours."""
        seen = len(self.beats)
        await self.until(
            lambda: any(
                beat.assignment_digest == self.assignment_digest
                and beat.inventory_digest == self.inventory_digest
                for beat in self.beats[seen:]
            )
        )

    async def ask(self, method, params):
        return await self.caller.call(self.peer, self.send, method, params)

    def stream(self, method, params):
        return self.caller.stream(self.peer, self.send, method, params)


@attrs.define
class World:
    """A network, a controller, and one node's machine; agents come and go."""

    folder: Path
    network: MemoryNetwork
    controller: FakeController
    host: SimHost
    journal: MemoryJournal
    nursery: trio.Nursery
    errors: list = attrs.field(factory=list)
    make_drivers: object = None
    plugs: object = None

    @property
    def owner(self):
        return Owner(CLUSTER, "n1")

    @property
    def book(self):
        return self.host.book(self.owner)

    def config(self, **fields):
        fields.setdefault("name", "n1")
        fields.setdefault("join", self.controller.token.to_text())
        return AgentConfig(data=self.folder, drivers=("sim",), **fields)

    def edges(self):
        def drivers(_config, owner):
            return {"sim": SimDriver(owner, self.host)}

        @asynccontextmanager
        async def journal(path):
            yield self.journal

        return Edges(
            self.network.open_link,
            self.make_drivers or drivers,
            journal,
            random.Random(1),
            trio.current_time,
            make_plugs=lambda *_: self.plugs,
        )

    async def start_agent(self, **fields):
        """Start an agent; the scope that ends it, as kill -9 would."""
        return await self.nursery.start(self._run, self.config(**fields))

    async def _run(self, config, task_status):
        began = False

        class Started:
            def started(self, _value=None):
                nonlocal began
                began = True
                task_status.started(scope)

        with trio.CancelScope() as scope:
            try:
                await run_agent(config, edges=self.edges(), task_status=Started())
            except SwarmError as error:
                self.errors.append(error)
        if not began:
            task_status.started(scope)


@asynccontextmanager
async def a_world(folder, settings=None):
    network = MemoryNetwork()
    controller = FakeController(network)
    async with trio.open_nursery() as nursery:
        await nursery.start(controller.run)
        yield World(
            folder,
            network,
            controller,
            SimHost(settings or SimSettings()),
            MemoryJournal(),
            nursery,
        )
        nursery.cancel_scope.cancel()
