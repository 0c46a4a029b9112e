"""A Debian guest that hosts pods: systemd, cloud-init, runc and swarmctl, on a disk that boots.

Theory of operation. It is made of what images for clouds are made of: Debian's kernel for clouds,
systemd with its networking, cloud-init, GRUB; beside them the programs that the oci driver needs,
swarmctl, and the test image as an OCI layout in ``/images``. Nothing in it starts an agent:
that is said by the VM's user-data (:func:`user_data`), as a user with a Debian image would.

mmdebstrap makes the packages' part, which is kept in the cache by itself: it takes a minute or two
and seldom changes. The disk is made anew when swarmctl's binary or anything else of it has changed:
a master boot record with GRUB behind it, and one partition.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from lab import alone, bootstrap, guest, podhost, testdisk
from lab.config import EMULATED, Paths
from lab.faults import LabFault
from lab.report import Step

UNIT = podhost.ROOT / "packaging" / "swarmctl-guest.service"
MEMORY_MIB = 1024
DISK_LABEL = "swarmctl-debian"
DISK_MIB = 3072  # sparse; about 600 are used
SECTOR_BYTES = 512
PARTITION_SECTOR = 2048  # GRUB is before it
PARTITION_TYPE = 0x83
GRUB = "/boot/grub"
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux")
PACKAGES = (
    # A machine in a cloud.
    *("linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "udev", "dbus", "iproute2"),
    *("cloud-init", "grub-pc-bin", "zstd"),
    # What the oci driver needs; the last has the filter of system calls.
    *("runc", "conmon", "skopeo", "umoci", "golang-github-containers-common"),
)
OPTIONS = ("--variant=minbase", f"--include={','.join(PACKAGES)}", *bootstrap.WITHOUT_MANUALS)
# What is done in it once the files are there.
COMMANDS = (
    (
        *("grub-mkimage", "-O", "i386-pc", "-p", f"(hd0,msdos1){GRUB}", "-o", f"{GRUB}/core.img"),
        *GRUB_MODULES,
    ),
    ("systemctl", "enable", "systemd-networkd.service"),
    ("passwd", "--quiet", "--delete", "root"),  # for whoever looks in at its serial port
)
FILES = {
    "boot/grub/grub.cfg": f"""\
linux /vmlinuz root=LABEL={DISK_LABEL} ro console=ttyS0 quiet mitigations=off panic=-1 {EMULATED}
initrd /initrd.img
boot
""",
    "etc/fstab": f"LABEL={DISK_LABEL} / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    # There are no other locales in it, and no server that would want keys of all kinds.
    "etc/cloud/cloud.cfg.d/90_lab.cfg": "locale: C.UTF-8\nssh_genkeytypes: [ed25519]\n",
    "etc/machine-id": "",  # each VM makes its own
}


def disk_of(paths: Paths) -> Path:
    """Where the cache has the disk."""
    return paths.cache_dir / "debian" / "disk.qcow2"


def stack_vm(paths: Paths) -> dict[str, object]:
    """``vm:`` of a stack file, for such a guest."""
    return {
        "disk": {"image": str(disk_of(paths))},
        "trunk": True,
        "cloud_init": {"user_data": user_data()},
    }


def user_data() -> str:
    """What cloud-init is told: the agent's unit, and to start it."""
    config = {
        "write_files": [
            {"path": f"/etc/systemd/system/{UNIT.name}", "content": UNIT.read_text()},
        ],
        "runcmd": [["systemctl", "enable", "--now", "--no-block", UNIT.name]],
    }
    return f"#cloud-config\n{json.dumps(config, indent=1)}\n"


def recipe() -> str:
    """Changes when a disk in the cache is not what this code would make of what is here."""
    parts = [bootstrap.recipe(bootstrap.codename(), OPTIONS), FILES, COMMANDS, DISK_LABEL, DISK_MIB]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for path in podhost.program_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def up(paths: Paths, step: Step) -> Path:
    """See to it that the cache has the disk; its file.

    Raises:
        LabFault: something that goes into it cannot be had, or a tool failed.
    """
    podhost.require_program()
    disk, wanted = disk_of(paths), recipe()
    stamp = disk.with_name("recipe")
    if disk.exists() and stamp.exists() and stamp.read_text() == wanted:
        step.kept(f"it is in {disk.parent}")
        return disk
    if os.geteuid() != 0:
        raise LabFault("a Debian's files have owners of their own", "run the same as root")
    tar = bootstrap.made(disk.parent, OPTIONS, step)
    stamp.unlink(missing_ok=True)
    step.progress("building the disk")
    _build(paths, disk, tar, step)
    guest.write_whole(stamp, wanted.encode())
    step.done(f"built in {disk.parent}")
    return disk


def boot_sectors(boot_code: bytes, core: bytes, sectors: int) -> bytes:
    """The disk before its partition: GRUB's first sector, one bootable partition, GRUB's core.

    Args:
        boot_code: GRUB's ``boot.img``, which looks for the core in the second sector.
        core: its ``core.img``.
        sectors: of the partition.
    """
    assert len(core) <= (PARTITION_SECTOR - 1) * SECTOR_BYTES, "it would reach into the partition"
    record = testdisk.partition_table(
        boot_code[: testdisk.BOOT_CODE_BYTES],
        kind=PARTITION_TYPE,
        start=PARTITION_SECTOR,
        sectors=sectors,
    )
    return record + core


def _build(paths: Paths, disk: Path, tar: Path, step: Step) -> None:
    root, raw = disk.with_name("root"), disk.with_name("disk.raw")
    shutil.rmtree(root, ignore_errors=True)
    partition_kib = (DISK_MIB << 10) - PARTITION_SECTOR * SECTOR_BYTES // 1024
    try:
        root.mkdir()
        podhost.tool("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", str(tar),
                     "-C", str(root))  # fmt: skip
        _fill(paths, root, step)
        code = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
        core = (root / GRUB.lstrip("/") / "core.img").read_bytes()
        with raw.open("wb") as file:
            file.truncate(DISK_MIB << 20)
            file.write(boot_sectors(code, core, partition_kib * 1024 // SECTOR_BYTES))
        podhost.tool("mke2fs", "-q", "-t", "ext4", "-L", DISK_LABEL, "-d", str(root),
                     "-E", f"offset={PARTITION_SECTOR * SECTOR_BYTES}",
                     str(raw), f"{partition_kib}k")  # fmt: skip
        podhost.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), f"{disk}.new")
        Path(f"{disk}.new").replace(disk)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        raw.unlink(missing_ok=True)


def _fill(paths: Paths, root: Path, step: Step) -> None:
    podhost.put_program(root)
    podhost.put_image(paths, root, step)
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for command in COMMANDS:
        podhost.tool("chroot", str(root), *command)


def ensure(paths: Paths) -> Path:
    """As :func:`up`, without a word."""
    return alone.quietly("Debian guest", up, paths)


if __name__ == "__main__":
    sys.exit(alone.command("Debian guest", up))
