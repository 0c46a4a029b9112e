"""The two-second guest: Debian's cloud kernel and an initramfs of the static busybox.

Theory of operation. The kernel package is unpacked in the cache; the modules that a VM needs are
found with their dependencies by reading the modules themselves (each names what it depends on), put
into the initramfs in loading order, and loaded by ``/init``. The guest then reads its NoCloud seed
if a disk is labelled ``cidata``, prints one ready line on the serial port, keeps a shell there, and
powers itself off when the ACPI power button is pressed.

The cloud kernel has no AHCI driver: a seed or disk reaches the guest on virtio (block or SCSI), or
on the IDE controller of the `pc` machine.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab import fetch, testdisk
from lab.config import GUEST_READY_LINE, Paths
from lab.cpio import Archive
from lab.faults import LabFault
from lab.report import Step

#: What the guest loads, beside whatever these depend on.
MODULES = (
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "virtio_balloon",
    "virtio_console",
    "sd_mod",
    "sr_mod",
    "ata_piix",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_utf8",
    "button",
    "evdev",
    "8021q",
    "veth",
    "overlay",
)

INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
exec </dev/console >/dev/console 2>&1
for module in $(cat /lib/modules/order); do
  insmod /lib/modules/$module.ko || echo "swarmctl guest: no module $module"
done
ip link set lo up
hostname guest

# A power button pressed before anybody listens is lost, so "ready" means listening too.
acpid -f -c /etc/acpi -l /dev/null >/dev/null 2>&1 &
listener=$!
tries=0
until ls -l /proc/$listener/fd 2>/dev/null | grep -q /dev/input/; do
  tries=$((tries + 1))
  [ $tries -gt 50 ] && echo "swarmctl guest: no power button" && break
  usleep 20000
done

# Disks on a SCSI or IDE controller appear a moment after their driver.
tries=0
while [ -e /sys/class/scsi_host/host0 ] && [ $tries -lt 5 ] && ! findfs LABEL=cidata >/dev/null 2>&1
do tries=$((tries + 1)); usleep 100000; done

seed=$(findfs LABEL=cidata 2>/dev/null || findfs LABEL=CIDATA 2>/dev/null)
if [ -n "$seed" ] && mount -o ro "$seed" /seed; then
  field() {{ sed -n "s/^$1:[[:space:]]*//p" /seed/meta-data | tr -d "\\"'" | head -n 1; }}
  name=$(field local-hostname)
  [ -n "$name" ] && hostname "$name"
  echo "swarmctl guest seed: instance-id=$(field instance-id) local-hostname=$name"
  if head -n 1 /seed/user-data 2>/dev/null | grep -q '^#!'; then
    sh /seed/user-data && echo "swarmctl guest seed: user-data ran"
  fi
fi

# A disk of the lab's own making counts its boots, so that a test sees which overlay it got.
boots=none
data=$(findfs LABEL={testdisk.LABEL} 2>/dev/null)
if [ -n "$data" ] && mount -t vfat "$data" /mnt; then
  boots=$(($(cat /mnt/boots 2>/dev/null || echo 0) + 1))
  echo $boots >/mnt/boots
  umount /mnt
fi

if [ -e /sys/class/net/eth0 ]; then
  ip link set eth0 up
  udhcpc -i eth0 -b -S -s /etc/udhcpc.script >/dev/null 2>&1 &
fi
disks=$(awk 'NF == 4 && $4 ~ /^[sv]d[a-z]$/ {{ printf "%s%s:%d", sep, $4, $3 * 1024; sep = "," }}
' /proc/partitions)
memory=$(awk '/^MemTotal/ {{ print $2 * 1024 }}' /proc/meminfo)
read up rest </proc/uptime
echo "swarmctl guest machine: cpus=$(nproc) memory_bytes=$memory disks=$disks boots=$boots"
echo "{GUEST_READY_LINE}: hostname=$(hostname) kernel=$(uname -r) uptime_s=$up"
exec /sbin/init
"""

INITTAB = """console::respawn:-/bin/sh
::ctrlaltdel:/sbin/reboot -f
"""

POWER_OFF = """#!/bin/sh
echo "swarmctl guest powering off" >/dev/console
sync
poweroff -f
"""

UDHCPC_SCRIPT = """#!/bin/sh
case $1 in
deconfig) ip addr flush dev $interface ;;
bound|renew)
  ip addr add $ip/$mask dev $interface
  [ -n "$router" ] && ip route replace default via ${router%% *}
  : >/etc/resolv.conf
  for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done ;;
esac
"""

FILES = {
    "init": (INIT, 0o755),
    "etc/inittab": (INITTAB, 0o644),
    "etc/acpi/PWRF/00000080": (POWER_OFF, 0o755),
    "etc/udhcpc.script": (UDHCPC_SCRIPT, 0o755),
    "etc/profile": ("export PS1='\\h:\\w# '\n", 0o644),
    "etc/passwd": ("root::0:0:root:/root:/bin/sh\n", 0o644),
    "etc/group": ("root:x:0:\n", 0o644),
}


def module_name(file_name: str) -> str:
    """A module's name from its file's: ``net_failover.ko`` -> ``net_failover``."""
    return file_name.partition(".ko")[0].replace("-", "_")


def module_depends(content: bytes) -> list[str]:
    """The modules that a module names as those it depends on, from its .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", content)
    return (
        [name.replace("-", "_") for name in match[1].decode().split(",") if name] if match else []
    )


def load_order(wanted: Iterable[str], depends: Mapping[str, list[str]]) -> list[str]:
    """These modules and all that they depend on, each after what it needs.

    Raises:
        KeyError: one is not in `depends`.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for needed in depends[name]:
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(name)
    return order


def build_initrd(
    busybox: bytes,
    applets: list[str],
    modules: list[tuple[str, bytes]],
    files: Mapping[str, tuple[str, int]] = FILES,
) -> bytes:
    """The initramfs; the same bytes for the same input."""
    archive = Archive()
    for folder in ("dev", "proc", "sys", "tmp", "run", "root", "mnt", "seed"):
        archive.folder(folder)
    archive.file("bin/busybox", busybox, 0o755)
    for name in applets:
        archive.symlink(name, "/bin/busybox")
    for name, content in modules:
        archive.file(f"lib/modules/{name}.ko", content)
    archive.file("lib/modules/order", "\n".join(name for name, _ in modules).encode() + b"\n")
    for name, (text, mode) in files.items():
        archive.file(name, text.encode(), mode)
    # Level 1: the guest unpacks it under emulation, and time counts there, not bytes.
    return gzip.compress(archive.finish(), compresslevel=1, mtime=0)


def recipe() -> str:
    """Changes when a guest that is in the cache is not what this code would build."""
    parts = json.dumps([MODULES, FILES, testdisk.recipe()])
    return hashlib.sha256(parts.encode()).hexdigest()


def is_built(paths: Paths) -> bool:
    """Whether the cache has the guest that this code would build."""
    stamp = paths.guest_dir / "recipe"
    files = (paths.kernel, paths.initrd, paths.testdisk)
    return all(f.exists() for f in files) and stamp.exists() and stamp.read_text() == recipe()


def kernel_version(paths: Paths) -> str | None:
    """The version that the cached kernel itself names, or None."""
    with paths.kernel.open("rb") as file:
        return parse_kernel_version(file.read(1 << 16))


def parse_kernel_version(head: bytes) -> str | None:
    """The version in a bzImage's setup header (the boot protocol's `kernel_version` field)."""
    if head[0x202:0x206] != b"HdrS":
        return None
    start = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    return head[start : start + 64].split(b"\0")[0].split(b" ")[0].decode(errors="replace")


def up(paths: Paths, step: Step, installed: threading.Event) -> None:
    """See to it that the cache has the guest's kernel, initramfs and disk.

    Args:
        paths: where they go.
        step: hears what is in hand.
        installed: set when apt has brought what it can (the disk needs qemu-img).

    Raises:
        LabFault: a package cannot be had, or a tool failed.
    """
    if is_built(paths):
        step.kept(f"kernel, initrd and disk are in {paths.guest_dir}")
        return
    kernel_root = fetch.unpacked(paths, fetch.current_kernel_package(), step)
    step.progress("building the initramfs")
    made = initrd(paths, FILES, step)
    paths.guest_dir.mkdir(parents=True, exist_ok=True)
    stamp = paths.guest_dir / "recipe"
    stamp.unlink(missing_ok=True)
    write_whole(paths.kernel, next((kernel_root / "boot").glob("vmlinuz-*")).read_bytes())
    write_whole(paths.initrd, made)
    testdisk.build(paths, step, installed)
    write_whole(stamp, recipe().encode())
    step.done(f"built in {paths.guest_dir} (initramfs {len(made) / 1e6:.1f} MB)")


def initrd(paths: Paths, files: Mapping[str, tuple[str, int]], step: Step) -> bytes:
    """An initramfs with busybox, the modules, and these files, ``init`` among them.

    Raises:
        LabFault: a package cannot be had, or the kernel lacks a module.
    """
    kernel_root = fetch.unpacked(paths, fetch.current_kernel_package(), step)
    busybox = fetch.busybox(paths, step)
    modules = {module_name(file.name): file for file in kernel_root.rglob("*.ko")}
    depends = {name: module_depends(file.read_bytes()) for name, file in modules.items()}
    try:
        order = load_order(MODULES, depends)
    except KeyError as error:
        raise LabFault(f"the guest's kernel has no module {error}", "report this") from error
    return build_initrd(
        busybox.read_bytes(),
        fetch.applets(busybox),
        [(name, modules[name].read_bytes()) for name in order],
        files,
    )


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never a part."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_bytes(content)
    temporary.replace(file)
