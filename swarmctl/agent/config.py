"""What an agent is told at its start, and the drivers made from it.

Drivers are imported when they are asked for: an agent without VMs needs no libvirt-python.
One that cannot be imported is kept as a driver that says why it is not there.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import field, frozen

from swarmctl.agent.drivers.api import Driver, DriverEvent, Found, Health, Launch, Owner, Progress
from swarmctl.net.plugging.api import Plugs
from swarmctl.net.plugging.ovs import DEFAULT_REMOTE, OvsPlugs
from swarmctl.net.plugging.trunk import TrunkPlugs
from swarmctl.proto.errors import DriverUnavailable, InvalidSpec

DRIVERS = ("docker", "libvirt", "oci", "sim")


@frozen
class AgentConfig:
    """All that an agent is told.

    Attributes:
        data: its folder; locked while it runs.
        name: the node's name; empty takes the one it enrolled as, or the machine's.
        controllers: addresses (``tcp://HOST:PORT``) in place of the join token's.
        join: a join token or the file with one; needed once.
        labels: the node's own labels.
        drivers: which drivers to offer.
        capacity: amounts by resource in place of the machine's; also named resources.
        reserve: amounts by resource held back from instances.
        docker_host: dockerd's address; empty is Docker's own default.
        libvirt_uri: libvirt's connection.
        images: the folder that relative disk images and kernels are in.
        ovs: where the database of this node's Open vSwitch listens.
        bridges: physical network to the bridge of this node's that is on it.
        trunk: the interface that is the port of the VM that this node is; empty on a machine.
        parent: which VM this node is: its port, its incarnation, or its name.
        sim_bulk: launch simulated instances in bulk calls (benchmarks).
    """

    data: Path
    name: str = ""
    controllers: tuple[str, ...] = ()
    join: str = ""
    labels: dict[str, str] = field(factory=dict)
    drivers: tuple[str, ...] = ("docker", "libvirt")
    capacity: dict[str, int] = field(factory=dict)
    reserve: dict[str, int] = field(factory=dict)
    docker_host: str = ""
    libvirt_uri: str = "qemu:///system"
    images: Path | None = None
    sim_bulk: bool = False
    ovs: str = DEFAULT_REMOTE
    bridges: dict[str, str] = field(factory=dict)
    trunk: str = ""
    parent: str = ""


class MissingDriver:
    """Stands for a driver that this installation cannot load; every call says why."""

    concurrency = 1

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    async def probe(self) -> Health:
        """Not available."""
        await trio.lowlevel.checkpoint()
        return Health(available=False, reason=self.reason)

    async def prepare(self, launch: Launch, progress: Progress) -> None:  # noqa: ARG002 - the contract's names
        """Not possible."""
        await self._fail()

    async def create(self, launch: Launch) -> str:  # noqa: ARG002 - the contract's names
        """Not possible."""
        return await self._fail()

    async def start(self, launch: Launch) -> Found:  # noqa: ARG002 - the contract's names
        """Not possible."""
        await self._fail()
        raise AssertionError("unreachable")

    async def stop(self, incarnation: int, grace_s: float) -> None:  # noqa: ARG002 - the contract's names
        """Not possible."""
        await self._fail()

    async def remove(self, incarnation: int) -> None:  # noqa: ARG002 - the contract's names
        """Not possible."""
        await self._fail()

    async def list(self) -> list[Found]:
        """Not possible."""
        await self._fail()
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def events(self) -> AsyncGenerator[trio.MemoryReceiveChannel[DriverEvent], None]:
        """Nothing ever happens."""
        send, receive = trio.open_memory_channel[DriverEvent](1)
        await trio.lowlevel.checkpoint()
        with send, receive:
            yield receive

    async def _fail(self) -> str:
        await trio.lowlevel.checkpoint()
        raise DriverUnavailable(self.reason, self.name)


def check_drivers(config: AgentConfig) -> None:
    """See that ``config`` asks for drivers that there are.

    Raises:
        InvalidSpec: there is no driver of such a name.
    """
    for name in config.drivers:
        if name not in DRIVERS:
            raise InvalidSpec(
                f"there is no driver {name}", "--drivers", f"choose from {', '.join(DRIVERS)}"
            )


def make_drivers(config: AgentConfig, owner: Owner) -> Mapping[str, Driver]:
    """The drivers that ``config`` asks for, by name.

    Raises:
        InvalidSpec: there is no driver of such a name.
    """
    check_drivers(config)
    return {name: _make(name, config, owner) for name in dict.fromkeys(config.drivers)}


def _make(name: str, config: AgentConfig, owner: Owner) -> Driver:
    try:
        if name == "docker":
            from swarmctl.agent.drivers.docker import DockerDriver

            return DockerDriver(owner, config.docker_host)
        if name == "libvirt":
            from swarmctl.agent.drivers.libvirt import LibvirtDriver

            return LibvirtDriver(
                owner, config.data / "vms", images=config.images, uri=config.libvirt_uri
            )
        if name == "oci":
            from swarmctl.agent.drivers.oci import OciDriver

            return OciDriver(owner, config.data / "oci")
    except ImportError as error:
        return MissingDriver(name, f"{error.name or error} is not installed on this machine")
    from swarmctl.agent.drivers.sim import SimDriver, SimHost

    return SimDriver(owner, SimHost())


def make_plugs(config: AgentConfig, owner: Owner) -> Plugs:
    """What plugs this node's instances into tenant networks."""
    if config.trunk:
        return TrunkPlugs(owner.cluster_id, owner.node, config.trunk)
    return OvsPlugs(owner.cluster_id, owner.node, config.ovs, bridges=config.bridges)
