"""Disks that misbehave, for tests: small ones, read-only ones, those of another user."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own with room for ``size_bytes``, at ``path``, while the block runs."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system to fill needs root")
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "swarmctl-test", str(path)], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    """Change a :func:`small_disk`: "ro" makes it read-only, "size=..." larger."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Do without root's rights while the block runs; who is not root has none to lose."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Fill the disk under ``folder`` with a file, which is returned, but for ``leave_bytes``."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass  # full: that is the purpose
        file.truncate(max(0, file.tell() - leave_bytes))
    return ballast
