"""What the oci driver finds on its machine: programs, cgroups, the kernel's abilities."""

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from swarmctl.agent import guard
from swarmctl.agent.drivers.api import Owner
from swarmctl.agent.drivers.oci.bundle import ALL_CAPABILITIES, Machine
from swarmctl.agent.drivers.oci.containers import Containers
from swarmctl.agent.drivers.oci.layout import Layout
from swarmctl.agent.drivers.oci.programs import PACKAGES, PATH, RUNC, run
from swarmctl.agent.drivers.oci.rootfs import storage_of
from swarmctl.agent.drivers.oci.seccomp import ARCHITECTURES, PROFILE
from swarmctl.proto.errors import DriverUnavailable

VERSION_S: Final = 2.0
OWN_STATUS: Final = Path("/proc/self/status")
# There where a kernel with cgroups of version 1 counts swap.
SWAP_LIMIT_V1: Final = "memory.memsw.limit_in_bytes"


def runtime_version() -> str:
    """The version of runc.

    Raises:
        DriverUnavailable: it, or another program, is not there or does not work.
    """
    missing = [
        package for program, package in PACKAGES.items() if shutil.which(program, path=PATH) is None
    ]
    if missing:
        raise DriverUnavailable(
            f"{', '.join(missing)} not installed", "oci", "install the packages of these names"
        )
    done = run(RUNC, "--version", timeout_s=VERSION_S)
    if done.returncode != 0:
        raise DriverUnavailable(f"runc does not work: {done.stderr.strip()}", "oci")
    return done.stdout.partition("\n")[0].removeprefix("runc version").strip()


def cgroup_version() -> str:
    """``1``, ``2``, or ``hybrid``, where version 2 is there and controls nothing."""
    mounts = guard.mounts()
    if "" not in mounts:
        return "1"
    return "hybrid" if "memory" in mounts or "cpu" in mounts else "2"


def seccomp_profile() -> str:
    """Where containers' system calls are filtered by: the profile's file, or ``none``."""
    known = PROFILE.exists() and platform.machine() in ARCHITECTURES
    return str(PROFILE) if known else "none"


def own_capabilities(status: str) -> tuple[str, ...]:
    """What ``/proc/self/status`` says that this process may pass on."""
    (bounds,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapBnd:"))
    return tuple(name for bit, name in enumerate(ALL_CAPABILITIES) if int(bounds, 16) >> bit & 1)


def machine() -> Machine:
    """What containers' configurations depend on."""
    memory = guard.mounts().get("memory")
    return Machine(
        cpus=os.cpu_count() or 1,
        capabilities=own_capabilities(OWN_STATUS.read_text(encoding="ascii")),
        limits_swap=memory is None or Path(memory, SWAP_LIMIT_V1).exists(),
        architecture=platform.machine(),
        seccomp=json.loads(PROFILE.read_text(encoding="utf-8")) if PROFILE.exists() else None,
    )


def open_containers(owner: Owner, layout: Layout, now: Callable[[], float]) -> Containers:
    """The containers in a folder, which is made.

    Raises:
        OSError: it cannot be.
        DriverUnavailable: we may not do what containers need.
    """
    if os.geteuid() != 0:
        raise DriverUnavailable("it needs root", "oci", "run the agent as root")
    layout.make()
    return Containers(owner, layout, machine(), storage_of(layout), now)
