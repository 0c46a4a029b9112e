"""From a launch and its image to the ``config.json`` that runc is told. Pure.

What Docker gives a container is what a container gets here: the same capabilities, masked and
read-only paths and system calls (:mod:`.seccomp`), and namespaces of its own.  What is not given is
said in docs/oci.md.
"""

import signal
from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from swarmctl.agent.drivers.api import Launch
from swarmctl.agent.drivers.oci.images import ImageConfig
from swarmctl.agent.drivers.oci.seccomp import filter_of
from swarmctl.agent.drivers.oci.users import Identity
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import ContainerSpec, Resources

OCI_VERSION: Final = "1.0.2"
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_STOP_SIGNAL: Final = "SIGTERM"
CPU_PERIOD_US: Final = 100_000
# Docker's own bounds: below them nothing starts, and the kernel's words for it help nobody.
MEMORY_MIN_BYTES: Final = 6 * 1024 * 1024
CPU_MILLIS_MIN: Final = 10
# Networks that need nobody to plug them.
NO_NETWORK: Final = "none"
HOST_NETWORK: Final = "host"

# What Docker leaves a container of root's powers.
CAPABILITIES: Final = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
)
# In the kernel's order: the place of each is its bit.
ALL_CAPABILITIES: Final = tuple(
    """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()  # noqa: SIM905 - as a list, forty lines of a word each
)

MASKED_PATHS: Final = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)
READ_ONLY_PATHS: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


_SAFE: Final = ("nosuid", "noexec", "nodev")
STANDARD_MOUNTS: Final = (
    _mount("/proc", "proc", "proc", *_SAFE),
    _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount(
        *("/dev/pts", "devpts", "devpts"),
        *("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    _mount("/sys", "sysfs", "sysfs", *_SAFE, "ro"),
    _mount("/sys/fs/cgroup", "cgroup", "cgroup", *_SAFE, "ro"),
    _mount("/dev/mqueue", "mqueue", "mqueue", *_SAFE),
    _mount("/dev/shm", "tmpfs", "shm", *_SAFE, "mode=1777", "size=65536k"),  # noqa: S108 - in the container
)


@frozen
class Machine:
    """What a configuration depends on of the machine that it is for.

    ``capabilities`` are those that the agent has to give; ``seccomp`` is the profile (see
    :mod:`.seccomp`), None where there is none.
    """

    cpus: int
    capabilities: tuple[str, ...] = ALL_CAPABILITIES
    limits_swap: bool = True
    architecture: str = ""
    seccomp: dict[str, Any] | None = None


@frozen
class Surroundings:
    """What was made for one container outside of its configuration.

    ``namespace`` is the path of its network namespace, "" for one that runc makes.
    """

    rootfs: str
    cgroup: str
    mounts: tuple[dict[str, Any], ...] = ()
    namespace: str = ""


def config(
    launch: Launch,
    image: ImageConfig,
    identity: Identity,
    surroundings: Surroundings,
    machine: Machine,
) -> dict[str, Any]:
    """The whole configuration.

    Raises:
        InvalidSpec: the launch asks for something that cannot be.
    """
    spec = container_of(launch)
    mounts = sorted(
        (*STANDARD_MOUNTS, *surroundings.mounts), key=lambda one: one["destination"].count("/")
    )
    linux: dict[str, Any] = {
        "cgroupsPath": surroundings.cgroup,
        "namespaces": _namespaces(spec, surroundings.namespace),
        "resources": resources(launch.template.limits, machine, launch.instance),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READ_ONLY_PATHS),
    }
    if machine.seccomp is not None:
        powers = capabilities(spec.cap_add, machine, launch.instance)
        linux["seccomp"] = filter_of(machine.seccomp, powers, machine.architecture)
    return {
        "ociVersion": OCI_VERSION,
        "hostname": spec.hostname or launch.hostname,
        "root": {"path": surroundings.rootfs, "readonly": False},
        "process": _process(launch, image, identity, machine),
        "mounts": mounts,
        "annotations": dict(launch.template.labels),
        "linux": linux,
    }


def container_of(launch: Launch) -> ContainerSpec:
    """The launch's container."""
    assert launch.template.container is not None, "the oci driver makes containers"
    return launch.template.container


def check_network(launch: Launch) -> None:
    """See that the launch's network is one that this driver can give.

    Raises:
        InvalidSpec: it is not; there is no NAT of our own.
    """
    spec = container_of(launch)
    if launch.attachments:
        return  # What it publishes is reached by its service's address on these networks.
    if spec.ports:
        raise InvalidSpec(
            "the oci driver publishes no ports",
            launch.instance,
            "use network_mode: host, a tenant network, or the docker driver",
        )
    if spec.network in (NO_NETWORK, HOST_NETWORK):
        return
    wanted = f"no network {spec.network}" if spec.network else "no NAT network of its own"
    raise InvalidSpec(
        f"the oci driver has {wanted}",
        launch.instance,
        "say network none or host, use a tenant network, or the docker driver",
    )


def arguments(spec: ContainerSpec, image: ImageConfig, where: str) -> tuple[str, ...]:
    """What is run: an entrypoint of the spec's takes the image's command away with the image's.

    Raises:
        InvalidSpec: neither says anything.
    """
    if spec.entrypoint is not None:
        words = (*spec.entrypoint, *(spec.command or ()))
    else:
        words = (*image.entrypoint, *(image.command if spec.command is None else spec.command))
    if not words:
        raise InvalidSpec(
            "the image says no command and the service gives none", where, "set command"
        )
    return words


def environment(spec: ContainerSpec, image: ImageConfig, hostname: str, home: str) -> list[str]:
    """The process's environment: ours, overlaid by the image's, overlaid by the spec's."""
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if spec.tty:
        variables["TERM"] = "xterm"
    for entry in image.environment:
        name, _, value = entry.partition("=")
        variables[name] = value
    variables |= spec.environment
    variables.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in variables.items()]


def stop_signal(spec: ContainerSpec, image: ImageConfig) -> str:
    """What asks the container to end."""
    return spec.stop_signal or image.stop_signal or DEFAULT_STOP_SIGNAL


def signal_number(name: str) -> int:
    """The number of ``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3``; SIGTERM's for nonsense.

    Images may say anything; a container with a wrong signal in it must be stoppable all the same.
    """
    text = name.upper().removeprefix("SIG")
    base, plus, offset = text.partition("+")
    if text.isdigit():
        number = int(text)
    elif base == "RTMIN" and (not plus or offset.isdigit()):
        number = signal.SIGRTMIN + int(offset or 0)
    elif text.startswith("RTMAX") and text[5:].lstrip("-").isdigit():
        number = signal.SIGRTMAX - int(text[5:].lstrip("-"))
    else:
        number = getattr(signal.Signals, f"SIG{text}", signal.SIGTERM)
    return int(number) if 1 <= number <= signal.SIGRTMAX else int(signal.SIGTERM)


def capabilities(added: Sequence[str], machine: Machine, where: str = "") -> list[str]:
    """Docker's, and those that were added, as far as the machine gives them.

    Raises:
        InvalidSpec: one that was added is not there to be given.
    """
    names = {name.upper().removeprefix("CAP_") for name in added}
    if "ALL" in names:
        return [f"CAP_{name}" for name in machine.capabilities]
    lacking = sorted(names.difference(machine.capabilities))
    if lacking:
        raise InvalidSpec(
            f"capability {', '.join(lacking)} is not one that the node can give",
            where,
            "check cap_add; in a VM or container the node may have fewer than others",
        )
    usual = [name for name in CAPABILITIES if name in machine.capabilities]
    return [f"CAP_{name}" for name in (*usual, *sorted(names.difference(usual)))]


def resources(limits: Resources, machine: Machine, where: str) -> dict[str, Any]:
    """The limits for the container's cgroup.

    Raises:
        InvalidSpec: they are beyond the machine, or too small for anything to start.
    """
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limits.cpu_millis:
        if limits.cpu_millis > machine.cpus * 1000:
            raise InvalidSpec(
                f"more cpus than the {machine.cpus} that the node has", where, "ask for fewer cpus"
            )
        millis = max(limits.cpu_millis, CPU_MILLIS_MIN)
        found["cpu"] = {"quota": millis * CPU_PERIOD_US // 1000, "period": CPU_PERIOD_US}
    if limits.memory_bytes:
        if limits.memory_bytes < MEMORY_MIN_BYTES:
            raise InvalidSpec(
                f"less memory than the {MEMORY_MIN_BYTES >> 20} MiB that a container needs",
                where,
                "ask for more memory",
            )
        found["memory"] = {"limit": limits.memory_bytes}
        if machine.limits_swap:
            # Memory and swap together: none of it may go to swap beyond the limit.
            found["memory"]["swap"] = limits.memory_bytes
    return found


def _process(
    launch: Launch, image: ImageConfig, identity: Identity, machine: Machine
) -> dict[str, Any]:
    spec = container_of(launch)
    powers = capabilities(spec.cap_add, machine, launch.instance)
    # As in Docker: another user than root has what it may take, and takes it by a set-uid program.
    effective = powers if identity.uid == 0 else []
    return {
        "terminal": spec.tty,
        "user": {
            "uid": identity.uid,
            "gid": identity.gid,
            "additionalGids": list(identity.groups),
        },
        "args": list(arguments(spec, image, launch.instance)),
        "env": environment(spec, image, spec.hostname or launch.hostname, identity.home),
        "cwd": spec.working_dir or image.working_dir or "/",
        "capabilities": {
            "bounding": powers,
            "effective": effective,
            "permitted": effective,
        },
        "oomScoreAdj": 0,
        "noNewPrivileges": False,
    }


def _namespaces(spec: ContainerSpec, namespace: str) -> list[dict[str, str]]:
    found = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    if namespace:
        found.append({"type": "network", "path": namespace})
    elif spec.network != HOST_NETWORK:
        found.append({"type": "network"})
    return found
