"""The agent's journal: what it must know after ``kill -9`` and cannot see on the node.

A record for each incarnation (the intent to create it, written before the create, DESIGN 8.6;
attempts, restart counts and backoff; an outcome until the controller has it), and a few named
values: the highest term seen, the cluster's id, the node's key, the outbox's cursor.
What a record says is the agent's affair; to the journal it is bytes.

A write returns when it is on the disk; writes of many tasks share an fsync
(:mod:`swarmctl.groupcommit`). Reading is for the start: it looks into the file at once, without
the thread, and shows what was acknowledged (and perhaps what is about to be).
:class:`MemoryJournal` keeps the same contract for tests and simulations.
"""

import sqlite3
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import outcome
import trio

from swarmctl.database import Migration, Schema, execute_rows, reading
from swarmctl.groupcommit import GroupCommitter, Statistics
from swarmctl.proto.errors import InternalError, StorageFault
from swarmctl.proto.limits import RECORD_MAX_BYTES

SCHEMA: Final = Schema(
    title="agent's journal",
    application_id=0x53574D4A,  # "SWMJ"
    migrations=(
        Migration(
            "records and facts",
            (
                "CREATE TABLE records (incarnation INTEGER PRIMARY KEY, record BLOB NOT NULL)",
                "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
            ),
        ),
    ),
    recovery=(
        "stop the agent, move this file aside and start the agent again: it adopts what runs, "
        "but restart counts and reports that were not delivered are lost"
    ),
)
# Incarnations are signed 64-bit integers above zero (proto/incarnation.py).
_INCARNATION_MAX: Final = (1 << 63) - 1
_BYTES: Final = frozenset({bytes})


@attrs.frozen
class _Write:
    """One change: all of it or nothing."""

    puts: Mapping[int, bytes]
    deletes: frozenset[int]
    facts: Mapping[str, bytes]

    def __attrs_post_init__(self) -> None:
        """Refuse what only a mistake of the agent can bring.

        Raises:
            InternalError: a value that is not bytes or too large, a number that is none.
        """
        for values in (self.puts, self.facts):
            # A launch writes thousands: whether one is wrong first, and then which.
            if not _BYTES.issuperset(map(type, values.values())) or (
                max(map(len, values.values()), default=0) > RECORD_MAX_BYTES
            ):
                raise InternalError(
                    f"a journal's value is bytes, {RECORD_MAX_BYTES} at the most",
                    where=_culprit(values),
                )
        for keys in (self.puts, self.deletes):
            if keys and not 0 < min(keys) <= max(keys) <= _INCARNATION_MAX:
                wrong = min(keys) if min(keys) <= 0 else max(keys)
                raise InternalError("not an incarnation", where=str(wrong))
        if not self.deletes.isdisjoint(self.puts):
            raise InternalError("a record is both written and forgotten in one change")

    @property
    def ops(self) -> int:
        return len(self.puts) + len(self.deletes) + len(self.facts)

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.puts.values())) + sum(map(len, self.facts.values()))


def _culprit(values: Mapping[Any, bytes]) -> str:
    """The name of a value that is none."""
    return next(
        str(name)
        for name, value in values.items()
        if type(value) is not bytes or len(value) > RECORD_MAX_BYTES
    )


class Journal(Protocol):
    """What the agent needs of its journal.

    Every write raises :class:`StorageFault` when the disk refuses (nothing of it was done then)
    and :class:`~swarmctl.proto.errors.Busy` when too much waits for the disk.
    """

    async def record(self, incarnation: int, record: bytes) -> None:
        """Write the record of ``incarnation``, in place of an earlier one."""
        ...

    async def forget(self, incarnation: int) -> None:
        """Remove its record; removing what is not there is no error."""
        ...

    async def apply(self, puts: Mapping[int, bytes] = ..., deletes: Iterable[int] = ...) -> None:
        """Write and remove several records as one change."""
        ...

    async def set_meta(self, key: str, value: bytes) -> None:
        """Write a named value."""
        ...

    def load(self) -> dict[int, bytes]:
        """All records, by incarnation in order. Blocks for the read: for the start.

        Raises:
            StorageFault: the disk refuses.
        """
        ...

    def meta(self, key: str) -> bytes | None:
        """A named value, or None. Blocks for the read.

        Raises:
            StorageFault: the disk refuses.
        """
        ...


class _Writes(ABC):
    """The write half, on one primitive."""

    @abstractmethod
    async def _commit(self, write: _Write) -> None: ...

    async def record(self, incarnation: int, record: bytes) -> None:
        """See Journal."""
        await self._commit(_Write({incarnation: record}, frozenset(), {}))

    async def forget(self, incarnation: int) -> None:
        """See Journal."""
        await self._commit(_Write({}, frozenset((incarnation,)), {}))

    async def apply(self, puts: Mapping[int, bytes] = {}, deletes: Iterable[int] = ()) -> None:
        """See Journal."""
        await self._commit(_Write(dict(puts), frozenset(deletes), {}))

    async def set_meta(self, key: str, value: bytes) -> None:
        """See Journal."""
        await self._commit(_Write({}, frozenset(), {key: value}))


class SqliteJournal(_Writes):
    """A :class:`Journal` in a file; use :func:`open_journal`."""

    def __init__(self, path: Path, committer: GroupCommitter[_Write, None]) -> None:
        """Use :func:`open_journal`."""
        self._path = path
        self._committer = committer

    async def _commit(self, write: _Write) -> None:
        await self._committer.submit(write, max(1, write.ops), write.size_bytes)

    def load(self) -> dict[int, bytes]:
        """See Journal."""
        with reading(self._path, SCHEMA) as connection:
            return dict(
                connection.execute(
                    "SELECT incarnation, record FROM records ORDER BY incarnation"
                ).fetchall()
            )

    def meta(self, key: str) -> bytes | None:
        """See Journal."""
        with reading(self._path, SCHEMA) as connection:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def statistics(self) -> Statistics:
        """Counters of writes since the journal was opened."""
        return self._committer.statistics()


@asynccontextmanager
async def open_journal(path: Path) -> AsyncIterator[SqliteJournal]:
    """The journal in the file ``path``, made where there is none; its folder is there and locked.

    Raises:
        StorageFault: it cannot be opened or written, is damaged or newer than this release.
    """
    committer = await GroupCommitter.open(path, SCHEMA, _apply)
    try:
        yield SqliteJournal(path, committer)
    finally:
        await committer.aclose()


def _apply(
    connection: sqlite3.Connection, writes: Sequence[_Write]
) -> Sequence[outcome.Outcome[None]]:
    records: dict[int, bytes | None] = {}
    facts: dict[str, bytes] = {}
    for write in writes:
        records.update(write.puts)
        records.update(dict.fromkeys(write.deletes))
        facts.update(write.facts)
    upsert = "ON CONFLICT DO UPDATE SET"
    execute_rows(
        connection,
        "INSERT INTO records (incarnation, record) VALUES",
        "(?, ?)",
        f"{upsert} record = excluded.record",
        [pair for pair in records.items() if pair[1] is not None],
    )
    execute_rows(
        connection,
        "DELETE FROM records WHERE incarnation IN (",
        "?",
        ")",
        [(incarnation,) for incarnation, record in records.items() if record is None],
    )
    execute_rows(
        connection,
        "INSERT INTO facts (name, value) VALUES",
        "(?, ?)",
        f"{upsert} value = excluded.value",
        list(facts.items()),
    )
    return [outcome.Value(None) for _ in writes]


@attrs.define
class MemoryJournal(_Writes):
    """A :class:`Journal` that lives as long as the object: hand it on to survive a "crash".

    Args:
        sync_s: how long a write takes, in trio's (perhaps virtual) time.
        fault: while set, every write is refused with it.
    """

    sync_s: float = 0.0
    fault: StorageFault | None = None
    _records: dict[int, bytes] = attrs.field(factory=dict, init=False)
    _facts: dict[str, bytes] = attrs.field(factory=dict, init=False)
    # Writes that the "disk" has not taken yet: they are applied in the order of the calls.
    _queue: deque[_Write] = attrs.field(factory=deque, init=False)

    async def _commit(self, write: _Write) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.fault is not None:
            raise type(self.fault)(self.fault.what, self.fault.where, self.fault.hint)
        self._queue.append(write)
        await trio.sleep(self.sync_s)
        while any(each is write for each in self._queue):
            self._take(self._queue.popleft())

    def crash(self, keep: int = 0) -> int:
        """Lose power: what waits is lost, but for the first ``keep``; how many were lost."""
        for write in [self._queue.popleft() for _ in range(min(keep, len(self._queue)))]:
            self._take(write)
        lost = len(self._queue)
        self._queue.clear()
        return lost

    def _take(self, write: _Write) -> None:
        self._records.update(write.puts)
        for incarnation in write.deletes:
            self._records.pop(incarnation, None)
        self._facts.update(write.facts)

    def load(self) -> dict[int, bytes]:
        """See Journal."""
        return dict(sorted(self._records.items()))

    def meta(self, key: str) -> bytes | None:
        """See Journal."""
        return self._facts.get(key)
