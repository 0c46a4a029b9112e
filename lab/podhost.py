"""A guest that hosts pods: the lab's kernel, a small root file system, and swarmctl.

Theory of operation. The initramfs of `lab.guest`, with another ``init``, loads the modules and
changes over to a disk; runc needs one, for it cannot leave an initramfs. The disk holds what an
agent with the oci driver needs (runc, conmon, skopeo, umoci, ip), copied from this machine with the
libraries that they are linked with, the unpacked swarmctl, and the test image as an OCI layout in
``/images``. Its ``init`` mounts the seed and keeps ``swarmctl agent --seed`` running: it knows no
address, no name and no token, and starts no pods.

The disk is made anew when swarmctl's binary or anything else of it has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lab import alone, fetch, guest, procs, testbox
from lab.config import EMULATED, IMAGE_TAG, Paths
from lab.faults import LabFault
from lab.report import Step

ROOT = Path(__file__).resolve().parent.parent
# The one file without its packing: emulated, it would take 20 s to unpack itself at each start.
PROGRAM = ROOT / "dist" / "unpacked"
DISK_LABEL = "swarmctl-root"
DISK_MIB = 1024  # sparse; about 150 are used
IMAGE = "oci:/images/testbox:latest"
MEMORY_MIB = 512
CMDLINE = f"console=ttyS0 quiet panic=-1 mitigations=off {EMULATED}"
# What the one-file binary expects of every Linux, and those who look into it do not see.
SYSTEM_LIBRARIES = ("libc", "libdl", "libm", "libpthread", "librt", "libutil", "libz", "libresolv")
PROGRAMS = ("runc", "conmon", "skopeo", "umoci", "ip", "sync")
SECCOMP = Path("/usr/share/containers/seccomp.json")
BUILD_S = 120.0

INIT = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in $(cat /lib/modules/order); do
  insmod /lib/modules/$module.ko || echo "swarmctl pod host: no module $module"
done
tries=0
until disk=$(findfs LABEL={DISK_LABEL} 2>/dev/null) || [ $tries -gt 100 ]; do
  tries=$((tries + 1)); usleep 100000
done
mount -t ext4 "$disk" /mnt || {{ echo "swarmctl pod host: no disk"; exec /bin/sh; }}
for each in proc sys dev; do mount --move /$each /mnt/$each; done
exec switch_root /mnt /sbin/init
"""

ROOT_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec </dev/console >/dev/console 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
acpid -f -c /etc/acpi -l /dev/null >/dev/null 2>&1 &
seed=$(findfs LABEL=cidata) && mount -o ro "$seed" /seed
hostname "$(sed -n 's/^local-hostname:[[:space:]]*//p' /seed/meta-data | head -n 1)"
read up rest </proc/uptime
echo "swarmctl pod host ready: hostname=$(hostname) uptime_s=$up"
while :; do
  swarmctl agent --seed /seed/swarmctl.json --drivers oci --data /var/lib/swarmctl
  echo "swarmctl pod host: the agent has ended ($?)"
  sleep 2
done &
while :; do setsid cttyhack sh; sleep 1; done
"""

FILES = {
    "sbin/init": (ROOT_INIT, 0o755),
    "etc/acpi/PWRF/00000080": (guest.POWER_OFF, 0o755),
    "etc/passwd": ("root:x:0:0:root:/root:/bin/sh\n", 0o644),
    "etc/group": ("root:x:0:\n", 0o644),
    "etc/hosts": ("127.0.0.1 localhost\n", 0o644),
    "etc/containers/policy.json": ('{"default": [{"type": "insecureAcceptAnything"}]}\n', 0o644),
}
FOLDERS = (
    *("dev", "proc", "sys", "run", "root", "seed", "mnt", "tmp"),
    *("var/tmp", "var/lib", "images"),
)


@dataclasses.dataclass(frozen=True)
class PodHost:
    """The files that such a guest boots from."""

    folder: Path

    @property
    def initrd(self) -> Path:
        """Loads modules and changes over to the disk."""
        return self.folder / "initrd.img"

    @property
    def disk(self) -> Path:
        """The root file system."""
        return self.folder / "root.qcow2"


def files_of(paths: Paths) -> PodHost:
    """Where the cache has them."""
    return PodHost(paths.cache_dir / "podhost")


def stack_vm(paths: Paths) -> dict[str, object]:
    """``vm:`` of a stack file, for a guest that hosts pods."""
    made = files_of(paths)
    return {
        "kernel": str(paths.kernel),
        "initrd": str(made.initrd),
        "cmdline": CMDLINE,
        "disk": {"image": str(made.disk)},
        "trunk": True,
    }


def recipe(programs: list[Path]) -> str:
    """Changes when a disk in the cache is not what this code would make of what is here."""
    digest = hashlib.sha256(json.dumps([INIT, FILES, FOLDERS, guest.MODULES]).encode())
    for path in [*program_files(), *programs]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def require_program() -> None:
    """See to it that there is a swarmctl to put into guests.

    Raises:
        LabFault: there is none.
    """
    if not (PROGRAM / "swarmctl").exists():
        raise LabFault(f"there is no {PROGRAM.relative_to(ROOT)}", "make binary")


def program_files() -> list[Path]:
    """All files of swarmctl as it is put into guests."""
    return sorted(one for one in PROGRAM.rglob("*") if one.is_file())


def libraries(program: Path) -> set[Path]:
    """The shared libraries that a program is linked with; none for one that is whole."""
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    return {Path(found) for found in re.findall(r"(/\S+) \(0x", done.stdout)}


def system_libraries() -> set[Path]:
    """Where this machine has :data:`SYSTEM_LIBRARIES`."""
    listed = procs.run(["ldconfig", "-p"], timeout_s=BUILD_S)
    found = [Path(line.split("=> ")[1]) for line in listed.splitlines() if "x86-64" in line]
    return {path for path in found if path.name.split(".so")[0] in SYSTEM_LIBRARIES}


def up(paths: Paths, step: Step) -> PodHost:
    """See to it that the cache has the guest's initramfs and disk.

    Raises:
        LabFault: something that goes into them is missing, or a tool failed.
    """
    require_program()
    found = {name: procs.which(name) for name in PROGRAMS}
    missing = [name for name, where in found.items() if where is None]
    if missing:
        raise LabFault(f"{', '.join(missing)} not installed", "python3 -m lab up --only oci")
    programs = [Path(str(where)) for where in found.values()]
    made, wanted = files_of(paths), recipe(programs)
    stamp = made.folder / "recipe"
    if stamp.exists() and stamp.read_text() == wanted:
        step.kept(f"it is in {made.folder}")
        return made
    made.folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    step.progress("building the initramfs")
    guest.write_whole(made.initrd, guest.initrd(paths, {"init": (INIT, 0o755)}, step))
    step.progress("building the root file system")
    _build_disk(paths, made.disk, programs, step)
    guest.write_whole(stamp, wanted.encode())
    step.done(f"built in {made.folder}")
    return made


def _build_disk(paths: Paths, disk: Path, programs: list[Path], step: Step) -> None:
    root, raw = disk.with_name("root"), disk.with_name("root.raw")
    shutil.rmtree(root, ignore_errors=True)
    try:
        _fill(paths, root, programs, step)
        with raw.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        tool("mke2fs", "-q", "-t", "ext4", "-L", DISK_LABEL, "-O", "^has_journal",
              "-E", "root_owner=0:0", "-d", str(root), str(raw))  # fmt: skip
        tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), f"{disk}.new")
        Path(f"{disk}.new").replace(disk)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        raw.unlink(missing_ok=True)


def _fill(paths: Paths, root: Path, programs: list[Path], step: Step) -> None:
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    busybox = fetch.busybox(paths, step)
    _copy(busybox, root / "bin/busybox")
    for name in fetch.applets(busybox):
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/bin/busybox")
    libs = {lib for program in programs for lib in libraries(program)}
    libs |= system_libraries()
    for source in libs:
        _copy(source, root / str(source).lstrip("/"))
    for program in programs:
        _copy(program, root / "usr/bin" / program.name)
    put_program(root)
    if SECCOMP.exists():
        _copy(SECCOMP, root / str(SECCOMP).lstrip("/"))
    for name, (text, mode) in FILES.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # where busybox has a link of that name
        target.write_text(text)
        target.chmod(mode)
    put_image(paths, root, step)


def put_program(root: Path) -> None:
    """Put swarmctl into a root file system."""
    shutil.copytree(PROGRAM, root / "usr/lib/swarmctl", symlinks=True)
    (root / "usr/bin/swarmctl").symlink_to("/usr/lib/swarmctl/swarmctl")


def put_image(paths: Paths, root: Path, step: Step) -> None:
    """Put the test image into a root file system, as :data:`IMAGE`.

    Raises:
        LabFault: Docker does not answer, or skopeo failed.
    """
    testbox.up(paths, step)
    (root / "images").mkdir(exist_ok=True)
    tool("skopeo", "copy", "-q", f"docker-daemon:{IMAGE_TAG}", f"oci:{root}/images/testbox:latest")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy(source, target)


def tool(*command: str) -> None:
    """Run a program that builds.

    Raises:
        LabFault: it is not there, failed, or took too long.
    """
    try:
        procs.run(command, timeout_s=BUILD_S)
    except subprocess.CalledProcessError as error:
        raise LabFault(f"{command[0]} failed: {error.stderr.strip()}") from error
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        raise LabFault(f"{command[0]}: {error}", "python3 -m lab up") from error


def ensure(paths: Paths) -> PodHost:
    """As :func:`up`, without a word."""
    return alone.quietly("pod host", up, paths)


if __name__ == "__main__":
    sys.exit(alone.command("pod host", up))
