"""Plugs inside a VM: subinterfaces of its trunk, one VLAN each, for pods on a nested node.

The VM has no switch.  A pod's port is a VLAN on the VM's own port, and what OVN does for it happens
on the host, out of sight; whether packets flow is seen by asking the pod's gateway for its address,
which OVN answers from the very flows that are to be installed.

A subinterface is made in its pod's namespace and goes with it, so there is nothing on the VM's side
to be left over.  An alias on each says whose it is; they are found by looking into every network
namespace of the VM.
"""

import ipaddress
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from swarmctl.net.plugging.api import InNamespace, Plugged, Switch, Target
from swarmctl.net.plugging.devices import Devices
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, PortNotUp
from swarmctl.proto.messages import Attachment

_T = TypeVar("_T")

# A VM is small, and these calls are short.
THREADS: Final = 2
CALL_S: Final = 15.0
# Waits for ports have threads of their own, so that no plug is behind them, and let go of them now
# and then, for there may be more ports than threads.
WAITS: Final = 4
WAIT_S: Final = 0.25


class TrunkPlugs:
    """A nested node's plugs.

    Args:
        cluster_id: whose plugs these are,
        node: and of which node.
        trunk: the interface that is the VM's port.
    """

    def __init__(self, cluster_id: str, node: str, trunk: str) -> None:
        self._devices = Devices(cluster_id, node)
        self._trunk = trunk
        # Where each plug was made: every other way to find it leads through all namespaces.
        self._targets: dict[str, InNamespace] = {}
        self._limiter = trio.CapacityLimiter(THREADS)
        self._waits = trio.CapacityLimiter(WAITS)

    def device(self, port: str) -> str:
        """See Plugs."""
        return self._devices.name(port)

    async def probe(self) -> Switch:
        """See Plugs."""
        if not await trio.Path(f"/sys/class/net/{self._trunk}").exists():
            raise DriverUnavailable(f"the trunk {self._trunk} is not there", "--trunk")
        return Switch("trunk", "802.1Q", self._trunk)

    async def plug(self, attachment: Attachment, target: Target, incarnation: int) -> None:
        """See Plugs."""
        if not attachment.vlan or not isinstance(target, InNamespace):
            raise LaunchFailed(
                f"port {attachment.port} has no VLAN on this VM's trunk", attachment.network
            )
        device = self.device(attachment.port)

        def make() -> None:
            from swarmctl.net.plugging import links, vlans

            with links.explained(attachment.port):
                vlans.plug(self._trunk, attachment, target, f"{device} {incarnation}")

        await self._call(make, f"plug {attachment.port} in")
        self._targets[device] = target

    async def wait_installed(self, attachment: Attachment, deadline_s: float) -> None:
        """See Plugs. A port is taken at its word where no gateway is sure to answer."""
        gateway = attachment.gateway
        if not gateway:
            return
        target = self._targets.get(self.device(attachment.port))
        if target is None:
            raise LaunchFailed(f"port {attachment.port} is not plugged in", attachment.network)

        def ask() -> bool:
            from swarmctl.net.plugging import links, vlans

            with links.explained(attachment.port):
                address = str(ipaddress.ip_address(gateway))
                return vlans.gateway_answers(target, address, min(WAIT_S, deadline_s))

        with trio.move_on_after(deadline_s):
            while not await self._call(ask, f"look at {attachment.port}", self._waits):
                continue
            return
        raise PortNotUp(
            f"port {attachment.port} did not come up within {deadline_s:g} s: "
            f"its gateway {gateway} does not answer on VLAN {attachment.vlan}",
            attachment.network,
            "has OVN the subport, with this VM's port as its parent?",
            port=attachment.port,
        )

    async def unplug(self, devices: tuple[str, ...]) -> None:
        """See Plugs."""

        def undo() -> None:
            from swarmctl.net.plugging import links, vlans

            with links.explained("trunk"):
                vlans.unplug(devices)

        await self._call(undo, "unplug")
        for device in devices:
            self._targets.pop(device, None)

    async def list(self) -> tuple[Plugged, ...]:
        """See Plugs."""

        def look() -> tuple[Plugged, ...]:
            from swarmctl.net.plugging import links, vlans

            with links.explained("trunk"):
                return vlans.plugged(self._devices)

        return await self._call(look, "say what is plugged in")

    async def _call(
        self, work: Callable[[], _T], doing: str, limiter: trio.CapacityLimiter | None = None
    ) -> _T:
        with trio.move_on_after(CALL_S):
            return await trio.to_thread.run_sync(
                work, limiter=limiter or self._limiter, abandon_on_cancel=True
            )
        raise DriverUnavailable(f"the kernel did not {doing} within {CALL_S:g} s", self._trunk)
