"""Instances as virtual machines, through libvirt and QEMU; see :mod:`.driver`."""

from swarmctl.agent.drivers.libvirt.driver import LibvirtDriver

__all__ = ["LibvirtDriver"]
