"""The store in memory, for tests and simulations: the same contract, and a disk that obeys.

:class:`MemoryDisk` is what outlives a crash; several stores on one disk are several controllers.
A commit waits in the store's queue until the disk syncs; everything that waits is then applied in
the order of the calls. A test can hold the disk back (:meth:`MemoryStore.hold`), refuse commits
(:meth:`MemoryStore.fail_next`) and lose power (:meth:`MemoryStore.crash`).
No thread, no clock of its own: under a mock clock every run is the same.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

import attrs
import outcome
import trio

from swarmctl.controller.store.api import Entry, Op, Statistics
from swarmctl.controller.store.commits import check_term, expected_keys, fold, validate
from swarmctl.proto.errors import Busy, StorageFault, SwarmError
from swarmctl.proto.limits import COMMIT_QUEUE_MAX

_TITLE = "controller's store"
_WHERE = "memory"


@attrs.define
class MemoryDisk:
    """What is durable."""

    entries: dict[str, Entry] = attrs.Factory(dict)
    term: int = 0
    revision: int = 0
    cluster_id: str = ""


@attrs.define(eq=False)
class _Waiting:
    """A commit that the disk has not taken yet, and its answer once it has."""

    ops: tuple[Op, ...]
    answer: outcome.Outcome[int] | None = None


class MemoryStore:
    """A :class:`~swarmctl.controller.store.api.Store` on ``disk``."""

    def __init__(self, disk: MemoryDisk, sync_s: float) -> None:
        """Use :meth:`open`."""
        self._disk = disk
        self.sync_s = sync_s
        self._term = 0
        self._queue: deque[_Waiting] = deque()
        self._failures: deque[SwarmError] = deque()
        self._flowing = trio.Event()
        self._flowing.set()
        self._waiting_ops = 0
        self._closed = False
        self._crashed = False
        self._statistics = Statistics()

    @classmethod
    async def open(
        cls,
        disk: MemoryDisk | None = None,
        *,
        new_cluster_id: Callable[[], str] = lambda: "c0" * 16,
        sync_s: float = 0.0,
    ) -> Self:
        """Open the store on ``disk``, or on an empty one.

        Args:
            disk: keep it to open the store again after a crash.
            new_cluster_id: makes the identity of a new cluster.
            sync_s: how long the disk takes for a commit, in trio's (perhaps virtual) time.
        """
        await trio.lowlevel.checkpoint()
        store = cls(MemoryDisk() if disk is None else disk, sync_s)
        store._disk.cluster_id = store._disk.cluster_id or new_cluster_id()
        return store

    # --- what a test does to it ---------------------------------------------------------------

    def fail_next(self, error: SwarmError, count: int = 1) -> None:
        """Refuse the next ``count`` commits that write something; nothing of them is applied."""
        self._failures.extend([error] * count)

    def hold(self) -> None:
        """The disk stops answering: commits wait until :meth:`release`."""
        self._flowing = trio.Event()

    def release(self) -> None:
        """The disk answers again."""
        self._flowing.set()

    def crash(self, keep: int = 0) -> None:
        """Lose power: the store is dead, and what waits is lost, but for the first ``keep``.

        Those kept are on the disk, and their callers are not told: both happen in real life.
        """
        while keep > 0 and self._queue:
            self._sync_first()
            keep -= 1
        while self._queue:
            self._next().answer = outcome.Error(self._closed_fault())
        self._closed = self._crashed = True
        self._flowing.set()

    # --- Store --------------------------------------------------------------------------------

    @property
    def cluster_id(self) -> str:
        """See Store."""
        return self._disk.cluster_id

    @property
    def term(self) -> int:
        """See Store."""
        return self._term

    async def take_term(self, above: int = 0) -> int:
        """See Store."""
        await self._answering()
        if self._term:
            check_term(self._term, self._disk.term)
        self._disk.term = max(self._disk.term, above) + 1
        self._term = self._disk.term
        return self._term

    async def read(self, prefix: str = "") -> dict[str, bytes]:
        """See Store."""
        return {key: entry.value for key, entry in (await self.read_entries(prefix)).items()}

    async def read_entries(self, prefix: str = "") -> dict[str, Entry]:
        """See Store."""
        await self._answering()
        # Strings compare by code point, as UTF-8 bytes do elsewhere.
        return {
            key: entry
            for key, entry in sorted(self._disk.entries.items())
            if key.startswith(prefix)
        }

    async def commit(self, ops: Sequence[Op]) -> int:
        """See Store."""
        ops = tuple(ops)
        validate(ops)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise self._closed_fault()
        if self._waiting_ops + len(ops) > COMMIT_QUEUE_MAX:
            raise Busy(f"{len(self._queue)} commits wait for the disk", where=_WHERE)
        waiting = _Waiting(ops)
        self._queue.append(waiting)
        self._waiting_ops += max(1, len(ops))
        await trio.sleep(self.sync_s)
        await self._flowing.wait()
        while waiting.answer is None:
            self._sync_first()
        if self._crashed:
            raise self._closed_fault()
        return waiting.answer.unwrap()

    def statistics(self) -> Statistics:
        """See Store."""
        return attrs.evolve(self._statistics, waiting=self._waiting_ops)

    async def aclose(self) -> None:
        """See Store."""
        if not self._closed:
            while self._queue:
                self._sync_first()
            self._closed = True
            self._flowing.set()
        await trio.lowlevel.checkpoint()

    # --- the disk -----------------------------------------------------------------------------

    async def _answering(self) -> None:
        """Wait until the disk answers and has taken all that was committed before."""
        await trio.lowlevel.checkpoint()
        await self._flowing.wait()
        if self._closed:
            raise self._closed_fault()
        while self._queue:
            self._sync_first()

    def _closed_fault(self) -> StorageFault:
        return StorageFault(f"the {_TITLE} is closed", where=_WHERE)

    def _next(self) -> _Waiting:
        waiting = self._queue.popleft()
        self._waiting_ops -= max(1, len(waiting.ops))
        return waiting

    def _sync_first(self) -> None:
        waiting = self._next()
        waiting.answer = outcome.capture(self._apply, waiting.ops)
        refused = isinstance(waiting.answer, outcome.Error)
        self._statistics = attrs.evolve(
            self._statistics,
            commits=self._statistics.commits + (not refused),
            ops=self._statistics.ops + (0 if refused else len(waiting.ops)),
            groups=self._statistics.groups + (not refused),
            refused=self._statistics.refused + refused,
        )

    def _apply(self, ops: tuple[Op, ...]) -> int:
        if self._failures and ops:  # To ask whether it is one's own takes no room on a disk.
            failure = self._failures.popleft()
            raise type(failure)(failure.what, failure.where, failure.hint)
        disk = self._disk
        check_term(self._term, disk.term)
        revisions = {
            key: disk.entries[key].revision for key in expected_keys([ops]) if key in disk.entries
        }
        folded = fold([ops], revisions, disk.revision)
        for key, entry in folded.changes.items():
            if entry is None:
                disk.entries.pop(key, None)
            else:
                disk.entries[key] = entry
        disk.revision = folded.revision
        return folded.outcomes[0].unwrap()
