"""The contract of what plugs instances in, and its data.

A *plug* is one port of one instance, made real on its node: for a container an interface in its
network namespace, for a VM a tap that its hypervisor opens, and on the host's side a port of the
switch that carries the name of the logical port (``iface-id``), by which OVN knows whose it is.

Plugging is level-triggered, as drivers are.  The host's side of a plug is named from the node and
the port's name (:class:`~swarmctl.net.plugging.devices.Devices`): a repeated plug finds the first,
and what a crash left behind is found by looking at names, without a record of it.
"""

from typing import Protocol

from attrs import frozen

from swarmctl.proto.messages import Attachment


@frozen
class InNamespace:
    """Into the network namespace at ``path``, as the interface ``name``."""

    path: str
    name: str


@frozen
class Tap:
    """A tap, for a hypervisor that opens it by the device's name."""


Target = InNamespace | Tap


@frozen
class Switch:
    """What plugs go into.

    ``userspace``: packets are carried by a process, which fills in no checksums that a sender left
    to its network card.  ``encapsulation`` is how, and ``address`` from where, its packets go to
    other hosts; empty where that is not known.  ``chassis`` is what OVN calls this node;
    ``physical_networks`` are those that are mapped to a bridge here.
    """

    kind: str
    version: str
    bridge: str
    userspace: bool = False
    encapsulation: str = ""
    address: str = ""
    chassis: str = ""
    physical_networks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people, and for the node's facts."""
        return f"{self.kind} {self.version} ({self.bridge}{', userspace' * self.userspace})"


@frozen
class Plugged:
    """One plug that is there, or what is left of one.

    ``incarnation`` and ``port`` are 0 and empty where only the device is left; ``mtu`` is 0 where
    only the switch knows of it.
    """

    device: str
    incarnation: int = 0
    port: str = ""
    mtu: int = 0
    installed: bool = False


class Plugs(Protocol):
    """What every way of plugging in does. Every call has a deadline of its own.

    All raise :class:`~swarmctl.proto.errors.DriverUnavailable` where the switch does not answer,
    and :class:`~swarmctl.proto.errors.LaunchFailed` where the kernel or the switch refuses.
    """

    async def probe(self) -> Switch:
        """Look at the switch. Raises DriverUnavailable with the reason why it cannot be used."""

    async def plug(self, attachment: Attachment, target: Target, incarnation: int) -> None:
        """Plug one port of ``incarnation`` in, with its MAC, addresses, routes and MTU.

        Repeatable: a plug into the same target stays as it is, and one into an earlier one (a
        namespace that is no more) is made anew.
        """

    async def wait_installed(self, attachment: Attachment, deadline_s: float) -> None:
        """Returns once packets of the port flow.

        Raises:
            PortNotUp: they do not within ``deadline_s``, and as far as is known why.
        """

    async def unplug(self, devices: tuple[str, ...]) -> None:
        """Take plugs away by the names of their devices; those that are not there are no error."""

    async def list(self) -> "tuple[Plugged, ...]":
        """All plugs of this node."""

    def device(self, port: str) -> str:
        """The name of the device that the port of that name has, or would have."""
