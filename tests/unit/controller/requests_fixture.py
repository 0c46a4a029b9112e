"""A real :class:`Cluster` over a store in memory, asked by calls in place of connections."""

from contextlib import asynccontextmanager

import attrs
import trio

from swarmctl.controller import identity as identities
from swarmctl.controller import loading
from swarmctl.controller.access import Access, admins_only
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers import (
    adopting,
    applying,
    drains,
    fencing,
    instances,
    networks,
    nodes,
    rebalancing,
    services,
    streams,
    traces,
)
from swarmctl.controller.state import ClusterState
from swarmctl.controller.store.memory import MemoryDisk, MemoryStore
from swarmctl.proto import codec
from swarmctl.proto.errors import PeerUnreachable, sole_error
from swarmctl.proto.messages import Assign, Enrol, Report, Request
from swarmctl.spec import wire
from swarmctl.transport import keys
from swarmctl.transport.bulk import BulkServer
from swarmctl.transport.rpc import RpcCaller, RpcServer
from tests.unit.controller.harness import CLUSTER, FakeNode

ADMIN = "admin:admin"


@attrs.define(eq=False)
class Rig:
    """One controller without sockets: requests in, assignments to data nodes out."""

    cluster: Cluster
    store: MemoryStore
    disk: MemoryDisk
    nursery: trio.Nursery
    nodes: dict = attrs.field(factory=dict)
    sent: list = attrs.field(factory=list)
    forgotten: list = attrs.field(factory=list)
    progress: list = attrs.field(factory=list)
    database: object = None

    # --- users --------------------------------------------------------------------------------

    async def ask(self, method, user=ADMIN, **params):
        """Call ``method`` as the network does; what it streamed is in ``progress``."""
        caller = RpcCaller()
        handlers = {
            **services.handlers(self.cluster),
            **instances.handlers(self.cluster),
            **streams.handlers(self.cluster),
            **nodes.handlers(self.cluster),
            **drains.handlers(self.cluster),
            **fencing.handlers(self.cluster),
            **rebalancing.handlers(self.cluster),
            **adopting.handlers(self.cluster),
            **networks.handlers(self.cluster),
            **traces.handlers(self.cluster),
        }
        try:
            async with trio.open_nursery() as nursery:
                others = RpcServer(admins_only(handlers), nursery)
                server = BulkServer(others, applying.bulk(self.cluster), nursery)

                def answer(message):
                    caller.on_message(b"c", message)

                def send(message):
                    if isinstance(message, Request):
                        assert message.method in handlers, message.method
                    message = codec.decode(codec.encode(message))
                    server.on_message(b"a", user, message, answer, 0)

                try:
                    async with caller.stream(b"c", send, method, params, timeout_s=3600) as stream:
                        while (item := await stream.receive()) is not None:
                            self.progress.append(item.data)
                        return await stream.result()
                finally:
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise sole_error(group) from group

    async def apply(self, *specs, **params):
        """Apply services."""
        return await self.ask(
            "service.apply", services=[wire.encode_service(one) for one in specs], **params
        )

    def record(self, name="web"):
        """The record in memory."""
        return self.cluster.state.services[("default", name)].record

    # --- nodes --------------------------------------------------------------------------------

    async def join(self, name, *, cpu_millis=4000, user=None):
        """A node enrols with the standing token and says hello."""
        token = user or f"token:{next(iter(self.cluster.tokens))}"
        pair = keys.generate()
        await nodes.enrol(self.cluster, token, Enrol(1, "0", name, pair.public))
        node = self.nodes[name] = FakeNode(name, cpu_millis)
        self.connect(name)
        return node

    def connect(self, name):
        """A node's session begins."""
        node = self.nodes[name]
        node.peer = b"peer-" + name.encode()
        self.cluster.sessions.on_message(node.peer, f"node:{name}", node.hello())

    def disconnect(self, name):
        """A node is lost."""
        node = self.nodes[name]
        peer, node.peer = node.peer, b""
        self.cluster.sessions.peer_departed(peer)
        self.cluster.state.nodes[name].heard_at = trio.current_time() - 100
        self.cluster.sessions.losses.check_lost(5.0)

    def send(self, peer, message):
        """What the controller says to a node."""
        for node in self.nodes.values():
            if node.peer == peer:
                self.sent.append((node, message))
                return
        raise PeerUnreachable("gone")

    def step(self, *, deliver=True):
        """One cycle; the nodes do as they are told."""
        self.cluster.reconciler.cycle()
        self.cluster.sessions.flush()
        sent, self.sent = self.sent, []
        for node, message in sent:
            if deliver and isinstance(message, Assign) and node.peer:
                reports = node.take(message)
                if reports:
                    node.sequence += 1
                    self.cluster.sessions.on_message(
                        node.peer, f"node:{node.name}", Report(node.sequence, reports)
                    )
        self.cluster.announce()

    def run(self, cycles=20):
        """Until nothing moves."""
        for _ in range(cycles):
            self.step()

    def running(self, name="web"):
        """Slots that run, in order."""
        return sorted(
            one.slot
            for node in self.nodes.values()
            for one in node.instances.values()
            if one.service == name and one.state == 4
        )


@asynccontextmanager
async def a_rig(folder, disk=None, *names):
    """A controller on ``disk``, with nodes that have joined."""
    disk = disk or MemoryDisk()
    async with trio.open_nursery() as nursery:
        store = await MemoryStore.open(disk, new_cluster_id=lambda: CLUSTER)
        term = await store.take_term()
        pair = keys.generate()
        forgotten = []
        rig = Rig(None, store, disk, nursery, forgotten=forgotten)
        rig.cluster = Cluster(
            store=store,
            state=ClusterState(CLUSTER, term),
            identity=identities.ClusterIdentity(CLUSTER, pair.public, pair.secret),
            access=Access(),
            send=rig.send,
            forget_user=lambda user: forgotten.append(user) or 0,
            folder=folder,
            addresses=("tcp://127.0.0.1:1",),
        )
        await loading.load(rig.cluster)
        rig.cluster.reconciler.settle()
        if names:
            await rig.ask("token.create", reusable=True)
            for name in names:
                await rig.join(name)
            rig.step()
        yield rig
        nursery.cancel_scope.cancel()
