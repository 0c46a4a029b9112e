"""Debian packages unpacked into the cache without being installed on the machine.

Theory of operation. The guest's kernel, its busybox and the boot loader of the test disk are wanted
as files, not as installed software: installing a second kernel or replacing the machine's busybox
would be rude. ``apt-get download`` checks them against the signed package lists; ``dpkg-deb -x``
unpacks them. Both work without root. A package is unpacked into a temporary folder and renamed, so
an interrupted run leaves nothing half-made.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab import procs
from lab.config import Paths
from lab.faults import Interrupted, LabFault
from lab.report import Step

DOWNLOAD_S = 300.0  # 30 MB over a slow line
UNPACK_S = 120.0
KERNEL_META = "linux-image-cloud-amd64"


def unpacked(paths: Paths, package: str, step: Step) -> Path:
    """The folder of an unpacked package, fetched now if it is not in the cache.

    Raises:
        LabFault: it cannot be downloaded.
    """
    folder = paths.cache_dir / "packages" / package
    if folder.is_dir():
        return folder
    if procs.cancelled.is_set():
        raise Interrupted
    work = folder.with_name(f".{package}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        step.progress(f"downloading {package}")
        work.mkdir(parents=True)
        archive = _download(package, work)
        step.progress(f"unpacking {package}")
        procs.run(["dpkg-deb", "-x", str(archive), str(work / "root")], timeout_s=UNPACK_S)
        (work / "root").replace(folder)
    except OSError as error:
        raise LabFault(
            f"{paths.cache_dir} cannot hold {package}: {error.strerror}",
            "make room or set SWARMCTL_LAB_CACHE to another folder",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _download(package: str, folder: Path) -> Path:
    command = ["apt-get", "download", "-q", package]
    if os.geteuid() == 0:
        command += ["-o", "APT::Sandbox::User=root"]  # apt's own user may not enter the folder
    try:
        procs.run(command, timeout_s=DOWNLOAD_S, cwd=folder)
    except FileNotFoundError as error:
        raise LabFault(
            f"{package} cannot be fetched: this machine has no apt-get",
            "the test guest and the test image are made of Debian packages; use a Debian machine",
        ) from error
    except subprocess.CalledProcessError as error:
        raise LabFault(
            f"{package} cannot be downloaded: {error.stderr.strip().splitlines()[-1:]}",
            "run `apt-get update` and check the network",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LabFault(
            f"{package} was not downloaded within {DOWNLOAD_S:.0f} s", "check the network"
        ) from error
    return next(folder.glob("*.deb"))


def kernel_package(depends_text: str) -> str | None:
    """The real kernel package in `apt-cache depends linux-image-cloud-amd64` output."""
    match = re.search(r"Depends: (linux-image-\d\S+)", depends_text)
    return match[1] if match else None


def current_kernel_package() -> str:
    """The kernel package that Debian has for clouds today.

    Raises:
        LabFault: this machine's package lists have none.
    """
    try:
        text = procs.run(["apt-cache", "depends", KERNEL_META], timeout_s=30)
    except (FileNotFoundError, subprocess.CalledProcessError):
        text = ""
    package = kernel_package(text)
    if package is None:
        raise LabFault(
            f"no {KERNEL_META} in this machine's package lists",
            "the test guest is made of Debian's kernel; use a Debian machine, "
            "or bring your own kernel and disk images",
        )
    return package


def busybox(paths: Paths, step: Step) -> Path:
    """The static busybox, as a file in the cache."""
    return unpacked(paths, "busybox-static", step) / "bin" / "busybox"


def applets(busybox_file: Path) -> list[str]:
    """The paths that busybox wants to be called by, e.g. ``usr/bin/env``."""
    text = procs.run([str(busybox_file), "--list-full"], timeout_s=10)
    return sorted(set(text.split()) - {"linuxrc", "bin/busybox"})


def total_bytes(folders: Iterable[Path]) -> int:
    """How much files under these folders take."""
    return sum(
        file.lstat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()
    )
