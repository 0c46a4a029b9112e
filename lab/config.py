"""Where the lab keeps things: folders, sockets and file names, all in one frozen value.

Theory of operation. Nothing else in the package reads the environment or spells a path of the
lab's own; a test makes a :class:`Paths` of its own and gets a lab of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STATE_DIR_DEFAULT = Path("/var/lib/swarmctl-lab")
CACHE_DIR_DEFAULT = Path("/var/cache/swarmctl-lab")

IMAGE_TAG = "swarmctl/testbox:latest"
LIBVIRT_URI = "qemu:///system"
GUEST_READY_LINE = "swarmctl guest ready"
# An emulated timer that is late on a busy machine is no broken one (KVM says so to guests by itself).
EMULATED = "no_timer_check"
GUEST_CMDLINE = f"console=ttyS0 quiet panic=-1 {EMULATED}"
GUEST_MEMORY_MIB = 96  # measured under q35: 80 just boots, 64 never gets its kernel unpacked

PARTS = ("docker", "libvirt", "oci", "etcd", "ovn", "image", "guest", "build")


@dataclass(frozen=True)
class Paths:
    """Every path that the lab owns or looks at."""

    state_dir: Path
    cache_dir: Path
    docker_socket: Path = Path("/var/run/docker.sock")
    docker_pidfile: Path = Path("/var/run/docker.pid")
    libvirt_socket: Path = Path("/var/run/libvirt/libvirt-sock")
    kvm_node: Path = Path("/dev/kvm")

    @property
    def state_file(self) -> Path:
        """The registry of what the lab started and changed."""
        return self.state_dir / "state.json"

    @property
    def lock_file(self) -> Path:
        """Held by `up`, `down` and `purge`, so that two of them take turns."""
        return self.state_dir / "lock"

    @property
    def log_dir(self) -> Path:
        """One file for each daemon that the lab started."""
        return self.state_dir / "log"

    @property
    def kvm_aside(self) -> Path:
        """Where an unusable KVM node waits for `lab down`."""
        return self.kvm_node.with_name(self.kvm_node.name + ".swarmctl-aside")

    @property
    def guest_dir(self) -> Path:
        """The test guest's kernel, initramfs and disk."""
        return self.cache_dir / "guest"

    @property
    def kernel(self) -> Path:
        """The guest's kernel, for direct boot."""
        return self.guest_dir / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The guest's initramfs, for direct boot."""
        return self.guest_dir / "initrd.img"

    @property
    def testdisk(self) -> Path:
        """A qcow2 image that boots the same guest from its own boot sector."""
        return self.guest_dir / "testdisk.qcow2"


def paths_from(environment: Mapping[str, str] = os.environ) -> Paths:
    """The paths that this environment asks for (SWARMCTL_LAB_DIR, SWARMCTL_LAB_CACHE)."""
    cache = environment.get("SWARMCTL_LAB_CACHE")
    return Paths(
        state_dir=Path(environment.get("SWARMCTL_LAB_DIR") or STATE_DIR_DEFAULT),
        cache_dir=Path(cache) if cache else default_cache_dir(environment, os.geteuid() == 0),
    )


def default_cache_dir(environment: Mapping[str, str], is_root: bool) -> Path:  # noqa: FBT001 - a fact
    """The system's cache; a plain user's own where the system has none of the lab's."""
    if is_root or CACHE_DIR_DEFAULT.exists():
        return CACHE_DIR_DEFAULT
    home = Path(environment.get("HOME", "/tmp"))  # noqa: S108 - a user without a home
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / CACHE_DIR_DEFAULT.name
