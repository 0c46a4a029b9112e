"""Controllers that elect a leader among them: the product's candidates, followers and leaders."""

import attrs
import trio

from swarmctl.controller.candidate import Candidate, Edges
from swarmctl.controller.daemon import ControllerConfig
from swarmctl.controller.shared import SharedIdentity
from swarmctl.proto.errors import StaleTerm
from swarmctl.proto.limits import FENCING_LEASE_MIN_S
from tests.sim.world.disks import SyncedStore
from tests.sim.world.etcd import ADDRESS, EtcdLine, SimElection
from tests.sim.world.processes import Process


class LedStore(SyncedStore):
    """A store on etcd: out of reach now and then, and written to under the leader's lease only."""

    process = None
    guard = None

    async def take_term(self, above=0):
        """See Store."""
        await self._in_reach()
        self._check_lease()
        return await super().take_term(above)

    async def read_entries(self, prefix=""):
        """See Store."""
        await self._in_reach()
        return await super().read_entries(prefix)

    async def commit(self, ops):
        """See Store."""
        self._disk.trying += 1
        if self.guard is not None and ops:
            self.process.about_to_write()
        try:
            await self._in_reach()
            self._check_lease()
            return await super().commit(ops)
        finally:
            self._disk.trying -= 1

    async def aclose(self):
        """See Store."""
        await super().aclose()
        self._disk.forget(self)

    async def _in_reach(self):
        await self.process.thawed()
        await self.process.line.wait_mended()

    def _apply(self, ops):
        self._check_lease()
        return super()._apply(ops)

    def _check_lease(self):
        """In the transaction itself, as the ledger compares it."""
        if self.guard is None:
            return
        world = self.process.world
        if not world.etcd.holds(self.guard.key, self.guard.lease, trio.current_time()):
            world.books.fire("deposed-write-refused", self.process.name)
            raise StaleTerm("the lease in etcd was lost", "simulated etcd")


class Leader(Candidate):
    """A candidate whose cluster can be seen while it leads."""

    process = None

    async def _let_relays_in(self, controller):
        await super()._let_relays_in(controller)
        self.process.world.took_over(self.process, controller.cluster)

    async def _lead(self, guard):
        self.process.world.books.fire("led", self.process.name)
        try:
            await super()._lead(guard)
        finally:
            self.process.value = None


@attrs.define(eq=False)
class CandidateProcess(Process):
    """A controller among several; it may be frozen, and cut off from etcd."""

    line: EtcdLine = None
    _thawed: trio.Event = None
    _writes: trio.Event = None

    async def thawed(self):
        """Wait while it is frozen."""
        while self._thawed is not None:
            await self._thawed.wait()

    async def freeze_at_write(self):
        """Frozen as soon as it is about to write."""
        if self._writes is None:
            self._writes = trio.Event()
        try:
            await self._writes.wait()
        finally:
            self._writes = None

    def about_to_write(self):
        """It has something for the store, and has not sent it yet."""
        if self._writes is not None:
            self._writes.set()
            self.freeze()

    def freeze(self):
        """SIGSTOP: nothing goes in or out."""
        if self._thawed is None:
            self._thawed = trio.Event()

    def thaw(self):
        """SIGCONT."""
        if self._thawed is not None:
            self._thawed.set()
            self._thawed = None

    async def lead_in_turns(self):
        """The daemon."""
        world = self.world
        number = world.controllers.index(self)
        endpoint = world.endpoints[number]

        async def open_store(_address, cluster_id, guard):
            store = await world.disk.open(LedStore, cluster_id)
            store.process, store.guard = self, guard
            return store

        async with trio.open_nursery() as nursery:
            edges = Edges(
                world.network.open_listener,
                world.network.open_link,
                open_store,
                lambda address, me: SimElection(self, nursery, address, me),
                world.clocks[number].now,
            )
            config = ControllerConfig(
                world.folder / self.name,
                (endpoint,),
                advertise=(endpoint,),
                fencing_lease_s=FENCING_LEASE_MIN_S,
            )
            candidate = Leader(config, ADDRESS, world.shared, (endpoint,), edges)
            candidate.process = self
            await candidate.run(task_status=trio.TASK_STATUS_IGNORED)


def shared_identity(world, admin, relay):
    """What the first controller put into etcd."""
    return SharedIdentity(world.identity, admin, relay, world.token.to_text())
