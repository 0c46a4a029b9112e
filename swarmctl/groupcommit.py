"""Group commit: many tasks, one thread that owns a database, one fsync for all that waits.

Tasks put their work in a queue and sleep. The writer thread takes everything that is there (up to
a bound), applies it as one transaction, and wakes all the tasks of that group with one message to
trio. While the disk works on one group the next gathers by itself: alone, a commit costs one
fsync; under load, an fsync is shared by hundreds.

How a group becomes statements is the owner's: an ``Apply`` function gets the connection, within
the transaction, and the group's work in order. It answers with an outcome for each, so that one
that is refused fails alone; if it raises, or the disk refuses, the whole group is rolled back and
each waiter gets the error.

A task that is cancelled while it waits leaves its work in the queue: it is done whole, or (if the
group fails) not at all. What was queued before :meth:`GroupCommitter.aclose` is still committed.
Waiting has no deadline of its own, the caller's applies; a queue that is full answers
:class:`Busy` at once.
"""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import attrs
import outcome
import trio

from swarmctl.database import Schema, fault, open_database, transaction
from swarmctl.proto.errors import Busy, InternalError, StorageFault, SwarmError
from swarmctl.proto.limits import (
    BUSY_RETRY_MS,
    COMMIT_GROUP_BYTES,
    COMMIT_GROUP_MAX,
    COMMIT_QUEUE_BYTES,
    COMMIT_QUEUE_MAX,
    STORE_CLOSE_S,
)

W = TypeVar("W")
R = TypeVar("R")
T = TypeVar("T")

# Turns a group into statements within an open transaction; one outcome for each piece of work.
Apply = Callable[[sqlite3.Connection, Sequence[W]], Sequence[outcome.Outcome[R]]]


@attrs.frozen
class Statistics:
    """Counters since the database was opened.

    Args:
        commits: pieces of work that were committed.
        ops: single operations in them.
        groups: transactions that they shared.
        refused: pieces of work that failed, alone or with their group.
        sync_s: seconds spent in committing those transactions, which is nearly all fsync.
        waiting: operations in the queue now.
    """

    commits: int = 0
    ops: int = 0
    groups: int = 0
    refused: int = 0
    sync_s: float = 0.0
    waiting: int = 0


@attrs.define(eq=False)
class _Job:
    """Something in the queue: work for a group, or (``call``) a function to run by itself."""

    work: Any
    ops: int
    size_bytes: int
    call: Callable[[sqlite3.Connection], Any] | None = None
    # The task that sleeps on it; None once that has been cancelled.
    task: trio.lowlevel.Task | None = None


@attrs.define(eq=False)
class _Done:
    """A group that is through, on its way back to trio."""

    jobs: list[_Job]
    outcomes: Sequence[outcome.Outcome[Any]]
    grouped: bool
    sync_s: float


# Tells the writer thread to end.
_STOP: Final = _Job(None, 0, 0)


class GroupCommitter(Generic[W, R]):
    """One database, its writer thread and the queue before it. Belongs to one trio run."""

    def __init__(self, path: Path, schema: Schema, apply: Apply[W, R]) -> None:
        """Use :meth:`open`."""
        self._path = path
        self._schema = schema
        self._apply = apply
        self._queue: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        # Of the writer thread: taken from the queue, and to go first into the next group.
        self._held: _Job | None = None
        # Of trio's thread.
        self._statistics = Statistics()
        self._waiting_ops = 0
        self._waiting_bytes = 0
        self._closed = False
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        # A daemon: a disk that hangs for ever must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"commit {path.name}", daemon=True)

    @classmethod
    async def open(cls, path: Path, schema: Schema, apply: Apply[W, R]) -> "GroupCommitter[W, R]":
        """Open the database at ``path`` (made where there is none) and start the thread.

        Raises:
            StorageFault: see :func:`swarmctl.database.open_database`.
        """
        committer = cls(path, schema, apply)
        opening = _Job(None, 0, 0, call=lambda _connection: None)
        committer._held = opening
        opening.task = trio.lowlevel.current_task()
        committer._thread.start()
        try:
            await _sleep_on(opening)
        except BaseException:
            await committer.aclose()
            raise
        return committer

    async def submit(self, work: W, ops: int, size_bytes: int) -> R:
        """Commit ``work`` with whatever else waits; returns after the fsync.

        Args:
            work: for the ``Apply`` function.
            ops: how many operations it is, for the bounds.
            size_bytes: its size, likewise.

        Raises:
            Busy: too much waits already; nothing was queued.
            StorageFault: the disk refuses, or the database is closed; nothing of it was done.
            Exception: what ``Apply`` answered for this work, or raised for its group.
        """
        result: R = await self._enqueue(_Job(work, ops, size_bytes))
        return result

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``function`` in the writer thread, after all that was submitted before.

        It is outside of any transaction; what it writes it must wrap in one.

        Raises:
            Busy, StorageFault: as :meth:`submit`.
            Exception: what ``function`` raised.
        """
        result: T = await self._enqueue(_Job(None, 1, 0, call=function))
        return result

    def statistics(self) -> Statistics:
        """The counters now."""
        return attrs.evolve(self._statistics, waiting=self._waiting_ops)

    async def aclose(self) -> None:
        """Commit what is queued, close the file and end the thread. A second call only waits.

        Raises:
            StorageFault: the disk has not answered within ``STORE_CLOSE_S``.
        """
        if not self._closed:
            self._closed = True
            self._queue.put(_STOP)
        with trio.move_on_after(STORE_CLOSE_S, shield=True):
            await self._ended.wait()
            return
        raise StorageFault(
            f"the {self._schema.title} could not be closed: the disk has not answered for "
            f"{STORE_CLOSE_S:.0f} s",
            where=str(self._path),
            hint="what was acknowledged is safe; see the kernel's log (dmesg) for the disk",
        )

    # --- trio's thread ------------------------------------------------------------------------

    async def _enqueue(self, job: _Job) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed or self._ended.is_set():
            raise self._closed_fault()
        if (
            self._waiting_ops + job.ops > COMMIT_QUEUE_MAX
            or self._waiting_bytes + job.size_bytes > COMMIT_QUEUE_BYTES
        ) and self._waiting_ops:
            raise Busy(
                f"{self._waiting_ops} writes wait for the disk of the {self._schema.title}",
                where=str(self._path),
                hint=f"try again in {BUSY_RETRY_MS} ms",
            )
        self._waiting_ops += job.ops
        self._waiting_bytes += job.size_bytes
        job.task = trio.lowlevel.current_task()
        self._queue.put(job)
        return await _sleep_on(job)

    def _deliver(self, done: _Done) -> None:
        """Wake everyone of a group; runs in trio, must not raise."""
        before = self._statistics
        commits = ops = refused = 0
        for job, result in zip(done.jobs, done.outcomes, strict=True):
            self._waiting_ops -= job.ops
            self._waiting_bytes -= job.size_bytes
            if isinstance(result, outcome.Error):
                refused += 1
            elif done.grouped:
                commits += 1
                ops += job.ops
            if job.task is not None:
                trio.lowlevel.reschedule(job.task, result)
        self._statistics = Statistics(
            commits=before.commits + commits,
            ops=before.ops + ops,
            groups=before.groups + done.grouped,
            refused=before.refused + refused,
            sync_s=before.sync_s + done.sync_s,
        )

    def _finish(self) -> None:
        """The thread has ended: refuse what came too late for it; runs in trio."""
        late = [self._held] if self._held is not None else []
        self._held = None
        while not self._queue.empty():
            late.append(self._queue.get_nowait())
        late = [job for job in late if job is not _STOP]
        errors = [outcome.Error(self._closed_fault()) for _ in late]
        self._deliver(_Done(late, errors, grouped=False, sync_s=0.0))
        self._ended.set()

    def _closed_fault(self) -> StorageFault:
        return StorageFault(
            f"the {self._schema.title} is closed",
            where=str(self._path),
            hint="the process that has it is ending: ask again when it, or another one, serves",
        )

    # --- the writer thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            try:
                self._serve()
            finally:
                self._token.run_sync_soon(self._finish)
        except trio.RunFinishedError:
            # Trio has ended without closing us: nobody is left to be told.
            return

    def _serve(self) -> None:
        try:
            connection = open_database(self._path, self._schema)
        except (SwarmError, OSError) as error:
            assert self._held is not None, "the opening is the first job"
            opening, self._held = self._held, None
            self._send(_Done([opening], [outcome.Error(error)], grouped=False, sync_s=0.0))
            return
        try:
            while jobs := self._take():
                self._send(self._perform(connection, jobs))
        finally:
            connection.close()

    def _send(self, done: _Done) -> None:
        self._token.run_sync_soon(self._deliver, done)

    def _take(self) -> list[_Job]:
        """Wait for work, and take all of it that fits one group; nothing when it is time to end."""
        first = self._held or self._queue.get()
        self._held = None
        if first is _STOP:
            return []
        jobs = [first]
        if first.call is not None:
            return jobs
        ops, size_bytes = first.ops, first.size_bytes
        while True:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return jobs
            ops += job.ops
            size_bytes += job.size_bytes
            if (
                job is _STOP
                or job.call is not None
                or ops > COMMIT_GROUP_MAX
                or size_bytes > COMMIT_GROUP_BYTES
            ):
                self._held = job
                return jobs
            jobs.append(job)

    def _perform(self, connection: sqlite3.Connection, jobs: list[_Job]) -> _Done:
        call = jobs[0].call
        sync_s = 0.0
        outcomes: Sequence[outcome.Outcome[Any]]
        try:
            if call is not None:
                outcomes = [outcome.Value(call(connection))]
            else:
                with transaction(connection):
                    outcomes = self._apply(connection, [job.work for job in jobs])
                    started_s = time.perf_counter()
                sync_s = time.perf_counter() - started_s
        except Exception as error:  # noqa: BLE001 - not swallowed: every waiter gets it
            outcomes = [outcome.Error(self._blame(error)) for _ in jobs]
        return _Done(jobs, outcomes, grouped=call is None, sync_s=sync_s)

    def _blame(self, error: Exception) -> SwarmError:
        """An error of its own for each waiter: one that many tasks raise mixes their traces."""
        blamed: SwarmError
        if isinstance(error, sqlite3.Error):
            blamed = fault(error, self._path, self._schema)
        elif isinstance(error, SwarmError):
            blamed = type(error)(error.what, error.where, error.hint)
        else:
            blamed = InternalError(
                f"the {self._schema.title} failed: {error!r}", where=str(self._path)
            )
        blamed.__cause__ = error
        return blamed


async def _sleep_on(job: _Job) -> Any:
    """Sleep until the job is delivered; when cancelled, leave it to be done without us."""

    def abandon(_raise_cancel: object) -> trio.lowlevel.Abort:
        job.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    return await trio.lowlevel.wait_task_rescheduled(abandon)
