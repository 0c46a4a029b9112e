"""Where VMs are plugged in: taps, named by the agent and made by what plugs in.

The hypervisor opens a tap by its name when the domain starts, so there is nothing to be made before
and nothing to be taken away after: names are computed from node and port.
"""

from swarmctl.agent.drivers.api import Launch, Owner
from swarmctl.agent.drivers.libvirt.domain_xml import Port
from swarmctl.net.plugging.api import Switch, Tap
from swarmctl.net.plugging.devices import Devices


class Taps:
    """The driver's ``Places``."""

    def __init__(self, owner: Owner) -> None:
        self._devices = Devices(owner.cluster_id, owner.node)
        # Of the switch that was plugged into last: a node has one.
        self.offload = True

    async def place(self, launch: Launch, switch: Switch) -> tuple[Tap, ...]:
        """A tap for each; see :class:`swarmctl.agent.drivers.api.Places`."""
        self.offload = not switch.userspace
        return tuple(Tap() for _ in launch.attachments)

    async def displace(self, incarnation: int) -> None:
        """Nothing was made."""

    async def placed(self) -> tuple[int, ...]:
        """Nothing is there to be displaced."""
        return ()

    def ports(self, launch: Launch) -> tuple[Port, ...]:
        """The launch's network cards."""
        return tuple(
            Port(self._devices.name(one.port), one.mac, one.mtu) for one in launch.attachments
        )
