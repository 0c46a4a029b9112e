"""A container's root file system, made from its image's: an overlay, or a copy.

An overlay shares the image's files and keeps what the container writes in the container's own
folder.  Whether the kernel does that on this disk is found out once, by doing it.  Where it does
not (a small guest's kernel; a folder that is itself on an overlay) each container gets a copy:
slower, and as large as the image, but a root that can be written to, as every image expects.
"""

import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from swarmctl.agent.drivers.oci.faults import shorten
from swarmctl.agent.drivers.oci.layout import HIDDEN, Layout, Place
from swarmctl.agent.drivers.oci.programs import run
from swarmctl.proto.errors import LaunchFailed

OVERLAY: Final = "overlay"
COPY: Final = "copy"
# Where it is tried whether overlays can be mounted.
TRIAL: Final = f"{HIDDEN}trial"
MOUNT_S: Final = 30.0
COPY_S: Final = 600.0
# What separates the options of an overlay.
UNMOUNTABLE: Final = frozenset(",:\\")


def storage_of(layout: Layout) -> str:
    """Whether containers in this folder get overlays or copies, found out by trying."""
    if UNMOUNTABLE.intersection(str(layout.root)):
        return COPY
    trial = layout.containers / f"{TRIAL}-{os.getpid()}-{secrets.token_hex(4)}"
    lower = trial / "lower"
    try:
        lower.mkdir(parents=True)
        make_folders(trial)
        error = _mount_overlay(lower, trial)
        if not error:
            unmount(trial / "rootfs")
        return COPY if error else OVERLAY
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def make_folders(folder: Path) -> None:
    """What an overlay needs in a container's folder."""
    for name in ("upper", "work", "rootfs"):
        (folder / name).mkdir(mode=0o755)


def fill(folder: Path, image: Path, storage: str, where: str) -> None:
    """Make what is made once for a container: the folders of an overlay, or the copy.

    Raises:
        LaunchFailed: the copy cannot be made.
    """
    if storage == OVERLAY:
        make_folders(folder)
        return
    copied = run("cp", "-a", "--reflink=auto", str(image), str(folder / "rootfs"), timeout_s=COPY_S)
    if copied.returncode != 0:
        raise LaunchFailed(f"could not copy the image: {shorten(copied.stderr)}", where)


def mount(place: Place, image: Path, storage: str, where: str) -> None:
    """Have it mounted, which it is not at first, and not after the machine was restarted.

    Raises:
        LaunchFailed: the overlay cannot be mounted.
    """
    if storage != OVERLAY or place.rootfs.is_mount():
        return
    error = _mount_overlay(image, place.folder)
    if error:
        raise LaunchFailed(f"could not mount its root file system: {error}", where)


def unmount(rootfs: Path) -> None:
    """Have it mounted no more; lazily, since something may still look at it.

    Raises:
        LaunchFailed: it stays mounted.
    """
    if not rootfs.is_mount():
        return
    done = run("umount", "-l", str(rootfs), timeout_s=MOUNT_S)
    if done.returncode != 0 and rootfs.is_mount():
        raise LaunchFailed(f"could not unmount {rootfs}: {shorten(done.stderr)}")


def _mount_overlay(lower: Path, folder: Path) -> str:
    """What went wrong; empty when it is mounted."""
    options = f"lowerdir={lower},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    command = ("mount", "-t", "overlay", "overlay", "-o", options, str(folder / "rootfs"))
    done = run(*command, timeout_s=MOUNT_S)
    return shorten(done.stderr) or "mount failed" if done.returncode != 0 else ""
