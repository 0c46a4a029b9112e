"""A whole cluster in virtual time: the real controller, real agents, simulated machines.

Only the edges are replaced: the network, the disk under the store, the journals and the drivers.
What a test kills is gone as by ``kill -9``; what is on a :class:`MemoryDisk`, in a journal or on
a simulated host stays.
"""

import random
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import attrs
import trio
import trio.testing

from swarmctl.agent.config import AgentConfig
from swarmctl.agent.daemon import Edges, run_agent
from swarmctl.agent.drivers.api import Owner, Phase
from swarmctl.agent.drivers.sim import SimDriver, SimHost, SimSettings
from swarmctl.agent.journal import MemoryJournal
from swarmctl.controller import identity as identities
from swarmctl.controller.access import Access
from swarmctl.controller.daemon import Controller, ControllerConfig
from swarmctl.controller.store.memory import MemoryDisk, MemoryStore
from swarmctl.net.memory import MemoryDatabase, MemoryNorthbound
from swarmctl.proto import codec
from swarmctl.proto.errors import SwarmError, sole_error
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Resources, ServiceSpec, Template
from swarmctl.transport import keys
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.memory import MemoryNetwork
from swarmctl.transport.rpc import RpcCaller

ENDPOINT = "tcp://10.0.0.1:7077"
# Virtual seconds: they cost nothing, and a cluster that has not converged by then never will.
PATIENCE_S = 120


def service(name="web", replicas=1, *command, image="box", cpu_millis=100, job=False):
    """A service of simulated containers."""
    template = Template(
        container=ContainerSpec(image, command),
        resources=Resources(cpu_millis=cpu_millis),
        job=job,
    )
    return ServiceSpec(name, template, replicas, driver="sim")


def at_once(_passage):
    """A network without faults."""
    return 0.0


def noise(random_):
    """A network that loses every fifth payload, and delays the others."""

    def fate(_passage):
        return None if random_.random() < 0.2 else random_.uniform(0, 0.3)

    return fate


class ShakyListener:
    """A listener that may deliver what is sent to agents twice, as ``chance`` says."""

    def __init__(self, listener, random_, chance):
        self._listener = listener
        self._random = random_
        self.chance = chance

    def __getattr__(self, name):
        return getattr(self._listener, name)

    def send(self, peer, payload):
        self._listener.send(peer, payload)
        if self._random.random() < self.chance:
            self._listener.send(peer, payload)


@attrs.define(eq=False)
class Machine:
    """A node: what outlives its agent."""

    name: str
    folder: Path
    host: SimHost
    journal: MemoryJournal = attrs.field(factory=MemoryJournal)
    scope: trio.CancelScope | None = None
    errors: list = attrs.field(factory=list)
    parent: str = ""
    drivers: tuple[str, ...] = ("sim",)

    @property
    def key(self):
        """Its public key, by which the network knows its link."""
        return keys.load(self.folder / "node.key").public


@attrs.define(eq=False)
class World:
    """A network, a disk, and machines; controllers and agents come and go."""

    folder: Path
    nursery: trio.Nursery
    random: random.Random
    cpu_millis: int = 4000
    network: MemoryNetwork = attrs.field(factory=MemoryNetwork)
    disk: MemoryDisk = attrs.field(factory=MemoryDisk)
    machines: dict = attrs.field(factory=dict)
    store: MemoryStore | None = None
    cluster: object = None
    controller: Controller | None = None
    scope: trio.CancelScope | None = None
    listener: ShakyListener | None = None
    duplicate: float = 0.0
    northbound: MemoryDatabase | None = None
    ended: list = attrs.field(factory=list)
    make_fence: object = lambda _config: None
    more_drivers: dict = attrs.field(factory=dict)

    # --- the controller -----------------------------------------------------------------------

    async def start_controller(self):
        """A controller process begins."""
        self.scope = await self.nursery.start(self._control)

    async def _control(self, task_status):
        self.folder.mkdir(exist_ok=True)
        identity = identities.load_or_make(self.folder)
        config = ControllerConfig(self.folder, ovn="unix:/ovn" if self.northbound else "")
        access = Access()
        with trio.CancelScope() as scope:
            try:
                async with self.network.open_listener(
                    ENDPOINT, KeyPair(identity.public_key, identity.secret_key), access.authorise
                ) as listener:
                    self.store = await MemoryStore.open(
                        self.disk, new_cluster_id=lambda: identity.cluster_id
                    )
                    self.listener = ShakyListener(listener, self.random, self.duplicate)
                    self.controller = await Controller.start(
                        config, identity, access, self.listener, self.store
                    )
                    self.cluster = self.controller.cluster
                    self.cluster.plane.open_northbound = lambda _, cluster_id: nullcontext(
                        MemoryNorthbound(self.northbound, cluster_id)
                    )

                    class Started:
                        def started(self, value=None):
                            del value
                            task_status.started(scope)

                    await self.controller.run(task_status=Started())
            except SwarmError as error:
                self.ended.append(error)

    def kill_controller(self):
        """As ``kill -9``."""
        self.scope.cancel()

    async def restart_controller(self):
        """Another process on the same disk."""
        self.kill_controller()
        await trio.testing.wait_all_tasks_blocked()
        await self.start_controller()

    # --- nodes --------------------------------------------------------------------------------

    async def start_nodes(self, count):
        """Machines ``n1`` and so on join."""
        for number in range(1, count + 1):
            await self.start_node(f"n{number}")

    async def start_node(self, name, settings=None, parent=""):
        """An agent begins on a machine, a new one or one that is there; ``parent`` is its VM."""
        machine = self.machines.get(name)
        if machine is None:
            host = SimHost(settings or SimSettings(seed=self.random.getrandbits(32)))
            machine = Machine(name, self.folder / name, host, parent=parent)
            self.machines[name] = machine
        machine.scope = await self.nursery.start(self._agent, machine)

    async def _agent(self, machine, task_status):
        @asynccontextmanager
        async def journal(path):
            yield machine.journal

        edges = Edges(
            self.network.open_link,
            lambda config, owner: (
                {name: SimDriver(owner, machine.host) for name in config.drivers}
                | self.more_drivers
            ),
            journal,
            random.Random(self.random.getrandbits(32)),
            trio.current_time,
            make_fence=self.make_fence,
            boottime_ns=lambda: int(trio.current_time() * 1e9),
        )
        config = AgentConfig(
            data=machine.folder,
            name=machine.name,
            join=str(self.folder / "join.token"),
            labels={"name": machine.name},
            drivers=machine.drivers,
            capacity={"cpu_millis": self.cpu_millis},
            parent=machine.parent,
        )

        class Started:
            def started(self, value=None):
                del value
                task_status.started(scope)

        with trio.CancelScope() as scope:
            try:
                await run_agent(config, edges=edges, task_status=Started())
            except SwarmError as error:
                machine.errors.append(error)

    def cut(self, name):
        """Nothing gets through to or from a machine any more."""
        self.network.block(public_key=self.machines[name].key)

    def cut_only(self, names):
        """Nothing gets through to or from these machines; everything to the others."""
        self.network.unblock()
        for name in names:
            self.cut(name)

    def heal(self):
        """Everything gets through again."""
        self.network.unblock()

    # --- users --------------------------------------------------------------------------------

    async def ask(self, method, params=None, timeout_s=30.0):
        """A request of the administrator, over a connection of its own."""
        try:
            return await self._ask(method, params, timeout_s)
        except BaseExceptionGroup as group:
            raise sole_error(group) from group

    async def _ask(self, method, params, timeout_s):
        context = identities.write_context(
            self.folder, identities.load_or_make(self.folder), (ENDPOINT,), "default"
        )
        caller = RpcCaller()
        async with (
            self.network.open_link(
                ENDPOINT, context.server_key, KeyPair(context.public_key, context.secret_key)
            ) as link,
            trio.open_nursery() as nursery,
        ):
            await link.wait_connected()

            async def listen():
                while True:
                    for payload in await link.receive_batch():
                        caller.on_message(b"c", codec.decode(payload))

            nursery.start_soon(listen)
            async with caller.stream(
                b"c",
                lambda message: link.send(codec.encode(message)),
                method,
                params,
                timeout_s=timeout_s,
            ) as stream:
                while await stream.receive() is not None:
                    pass
                result = await stream.result()
            nursery.cancel_scope.cancel()
        return result

    async def apply(self, *services, **params):
        """``swarmctl apply``."""
        encoded = [wire.encode_service(one) for one in services]
        return await self.ask("service.apply", {"services": encoded} | params)

    async def apply_at_last(self, *services):
        """Ask until it is answered: requests get lost, too."""
        while True:
            try:
                with trio.fail_after(10):
                    return await self.apply(*services)
            except (SwarmError, trio.TooSlowError):
                await trio.sleep(0.5)

    # --- what is there ------------------------------------------------------------------------

    def running(self, name="web"):
        """Slot to the machines that run it, as the machines themselves say."""
        found = {}
        for machine in self.machines.values():
            for one in self.book(machine).values():
                if one.launch.service == name and one.phase is Phase.RUNNING:
                    found.setdefault(one.launch.slot, []).append(machine.name)
        return {slot: sorted(nodes) for slot, nodes in found.items()}

    def owner(self, name):
        """Whose instances a machine's agent has."""
        return Owner(identities.load_or_make(self.folder).cluster_id, name)

    def book(self, machine):
        """What a machine has, by incarnation."""
        return machine.host.book(self.owner(machine.name))

    def incarnations(self):
        """All that runs, with when it was started."""
        return {
            (machine.name, number, one.started_at)
            for machine in self.machines.values()
            for number, one in self.book(machine).items()
            if one.phase is Phase.RUNNING
        }

    def agrees(self):
        """Whether the controller's picture is what the machines have."""
        nodes = self.cluster.state.nodes
        return set(nodes) == set(self.machines) and all(
            {number for number, one in self.book(machine).items()}
            == set(nodes[machine.name].instances)
            for machine in self.machines.values()
        )

    async def until(self, condition, patience_s=PATIENCE_S):
        """Wait until ``condition()``; the virtual seconds that it took."""
        began = trio.current_time()
        with trio.move_on_after(patience_s) as late:
            while not condition():  # noqa: ASYNC110 - of the whole world, which has no event
                await trio.sleep(0.05)
        assert not late.cancelled_caught, f"not within {patience_s} s: {self.picture()}"
        return trio.current_time() - began

    async def until_runs(self, *services, patience_s=PATIENCE_S):
        """Every wanted slot of ``services`` runs on one machine, and nothing else runs."""

        def reached():
            return all(
                sorted(self.running(one.name)) == list(range(1, one.replicas + 1))
                and all(len(nodes) == 1 for nodes in self.running(one.name).values())
                for one in services
            )

        return await self.until(reached, patience_s)

    def picture(self):
        """For a test that failed."""
        return {
            "running": {one: self.running(one) for one in ("web", "db")},
            "nodes": {name: str(n.state) for name, n in self.cluster.state.nodes.items()},
            "ended": self.ended,
            "errors": {m.name: m.errors for m in self.machines.values() if m.errors},
        }


@asynccontextmanager
async def a_cluster(folder, nodes=5, *, seed=1, **fields):
    """A controller and machines that have joined."""
    async with trio.open_nursery() as nursery:
        world = World(folder / "controller", nursery, random.Random(seed), **fields)
        await world.start_controller()
        await world.start_nodes(nodes)
        await world.until(lambda: len(world.cluster.state.nodes) == nodes)
        yield world
        nursery.cancel_scope.cancel()
