"""SQLite files that hold truth: made whole, checked at start, migrated, never silently emptied.

Shared by the controller's store and the agent's journal.
A file is made under a temporary name and renamed when it is complete, so that an empty file, or a
write-ahead log without its file, is always damage and never a first start.
Its ``application_id`` says whose it is, its table ``schema_version`` how far it was migrated.
Every error of SQLite becomes a :class:`StorageFault` that names the file and what to do, except
those that only our own mistake can cause.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs

from swarmctl.folder import storage_fault, sync_folder
from swarmctl.proto.errors import InternalError, StorageDamaged, StorageFault, SwarmError
from swarmctl.proto.limits import STORE_CHECK_S, STORE_LOCK_S

# Pages in the log before they are copied into the file: at SQLite's default of 1,000 a busy store
# would copy with every group; 16 MiB is copied in some 20 ms.
CHECKPOINT_PAGES: Final = 4_000
# A log that grew past this is cut after the copy, so that one burst does not keep its disk space.
LOG_KEEP_BYTES: Final = 64 * 1024 * 1024
# Rows of one multi-row statement. Every step of a statement gives up the interpreter's lock, and
# a thread that has to win it back from a busy one waits up to 5 ms: a group must be few statements.
ROWS_MAX: Final = 512
# Virtual machine steps of SQLite between two looks at the clock while it checks a file: about 1 ms.
CHECK_STEPS: Final = 100_000


@attrs.frozen
class Migration:
    """One step of a schema: a name for people, and its statements."""

    name: str
    statements: tuple[str, ...]


@attrs.frozen
class Schema:
    """What a file must be: whose, and by which steps it came to be.

    Args:
        title: what to call the file in an error, as in "controller's store".
        application_id: the mark in the file's header.
        migrations: in order; the version of a file is how many of them it has had.
        recovery: what to do when the file is damaged.
        foreign: what to do when it is another program's.
    """

    title: str
    application_id: int
    migrations: tuple[Migration, ...]
    recovery: str
    foreign: str = "it was made by another program: choose another data folder"


# --- errors -----------------------------------------------------------------------------------

_FULL: Final = ("the disk is full", "free some space there; work goes on by itself once there is")
_CLOSED_OFF: Final = (
    "cannot be opened",
    "check that this user may read and write the file and its folder",
)
_FAULTS: Final = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: (
        "is read-only",
        "give this user write access to the file and its folder, or remount the file system",
    ),
    sqlite3.SQLITE_CANTOPEN: _CLOSED_OFF,
    sqlite3.SQLITE_PERM: _CLOSED_OFF,
    sqlite3.SQLITE_BUSY: (
        "is locked by another process",
        "end the program that has it open (a backup, a sqlite3 shell) and try again",
    ),
    sqlite3.SQLITE_IOERR: (
        "the disk under it reports an error",
        "see the kernel's log (dmesg) for the disk; move the folder to a sound one",
    ),
}
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def damaged(path: Path, schema: Schema, reason: str) -> StorageDamaged:
    """The fault for a file that cannot be trusted any more; the file is left as it is."""
    return StorageDamaged(
        f"the {schema.title} is damaged: {reason}", where=str(path), hint=schema.recovery
    )


def fault(error: sqlite3.Error, path: Path, schema: Schema) -> SwarmError:
    """What an error of SQLite means: a :class:`StorageFault`, or our own :class:`InternalError`."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits only give the detail
    if code in _DAMAGE:
        return damaged(path, schema, str(error))
    if code == sqlite3.SQLITE_IOERR and _is_full(path):
        what, hint = _FULL  # growing the shared index fails as an I/O error, for the same reason
    elif code in _FAULTS:
        what, hint = _FAULTS[code]
    else:
        return InternalError(f"the {schema.title} was misused: {error}", where=str(path))
    return StorageFault(f"the {schema.title}: {what}", where=str(path), hint=hint)


def _is_full(path: Path) -> bool:
    try:
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:
        return False  # then the disk has a worse problem than being full


# --- opening ----------------------------------------------------------------------------------


def open_database(path: Path, schema: Schema) -> sqlite3.Connection:
    """Open the file, or make it where there is none; check and migrate it.

    The connection is in write-ahead mode with an fsync at each commit, and in autocommit:
    use :func:`transaction`. It belongs to the thread that opened it.

    Raises:
        StorageFault: it cannot be opened or written, is damaged, is not ours, or is newer than
            this release. The file is left as it is.
    """
    try:
        if not path.exists():
            _make(path, schema)
        elif path.stat().st_size == 0:
            raise damaged(path, schema, "the file is empty")
    except OSError as error:
        raise storage_fault(error, path, f"the {schema.title} cannot be opened") from error
    connection = None
    try:
        connection = _connect(path, "rw")
        _check(connection, path, schema)
        _migrate(connection, path, schema)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise fault(error, path, schema) from error
        raise
    return connection


@contextmanager
def reading(path: Path, schema: Schema) -> Iterator[sqlite3.Connection]:
    """A connection of the calling thread for a short look at what is committed.

    Raises:
        StorageFault: the file cannot be read.
    """
    try:
        with closing(_connect(path, "ro")) as connection:
            yield connection
    except sqlite3.Error as error:
        raise fault(error, path, schema) from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=STORE_LOCK_S,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}").fetchone()
        connection.execute(f"PRAGMA journal_size_limit = {LOG_KEEP_BYTES}").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: Path, schema: Schema) -> None:
    """Make a complete empty database under another name, and move it to ``path``."""
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size > 0:
        raise damaged(path, schema, f"the file is missing, and its log {log.name} is there")
    draft = path.with_name(path.name + ".new")
    for suffix in ("", "-wal", "-shm", "-journal"):  # of a start that was killed
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(_connect(draft, "rw")) as connection:
            connection.execute(f"PRAGMA application_id = {schema.application_id}")
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            with transaction(connection):
                connection.execute(
                    "CREATE TABLE schema_version (version INTEGER PRIMARY KEY, name TEXT NOT NULL)"
                )
            _migrate(connection, draft, schema)
    except sqlite3.Error as error:
        raise fault(error, path, schema) from error
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)
    sync_folder(path.parent)


def _check(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Refuse a file that is not ours or not sound.

    The check of a very large file is cut short after ``STORE_CHECK_S``: a start may not take
    minutes, and what lies deeper is still checked page by page as it is read.
    """
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    if mark != schema.application_id:
        raise StorageFault(
            f"this is not a {schema.title}",
            where=str(path),
            hint=schema.foreign,
        )
    # Kept in the file, and only now: it writes. A backup made with VACUUM INTO comes without it.
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    deadline = time.monotonic() + STORE_CHECK_S
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), CHECK_STEPS)
    try:
        finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        finding = "ok"  # as far as it was looked at
    finally:
        connection.set_progress_handler(None, 0)
    if finding != "ok":
        raise damaged(path, schema, finding)


def _migrate(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Bring the file to this release's version, each step in a transaction of its own."""
    with transaction(connection):  # shows at once whether the file can be written at all
        row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    version = row[0] or 0
    known = len(schema.migrations)
    if version > known:
        raise StorageFault(
            f"the {schema.title} has schema version {version}, this release knows up to {known}",
            where=str(path),
            hint="a newer swarmctl wrote it: run that one, or restore a backup from before it",
        )
    for number, migration in enumerate(schema.migrations[version:], start=version + 1):
        with transaction(connection):
            for statement in migration.statements:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_version VALUES (?, ?)", (number, migration.name))


# --- use --------------------------------------------------------------------------------------


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing, on the disk when the block has ended.

    Raises:
        sqlite3.Error: it did not happen.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have made SQLite roll back on its own account.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def execute_rows(
    connection: sqlite3.Connection, head: str, row: str, tail: str, rows: Sequence[Sequence[object]]
) -> list[Any]:
    """Run ``head row, row, ... tail`` over all ``rows`` in few statements; what they select.

    The numbers of rows are powers of two, so that ten prepared statements serve every length.
    """
    selected: list[Any] = []
    start = 0
    while start < len(rows):
        count = min(ROWS_MAX, 1 << ((len(rows) - start).bit_length() - 1))
        values = [value for each in rows[start : start + count] for value in each]
        statement = f"{head} {', '.join([row] * count)} {tail}"
        selected += connection.execute(statement, values).fetchall()
        start += count
    return selected
