"""Instances as containers that runc runs directly, without a daemon; see :mod:`.driver`."""

from swarmctl.agent.drivers.oci.driver import OciDriver as OciDriver
