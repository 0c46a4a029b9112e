"""The test disk: a qcow2 image that boots the two-second guest from its own boot sector.

Theory of operation. A FAT partition holds kernel, initramfs and boot loader (syslinux for BIOS and
for UEFI); mtools write into it as a plain file, so neither root nor a loop device is needed. It is
what a cloud image is to libvirt - a partitioned disk that the firmware boots - and comes up in
seconds under emulation.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

from lab import fetch, procs
from lab.config import GUEST_CMDLINE, Paths
from lab.faults import LabFault
from lab.report import Step

LABEL = "SWARMCTL"
SECTOR = 512
DISK_MIB = 64
PARTITION_START_SECTOR = 2048  # 1 MiB, where every partitioner of today begins
PARTITION_SECTORS = DISK_MIB * 2048 - PARTITION_START_SECTOR
PARTITION_OFFSET = PARTITION_START_SECTOR * SECTOR
BOOT_CODE_BYTES = 440
PARTITION_TYPE = 0x0E  # FAT16 with LBA addressing
TOOL_S = 60.0
QEMU_IMG_WAIT_S = 600.0  # apt may be bringing it at this moment

BOOT_CONFIG = f"""SERIAL 0 115200
PROMPT 0
TIMEOUT 0
DEFAULT guest
LABEL guest
  LINUX /vmlinuz
  INITRD /initrd.img
  APPEND {GUEST_CMDLINE}
"""


def recipe() -> list[object]:
    """What the disk is made of, beside the kernel and the initramfs."""
    return [LABEL, DISK_MIB, PARTITION_TYPE, BOOT_CONFIG]


def partition_table(
    boot_code: bytes,
    *,
    kind: int = PARTITION_TYPE,
    start: int = PARTITION_START_SECTOR,
    sectors: int = PARTITION_SECTORS,
) -> bytes:
    """A master boot record: boot code and one bootable partition.

    Args:
        boot_code: up to :data:`BOOT_CODE_BYTES`.
        kind: of the partition, a byte that operating systems know.
        start: its first sector.
        sectors: how long it is.
    """
    assert len(boot_code) <= BOOT_CODE_BYTES, "the space before the disk signature"
    chs = b"\xfe\xff\xff"  # "beyond what cylinders can say": LBA counts
    entry = b"\x80" + chs + bytes([kind]) + chs + struct.pack("<II", start, sectors)
    return boot_code.ljust(446, b"\0") + entry.ljust(64, b"\0") + b"\x55\xaa"


def build(paths: Paths, step: Step, installed: threading.Event) -> None:
    """Make the disk from the kernel and initramfs in the cache.

    Args:
        paths: where they are and it goes.
        step: hears what is in hand.
        installed: set when apt has brought what it can (qemu-img among it).

    Raises:
        LabFault: a tool failed or qemu-img is missing.
    """
    roots = {
        package: fetch.unpacked(paths, package, step)
        for package in ("mtools", "syslinux", "syslinux-common", "syslinux-efi")
    }
    step.progress("building the test disk")
    with tempfile.TemporaryDirectory(prefix="swarmctl-disk-", dir=paths.guest_dir) as folder:
        raw = Path(folder) / "disk.raw"
        _lay_out(raw, roots["syslinux-common"] / "usr/lib/syslinux/mbr/mbr.bin")
        _fill(raw, paths, roots, Path(folder))
        step.progress("waiting for qemu-img")
        procs.wait_until(installed.is_set, QEMU_IMG_WAIT_S)
        image = Path(folder) / "disk.qcow2"
        _tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)])
        image.replace(paths.testdisk)


def _lay_out(raw: Path, boot_code_file: Path) -> None:
    with raw.open("wb") as disk:
        disk.truncate(DISK_MIB << 20)
        disk.write(partition_table(boot_code_file.read_bytes()[:BOOT_CODE_BYTES]))


def _fill(raw: Path, paths: Paths, roots: dict[str, Path], work: Path) -> None:
    """Format the partition, install the boot loaders, copy the guest in."""
    tools = roots["mtools"] / "usr/bin"
    inside = f"{raw}@@{PARTITION_OFFSET}"
    config = work / "syslinux.cfg"
    config.write_text(BOOT_CONFIG)
    efi = roots["syslinux-efi"] / "usr/lib/SYSLINUX.EFI/efi64/syslinux.efi"
    efi_module = roots["syslinux-common"] / "usr/lib/syslinux/modules/efi64/ldlinux.e64"
    mtools = f"{tools}{os.pathsep}{procs.search_path()}"

    def mtool(name: str, *arguments: str) -> None:
        _tool([str(tools / name), "-i", inside, *arguments], path=mtools)

    mtool("mformat", "-v", LABEL, "-T", str(PARTITION_SECTORS), "-h", "255", "-s", "63",
          "-H", str(PARTITION_START_SECTOR), "::")  # fmt: skip
    _tool(
        [str(roots["syslinux"] / "usr/bin/syslinux"), "--install", "--offset",
         str(PARTITION_OFFSET), str(raw)],
        path=mtools,
    )  # fmt: skip
    mtool("mmd", "::/EFI", "::/EFI/BOOT")
    mtool("mcopy", str(efi), "::/EFI/BOOT/BOOTX64.EFI")
    mtool("mcopy", str(efi_module), "::/EFI/BOOT/ldlinux.e64")
    mtool("mcopy", str(config), "::/syslinux.cfg")
    mtool("mcopy", str(paths.kernel), "::/vmlinuz")
    mtool("mcopy", str(paths.initrd), "::/initrd.img")


def _tool(arguments: list[str], path: str | None = None) -> None:
    try:
        subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_S,
            check=True,
            start_new_session=True,
            env={**os.environ, "PATH": path or procs.search_path(), "MTOOLS_SKIP_CHECK": "1"},
        )
    except FileNotFoundError as error:
        raise LabFault(f"{arguments[0]} is not installed", "install qemu-utils") from error
    except subprocess.CalledProcessError as error:
        raise LabFault(
            f"{Path(arguments[0]).name} failed: {(error.stderr or error.stdout).strip()}",
            "report this with the output above",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LabFault(
            f"{Path(arguments[0]).name} took longer than {TOOL_S:.0f} s", "try again"
        ) from error
