"""Where the oci driver keeps everything: one folder, in which files are the truth.

Theory of operation.  There is no daemon to ask, so what there is to know of a container is what
the files say, and each fact is one file that appears or goes in one step (by rename):

- ``containers/ID``: it was created; an OCI bundle with a record of whose it is,
- ``starts/ID``: it was started, when, and as which process,
- ``exits/ID``: it ended, with which exit code; conmon writes it, whoever else is alive.

Three folders to watch tell all that happens.  The id is the SHA-256 of (cluster, node,
incarnation), so a repeated create collides with itself, and what belongs to an incarnation is
found without looking.  It looks like Docker's ids on purpose: the guard finds a fenced container
by those 64 digits in its processes' cgroup.
"""

import hashlib
from pathlib import Path
from typing import Final

from attrs import frozen

from swarmctl.agent.drivers.api import Owner
from swarmctl.proto import incarnation as incarnations

# What is half made or half gone begins so, and is never looked at.
HIDDEN: Final = "."
# The parent of the containers' cgroups.
CGROUP_PARENT: Final = "/swarmctl"
# Network namespaces of ours, among those of `ip netns`.
NAMESPACES: Final = Path("/run/netns")


def container_id(owner: Owner, incarnation: int) -> str:
    """The one id that an incarnation's container can have: 64 hexadecimal digits."""
    name = f"{owner.cluster_id}/{owner.node}/{incarnations.label(incarnation)}"
    return hashlib.sha256(name.encode()).hexdigest()


@frozen
class Place:
    """Where one container's files are."""

    root: Path
    id: str

    @property
    def folder(self) -> Path:
        """Its bundle."""
        return self.root / "containers" / self.id

    @property
    def start(self) -> Path:
        """The record of its latest start."""
        return self.root / "starts" / self.id

    @property
    def exit(self) -> Path:
        """The record of its end, by conmon."""
        return self.root / "exits" / self.id

    @property
    def record(self) -> Path:
        """Whose it is."""
        return self.folder / "instance.json"

    @property
    def config(self) -> Path:
        """What runc is told."""
        return self.folder / "config.json"

    @property
    def rootfs(self) -> Path:
        """Its root file system."""
        return self.folder / "rootfs"

    @property
    def log(self) -> Path:
        """The newest of its output; older ones have ``.1`` and ``.2`` behind the name."""
        return self.folder / "log"

    @property
    def control(self) -> Path:
        """The pipe on which its monitor takes commands."""
        return self.folder / "ctl"

    @property
    def pid_file(self) -> Path:
        """The process id of its first process."""
        return self.folder / "pid"

    @property
    def monitor_pid_file(self) -> Path:
        """The process id of its monitor."""
        return self.folder / "monitor.pid"

    @property
    def out_of_memory(self) -> Path:
        """There when the kernel killed something of it for want of memory."""
        return self.folder / "oom"

    @property
    def cgroup(self) -> str:
        """Its cgroup, in every hierarchy."""
        return f"{CGROUP_PARENT}/{self.id}"

    @property
    def namespace(self) -> str:
        """The name of its network namespace, when it has one of its own by name."""
        return f"swarmctl-{self.id[:16]}"

    @property
    def namespace_path(self) -> Path:
        """Where that namespace is."""
        return NAMESPACES / self.namespace


@frozen
class Layout:
    """The driver's folder."""

    root: Path

    def place(self, container: str) -> Place:
        """The files of one container."""
        return Place(self.root, container)

    @property
    def containers(self) -> Path:
        """The bundles."""
        return self.root / "containers"

    @property
    def starts(self) -> Path:
        """The records of starts."""
        return self.root / "starts"

    @property
    def exits(self) -> Path:
        """The records of ends."""
        return self.root / "exits"

    @property
    def images(self) -> Path:
        """Unpacked images, by digest."""
        return self.root / "images"

    @property
    def names(self) -> Path:
        """Which digest a name of an image stands for."""
        return self.root / "names"

    @property
    def volumes(self) -> Path:
        """Named volumes."""
        return self.root / "volumes"

    @property
    def runtime(self) -> Path:
        """Runc's own state."""
        return self.root / "runc"

    @property
    def sessions(self) -> Path:
        """Process ids of commands that run in containers."""
        return self.root / "sessions"

    def make(self) -> None:
        """Make the folders, for nobody but root: file systems of containers are below.

        Raises:
            OSError: they cannot be made.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (
            self.containers,
            self.starts,
            self.exits,
            self.images,
            self.names,
            self.volumes,
            self.runtime,
            self.sessions,
        ):
            folder.mkdir(exist_ok=True, mode=0o700)
