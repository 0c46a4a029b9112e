"""Plugs in memory: the contract of :mod:`.api` for tests and simulations, without a kernel."""

import trio
from attrs import define, field, frozen

from swarmctl.net.plugging.api import Plugged, Switch, Target
from swarmctl.net.plugging.devices import Devices
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, PortNotUp
from swarmctl.proto.messages import Attachment


@frozen
class Made:
    """One plug, as it was asked for."""

    attachment: Attachment
    target: Target
    incarnation: int


@define
class MemoryPlugs:
    """A node's plugs that are nowhere but here: hand it on to survive a "crash" of the agent.

    Attributes:
        made: the plugs, by device.
        leftover: devices of which nothing more is known.
        away: why the switch does not answer; empty when it does.
        installs: whether OVN installs ports at once; else :meth:`install` does.
        gone: paths of namespaces that are no more.
        calls: how often something was plugged or unplugged.
    """

    cluster_id: str
    node: str
    away: str = ""
    installs: bool = True
    made: dict[str, Made] = field(factory=dict)
    leftover: set[str] = field(factory=set)
    gone: set[str] = field(factory=set)
    calls: int = 0
    _installed: set[str] = field(factory=set)
    _news: trio.Event = field(factory=trio.Event)

    def device(self, port: str) -> str:
        """See Plugs."""
        return Devices(self.cluster_id, self.node).name(port)

    async def probe(self) -> Switch:
        """See Plugs."""
        await self._answer()
        return Switch("memory", "1", "br-int", encapsulation="geneve", address="192.0.2.1")

    async def plug(self, attachment: Attachment, target: Target, incarnation: int) -> None:
        """See Plugs."""
        await self._answer()
        self.calls += 1
        path = getattr(target, "path", "")
        if path in self.gone:
            raise LaunchFailed("its network namespace is gone", path)
        device = self.device(attachment.port)
        self.leftover.discard(device)
        self.made[device] = Made(attachment, target, incarnation)
        if self.installs:
            self.install(attachment.port)

    def install(self, port: str) -> None:
        """OVN has the port's flows in the switch."""
        self._installed.add(self.device(port))
        news, self._news = self._news, trio.Event()
        news.set()

    async def wait_installed(self, attachment: Attachment, deadline_s: float) -> None:
        """See Plugs."""
        await self._answer()
        device = self.device(attachment.port)
        with trio.move_on_after(deadline_s):
            while device not in self._installed or device not in self.made:
                await self._news.wait()
            return
        raise PortNotUp(
            f"port {attachment.port} did not come up within {deadline_s:g} s",
            attachment.network,
            port=attachment.port,
        )

    async def unplug(self, devices: tuple[str, ...]) -> None:
        """See Plugs."""
        await self._answer()
        self.calls += 1
        for device in devices:
            self.made.pop(device, None)
            self._installed.discard(device)
            self.leftover.discard(device)

    async def list(self) -> tuple[Plugged, ...]:
        """See Plugs."""
        await self._answer()
        found = [
            Plugged(
                device,
                one.incarnation,
                one.attachment.port,
                one.attachment.mtu or 1500,
                device in self._installed,
            )
            for device, one in self.made.items()
        ]
        found += [Plugged(device) for device in self.leftover]
        return tuple(sorted(found, key=lambda one: one.device))

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise DriverUnavailable(self.away)
