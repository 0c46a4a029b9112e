"""A thread that does blocking work for many trio tasks: commits in groups, and single calls.

Tasks put their work in a queue and sleep. The thread takes what waits, up to what fits one
transaction, does it, and wakes the tasks of the group with one message to trio; meanwhile the next
group gathers. It is apart from trio's thread, so that a controller that plans does not hold it up.

A task that is cancelled leaves its work in the queue: it is done whole, or not at all. What was
queued before :meth:`Worker.aclose` is still done.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import attrs
import outcome
import trio

from swarmctl.controller.store.api import Statistics
from swarmctl.proto.errors import Busy, InternalError, StorageFault, SwarmError
from swarmctl.proto.limits import (
    BUSY_RETRY_MS,
    COMMIT_QUEUE_BYTES,
    COMMIT_QUEUE_MAX,
    STORE_CLOSE_S,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_OPS_MAX,
)

W = TypeVar("W")
T = TypeVar("T")


@attrs.define(eq=False)
class _Job:
    work: Any
    ops: int
    size_bytes: int
    call: Callable[[], Any] | None = None
    # The task that sleeps on it; None once that has been cancelled.
    task: trio.lowlevel.Task | None = None


@attrs.frozen
class _Done:
    jobs: Sequence[_Job]
    outcomes: Sequence[outcome.Outcome[Any]]
    grouped: bool
    took_s: float


_STOP: Final = _Job(None, 0, 0)


class Worker(Generic[W]):
    """One thread and the queue before it; belongs to one trio run.

    Args:
        title: for errors and the thread's name.
        apply: does a group; an outcome for each, or raises for all.
        close: called in the thread at its end.
    """

    def __init__(
        self,
        title: str,
        apply: Callable[[Sequence[W]], Sequence[outcome.Outcome[int]]],
        close: Callable[[], None],
    ) -> None:
        self._title = title
        self._apply = apply
        self._close = close
        self._queue: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._held: _Job | None = None
        self._statistics = Statistics()
        self._waiting_ops = 0
        self._waiting_bytes = 0
        self._closed = False
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        # A daemon: an etcd that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=title, daemon=True)
        self._thread.start()

    async def submit(self, work: W, ops: int, size_bytes: int) -> int:
        """Do ``work`` with whatever else waits.

        Raises:
            Busy: too much waits; nothing was queued.
            StorageFault: it is closed.
            SwarmError: what ``apply`` said.
        """
        result: int = await self._enqueue(_Job(work, ops, size_bytes))
        return result

    async def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the thread, after all that was queued before."""
        result: T = await self._enqueue(_Job(None, 1, 0, call=function))
        return result

    def statistics(self) -> Statistics:
        """The counters now."""
        return attrs.evolve(self._statistics, waiting=self._waiting_ops)

    async def aclose(self) -> None:
        """Do what is queued, and end the thread; a second call only waits.

        Raises:
            StorageFault: etcd has not answered within ``STORE_CLOSE_S``.
        """
        if not self._closed:
            self._closed = True
            self._queue.put(_STOP)
        with trio.move_on_after(STORE_CLOSE_S, shield=True):
            await self._ended.wait()
            return
        raise StorageFault(
            f"the {self._title} could not be closed: no answer for {STORE_CLOSE_S:.0f} s",
            hint="what was acknowledged is safe; see whether a majority of etcd's members runs",
        )

    # --- trio's thread ------------------------------------------------------------------------

    async def _enqueue(self, job: _Job) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed or self._ended.is_set():
            raise StorageFault(f"the {self._title} is closed")
        full = (
            self._waiting_ops + job.ops > COMMIT_QUEUE_MAX
            or self._waiting_bytes + job.size_bytes > COMMIT_QUEUE_BYTES
        )
        if full and self._waiting_ops:
            raise Busy(
                f"{self._waiting_ops} writes wait for the {self._title}",
                hint=f"try again in {BUSY_RETRY_MS} ms",
            )
        self._waiting_ops += job.ops
        self._waiting_bytes += job.size_bytes
        job.task = trio.lowlevel.current_task()
        self._queue.put(job)

        def abandon(_raise_cancel: object) -> trio.lowlevel.Abort:
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abandon)

    def _deliver(self, done: _Done) -> None:
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
            sync_s=before.sync_s + done.took_s,
        )

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            try:
                while jobs := self._take():
                    self._token.run_sync_soon(self._deliver, self._perform(jobs))
            finally:
                self._close()
                self._token.run_sync_soon(self._ended.set)
        except trio.RunFinishedError:
            # Trio has ended without closing us: nobody is left to be told.
            return

    def _take(self) -> list[_Job]:
        """Wait for work, and take all of it that fits one transaction; nothing at the end."""
        first = self._held or self._queue.get()
        self._held = None
        if first is _STOP:
            return []
        jobs = [first]
        ops, size_bytes = first.ops, first.size_bytes
        while first.call is None:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            ops += job.ops
            size_bytes += job.size_bytes
            beyond = ops > TRANSACTION_OPS_MAX or size_bytes > TRANSACTION_BYTES_MAX
            if job is _STOP or job.call is not None or beyond:
                self._held = job
                break
            jobs.append(job)
        return jobs

    def _perform(self, jobs: Sequence[_Job]) -> _Done:
        call = jobs[0].call
        began_s = time.perf_counter()
        outcomes: Sequence[outcome.Outcome[Any]]
        try:
            if call is not None:
                outcomes = [outcome.Value(call())]
            else:
                outcomes = self._apply([job.work for job in jobs])
        except Exception as error:  # noqa: BLE001 - not swallowed: every waiter gets it
            outcomes = [outcome.Error(self._blame(error)) for _ in jobs]
        took_s = time.perf_counter() - began_s if call is None else 0.0
        return _Done(jobs, outcomes, grouped=call is None, took_s=took_s)

    def _blame(self, error: Exception) -> SwarmError:
        """An error of its own for each waiter: one that many tasks raise mixes their traces."""
        if isinstance(error, SwarmError):
            blamed: SwarmError = type(error)(error.what, error.where, error.hint)
        else:
            blamed = InternalError(f"the {self._title} failed: {error!r}")
        blamed.__cause__ = error
        return blamed
