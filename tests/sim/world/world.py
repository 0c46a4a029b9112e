"""One world: who is in it, and how it begins, is troubled, and comes to rest."""

import json
import logging
import random
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import attrs
import structlog
import trio
import trio._core._run as trio_run

from swarmctl.agent.config import AgentConfig
from swarmctl.agent.daemon import Edges as AgentEdges
from swarmctl.agent.daemon import run_agent
from swarmctl.agent.drivers.api import Owner
from swarmctl.controller import identity as identities
from swarmctl.controller.daemon import ControllerConfig, run_controller
from swarmctl.controller.daemon import Edges as ControllerEdges
from swarmctl.credentials import Context, JoinToken
from swarmctl.proto.limits import FENCING_LEASE_MIN_S
from swarmctl.transport import keys
from swarmctl.transport.keys import KeyPair
from tests.sim.world.books import Books
from tests.sim.world.clock import Jumping
from tests.sim.world.disks import USUAL_SYNC_S, Disk, SyncedStore
from tests.sim.world.etcd import Etcd, EtcdLine
from tests.sim.world.faults import FAULTS, OF_LEADERS, OF_STORES
from tests.sim.world.guards import Fence
from tests.sim.world.invariants import Invariants
from tests.sim.world.machines import CAPACITY, FACTS, Clock, Driver, Machine
from tests.sim.world.network import Network
from tests.sim.world.operators import Operator
from tests.sim.world.processes import Process
from tests.sim.world.several import CandidateProcess, shared_identity
from tests.sim.world.trace import EVENTS_MIN, Trace
from tests.sim.world.users import Bulk, User

NODES = 20
TROUBLE_S = 30.0
TROUBLE_MAX_S = 120.0
# Lost nodes, backoff of what crashed, roll-outs a quarter at a time: all of it is over by then.
CALM_WITHIN_S = 120.0
_LOOK_S = 0.5
# What is at rest stays so: a few heartbeats, and the look at the drivers.
_REST_S = 6.0
_LEAK_LOOKS = 20
# How long a fault that is for a node with something fenced waits for one.
_FENCED_WITHIN_S = 10.0
# Two of them take turns on one store; three elect one of them by a lease in etcd.
ENDPOINTS = ("tcp://10.0.0.1:7077", "tcp://10.0.0.2:7077")
SEVERAL = (*ENDPOINTS, "tcp://10.0.0.3:7077")
# One seed in so many is of the latter kind.
_SEVERAL_EVERY = 3
USERS = ("web", "db", "fenced")
# How many seeds have one beside them who fills the machines.
_BULK = 0.5


class World:
    """All of it; :meth:`run` is one run of a seed."""

    def __init__(self, seed, folder, *, keep_trace=False, harsh=False):
        self.seed = seed
        self.harsh = harsh
        self.folder = folder
        self.several = seed % _SEVERAL_EVERY == 0
        self.endpoints = SEVERAL if self.several else ENDPOINTS
        self.random = self.chance("faults")
        self.restart_random = self.chance("restarts")
        self.trace = Trace(keep=keep_trace)
        self.books = Books(self.trace, self)
        self.network = Network(self.books, self.chance("network"))
        self.disk = Disk(self.books, self.chance("store"))
        self.invariants = Invariants(self)
        self.users = []
        self.machines = []
        self.agents = []
        self.controllers = []
        self._serving = 0
        self.etcd = Etcd(self) if self.several else None
        self.usurping = False
        self.second_wanted = trio.Event()
        self.fenced_started = trio.Event()
        self.isolated = None
        self.user_starts = 0
        self.clocks = [Clock() for _ in self.endpoints]
        self.calm_after_s = None
        self.keys = {}
        self._make_identities(self.chance("keys"))
        self._make_machines()
        self._make_users()

    def chance(self, what):
        """A source of chance of its own, so that more of one does not change the others."""
        return random.Random(f"{self.seed}/{what}")

    def owner(self, name):
        """Whose instances a machine's agent has."""
        return Owner(self.identity.cluster_id, name)

    def agent_of(self, machine):
        """The agent's process."""
        return self.agents[self.machines.index(machine)]

    @property
    def living(self):
        """The machines that are not lost for good."""
        return [machine for machine in self.machines if not machine.lost]

    @property
    def serving(self):
        """The number of the controller that serves, or did last."""
        if self.several:
            led = {
                one.value.state.term: number
                for number, one in enumerate(self.controllers)
                if one.value is not None
            }
            if led:
                self._serving = led[max(led)]
        return self._serving

    @serving.setter
    def serving(self, number):
        self._serving = number

    @property
    def cluster(self):
        """What the controller that serves has in memory; None while none does."""
        return self.controllers[self.serving].value

    def later(self, delay_s, function):
        """Call ``function`` after a while."""

        async def wait():
            await trio.sleep(delay_s)
            function()

        self.nursery.start_soon(wait)

    # --- making it ----------------------------------------------------------------------------

    def _make_identities(self, chance):
        """What else would be drawn from the system's own chance."""

        def pair():
            secret = keys.encode_z85(chance.randbytes(32))
            return KeyPair(keys.public_of(secret), secret)

        server, self.admin, token = pair(), pair(), pair()
        cluster_id = chance.randbytes(16).hex()
        self.identity = identities.ClusterIdentity(cluster_id, server.public, server.secret)
        self.token = JoinToken("first", self.endpoints, server.public, token.public, token.secret)
        context = Context(
            "default",
            self.endpoints,
            server.public,
            self.admin.public,
            self.admin.secret,
            cluster_id,
        )
        for number in range(len(self.endpoints)):
            data = self.folder / f"c{number}"
            data.mkdir(mode=0o700)
            (data / identities.CLUSTER_KEY).write_text(json.dumps(attrs.asdict(self.identity)))
            (data / identities.ADMIN_CONTEXT).write_text(context.to_json())
            (data / identities.JOIN_TOKEN).write_text(self.token.to_text())
        self.network.names = {self.admin.public: "user", token.public: "join"}
        self.network.tcp_only.add(self.admin.public)
        if self.several:
            relay = pair()
            self.shared = shared_identity(self, self.admin, relay)
            self.network.names[relay.public] = "relay"
            self.network.tcp_only.add(relay.public)
        for number in range(1, NODES + 1):
            name = f"n{number}"
            self.keys[name] = pair()
            self.network.names[self.keys[name].public] = name
            (self.folder / name).mkdir(mode=0o700)
            keys.save(self.keys[name], self.folder / name / "node.key")

    def _make_machines(self):
        for number in range(1, NODES + 1):
            name = f"n{number}"
            machine = Machine(self, name, self.folder / name, self.chance(name))
            self.machines.append(machine)
            self.clocks.append(machine.clock)
            self.agents.append(Process(self, name, self._agent, self._cut_agent, value=None))
        if self.several:
            self.controllers = [
                CandidateProcess(
                    self,
                    f"c{number}",
                    CandidateProcess.lead_in_turns,
                    self._cut_candidate,
                    line=EtcdLine(self.etcd),
                )
                for number in range(len(self.endpoints))
            ]
            return
        for number in range(2):
            self.controllers.append(
                Process(self, f"c{number}", self._control, self._cut_controller, number == 0)
            )

    def _make_users(self):
        self.users = [User(self, name, self.chance(name)) for name in USERS]
        self.users.append(User(self, "job", self.chance("job"), job=True))
        if self.chance("is there bulk").random() < _BULK:
            self.users.append(Bulk(self, "bulk", self.chance("bulk")))
        self.operator = Operator(self, self.chance("operator"))
        by_name = {user.name: user for user in self.users}
        self.disk.on_service = lambda name, record: by_name[name].synced(record)

    # --- processes ----------------------------------------------------------------------------

    async def _control(self, process):
        number = self.controllers.index(process)

        async def open_store(_path, cluster_id):
            process.store = await self.disk.open(SyncedStore, cluster_id)
            return process.store

        edges = ControllerEdges(self.network.open_listener, open_store, self.clocks[number].now)
        config = ControllerConfig(
            self.folder / f"c{number}",
            (self.endpoints[number],),
            advertise=self.endpoints,
            fencing_lease_s=FENCING_LEASE_MIN_S,
        )
        started = _Started(lambda cluster: self.took_over(process, cluster))
        await run_controller(config, edges=edges, task_status=started)

    def _cut_controller(self, process):
        self.network.sever(endpoint=self.endpoints[self.controllers.index(process)])
        if process.store is not None:
            self.disk.crash(process.store)
            process.store = None
            self.look_at_acknowledged()

    def _cut_candidate(self, process):
        process.thaw()
        self.network.sever(endpoint=self.endpoints[self.controllers.index(process)])
        for store in [one for one in self.disk.stores if one.process is process]:
            self.disk.crash(store)
        self.look_at_acknowledged()

    def look_at_acknowledged(self):
        """What was acknowledged is on the disk, whoever was killed just now."""
        for user in self.users:
            user.look()

    def took_over(self, process, cluster):
        """A controller begins to serve with what it found: what was acknowledged."""
        process.value = cluster
        served = {name: one.record for (_, name), one in cluster.state.services.items()}
        for user in self.users:
            user.look_at(served.get(user.name))

    async def _agent(self, process):
        machine = self.machines[self.agents.index(process)]

        @asynccontextmanager
        async def open_journal(_path):
            yield machine.journal

        machine.off = False
        edges = AgentEdges(
            self.network.open_link,
            lambda _config, owner: {"sim": Driver(owner, machine.host)},
            open_journal,
            self.chance(f"{machine.name}/{process.starts}"),
            machine.clock.now,
            look=lambda _path: FACTS,
            process_name=lambda: f"the agent of {machine.name}",
            make_fence=lambda _config: Fence(machine),
            boottime_ns=machine.boottime_ns,
        )
        config = AgentConfig(
            data=machine.folder,
            name=machine.name,
            join=str(self.folder / "c0" / identities.JOIN_TOKEN),
            drivers=("sim",),
            capacity=CAPACITY,
        )
        started = _Started(lambda agent: setattr(process, "value", agent))
        await run_agent(config, edges=edges, task_status=started)

    def _cut_agent(self, process):
        machine = self.machines[self.agents.index(process)]
        machine.agent_ended()
        self.network.sever(public_key=self.keys[machine.name].public)
        machine.journal.lose()

    def fencing(self):
        """The machines with something fenced that runs."""
        return [
            machine
            for machine in self.machines
            if any(one.alive and one.launch.template.fenced for one in machine.book.values())
        ]

    async def some_fencing(self):
        """Wait until there are such machines, or a while."""
        with trio.move_on_after(_FENCED_WITHIN_S):
            while not self.fencing():
                await self.fenced_started.wait()

    def isolate_controller(self, number, *, but=(), users=False):
        """No agent reaches it ``but`` those of some machines, and no user either, if ``users``."""
        left = {self.keys[machine.name].public for machine in but}
        cut = {*(pair.public for pair in self.keys.values()), self.token.public_key} - left
        if users:
            cut.add(self.admin.public)
        self.isolated = (self.endpoints[number], sorted(cut))
        self.restore_isolation()

    def restore_isolation(self):
        """After all partitions were lifted: this one stays as long as its controller is a stray."""
        if self.isolated is None:
            return
        endpoint, cut = self.isolated
        for public in cut:
            self.network.block(endpoint=endpoint, public_key=public)
            for wire in list(self.network.wires.values()):
                if (wire.endpoint, wire.public_key) == (endpoint, public):
                    wire.lose_under_way()
                    wire.end()

    # --- a run --------------------------------------------------------------------------------

    async def run(self):
        """Begin, trouble, calm down, look."""
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self._end_when_violated)
            first = self.controllers if self.several else self.controllers[:1]
            for process in [*first, *self.agents]:
                self.nursery.start_soon(process.keep)
            if not self.several:
                self.nursery.start_soon(self._keep_second)
            self.nursery.start_soon(self._look_at_capacity)
            await self._trouble()
            self._heal()
            await self.operator.put_back()
            for user in self.users:
                await user.make_room()
            await self._settle()
            self.nursery.cancel_scope.cancel()

    async def _look_at_capacity(self):
        while True:
            await trio.sleep(_LOOK_S)
            self.invariants.look_at_capacity()

    async def _keep_second(self):
        await self.second_wanted.wait()
        await self.controllers[1].keep()

    async def _end_when_violated(self):
        await self.books.violated.wait()
        self.nursery.cancel_scope.cancel()

    async def _trouble(self):
        """Users ask and faults happen, at the same time."""
        enabled = [name for name in FAULTS if self.random.random() < 0.5] or list(FAULTS)
        fit, unfit = (OF_LEADERS, OF_STORES) if self.several else (OF_STORES, OF_LEADERS)
        enabled = [name for name in FAULTS if name in {*enabled, *fit}.difference(unfit)]
        if self.several:
            # Twice as likely, as only one seed of three has them; one has to meet a write, too.
            enabled += (*fit, "freeze-leader")
        self.trace.note("enabled", *enabled)
        async with trio.open_nursery() as asking:
            for user in self.users:
                asking.start_soon(user.live, TROUBLE_S)
            asking.start_soon(self.operator.live, TROUBLE_S)
            async with trio.open_nursery() as faults:
                await trio.sleep(self.random.choice((0.0, 1.0, 3.0)))
                while self._in_trouble():
                    faults.start_soon(FAULTS[self.random.choice(enabled)], self)
                    await trio.sleep(self.random.expovariate(1.0))
            self._heal()

    def _in_trouble(self):
        """Longer than usual where little happens: a run is to be of some use."""
        now = trio.current_time()
        return now < TROUBLE_S or (self.trace.events < EVENTS_MIN and now < TROUBLE_MAX_S)

    def _heal(self):
        """All faults end."""
        self.isolated = None
        self.network.calm()
        if self.several:
            for process in self.controllers:
                process.line.mend()
                process.thaw()
        self.disk.full = False
        self.disk.on_write = None
        self.disk.slow(USUAL_SYNC_S)
        self.disk.release()
        for machine in self.machines:
            machine.journal.fault = None
            machine.journal.sync_s = USUAL_SYNC_S
            machine.journal.on_write = machine.on_call = None
            machine.host.reachable = True
            machine.host._faults.clear()
            for one in machine.guards:
                one.thaw()
            machine.unwell = False
            machine.speak()
        for clock in self.clocks:
            # As a time service does: a node whose clock stays off is sick, and stays so.
            clock.drift(0.0)
            clock.offset_s = 0.0
        for clock in [*self.clocks, *(machine.quartz for machine in self.machines)]:
            clock.on_look = None
        self.trace.note("healed")

    async def _settle(self):
        """All becomes as users asked, within the bound, and stays so, with nothing left over."""
        healed_at = calm_at = trio.current_time()
        while trio.current_time() < calm_at + _REST_S:
            self.look_at_acknowledged()
            differences = self.invariants.differences()
            late = trio.current_time() > healed_at + CALM_WITHIN_S
            text = _some(differences)
            self.books.check("comes-to-rest", not (differences and late), text)
            await trio.sleep(_LOOK_S)
            if differences:
                calm_at = trio.current_time()
        self.calm_after_s = calm_at - healed_at
        for _ in range(_LEAK_LOOKS):
            leaks = self.invariants.leaks()
            if not leaks:
                break
            await trio.sleep(_LOOK_S)  # A report may be under way just now.
        self.books.check("nothing-left-over", not leaks, lambda: _some(leaks))


def _some(texts):
    return "; ".join(texts[:5])


class _Started:
    """A task status that passes on what was started."""

    def __init__(self, take):
        self.started = take


def _watch_log(world):
    """A defect that is logged and survived is a defect all the same."""

    def watch(_logger, _method, event):
        if event.get("exc_info"):
            world.books.check("no-defect", holds=False, what=f"logged: {event}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[watch],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        cache_logger_on_first_use=False,
    )


async def _no_thread(function, *_, **__):
    """A thread ends when the machine likes, and no two runs of a seed would be the same."""
    raise AssertionError(f"{function} in a thread: the world has to put something in its place")


def run_seed(seed, *, keep_trace=False, harsh=False):
    """One run; the world as it was at the end. ``harsh``: see :mod:`faults`."""
    shared = Path("/dev/shm")
    where = Path(tempfile.mkdtemp(prefix="swarmctl-sim-", dir=shared if shared.is_dir() else None))
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)
    try:
        world = World(seed, where, keep_trace=keep_trace, harsh=harsh)
        _watch_log(world)
        with mock.patch("trio.to_thread.run_sync", _no_thread):
            trio.run(world.run, clock=Jumping())
        return world
    finally:
        shutil.rmtree(where, ignore_errors=True)
