"""A libvirtd of a test's own, beside the machine's: it may be killed and frozen.

libvirtd's folders are built into it, so it runs in a mount namespace in which they are others; its
socket is in one of those, and so can be reached from outside.  What it starts are real QEMUs, which
outlive it; they are found by their pid files.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from lab.machines import QEMU_CONF
from tests.e2e.cluster import until

# Folder of ours to the one that it stands for.
FOLDERS = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "etc": "/etc/libvirt",
}


class PrivateLibvirtd:
    """Below ``folder``, whose name has to be short: sockets have 100 characters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"qemu+unix:///system?socket={folder}/run/libvirt-sock"
        self.process: subprocess.Popen[bytes] | None = None
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        (folder / "etc/qemu.conf").write_text(QEMU_CONF)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        binds = [f"mount --bind {self.folder}/{ours} {its}" for ours, its in FOLDERS.items()]
        (self.folder / "run/libvirt-sock").unlink(missing_ok=True)
        command = " && ".join(
            ["mount --make-rprivate /", *binds, f"exec libvirtd -p {self.folder}/pid"]
        )
        with (self.folder / "libvirtd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self.answers, what="libvirtd's answer")

    def answers(self) -> bool:
        """Whether it does."""
        command = ["virsh", "-c", self.uri, "version"]
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, timeout=10, check=False)
            return done.returncode == 0
        return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``; its guests run on."""
        self.send_signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process = None
        (self.folder / "pid").unlink(missing_ok=True)

    def guests(self) -> set[int]:
        """The QEMUs that it has started, and that live."""
        files = (self.folder / "run/qemu").glob("swarmctl-*.pid")
        pids = {int(file.read_text()) for file in files}
        return {pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()}

    def close(self) -> None:
        """End it and its guests."""
        if self.process is not None:
            self.kill()
        for pid in self.guests():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.guests(), what="the end of all guests")
        shutil.rmtree(self.folder)
