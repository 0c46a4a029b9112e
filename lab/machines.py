"""Hosts that are whole machines: with process ids, libvirt and Docker of their own.

Theory of operation. A host of `lab.hosts` is a network; a machine adds namespaces for processes
and mounts. The first process in them holds both, and when it ends so does all that was started
there, containers and VMs included, which is what a power failure does to a machine. It runs in the
host's network namespace, so `hosts.remove` finds it, and with it everything else.

libvirtd has its folders built in: each machine has others mounted there, in its own view. dockerd
is told where everything is. The agent in a machine sees both at their usual addresses.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

from lab import docker, procs, testbox
from lab.config import Paths
from lab.faults import LabFault
from lab.hosts import Host
from lab.report import Report

START_S = 60.0  # each daemon answers within 4 s on an idle machine
BOOT_S = 60.0

CGROUPS = Path("/sys/fs/cgroup")
#: Where drivers in a machine keep their containers, by the ids that their cgroups are called by.
CONTAINERS = ("agent/oci/containers/*", "docker/containers/*")

#: Folders below a machine's own, and where programs in it see them.
FOLDERS = {
    "libvirt/run": "/run/libvirt",
    "libvirt/lib": "/var/lib/libvirt",
    "libvirt/cache": "/var/cache/libvirt",
    "libvirt/log": "/var/log/libvirt",
    "libvirt/etc": "/etc/libvirt",
    "netns": "/run/netns",  # what agents hold there by name goes with the machine
}
# QEMU as root, its output in files: no virtlogd, no labels, and no namespaces of QEMU's own.
QEMU_CONF = """\
stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
"""
# A shell that waits takes in the orphans of its machine, as a first process has to.
FIRST_PROCESS = """
set -e
mount --make-rprivate /
{binds}
touch {ready}
while :; do sleep 86400 & wait $!; done
"""


class Machine:
    """One machine on a host.

    Args:
        host: started, of `lab.hosts`.
        folder: what its daemons keep is in there; made anew.
    """

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.name = host.name
        self.folder = folder
        self.docker_socket = folder / "docker.sock"

    def boot(self) -> None:
        """Start its first process.

        Raises:
            LabFault: it does not get ready.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True)
        (self.folder / "libvirt/etc/qemu.conf").write_text(QEMU_CONF)
        ready = self.folder / "ready"
        binds = [
            f"[ ! -d {its} ] || mount --bind {self.folder}/{ours} {its}"
            for ours, its in FOLDERS.items()
        ]
        script = FIRST_PROCESS.format(binds="\n".join(binds), ready=ready)
        self.host.place.spawn(
            "machine",
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", script),
        )
        if not procs.wait_until(ready.exists, BOOT_S):
            words = procs.last_lines(self.host.place.log("machine"))
            raise LabFault(f"{self.name} does not boot: {words}")

    def power_off(self) -> None:
        """End it as a power failure does: all its processes at once; its files stay."""
        pid = self._first_pid()
        self.host.place.kill("machine")
        first = procs.identify(pid)
        if first is not None and procs.terminate(first, term_s=0.0) == "stuck":
            raise LabFault(f"{self.name} does not end")

    def inside(self, *command: str) -> list[str]:
        """A command as it runs in the machine."""
        return self.host.place.inside(*self._entered(*command))

    def run(self, *command: str) -> str:
        """Run a command in the machine, to its end; what it said.

        Raises:
            LabFault: it failed, or took too long.
        """
        return self.host.place.run(*self._entered(*command))

    def spawn(self, name: str, *command: str) -> None:
        """Start a program in the machine that goes on."""
        self.host.place.spawn(name, *self._entered(*command))

    def kill(self, name: str) -> None:
        """``kill -9`` for a program that :meth:`spawn` started."""
        process = self.host.place.running[name]
        pid = _only_child(process.pid)  # What runs is nsenter, and the program is its child.
        found = procs.identify(pid)
        if found is not None:
            procs.terminate(found, term_s=0.0)
        self.host.place.kill(name)

    def _entered(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self._first_pid()}", "--mount", "--pid", *command]

    def _first_pid(self) -> int:
        return _only_child(self.host.place.running["machine"].pid)

    # --- daemons ------------------------------------------------------------------------------

    def start_libvirt(self) -> None:
        """Start libvirtd.

        Raises:
            LabFault: it does not answer.
        """
        self.spawn("libvirtd", "libvirtd", "--pid-file", f"{self.folder}/libvirt/libvirtd.pid")
        self._await("libvirtd", "virsh", "-c", "qemu:///system", "version")

    def start_docker(self, paths: Paths) -> None:
        """Start dockerd, with the lab's image in it. It makes no networks: OVN's are to be used.

        Raises:
            LabFault: it does not answer.
        """
        own = dataclasses.replace(paths, docker_socket=self.docker_socket)
        self.spawn(
            "dockerd",
            *("dockerd", "--host", f"unix://{self.docker_socket}", "--iptables=false"),
            *("--bridge=none", "--data-root", f"{self.folder}/docker"),
            *("--exec-root", f"{self.folder}/docker-run"),
            *("--pidfile", f"{self.folder}/docker.pid"),
        )
        if not procs.wait_until(lambda: docker.version(own) is not None, START_S):
            words = procs.last_lines(self.host.place.log("dockerd"))
            raise LabFault(f"dockerd on {self.name} does not answer: {words}")
        with Report(io.StringIO()) as quiet, quiet.step("image") as step:
            testbox.up(own, step)

    def _await(self, name: str, *question: str) -> None:
        def answers() -> bool:
            try:
                self.run(*question)
            except LabFault:
                return False
            return True

        if not procs.wait_until(answers, START_S):
            words = procs.last_lines(self.host.place.log(name))
            raise LabFault(f"{name} on {self.name} does not answer: {words}")


def remove_cgroups(folder: Path) -> None:
    """Remove the cgroups that are left of a machine whose processes were killed, by its folder."""
    names = [each.name for part in CONTAINERS for each in folder.glob(part)]
    names += [each.stem for each in folder.glob("libvirt/etc/qemu/swarmctl-*.xml")]
    for name in names:
        for top in CGROUPS.glob(f"*/*/*{name}*"):
            for below in sorted(top.glob("**/"), reverse=True):
                try:
                    below.rmdir()
                except OSError:
                    break  # Somebody is in it after all.


def _only_child(pid: int) -> int:
    """The one child of a process.

    Raises:
        LabFault: it has none.
    """
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0])
    except (OSError, IndexError) as error:
        raise LabFault(f"process {pid} has ended") from error
