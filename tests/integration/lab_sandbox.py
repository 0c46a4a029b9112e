"""A machine in namespaces, where the lab's daemons can be killed without harm to anybody.

Theory of operation. A shell becomes process 1 of new mount, network, process and IPC namespaces.
It has its own /run, /dev (with a KVM node that is no KVM), Docker and libvirt folders, so that the
daemons started in it share nothing with those outside but the kernel and the cgroup tree. Commands
enter by nsenter; everything in it dies with process 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND_S = 300.0  # a whole demo on an idle machine: half a minute
READY_S = 60.0

SETUP = r"""
set -e
base=$1
mount --make-rprivate /
mkdir -p $base/cgroup $base/docker $base/etc-libvirt
mount --rbind /sys/fs/cgroup $base/cgroup
mount -t sysfs sys /sys
mount --rbind $base/cgroup /sys/fs/cgroup
cp -a /etc/libvirt/. $base/etc-libvirt
mkdir -p /var/lib/docker
mount --bind $base/docker /var/lib/docker
mount --bind $base/etc-libvirt /etc/libvirt
for folder in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
  mount -t tmpfs -o mode=755 lab $folder
done
mkdir -p /run/lock /run/libvirt
mkdir $base/dev
mount -t tmpfs -o mode=755 lab $base/dev
for node in null zero full random urandom tty; do cp -a /dev/$node $base/dev/; done
mkdir $base/dev/pts $base/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 pts $base/dev/pts
ln -s pts/ptmx $base/dev/ptmx
ln -s /proc/self/fd $base/dev/fd
mknod $base/dev/kvm c 1 3
umount --recursive --lazy /dev  # libvirt moves every mount listed below /dev: no hidden ones
mount --rbind $base/dev /dev
ip link set lo up
mkfifo /run/never
touch $base/ready
read -r _ <>/run/never
"""


class Sandbox:
    """The machine; leaving the `with` block ends everything in it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "SWARMCTL_LAB_DIR": str(base / "lab")}

    def __enter__(self) -> Sandbox:
        errors = self.base / "stderr"
        errors.touch()
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child",
             "--mount-proc", "bash", "-c", f"exec 2>{errors}\n{SETUP}", "sandbox", str(self.base)],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not (self.base / "ready").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"no sandbox: {(self.base / 'stderr').read_text()}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.base / "docker", ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it, from the root of the checkout."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        done = subprocess.run(
            ["nsenter", "--target", children.split()[0], "--mount", "--net", "--pid", "--ipc",
             f"--wd={ROOT}", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            env=self.environment,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def lab(self, *arguments: str, check: bool = True) -> str:
        """Run a lab command in it; its standard output."""
        return self.run(sys.executable, "-m", "lab", *arguments, check=check).stdout

    def status(self) -> dict[str, dict[str, object]]:
        """`lab status --json` in it: the parts, and `kvm` beside them."""
        found = json.loads(self.lab("status", "--json", check=False))
        return {**found["parts"], "kvm": found["kvm"]}

    def pid_of(self, pidfile: str) -> str:
        """What a pidfile in it says."""
        return self.run("cat", pidfile).stdout.strip()

    def any_alive(self, pids: list[str]) -> bool:
        """Whether one of these processes in it still runs."""
        return self.run("kill", "-0", *pids, check=False).stderr.count("No such") < len(pids)

    def network(self) -> str:
        """Interfaces, firewall and forwarding in it, as text to compare."""
        return self.run(
            "sh", "-c",
            "ls /sys/class/net; iptables -S; iptables -t nat -S; cat /proc/sys/net/ipv4/ip_forward",
        ).stdout  # fmt: skip
