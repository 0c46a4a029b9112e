"""inotify on trio: which names changed in some folders, without looking at them again and again."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import frozen
from inotify_simple import INotify, flags

# Names that appear or go; folders that go themselves.
NAMES: Final = int(
    flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE | flags.DELETE_SELF
)
# And what is written into files.
CONTENT: Final = int(NAMES | flags.MODIFY)


@frozen
class Change:
    """Something happened to ``name`` in ``folder``; ``is_gap``: to more than can be said."""

    folder: Path
    name: str
    is_gap: bool = False


class Watch:
    """Changes since it was opened."""

    def __init__(self, notify: INotify, folders: dict[int, Path]) -> None:
        self._notify = notify
        self._folders = folders

    async def changes(self) -> Sequence[Change]:
        """Wait for the next changes."""
        while True:
            found = self._read()
            if found:
                await trio.lowlevel.checkpoint()
                return found
            await trio.lowlevel.wait_readable(self._notify.fileno())

    def _read(self) -> list[Change]:
        found = []
        for event in self._notify.read(timeout=0):
            folder = self._folders.get(event.wd)
            lost = folder is None or bool(event.mask & (flags.IGNORED | flags.DELETE_SELF))
            found.append(Change(folder or Path(), event.name, is_gap=lost))
        return found


@contextmanager
def watch(folders: Sequence[Path], what: int = NAMES) -> Generator[Watch, None, None]:
    """Watch these folders (not those in them).

    Raises:
        OSError: one is not there, or the machine's bound for watches is reached.
    """
    notify = INotify(nonblocking=True)
    try:
        known = {notify.add_watch(os.fspath(folder), what): folder for folder in folders}
        yield Watch(notify, known)
    finally:
        notify.close()
