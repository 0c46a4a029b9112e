"""The store in one SQLite file: the default, for a cluster with one controller.

A thread owns the connection (:mod:`swarmctl.groupcommit`). A group of commits is one transaction:
compare the term, look up the revisions that are expected, fold the group into its net change
(:mod:`swarmctl.controller.store.commits`), write that in a handful of multi-row statements.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import outcome

from swarmctl.controller.store.api import Entry, Op, Statistics
from swarmctl.controller.store.commits import check_term, expected_keys, fold, validate
from swarmctl.database import Migration, Schema, execute_rows, reading, transaction
from swarmctl.groupcommit import GroupCommitter
from swarmctl.proto.errors import InternalError
from swarmctl.proto.incarnation import TERM_MAX

SCHEMA: Final = Schema(
    title="controller's store",
    application_id=0x53574D53,  # "SWMS"
    migrations=(
        Migration(
            "entries and facts",
            (
                # With rows by number: values of some 500 bytes and more make a tree by key slow.
                """CREATE TABLE entries (
                    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL)""",
                # cluster_id, and the highest term and revision. BLOB leaves a value as it is;
                # any other type would make a number of an id like 12e3.
                "CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
                "INSERT INTO facts VALUES ('term', 0), ('revision', 0)",
            ),
        ),
    ),
    recovery=(
        "with a backup: move this file and its -wal and -shm aside, then 'swarmctl store restore "
        "BACKUP sqlite:THIS'; without one: 'swarmctl controller --rebuild' keeps the file aside "
        "and takes in what the nodes run; nothing that runs is stopped meanwhile"
    ),
)
# Sorts after every printable character, so that a prefix is a range of keys.
_LAST: Final = "\U0010ffff"


class SqliteStore:
    """A :class:`~swarmctl.controller.store.api.Store` in the file ``path``."""

    def __init__(self, path: Path, schema: Schema) -> None:
        """Use :meth:`open`."""
        self._path = path
        self._schema = schema
        self._committer: GroupCommitter[Sequence[Op], int]
        self._cluster_id = ""
        # Written by the writer thread only: the next group must compare with it at once.
        self._term = 0

    @classmethod
    async def open(
        cls, path: Path, *, new_cluster_id: Callable[[], str], schema: Schema = SCHEMA
    ) -> Self:
        """Open the store, or make it where there is none.

        Args:
            path: the file; its folder exists and is locked by the caller.
            new_cluster_id: makes the identity of a new cluster, as ``lambda: uuid4().hex``.
            schema: another one only in tests of migration.

        Raises:
            StorageFault: see :func:`swarmctl.database.open_database`.
        """
        store = cls(path, schema)
        store._committer = await GroupCommitter.open(path, schema, store._apply)
        try:
            store._cluster_id = await store._committer.call(
                lambda connection: _settle_cluster_id(connection, new_cluster_id)
            )
        except BaseException:
            await store.aclose()
            raise
        return store

    @classmethod
    def stored_term(cls, path: Path) -> int:
        """The highest term that the store in ``path`` gave; blocking.

        Raises:
            StorageFault: it cannot be read.
        """
        with reading(path, SCHEMA) as connection:
            row = connection.execute("SELECT value FROM facts WHERE name = 'term'").fetchone()
        return int(row[0])

    @property
    def cluster_id(self) -> str:
        """See Store."""
        return self._cluster_id

    @property
    def term(self) -> int:
        """See Store."""
        return self._term

    async def take_term(self, above: int = 0) -> int:
        """See Store."""

        def take(connection: sqlite3.Connection) -> int:
            self._term = _raise_term(connection, self._term, above)
            return self._term

        return await self._committer.call(take)

    async def read(self, prefix: str = "") -> dict[str, bytes]:
        """See Store."""
        return {key: entry.value for key, entry in (await self.read_entries(prefix)).items()}

    async def read_entries(self, prefix: str = "") -> dict[str, Entry]:
        """See Store."""

        def select(connection: sqlite3.Connection) -> dict[str, Entry]:
            rows = connection.execute(
                "SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? ORDER BY key",
                (prefix, prefix + _LAST),
            )
            return {key: Entry(value, revision) for key, value, revision in rows}

        return await self._committer.call(select)

    async def commit(self, ops: Sequence[Op]) -> int:
        """See Store."""
        ops = tuple(ops)
        size_bytes = validate(ops)
        return await self._committer.submit(ops, max(1, len(ops)), size_bytes)

    def statistics(self) -> Statistics:
        """See Store."""
        return self._committer.statistics()

    async def aclose(self) -> None:
        """See Store."""
        await self._committer.aclose()

    def _apply(
        self, connection: sqlite3.Connection, commits: Sequence[Sequence[Op]]
    ) -> Sequence[outcome.Outcome[int]]:
        facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        check_term(self._term, facts["term"])
        folded = fold(commits, _revisions(connection, expected_keys(commits)), facts["revision"])
        _write(connection, folded.changes)
        if folded.revision != facts["revision"]:
            connection.execute(
                "UPDATE facts SET value = ? WHERE name = 'revision'", (folded.revision,)
            )
        return folded.outcomes


def _settle_cluster_id(connection: sqlite3.Connection, new: Callable[[], str]) -> str:
    with transaction(connection):
        row = connection.execute("SELECT value FROM facts WHERE name = 'cluster_id'").fetchone()
        if row is None:
            row = (new(),)
            connection.execute("INSERT INTO facts VALUES ('cluster_id', ?)", row)
    return str(row[0])


def _raise_term(connection: sqlite3.Connection, held: int, above: int) -> int:
    with transaction(connection):
        stored = int(
            connection.execute("SELECT value FROM facts WHERE name = 'term'").fetchone()[0]
        )
        if held:
            check_term(held, stored)
        term = max(stored, above) + 1
        connection.execute("UPDATE facts SET value = ? WHERE name = 'term'", (term,))
        if term > TERM_MAX:
            raise InternalError(f"this cluster has used up its {TERM_MAX} terms")
    return term


def _revisions(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, int]:
    rows: list[tuple[str, int]] = execute_rows(
        connection,
        "SELECT key, revision FROM entries WHERE key IN (",
        "?",
        ")",
        [(key,) for key in keys],
    )
    return dict(rows)


def _write(connection: sqlite3.Connection, changes: Mapping[str, Entry | None]) -> None:
    puts: list[Sequence[Any]] = []
    deletes: list[Sequence[Any]] = []
    for key, entry in changes.items():
        if entry is None:
            deletes.append((key,))
        else:
            puts.append((key, entry.value, entry.revision))
    execute_rows(
        connection,
        "INSERT INTO entries (key, value, revision) VALUES",
        "(?, ?, ?)",
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision",
        puts,
    )
    execute_rows(connection, "DELETE FROM entries WHERE key IN (", "?", ")", deletes)
