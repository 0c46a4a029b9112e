"""A controller among several: it follows, and leads when it is elected (DESIGN 8).

Each turn has a listener of its own: when the role changes every connection ends, and agents and
clients come again, here or elsewhere, to whoever leads now. A leader is a
:class:`~swarmctl.controller.daemon.Controller` like a single one, over a store whose writes compare
its lease; its term is higher than every one before. It ends as leader when the lease is lost, or a
write finds that another has taken over, or when what a write did cannot be told: it follows then,
and if it leads again it has read everything anew.
"""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from functools import partial
from time import time as wall_clock
from typing import Final

import structlog
import trio
from attrs import evolve, frozen

from swarmctl.controller import identity as identities
from swarmctl.controller import moving, records, shared
from swarmctl.controller.access import ADMIN, TOKEN, Access, user_id
from swarmctl.controller.daemon import Controller, ControllerConfig, OpenListener, let_in
from swarmctl.controller.election import Election, Place
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.ledger import LeaseGuard
from swarmctl.controller.follower import Follower
from swarmctl.controller.records import AdminRecord, TokenRecord
from swarmctl.controller.shared import RELAY, SharedIdentity
from swarmctl.controller.store.api import Put, Store
from swarmctl.controller.store.chunks import ChunkedStore
from swarmctl.controller.store.etcd import EtcdStore
from swarmctl.folder import DataFolder
from swarmctl.proto.errors import StaleTerm, StorageFault, SwarmError, sole_error
from swarmctl.proto.messages import Controllers
from swarmctl.transport.api import Link, Listener
from swarmctl.transport.errors import AddressInUse
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.link import HANG_S
from swarmctl.transport.zmq_link import open_link
from swarmctl.transport.zmq_listener import open_listener

_log = structlog.get_logger(__name__)

# A leader that failed to begin (etcd takes no writes) lets others try before it stands again.
_PAUSE_S: Final = 2.0
# A follower reads the keys again this long after a change, and no more often than a tenth of the
# time: a fleet that enrols changes them all the time.
_REFRESH_MIN_S: Final = 0.25
_REFRESH_SHARE: Final = 10.0
# The port of the turn before may take a moment to be free.
_LISTEN_AGAIN_S: Final = 3.0

# A node notices a frozen leader by its silence, up to a heartbeat after CONTROLLER_SILENT_S; we are
# elected up to a renewal earlier than LEASE_TTL_S after that began. On its way to us it may try the
# frozen one once more (HANG_S in transport/link).
_TAKEOVER_GRACE_S: Final = 3.0 + HANG_S


@frozen
class Serving:
    """What is told once it serves, whatever its role."""

    addresses: tuple[str, ...]


async def _open_etcd_store(
    address: EtcdAddress, cluster_id: str, guard: LeaseGuard | None
) -> Store:
    return await EtcdStore.open(address, new_cluster_id=lambda: cluster_id, guard=guard)


OpenLink = Callable[[Sequence[str], str, KeyPair], AbstractAsyncContextManager[Link]]
OpenStore = Callable[[EtcdAddress, str, LeaseGuard | None], Awaitable[Store]]


@frozen
class Edges:
    """Where a candidate touches the world; simulations put their own in place."""

    open_listener: OpenListener = open_listener
    open_link: OpenLink = open_link
    open_store: OpenStore = _open_etcd_store
    make_election: Callable[[EtcdAddress, Place], Election] = Election
    wall: Callable[[], float] = wall_clock


class Candidate:
    """One controller of several; :meth:`run` takes its turns.

    Args:
        config: what an operator decided.
        address: of the etcd.
        identity: of the cluster.
        advertised: where others reach this controller.
        edges: what it touches.
    """

    def __init__(
        self,
        config: ControllerConfig,
        address: EtcdAddress,
        identity: SharedIdentity,
        advertised: tuple[str, ...],
        edges: Edges | None = None,
    ) -> None:
        self._edges = edges or Edges()
        self._config = config
        self._address = address
        self._identity = identity
        self._advertised = advertised
        self._access = Access()
        me = Place(uuid.uuid4().hex[:12], advertised)
        self._election = self._edges.make_election(address, me)

    async def run(self, *, task_status: "trio.TaskStatus[Serving]") -> None:
        """Follow and lead until cancelled."""
        async with aclosing(await self._open_store(None)) as store:
            await moving.check(store, str(self._address))
            await self._let_in(self._access, store)
        self._election.start()
        first = True
        try:
            while True:
                guard = await self._follow(task_status if first else trio.TASK_STATUS_IGNORED)
                first = False
                await self._lead(guard)
        finally:
            await self._election.resign()

    @asynccontextmanager
    async def _listening(self, access: Access) -> AsyncGenerator[Listener, None]:
        cluster = self._identity.cluster
        keypair = KeyPair(cluster.public_key, cluster.secret_key)
        deadline = trio.current_time() + _LISTEN_AGAIN_S
        async with AsyncExitStack() as stack:
            while True:
                opening = self._edges.open_listener(
                    list(self._config.listen), keypair, access.authorise
                )
                try:
                    listener = await stack.enter_async_context(opening)
                except AddressInUse:
                    if trio.current_time() >= deadline:
                        raise
                    await trio.sleep(_REFRESH_MIN_S)
                else:
                    break
            yield listener

    async def _open_store(self, guard: LeaseGuard | None) -> Store:
        cluster_id = self._identity.cluster.cluster_id
        store = await self._edges.open_store(self._address, cluster_id, guard)
        return ChunkedStore(store)

    # --- following ----------------------------------------------------------------------------

    async def _follow(self, task_status: "trio.TaskStatus[Serving]") -> LeaseGuard:
        """Until we are to lead."""
        async with self._listening(self._access) as listener, trio.open_nursery() as nursery:
            follower = Follower(
                listener,
                lambda addresses: self._edges.open_link(
                    addresses, self._identity.cluster.public_key, self._identity.relay
                ),
                lambda: self._election.view,
                self._election.wait_change,
            )
            nursery.start_soon(follower.run)
            nursery.start_soon(self._keep_in_step)
            self._election.stand()
            task_status.started(Serving(self._advertised))
            _log.info("following", addresses=self._advertised)
            while (guard := self._election.view.guard) is None:
                await self._election.wait_change()
            nursery.cancel_scope.cancel()
        return guard

    async def _let_in(self, access: Access, store: Store) -> None:
        """All keys in the store, and those by which the first come before there are any."""
        await let_in(access, store)
        access.allow(self._identity.admin.public, user_id(ADMIN, "admin"))
        access.allow(self._identity.relay.public, user_id(ADMIN, RELAY))
        for key, value in (await store.read(records.TOKEN)).items():
            token = records.decode(value, TokenRecord, key)
            access.allow(token.public_key, user_id(TOKEN, token.id))

    async def _keep_in_step(self) -> None:
        """Learn the keys that the leader commits, and write where we all are into the folder.

        Without etcd those known remain. Keys that were revoked are let in until the next turn, and
        get nothing but a refusal: the leader knows.
        """
        revision = b""
        controllers: tuple[str, ...] = ()
        while True:
            view = self._election.view
            pause_s = _REFRESH_MIN_S
            if view.controllers and view.controllers != controllers:
                controllers = view.controllers
                self._write_ways_in(controllers)
            if view.revision != revision:
                began = trio.current_time()
                try:
                    async with aclosing(await self._open_store(None)) as store:
                        await self._let_in(self._access, store)
                    revision = view.revision
                except StorageFault as error:
                    _log.info("keys not read", error=str(error))
                pause_s += (trio.current_time() - began) * _REFRESH_SHARE
            await trio.sleep(pause_s)
            if view == self._election.view:
                await self._election.wait_change()

    def _write_ways_in(self, controllers: tuple[str, ...]) -> None:
        config, cluster = self._config, self._identity.cluster
        identities.write_context(config.data, cluster, controllers, config.context_name)
        token = identities.read_join_token(config.data)
        if token is not None:
            identities.write_join_token(config.data, evolve(token, addresses=controllers))

    # --- leading ------------------------------------------------------------------------------

    async def _lead(self, guard: LeaseGuard) -> None:
        """Until we are not to lead any more."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_lost, guard)
                await self._serve(guard)
        except BaseExceptionGroup as group:
            cause = sole_error(group)
            if not isinstance(cause, StaleTerm | StorageFault):
                raise
            _log.warning("not leading any more", why=str(cause))
            self._election.step_down()
            if isinstance(cause, StorageFault):
                await trio.sleep(_PAUSE_S)
            # What is asked for next must not be taken for the lease that is given back.
            while self._election.view.guard == guard:
                await self._election.wait_change()

    async def _until_lost(self, guard: LeaseGuard) -> None:
        while self._election.view.guard == guard:
            await self._election.wait_change()
        raise StaleTerm("the lease in etcd was lost", hint="another controller takes over")

    async def _serve(self, guard: LeaseGuard) -> None:
        # Anew: what was let in before may have been revoked.
        access = Access()
        async with aclosing(await self._open_store(guard)) as store:
            await moving.check(store, str(self._address))
            await let_in(access, store)
            await shared.withdraw_revoked_token(self._config.data, store)
            async with self._listening(access) as listener:
                controllers = self._election.view.controllers
                config = evolve(
                    self._config,
                    advertise=controllers or self._advertised,
                    takeover_grace_s=_TAKEOVER_GRACE_S,
                )
                controller = await Controller.start(
                    config,
                    self._identity.cluster,
                    access,
                    listener,
                    store,
                    wall=self._edges.wall,
                )
                controller.cluster.state.fences.may_grant = lambda: self._election.leads_surely
                await self._let_relays_in(controller)
                self._access = access
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell_addresses, controller)
                    await nursery.start(partial(controller.run))

    async def _let_relays_in(self, controller: Controller) -> None:
        cluster, relay = controller.cluster, self._identity.relay
        user = user_id(ADMIN, RELAY)
        if cluster.access.authorise(relay.public) != user:
            record = AdminRecord(RELAY, relay.public, cluster.wall())
            await cluster.store.commit([Put(records.ADMIN + RELAY, records.encode(record))])
            cluster.access.allow(relay.public, user)

    async def _tell_addresses(self, controller: Controller) -> None:
        """New controllers come: nodes, contexts and tokens are to know them, too."""
        cluster = controller.cluster
        told: tuple[str, ...] = ()
        while True:
            controllers = self._election.view.controllers
            if controllers and controllers != told:
                told = cluster.addresses = cluster.sessions.addresses = controllers
                self._write_ways_in(controllers)
                for node in cluster.state.nodes.values():
                    if node.peer is not None:
                        _tell(controller, node.peer, controllers)
            await self._election.wait_change()


def _tell(controller: Controller, peer: bytes, controllers: tuple[str, ...]) -> None:
    try:
        controller.cluster.send(peer, Controllers(controllers))
    except SwarmError as error:
        _log.debug("addresses not delivered", error=str(error))


async def run_candidate(
    config: ControllerConfig,
    address: EtcdAddress,
    *,
    task_status: "trio.TaskStatus[Serving]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Be one of the controllers on ``address`` until cancelled; reports once it serves.

    Raises:
        Conflict: the data folder is in use, or another cluster's.
        StorageFault: etcd does not serve at the start or knows nothing of a cluster that was there
            before, or the folder cannot be used.
        EnvironmentFault: an address cannot be listened on.
    """
    with DataFolder.open(config.data, "controller"):
        shared.take(config.data, config.join)
        advertised = config.advertise or config.listen
        settle = partial(shared.settle, joins=config.join is not None)
        identity = await trio.to_thread.run_sync(
            settle, address, config.data, advertised, abandon_on_cancel=True
        )
        await Candidate(config, address, identity, advertised).run(task_status=task_status)
