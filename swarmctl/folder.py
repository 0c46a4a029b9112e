"""Data folders: made private, locked by one process, written to atomically (DESIGN 8.10).

A daemon's folder holds a file ``lock``. Whoever holds ``flock`` on it owns the folder; the file's
text (process id and purpose) only serves to tell a second process whom it collides with.
The kernel drops the lock with the process, however that ends, so nothing is ever left to clean up
and a text left behind by ``kill -9`` means nothing. The file itself is never removed: a process
that waits on a removed file would lock something that nobody else sees.
"""

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from swarmctl.proto.errors import Conflict, StorageFault

T = TypeVar("T")

LOCK_NAME: Final = "lock"
FOLDER_MODE: Final = 0o700
# For folders below which others have files of theirs: they pass through, and list nothing.
PASSAGE_MODE: Final = 0o711
# The lock file's text is a number and a word or two; anything longer is not ours.
LOCK_TEXT_MAX_BYTES: Final = 256

_HINTS: Final = {
    errno.EACCES: "run it as the user who owns it, or give this user access",
    errno.EPERM: "run it as the user who owns it, or give this user access",
    errno.EROFS: "the file system is mounted read-only: choose another folder, or remount it",
    errno.ENOSPC: "the disk is full: free some space and try again",
    errno.EDQUOT: "this user's disk quota is used up: free some space and try again",
    errno.ENOTDIR: "there is a file where a folder is needed: choose another path",
    errno.EEXIST: "there is a file where a folder is needed: choose another path",
    errno.ENOLCK: "the file system does not support locks: choose a folder on a local disk",
}


def storage_fault(error: OSError, path: Path | str, doing: str) -> StorageFault:
    """The :class:`StorageFault` that says what an ``OSError`` on ``path`` means.

    Args:
        error: what the operating system answered.
        path: the file or folder it is about.
        doing: what could not be done, as in "cannot be written".
    """
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    hint = _HINTS.get(error.errno or 0, "check the disk and the path, then try again")
    return StorageFault(f"{doing}: {reason}", where=str(path), hint=hint)


def sync_folder(path: Path) -> None:
    """Make renames and new files in ``path`` durable.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by a file of ``content`` and ``mode``, durably: whole, or not at all.

    A reader, and a start after a crash, sees the old file or the new one.

    Raises:
        StorageFault: the disk refuses; ``path`` is as it was.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise storage_fault(error, path, "cannot be written") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        # After the rename there is nothing left to remove.
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_fault(error, path, "cannot be written") from error
        raise


class DataFolder:
    """A folder that this process owns until :meth:`close`; also a context manager."""

    def __init__(self, path: Path, purpose: str, descriptor: int) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.purpose = purpose
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, purpose: str, mode: int = FOLDER_MODE) -> Self:
        """Make ``path`` where it is missing, and lock it.

        Args:
            path: the folder; missing parents are made too.
            purpose: what the folder is for, as in "controller"; shown to whoever collides.
            mode: of a folder that is made.

        Raises:
            Conflict: another process holds it; the error names its id.
            StorageFault: it cannot be made, entered or written.
        """
        path = path.absolute()
        lock = path / LOCK_NAME
        _guarded(path, "cannot be made", lambda: path.mkdir(mode, parents=True, exist_ok=True))
        descriptor = _guarded(
            lock, "cannot be opened", lambda: os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        )
        try:
            _lock(descriptor, path, purpose)
            text = f"{os.getpid()} {purpose}\n".encode()[:LOCK_TEXT_MAX_BYTES]
            _guarded(lock, "cannot be written", lambda: _replace_text(descriptor, text))
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, purpose, descriptor)

    def close(self) -> None:
        """Give the folder back; a second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _guarded(path: Path, doing: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise storage_fault(error, path, doing) from error


def _replace_text(descriptor: int, text: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)


def _lock(descriptor: int, path: Path, purpose: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _held(descriptor, path, purpose) from error
    except OSError as error:
        raise storage_fault(error, path, "cannot be locked") from error


def _held(descriptor: int, path: Path, purpose: str) -> Conflict:
    """The error that names the holder, as far as its text can be trusted."""
    pid, _, holder = (
        os.pread(descriptor, LOCK_TEXT_MAX_BYTES, 0)
        .decode("utf-8", "replace")
        .strip()
        .partition(" ")
    )
    if not pid.isdecimal():
        # The holder has locked and not yet written: a moment later it would be named.
        return Conflict(
            "the data folder is in use by another process",
            where=str(path),
            hint=f"stop that one, or give this {purpose} a folder of its own with --data",
        )
    return Conflict(
        f"the data folder is in use by process {pid} ({holder or 'of unknown purpose'})",
        where=str(path),
        hint=f"stop process {pid}, or give this {purpose} a folder of its own with --data",
    )
