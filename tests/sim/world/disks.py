"""Disks that know what is synced: the controllers' store, and the agents' journals.

A write that waits for the disk is in a queue until it is synced, and only then answered.  A crash
loses the queue, but for as many of the first as the disk had taken without telling anyone.
"""

from swarmctl.agent.journal import MemoryJournal
from swarmctl.controller import records
from swarmctl.controller.holding import HOLD
from swarmctl.controller.records import ServiceRecord
from swarmctl.controller.store.api import Entry, Put
from swarmctl.controller.store.memory import MemoryDisk, MemoryStore
from swarmctl.proto.errors import StorageFault

# What a sync takes while nothing is wrong.
USUAL_SYNC_S = 0.002
FULL = StorageFault("the disk is full", "simulated disk", "free some space")


class Disk(MemoryDisk):
    """The controllers' durable store; tells who listens of each service's record as it is synced.

    ``full`` refuses every commit while it is set; ``sync_s`` is how long one takes, and ``held``
    keeps all waiting.
    """

    def __init__(self, books, random):
        super().__init__()
        self.books = books
        self.random = random
        self.full = False
        self.held = False
        self.sync_s = USUAL_SYNC_S
        self.on_write = None
        self.stores = []
        self.trying = 0
        self.on_service = None
        # By key: an entry, and what it says.
        self._decoded = {}

    async def open(self, kind, cluster_id):
        """A controller's store on this disk, of that class."""
        store = await kind.open(self, new_cluster_id=lambda: cluster_id, sync_s=self.sync_s)
        if self.held:
            store.hold()
        self.stores.append(store)
        return store

    def slow(self, sync_s):
        """From now on a commit takes ``sync_s``."""
        self.sync_s = sync_s
        for store in self.stores:
            store.sync_s = sync_s

    def hold(self):
        """Nothing is synced any more, until :meth:`release`."""
        if not self.held:
            self.held = True
            for store in self.stores:
                store.hold()

    def release(self):
        """The disk goes on."""
        self.held = False
        for store in self.stores:
            store.release()

    def put_on_hold(self, reason):
        """As a restore does: who starts from it tells no node anything until it is released."""
        self.revision += 1
        self.entries[HOLD] = Entry(reason.encode(), self.revision)

    @property
    def on_hold(self):
        """Whether nobody has released it yet."""
        return HOLD in self.entries

    def begin_write(self):
        """Somebody may be waiting for that."""
        if self.on_write is not None:
            on_write, self.on_write = self.on_write, None
            on_write(self.sync_s)

    def forget(self, store):
        """It is closed."""
        if store in self.stores:
            self.stores.remove(store)

    def crash(self, store):
        """The process of ``store`` is killed: what it had not synced is lost."""
        if store in self.stores:
            self.stores.remove(store)
            keep = self.random.randint(0, len(store._queue)) if store._queue else 0
            lost = len(store._queue) - keep
            store.crash(keep)
            if lost:
                self.books.fire("unsynced-commit-lost", lost)

    @property
    def idle(self):
        """Whether nothing waits for it."""
        waits = any(one.ops for store in self.stores for one in store._queue)
        return not (self.held or self.trying or waits)

    def services(self):
        """The records of all services, by name."""
        return {
            key.rpartition("/")[2]: self._decode(key, entry)
            for key, entry in self.entries.items()
            if key.startswith(records.SERVICE)
        }

    def _decode(self, key, entry):
        """Once for each time that it is written."""
        known, record = self._decoded.get(key, (None, None))
        if known is not entry:
            record = records.decode(entry.value, ServiceRecord, key)
            self._decoded[key] = (entry, record)
        return record


class SyncedStore(MemoryStore):
    """A store that tells its disk what was synced."""

    async def commit(self, ops):
        if ops:  # Else it is a question whether the term is still the highest.
            self._disk.begin_write()
            if self._disk.held:
                self._disk.books.fire("stalled-store")
        return await super().commit(ops)

    def _apply(self, ops):
        disk = self._disk
        if disk.full and ops:
            disk.books.fire("store-full")
            raise StorageFault(FULL.what, FULL.where, FULL.hint)
        if self.sync_s > USUAL_SYNC_S and ops:
            disk.books.fire("slow-store")
        revision = super()._apply(ops)
        for op in ops:
            disk.books.trace.note("synced", type(op).__name__, op.key)
            if op.key.startswith(records.PREEMPTED) and isinstance(op, Put):
                disk.books.fire("preempted", op.key)
            if op.key.startswith(records.SERVICE):
                value = getattr(op, "value", None)
                record = None if value is None else records.decode(value, ServiceRecord, op.key)
                disk.on_service(op.key.rpartition("/")[2], record)
        return revision


class Journal(MemoryJournal):
    """An agent's journal on its machine's disk."""

    def __init__(self, books, name, random):
        super().__init__(sync_s=USUAL_SYNC_S)
        self.books = books
        self.name = name
        self.random = random
        self.on_write = None

    async def _commit(self, write):
        if self.fault is not None:
            self.books.fire("journal-full", self.name)
        elif self.on_write is not None:
            on_write, self.on_write = self.on_write, None
            on_write(self.sync_s)
        await super()._commit(write)

    def _take(self, write):
        self.books.trace.note("journaled", self.name, len(write.puts), len(write.deletes))
        if self.sync_s > USUAL_SYNC_S:
            self.books.fire("slow-journal", self.name)
        super()._take(write)

    def lose(self):
        """The agent is killed: what was not synced is lost."""
        lost = self.crash(self.random.randint(0, len(self._queue)) if self._queue else 0)
        if lost:
            self.books.fire("unsynced-journal-lost", self.name, lost)

    def forget_all(self):
        """The file is moved aside."""
        self._queue.clear()
        self._records.clear()
        self._facts.clear()

    def has(self, incarnation):
        """Whether a record of it is durable."""
        return incarnation in self._records
