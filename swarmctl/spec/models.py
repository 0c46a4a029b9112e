"""What users ask for: the services of a stack, as frozen data.

A :class:`ServiceSpec` is the whole intent for one service.
Its *template* (:class:`Template`) is the part that a running instance was made from: two specs
with the same template differ only in how many copies there are and where they may be, and
changing those restarts nothing.
Templates are interned by their digest, so a node is sent each of them once.

Sizes are bytes, cpu is in thousandths of a core, times are seconds.
"""

from enum import Enum
from typing import Final

import attrs
from attrs import field, frozen


class Kind(Enum):
    """What an instance is."""

    CONTAINER = "container"
    VM = "vm"


class RestartCondition(Enum):
    """When an instance that ended is started again on the spot."""

    NEVER = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    UNLESS_STOPPED = "unless-stopped"


@frozen
class Resources:
    """What one instance reserves; zero reserves nothing of it."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    named: dict[str, int] = field(factory=dict)

    def amounts(self) -> dict[str, int]:
        """Name to amount, without the zeros, as the scheduler counts them."""
        base = {
            "cpu_millis": self.cpu_millis,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
        }
        return {name: amount for name, amount in (base | self.named).items() if amount}


# Frozen, so that all who say nothing share it: a default that is made anew at every use costs the
# reading and writing of a spec half of its time.
_NOTHING: Final = Resources()


@frozen
class PortMapping:
    """A published port; ``host_port`` 0 lets the node choose."""

    container_port: int
    host_port: int = 0
    protocol: str = "tcp"
    host_ip: str = ""

    @property
    def label(self) -> str:
        """As people read a published port: ``*:8080->80/tcp``, ``*`` for all addresses."""
        host = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip or "*"
        return f"{host}:{self.host_port}->{self.container_port}/{self.protocol}"


@frozen
class Mount:
    """A bind mount, a named volume or a tmpfs; ``kind`` is ``bind``, ``volume`` or ``tmpfs``."""

    kind: str
    source: str
    target: str
    read_only: bool = False
    size_bytes: int = 0


@frozen
class RestartPolicy:
    """How an instance that ended is treated; ``max_attempts`` 0 is without end.

    ``window_s`` is how long an instance must have run for its start to count as a good one;
    0 leaves that to the agent.
    """

    condition: RestartCondition = RestartCondition.ALWAYS
    delay_s: float = 0.0
    max_attempts: int = 0
    window_s: float = 0.0


class HealthKind(Enum):
    """How an instance is asked whether it is well."""

    NONE = "none"
    COMMAND = "command"
    TCP = "tcp"
    HTTP = "http"
    GUEST_AGENT = "guest-agent"


@frozen
class HealthCheck:
    """How, and how often, an instance is asked whether it is well.

    ``command`` is run inside a container, ``port`` (and ``path``, for HTTP) is asked at the
    instance's address.  ``retries`` failures in a row make it unhealthy; those of the first
    ``start_period_s`` do not count, and in it checks are ``start_interval_s`` apart.
    ``NONE`` is no check, and none of the image's own either.
    """

    kind: HealthKind = HealthKind.NONE
    command: tuple[str, ...] = ()
    port: int = 0
    path: str = ""
    interval_s: float = 30.0
    timeout_s: float = 30.0
    retries: int = 3
    start_period_s: float = 0.0
    start_interval_s: float = 5.0


_ALWAYS: Final = RestartPolicy()


@frozen
class ContainerSpec:
    """A container, in the words of the Compose Specification."""

    image: str
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    environment: dict[str, str] = field(factory=dict)
    user: str = ""
    working_dir: str = ""
    hostname: str = ""
    ports: tuple[PortMapping, ...] = ()
    mounts: tuple[Mount, ...] = ()
    network: str = ""
    cap_add: tuple[str, ...] = ()
    stop_signal: str = ""
    tty: bool = False


@frozen
class DiskSpec:
    """A disk: an overlay on ``image`` (qcow2 or raw), grown to ``size_bytes`` when that is set."""

    image: str
    size_bytes: int = 0
    persistent: bool = False


@frozen
class CloudInit:
    """The NoCloud seed of a VM."""

    user_data: str = ""
    hostname: str = ""
    ssh_authorized_keys: tuple[str, ...] = ()


@frozen
class VmSpec:
    """A virtual machine: booted from ``disk``, or directly from ``kernel``."""

    disk: DiskSpec | None = None
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    firmware: str = "bios"
    cloud_init: CloudInit | None = None
    trunk: bool = False
    network: str = ""


@frozen
class NetworkUse:
    """A tenant network that an instance is plugged into.

    ``addresses`` are fixed ones, of a service with one copy; without any, addresses are given from
    the network's subnets.  ``aliases`` are further names of the service on this network.
    """

    network: str
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@frozen
class Template:
    """All that an instance is made from. Exactly one of ``container`` and ``vm`` is set.

    ``resources`` is what it reserves, and what the scheduler counts; ``limits`` is what the
    driver holds it to, where 0 sets no limit. A VM is as large as what it reserves.  ``fenced``
    says that a slot's instance must have ended before another one of it is started.  ``networks``
    are the tenant networks that it is plugged into, the one of its default route first; without
    any it is on the node's own.
    """

    container: ContainerSpec | None = None
    vm: VmSpec | None = None
    resources: Resources = _NOTHING
    restart: RestartPolicy = _ALWAYS
    stop_grace_period_s: float = 10.0
    labels: dict[str, str] = field(factory=dict)
    job: bool = False
    limits: Resources = _NOTHING
    health: HealthCheck | None = None
    fenced: bool = False
    networks: tuple[NetworkUse, ...] = ()

    @property
    def checked(self) -> HealthCheck | None:
        """The health check that is made; None when there is none."""
        if self.health is None or self.health.kind is HealthKind.NONE:
            return None
        return self.health

    @property
    def kind(self) -> Kind:
        """Whether this makes containers or VMs."""
        return Kind.VM if self.vm is not None else Kind.CONTAINER

    def __attrs_post_init__(self) -> None:
        assert (self.container is None) != (self.vm is None), "a template is a container or a VM"


@frozen
class AffinityTerm:
    """Near (or far from) the instances of ``service``; ``required`` makes it a must."""

    service: str
    weight: int = 50
    required: bool = False


@frozen
class Placement:
    """Where instances may be.

    ``constraints`` are texts such as ``node.labels.zone == eu-1`` (see
    :mod:`swarmctl.scheduler.constraint`); ``spread`` are label names such as
    ``node.labels.rack``; ``strategy`` is ``spread`` or ``binpack``.
    """

    constraints: tuple[str, ...] = ()
    spread: tuple[str, ...] = ()
    strategy: str = "spread"
    max_replicas_per_node: int = 0
    affinity: tuple[AffinityTerm, ...] = ()
    anti_affinity: tuple[AffinityTerm, ...] = ()


_ANYWHERE: Final = Placement()


@frozen
class ServiceSpec:
    """The whole intent for one service.

    ``driver`` is what starts its instances; empty means docker for containers and libvirt for VMs.
    An instance keeps the driver that it was placed with.  ``max_unavailable`` is how many copies
    may be away at a time when we replace or move them; 0 leaves that to who does it.  ``floating``
    is an address of the uplink that leads to it, or ``auto`` for any; it restarts nothing.
    """

    name: str
    template: Template
    replicas: int = 1
    tenant: str = "default"
    stack: str = ""
    placement: Placement = _ANYWHERE
    priority: int = 0
    fencing: str = "none"
    driver: str = ""
    max_unavailable: int = 0
    floating: str = ""

    @property
    def driver_name(self) -> str:
        """The driver that starts its instances."""
        if self.driver:
            return self.driver
        return "libvirt" if self.template.kind is Kind.VM else "docker"

    def with_replicas(self, replicas: int) -> "ServiceSpec":
        """The same service with another number of copies."""
        return attrs.evolve(self, replicas=replicas)
