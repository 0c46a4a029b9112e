"""A writer for the "newc" cpio format, which is what a kernel takes as its initramfs. Pure."""

from __future__ import annotations

import stat

MAGIC = "070701"
ALIGNMENT = 4


class Archive:
    """Entries in the order they are added; parents are added by themselves."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._folders: set[str] = set()
        self._count = 0

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder, once, with those above it."""
        if name in self._folders or not name:
            return
        self.folder(name.rpartition("/")[0])
        self._folders.add(name)
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFREG | mode, content)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.folder(name.rpartition("/")[0])
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        """The whole archive, with its trailer."""
        self._entry("TRAILER!!!", 0, b"")
        return b"".join(self._chunks)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._count += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, nlink, mtime, size, device (2), special device (2), name, check
        numbers = (self._count, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = (MAGIC + "".join(f"{number:08X}" for number in numbers)).encode()
        self._chunks += [_padded(header + encoded), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % ALIGNMENT)
