"""The controller as a running process: sockets, clocks and tasks around a :class:`Cluster`.

Its tasks: *receive* (:mod:`swarmctl.controller.receiving`) takes in what arrives; *reconcile* runs
cycles when woken, and sends each node one assignment a cycle; *tick* notices silence; *commit*
raises the term, and makes completions durable, which a disk that refuses holds up, and that alone.

It serves only after its term is committed (DESIGN 8.1).
"""

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import time as wall_clock
from typing import Final

import structlog
import trio
from attrs import evolve, frozen

from swarmctl import descriptors, garbage
from swarmctl.controller import (
    completions,
    confirming,
    guardless,
    holding,
    loading,
    moving,
    rebuilding,
    records,
    serviceaddresses,
    tenancy,
)
from swarmctl.controller import identity as identities
from swarmctl.controller.access import ADMIN, NODE, Access, admins_only, user_id
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.convergence import converge, gather
from swarmctl.controller.fencing import FenceBook
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
    statistics,
    streams,
    traces,
)
from swarmctl.controller.networks import UNDERLAY_MTU
from swarmctl.controller.plane import open_ovn
from swarmctl.controller.receiving import Receiver
from swarmctl.controller.records import AdminRecord, NodeRecord, TokenRecord
from swarmctl.controller.state import ClusterState
from swarmctl.controller.store.api import Op, Put, Store
from swarmctl.controller.store.chunks import ChunkedStore
from swarmctl.credentials import JoinToken
from swarmctl.folder import DataFolder
from swarmctl.net.tls import Credentials
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import Busy, Conflict, StaleTerm, StorageFault, sole_error
from swarmctl.proto.messages import Message
from swarmctl.transport.answers import Answers
from swarmctl.transport.api import Authorize, Listener, PeerId
from swarmctl.transport.bulk import BulkServer
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.rpc import Handler, RpcServer
from swarmctl.transport.zmq_listener import open_listener

_log = structlog.get_logger(__name__)
_STORE_FILE: Final = "store.db"
_TICK_S: Final = 0.5
# So an instance that fails is noted within two seconds, and written down no more often than that.
_LOOK_AT_PASTS_EVERY: Final = 4
# A disk that refused is asked again after this.
_STORE_RETRY_S: Final = 1.0

OpenListener = Callable[[Sequence[str], KeyPair, Authorize], AbstractAsyncContextManager[Listener]]
OpenStore = Callable[[Path, str], Awaitable[Store]]


@frozen
class ControllerConfig:
    """What an operator decides about a controller.

    ``advertise`` are the addresses that contexts and tokens carry; empty means those listened
    on.  ``lost_after_s`` is how long a node may be silent, ``fencing_lease_s`` how long one runs
    what is fenced without a word from here.  ``store_file`` is the SQLite store, in ``data`` unless
    given; ``join`` another controller's ``cluster.key``.  ``takeover_grace_s`` is what nodes have
    beyond ``lost_after_s`` to come from the controller that led before.  ``rebuild`` begins a new
    store in place of one that is lost or damaged (:mod:`swarmctl.controller.rebuilding`).  ``ovn``
    is where its northbound database is (:mod:`swarmctl.controller.plane`); it is kept in the store,
    while ``ovn_credentials`` are of this machine.
    """

    data: Path
    listen: tuple[str, ...] = ("tcp://127.0.0.1:7077",)
    advertise: tuple[str, ...] = ()
    context_name: str = "default"
    # Looked at every tick: so a node is called lost within NODE_LOST_S, and not some time after.
    lost_after_s: float = limits.NODE_LOST_S - _TICK_S
    fencing_lease_s: float = limits.FENCING_LEASE_S
    store_file: Path | None = None
    join: Path | None = None
    takeover_grace_s: float = 0.0
    rebuild: bool = False
    ovn: str = ""
    ovn_credentials: Credentials | None = None
    underlay_mtu: int = UNDERLAY_MTU
    underlay_is_v6: bool = False


@frozen
class Edges:
    """Where the daemon touches the world; simulations put their own in place.

    Without an ``open_store`` it is the SQLite store's file, with what care files need.
    """

    open_listener: OpenListener = open_listener
    open_store: OpenStore | None = None
    wall: Callable[[], float] = wall_clock


async def run_controller(
    config: ControllerConfig,
    *,
    edges: Edges | None = None,
    task_status: "trio.TaskStatus[Cluster]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; reports the cluster once it serves.

    Raises:
        Conflict: another controller has the data folder, or the store is of another cluster.
        StorageFault: the data folder or the store cannot be used.
        EnvironmentFault: an address cannot be listened on.
        StaleTerm: another controller has taken over.
    """
    edges = edges or Edges()
    async with AsyncExitStack() as stack:
        stack.enter_context(DataFolder.open(config.data, "controller"))
        if config.rebuild:
            rebuilding.check_identity(config.data)
        identity = identities.load_or_make(config.data)
        access = Access()
        store = await stack.enter_async_context(_open_store(config, edges, identity.cluster_id))
        # Who listens has to know the keys: agents whose key is refused think that it was revoked.
        await let_in(access, store)
        # Listening comes before the term: a controller whose port is taken changes nothing.
        keypair = KeyPair(identity.public_key, identity.secret_key)
        listener = await stack.enter_async_context(
            edges.open_listener(list(config.listen), keypair, access.authorise)
        )
        controller = await Controller.start(
            config, identity, access, listener, store, wall=edges.wall
        )
        await controller.run(task_status=task_status)


@asynccontextmanager
async def _open_store(
    config: ControllerConfig, edges: Edges, cluster_id: str
) -> AsyncGenerator[Store, None]:
    path = config.store_file or config.data / _STORE_FILE
    if edges.open_store is not None:
        store = ChunkedStore(await edges.open_store(path, cluster_id))
    elif config.rebuild:
        store = await rebuilding.begin(path, cluster_id)
    else:
        rebuilding.check_not_lost(path, config.data)
        store = await rebuilding.open_store(path, cluster_id)
    try:
        if store.cluster_id != cluster_id:
            raise Conflict(
                f"the store is of cluster {store.cluster_id[:8]}, the key of {cluster_id[:8]}",
                str(path),
                "restore both from the same backup",
            )
        await moving.check(store, f"sqlite:{path}")
        yield store
    finally:
        await store.aclose()


async def let_in(access: Access, store: Store) -> None:
    """The keys in the store, before anything else of it."""
    for key, value in (await store.read(records.ADMIN)).items():
        admin = records.decode(value, AdminRecord, key)
        access.allow(admin.public_key, user_id(ADMIN, admin.id))
    for key, value in (await store.read(records.NODE)).items():
        node = records.decode(value, NodeRecord, key)
        access.allow(node.public_key, user_id(NODE, node.name))


class Controller:
    """One controller that has its term; :meth:`run` serves."""

    def __init__(self, config: ControllerConfig, cluster: Cluster, listener: Listener) -> None:
        self.config = config
        self.cluster = cluster
        self._listener = listener
        began = cluster.listening.time() + config.takeover_grace_s
        cluster.sessions.losses.take_over(began)
        for node in cluster.state.nodes.values():
            node.heard_at = began
        self._answers = Answers(listener.send, listener.disconnect)
        self.receiver = Receiver(cluster, listener, self._answers)
        self._to_commit = trio.Event()

    @classmethod
    async def start(
        cls,
        config: ControllerConfig,
        identity: identities.ClusterIdentity,
        access: Access,
        listener: Listener,
        store: Store,
        *,
        wall: Callable[[], float] = wall_clock,
    ) -> "Controller":
        """Take a term, load the store, and write the ways in."""
        term = await store.take_term()

        def send(peer: bytes, message: Message) -> None:
            listener.send(PeerId(peer), codec.encode(message))

        cluster = Cluster(
            store=store,
            state=ClusterState(identity.cluster_id, term, fences=FenceBook(config.fencing_lease_s)),
            identity=identity,
            access=access,
            send=send,
            forget_user=listener.forget_user,
            folder=config.data,
            addresses=config.advertise or listener.endpoints,
            wall=wall,
        )
        if config.ovn_credentials is not None:
            cluster.plane.open_northbound = partial(open_ovn, credentials=config.ovn_credentials)
        await tenancy.load(cluster, config.ovn, config.underlay_mtu, is_v6=config.underlay_is_v6)
        await loading.load(cluster)
        serviceaddresses.hold(cluster)
        cluster.hold = await holding.read(store)
        await _write_ways_in(config, cluster)
        _log.info("term taken", term=term, services=len(cluster.state.services))
        return cls(config, cluster, listener)

    async def run(
        self, *, task_status: "trio.TaskStatus[Cluster]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled.

        Raises:
            StaleTerm: another controller has taken over.
        """
        try:
            async with trio.open_nursery() as nursery:
                others = RpcServer(admins_only(_handlers(self.cluster, self._listener)), nursery)
                server = BulkServer(others, applying.bulk(self.cluster), nursery)
                nursery.start_soon(self.receiver.run, server, nursery)
                nursery.start_soon(self._answers.run)
                nursery.start_soon(self._reconcile, server)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._commit)
                nursery.start_soon(confirming.run, self.cluster)
                nursery.start_soon(self.cluster.plane.run)
                nursery.start_soon(self.cluster.state.guests.run, self.cluster)
                nursery.start_soon(self._stop_at_the_end)
                task_status.started(self.cluster)
                _log.info("serving", addresses=self.cluster.addresses)
        except BaseExceptionGroup as group:
            if isinstance(sole_error(group), StaleTerm):
                raise sole_error(group) from group
            raise

    async def _stop_at_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.cluster.stop()

    # --- reconciling -------------------------------------------------------------------------

    async def _reconcile(self, server: BulkServer) -> None:
        cluster = self.cluster
        while True:
            await cluster.wait_woken()
            await gather(cluster, server)
            if cluster.deposed is not None:
                raise cluster.deposed
            if cluster.sessions.completions or self._term_is_low or cluster.state.fences.unwritten:
                self._to_commit.set()
            if cluster.hold:
                cluster.announce()  # What nodes report is shown; they are told nothing.
                continue
            if not cluster.reconciler.settled and cluster.sessions.losses.settle(
                self.config.lost_after_s
            ):
                cluster.reconciler.settle()
            if cluster.relocating:
                cluster.relocate(trio.current_time())
            await converge(cluster)
            if cluster.state.victims.unwritten or cluster.state.pasts.unwritten:
                self._to_commit.set()
            cluster.announce()

    @property
    def _term_is_low(self) -> bool:
        return self.cluster.sessions.term_seen >= self.cluster.state.term

    async def _commit(self) -> None:
        """Write what nobody asked for, and try again what the disk refused."""
        while True:
            await self._to_commit.wait()
            self._to_commit = trio.Event()
            try:
                if self._term_is_low:
                    await self._raise_term(self.cluster.sessions.term_seen)
                await completions.commit_gathered(self.cluster, self.receiver.try_send)
                await self.cluster.state.victims.unwritten.write(self.cluster)
                await self.cluster.state.pasts.unwritten.write(self.cluster)
                await guardless.write(self.cluster)
            except (StorageFault, Busy) as error:
                _log.error("store refuses, trying again", error=str(error))
                await trio.sleep(_STORE_RETRY_S)
                self._to_commit.set()

    async def _raise_term(self, seen: int) -> None:
        """Agents have seen a higher term: our store is older than they are (it was restored).

        The store compares our term as it raises it, so a controller that was deposed does not
        come back this way.
        """
        cluster = self.cluster
        cluster.state.term = await cluster.store.take_term(above=seen)
        _log.warning("agents had seen a higher term", seen=seen, now=cluster.state.term)
        for node in cluster.state.nodes.values():
            if node.peer is not None:
                cluster.state.resend(node)

    async def _tick(self) -> None:
        sessions = self.cluster.sessions
        short, heap = "", garbage.Heap()
        for turn in itertools.count(1):
            await trio.sleep(_TICK_S)
            heap.look(self.receiver.departed)
            before, short = short, descriptors.shortage()
            if bool(short) is not bool(before):
                _log.error("short", what=short) if short else _log.info("no shortage any more")
            await self.cluster.listening.look()
            sessions.losses.check_lost(self.config.lost_after_s)
            if turn % _LOOK_AT_PASTS_EVERY == 0:
                self.cluster.state.pasts.look(self.cluster.state.services, self.cluster.wall())
                if self.cluster.state.pasts.unwritten:
                    self._to_commit.set()
            if not self.cluster.reconciler.settled or self.cluster.relocating:
                self.cluster.wake()


def _handlers(cluster: Cluster, listener: Listener) -> dict[str, Handler]:
    return {
        **statistics.handlers(cluster, listener.statistics),
        **services.handlers(cluster),
        **instances.handlers(cluster),
        **streams.handlers(cluster),
        **nodes.handlers(cluster),
        **adopting.handlers(cluster),
        **drains.handlers(cluster),
        **rebalancing.handlers(cluster),
        **fencing.handlers(cluster),
        **networks.handlers(cluster),
        **traces.handlers(cluster),
    }


async def _write_ways_in(config: ControllerConfig, cluster: Cluster) -> None:
    """Keep ``admin.context`` and ``join.token`` in the folder true, and known to the store.

    Both in one commit: a store that knows an administrator and not the token of the file says that
    the token was revoked (:func:`swarmctl.controller.shared.withdraw_revoked_token`).
    """
    access, ops = cluster.access, list[Op]()
    context = identities.write_context(
        config.data, cluster.identity, cluster.addresses, config.context_name
    )
    admin = AdminRecord("admin", context.public_key, cluster.wall())
    if new_admin := access.authorise(context.public_key) is None:
        ops.append(Put(records.ADMIN + admin.id, records.encode(admin)))
    token = _standing_token(config, cluster)
    record = token and TokenRecord(token.id, token.public_key, cluster.wall(), one_time=False)
    if new_token := record if record and record.id not in cluster.tokens else None:
        # New, or the store was emptied: the file is the operator's word that it holds.
        ops.append(Put(records.TOKEN + new_token.id, records.encode(new_token)))

    def follow() -> None:
        if new_admin:
            # One whose file was taken away is not let in any more.
            access.revoke_user(user_id(ADMIN, admin.id))
            access.allow(context.public_key, user_id(ADMIN, admin.id))
        if new_token:
            cluster.know_token(new_token)

    if token is not None:
        # First: of a token that only the store has nobody has the secret.
        identities.write_join_token(config.data, evolve(token, addresses=cluster.addresses))
    if ops:
        await cluster.commit(ops, follow)


def _standing_token(config: ControllerConfig, cluster: Cluster) -> JoinToken | None:
    """The file's, or the first of a cluster in which nothing is yet; None if it was revoked."""
    token = identities.read_join_token(config.data)
    if token is None and not (cluster.tokens or cluster.state.services or cluster.state.nodes):
        return identities.make_token(cluster.identity, cluster.addresses)
    return token
