"""One controller's cluster: the state, and the only ways to change intent.

Handlers work with a :class:`Cluster`.  A change of intent is always the same three steps:
compute the new record, commit it (durable before anything is answered), then let memory and the
reconciler follow.  A lock for each record keeps two changes of it from overwriting each other;
changes of different records are committed together in groups by the store.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from time import time as wall_clock
from typing import Any

import structlog
import trio
from attrs import Factory, define, field

from swarmctl.controller import guardless, records, templates
from swarmctl.controller.access import NODE, TOKEN, Access, user_id
from swarmctl.controller.drains import Drains
from swarmctl.controller.guests import Guests
from swarmctl.controller.identity import ClusterIdentity
from swarmctl.controller.instance import Instance, ServiceKey
from swarmctl.controller.judge import Verdict, judge
from swarmctl.controller.listening import Listening
from swarmctl.controller.locks import RecordLocks
from swarmctl.controller.meters import Meters
from swarmctl.controller.placing import Fleet
from swarmctl.controller.plane import Plane
from swarmctl.controller.rebalancing import Rebalancing
from swarmctl.controller.reconciler import Reconciler
from swarmctl.controller.records import (
    NodeRecord,
    RevokedKey,
    ServiceRecord,
    TokenRecord,
    Tombstone,
    service_key,
    tombstone_key,
)
from swarmctl.controller.sessions import Sessions
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.controller.store.api import Delete, Op, Put, Store
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto import limits
from swarmctl.proto.errors import NotFound, PeerUnreachable, StaleTerm, StorageFault
from swarmctl.proto.messages import InstanceReport, Message
from swarmctl.proto.states import NodeState
from swarmctl.transport.rpc import RpcCaller, StreamCall

_log = structlog.get_logger(__name__)


@define(eq=False)
class Cluster:
    """See the module's docstring.

    ``send`` hands a message to a peer and raises at once when it is not there;
    ``forget_user`` ends the connections of a user; ``wall`` gives epoch seconds, for people;
    ``revoked`` are keys of nodes that were removed, with the id of the token that each came with.
    """

    store: Store
    state: ClusterState
    identity: ClusterIdentity
    access: Access
    send: Callable[[bytes, Message], None]
    forget_user: Callable[[str], int]
    folder: Path
    addresses: tuple[str, ...] = ()
    wall: Callable[[], float] = wall_clock
    started_at: float = field(default=Factory(lambda self: self.wall(), takes_self=True))
    fleet: Fleet = field(factory=Fleet)
    caller: RpcCaller = field(factory=RpcCaller)
    tokens: dict[str, TokenRecord] = field(factory=dict)
    revoked: dict[str, str] = field(factory=dict)
    meters: Meters = field(factory=Meters)
    listening: Listening = field(factory=lambda: Listening(trio.current_time))
    reconciler: Reconciler = field(init=False)
    drains: Drains = field(init=False)
    rebalancing: Rebalancing = field(init=False)
    sessions: Sessions = field(init=False)
    plane: Plane = field(init=False)
    deposed: StaleTerm | None = None
    locks: RecordLocks = field(factory=RecordLocks)
    _commits: set[trio.CancelScope] = field(factory=set)
    _stopping: bool = False
    _templates_max: int = limits.TEMPLATES_SPARE
    _wake: trio.Event = field(factory=trio.Event)
    _changed: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.state.guests = Guests(self.identity, self.access, self.forget_user)
        self.reconciler = Reconciler(self.state, self.fleet, self.meters, self.wall)
        self.drains = Drains(self.state, self.fleet)
        self.rebalancing = Rebalancing(self.state, self.fleet)
        self.plane = Plane(self)
        self.sessions = Sessions(
            self.state,
            self.fleet,
            self.send,
            self.meters,
            wake=self.wake,
            now=self.listening.time,
            arrival=self.listening.arrival,
            wall=self.wall,
        )

    @property
    def hold(self) -> str:
        """Why the cluster is on hold (:mod:`swarmctl.controller.holding`); empty when it is not."""
        return self.state.hold

    @hold.setter
    def hold(self, why: str) -> None:
        self.state.hold = why

    # --- waking and watching -----------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to reconcile, or to show."""
        self._wake.set()

    async def wait_woken(self) -> None:
        """Wait for :meth:`wake`; all calls before this count as one."""
        await self._wake.wait()
        self._wake = trio.Event()

    @property
    def relocating(self) -> bool:
        """Whether something is to be moved, step by step."""
        looks_on = self.reconciler.preempting.unfinished
        return self.drains.active or self.rebalancing.active or looks_on

    def relocate(self, now: float) -> None:
        """Take away what is to run elsewhere, as much as may go now; ``now`` is monotonic."""
        if self.reconciler.settled:
            self.drains.step(now, self.wall())
            self.rebalancing.step(now)

    def announce(self) -> None:
        """Tell those who watch that something has changed."""
        self._changed.set()
        self._changed = trio.Event()

    def next_change(self) -> trio.Event:
        """Set at the next :meth:`announce`; taken before looking, no change is missed."""
        return self._changed

    # --- services ----------------------------------------------------------------------------

    @asynccontextmanager
    async def changing(self, keys: Sequence[ServiceKey]) -> AsyncGenerator[None, None]:
        """Hold the locks of services, for a change of them."""
        async with self.holding(service_key(*key) for key in keys):
            yield

    @asynccontextmanager
    async def holding(self, names: Iterable[str]) -> AsyncGenerator[None, None]:
        """Hold the locks of records, by their keys in the store, in one order for everyone."""
        async with self.locks.holding(names):
            yield

    async def commit(self, ops: Sequence[Op], follow: Callable[[], None]) -> None:
        """Make ``ops`` durable, and then let memory ``follow``, whoever stops waiting meanwhile.

        A request that is cancelled here would leave a change that is durable and that nobody
        knows; so only the end of the controller, whose memory goes with it, cancels a commit.

        Raises:
            StaleTerm: another controller has taken over; this one ends.
            StorageFault, Busy: nothing was done.
        """
        with trio.CancelScope(shield=True) as scope:
            self._commits.add(scope)
            if self._stopping:
                scope.cancel()
            try:
                with self.meters.overlapping("commit"):
                    await self.store.commit(ops)
            except StaleTerm as error:
                self.deposed = error
                self.wake()
                raise
            finally:
                self._commits.discard(scope)
            follow()
            return
        await trio.lowlevel.checkpoint()
        raise StorageFault(
            "the controller is stopping",
            hint="look whether it was done when one serves again, and if not ask once more",
        )

    async def confirm(self) -> None:
        """That we lead: what is answered from memory alone, as if it were written, is true.

        Raises:
            StaleTerm, StorageFault, Busy: as :meth:`commit`.
        """
        await self.commit((), lambda: None)

    def stop(self) -> None:
        """The controller ends: nothing waits for the disk any more."""
        self._stopping = True
        for scope in self._commits:
            scope.cancel()

    def service(self, key: ServiceKey) -> Service:
        """The service ``key``.

        Raises:
            NotFound: there is none of that name.
        """
        service = self.state.services.get(key)
        if service is None:
            raise NotFound(
                f"no service {key[1]!r}", hint="'swarmctl service ls' lists the services there are"
            )
        return service

    async def save_services(self, changed: Sequence[ServiceRecord]) -> None:
        """Commit new or changed services, then follow.

        The caller holds their locks (:meth:`changing`).  More than one transaction's worth is
        committed in several; should one fail, those before it stand.
        """
        encoded = [
            Put(service_key(one.spec.tenant, one.spec.name), records.encode(one)) for one in changed
        ]
        for start in range(0, len(changed), limits.TRANSACTION_OPS_MAX):
            part = slice(start, start + limits.TRANSACTION_OPS_MAX)
            await self.commit(encoded[part], partial(self._follow_all, changed[part]))

    async def save_each(self, changed: Sequence[tuple[Service, Put]]) -> None:
        """Commit services of separate requests together, in one transaction, then follow.

        As :meth:`save_services`, for what was encoded already: each with its record's operation,
        at most ``TRANSACTION_OPS_MAX`` of them.
        """

        def follow() -> None:
            for service, _ in changed:
                self._follow(service.record, service)
            self._after_following()

        await self.commit([put for _, put in changed], follow)

    def _follow_all(self, changed: Sequence[ServiceRecord]) -> None:
        for record in changed:
            self._follow(record)
        self._after_following()

    def _after_following(self) -> None:
        self._forget_templates()
        self.wake()

    def _forget_templates(self) -> None:
        """Let go of templates that nothing uses, once there are many."""
        if len(self.state.templates) > self._templates_max:
            self.state.forget_templates()
            # As many again: looking at everything must not come more often the more there is.
            used = len(self.state.templates)
            self._templates_max = used + max(used, limits.TEMPLATES_SPARE)

    def _follow(self, record: ServiceRecord, made: Service | None = None) -> None:
        key = (record.spec.tenant, record.spec.name)
        service = self.state.services.get(key)
        if service is None:
            service = self.state.services[key] = made or Service(record)
            service.rolling = False
            # First: whether what is found of it is fenced depends on it.
            templates.know(self.state, service)
            self._judge_again(key)
        else:
            service.set_record(record)
            templates.know(self.state, service)
        self.state.dirty_services.add(key)

    def _judge_again(self, key: ServiceKey) -> None:
        """A service of this name is known now: quarantined instances may belong to it."""
        for instance in self.quarantined(key):
            report = InstanceReport(
                instance.incarnation,
                int(instance.state),
                service=key[1],
                slot=instance.slot,
                tenant=key[0],
            )
            verdict, why = judge(self.state, report, instance.node)
            _log.info("quarantine ends", instance=instance.name, verdict=verdict.value, why=why)
            if verdict is Verdict.REPLACES:
                self.state.remove(self.state.services[key].holders[instance.slot])
            if verdict is Verdict.REMOVE:
                self.state.remove(instance)
            elif verdict is not Verdict.QUARANTINE:
                self.state.admit(instance)
                self.fleet.allocate(self.state, instance)

    async def delete_services(self, keys: Sequence[ServiceKey]) -> None:
        """Commit the end of services, leave tombstones, then take their instances away.

        The caller holds their locks; as with :meth:`save_services` many take several commits.
        """
        # The service, its preemptions, its past, its tombstone, an old one that makes room.
        at_once = limits.TRANSACTION_OPS_MAX // 5
        # What were placed while the disk takes its time would be newer than the tombstone.
        self.state.ending.update(keys)
        newest = incarnations.make(self.state.term, self.state.sequence)
        try:
            for start in range(0, len(keys), at_once):
                tombstones = [
                    Tombstone(*key, newest, self.wall()) for key in keys[start : start + at_once]
                ]
                await self._bury(tombstones)
        finally:
            self.state.ending.difference_update(keys)
            self.state.dirty_services.update(key for key in keys if key in self.state.services)
            self.wake()

    async def bury_unknown(self, key: ServiceKey) -> None:
        """Leave a tombstone for a service that is only quarantined, and take it away."""
        loose = self.quarantined(key)
        if loose:
            newest = max(one.incarnation for one in loose)
            await self._bury([Tombstone(*key, newest, self.wall())])

    async def _bury(self, tombstones: Sequence[Tombstone]) -> None:
        buried = {(one.tenant, one.service): one for one in tombstones}
        expired = self._expired_tombstones(buried)
        ops: list[Op] = [Delete(service_key(*key)) for key in buried]
        for notes in (self.state.victims.unwritten, self.state.pasts.unwritten):
            ops += [Delete(notes.where(*key)) for key in buried if key in notes.stored]
        ops += [Put(tombstone_key(*key), records.encode(one)) for key, one in buried.items()]
        ops += [Delete(tombstone_key(*key)) for key in expired]

        def follow() -> None:
            for key in expired:
                self.state.tombstones.pop(key, None)
            for key, tombstone in buried.items():
                # Anew, so that the table is in the order of deletion.
                self.state.tombstones.pop(key, None)
                self.state.tombstones[key] = tombstone
                if key in self.state.services:
                    self.state.drop_service(key)
                for instance in self.quarantined(key):
                    if instance.incarnation <= tombstone.incarnation:
                        self.state.remove(instance)
            self.plane.wake()
            self.wake()

        await self.commit(ops, follow)

    def _expired_tombstones(self, buried: Collection[ServiceKey]) -> list[ServiceKey]:
        """The oldest, as many as there are too many."""
        excess = len(self.state.tombstones) + len(buried) - limits.TOMBSTONES_MAX
        oldest = islice(self.state.tombstones, max(0, min(excess, len(buried))))
        return [key for key in oldest if key not in buried]

    # --- instances ---------------------------------------------------------------------------

    def quarantined(self, key: ServiceKey, slot: int | None = None) -> list[Instance]:
        """Instances of a service that nobody here knows."""
        if key not in self.state.quarantine:
            return []
        return [
            one for one in self.state.quarantine.get(key, {}).values() if slot in (None, one.slot)
        ]

    @asynccontextmanager
    async def ask_agent(
        self, instance: Instance, method: str, params: dict[str, Any]
    ) -> AsyncGenerator[StreamCall, None]:
        """A stream to the agent that has ``instance``.

        Raises:
            PeerUnreachable: its node has no live session.
        """
        node = self.state.nodes[instance.node]
        peer = node.peer
        if peer is None or node.state is NodeState.LOST:
            raise PeerUnreachable(
                f"node {node.name} is not connected", instance.name, "see 'swarmctl node ls'"
            )
        parameters = {"incarnation": instance.incarnation} | params
        async with self.caller.stream(
            peer, lambda message: self.send(peer, message), method, parameters
        ) as stream:
            yield stream

    # --- nodes and tokens --------------------------------------------------------------------

    def know_token(self, token: TokenRecord) -> None:
        """Take a token in that is in the store."""
        self.tokens[token.id] = token
        if not (token.one_time and token.used_by):
            self.access.allow(token.public_key, user_id(TOKEN, token.id))

    def know_node(self, record: NodeRecord) -> None:
        """Take a node in that is in the store, and was not known."""
        node = Node(record, heard_at=self.listening.time())
        self.state.nodes[record.name] = node
        if record.unguarded:
            self.state.fences.know_unguarded(record.name)
        self.access.allow(record.public_key, user_id(NODE, record.name))
        self.drains.follow(node)
        self.fleet.node_changed(node)

    def node(self, name: str) -> Node:
        """The node ``name``.

        Raises:
            NotFound: there is none of that name.
        """
        node = self.state.nodes.get(name)
        if node is None:
            raise NotFound(f"no node {name!r}", hint="'swarmctl node ls' lists the nodes there are")
        return node

    async def save_nodes(self, changed: Sequence[NodeRecord], *extra: Op) -> None:
        """Commit new or changed nodes (with ``extra`` in the same transaction), then follow.

        The caller holds their locks (:meth:`holding`).
        """
        ops: list[Op] = [Put(records.NODE + one.name, records.encode(one)) for one in changed]

        def follow() -> None:
            for record in changed:
                self._follow_node(record)
            self.wake()

        await self.commit([*ops, *extra], follow)

    def _follow_node(self, record: NodeRecord) -> None:
        node = self.state.nodes.get(record.name)
        if node is None:
            self.know_node(record)
            self.rebalancing.node_joined(trio.current_time())
            return
        assert node.record.public_key == record.public_key, "a node's key is pinned"
        node.record = record
        self.drains.follow(node)
        self.sessions.refresh(node)

    async def delete_node(self, node: Node, *, revoke: bool = True) -> None:
        """Revoke a node's key and forget it; its instances are placed elsewhere.

        The caller holds its lock. Without ``revoke`` the key, useless by now, is not remembered.
        """
        key, token = node.record.public_key, node.record.token_id
        unproven = guardless.is_unproven_gone(self.state, node)
        gone = records.encode(RevokedKey(node.name, key, self.wall(), token, unproven))
        ops: list[Op] = [Delete(records.NODE + node.name)]
        ops += [Put(records.revoked_key(key), gone)] if revoke else []

        def follow() -> None:
            self.revoked |= {key: token} if revoke else {}
            self.access.revoke(key)
            self.forget_user(user_id(NODE, node.name))
            self.state.fences.removed(node.name)
            for instance in list(node.instances.values()):
                self.state.forget(instance)
            self.drains.forget(node.name)
            self.fleet.node_removed(node.name)
            self.sessions.forget(node)
            del self.state.nodes[node.name]
            self.wake()

        await self.commit(ops, follow)

    async def save_token(self, token: TokenRecord) -> None:
        """Commit a new token, then let its key in."""
        op = Put(records.TOKEN + token.id, records.encode(token))
        await self.commit([op], lambda: self.know_token(token))

    async def delete_token(self, token: TokenRecord) -> None:
        """Revoke a token; the caller holds its lock."""

        def follow() -> None:
            del self.tokens[token.id]
            self.access.revoke(token.public_key)
            self.forget_user(user_id(TOKEN, token.id))

        await self.commit([Delete(records.TOKEN + token.id)], follow)
