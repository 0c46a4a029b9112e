"""Where a VM's agent finds a controller: an address on each network that trunks are on.

A nested node has no other way out than its VM's port, and a tenant's network leads to no
controller.  So OVN has a ``localport`` on the network, a port that is on every host at once and on
each leads to that host alone, and there the host's agent passes bytes on.  It is the same for all
hosts, and computed by controller and agents alike from the cluster's id and the network's name.
"""

from typing import Final

from swarmctl.net.model import Relay
from swarmctl.net.names import derived_mac, scoped
from swarmctl.proto.messages import Attachment

# Link-local (RFC 3927), which no router is asked for; not the metadata address of other clouds.
ADDRESS: Final = "169.254.70.77"
PREFIX: Final = 16
# The controllers' own.
PORT: Final = 7077


def relay(cluster_id: str, network: str, mtu: int = 0) -> Attachment:
    """The host's own place on ``network`` (``tenant/name``)."""
    tenant, _, name = network.partition("/")
    port = scoped(cluster_id, "relay", tenant, name)
    return Attachment(
        port,
        network,
        derived_mac(f"{cluster_id}/{port}"),
        (f"{ADDRESS}/{PREFIX}",),
        mtu,
        # Its guests are all on this link, whatever their addresses.
        (("0.0.0.0/0", ""),),
    )


def wish(cluster_id: str, network: str) -> Relay:
    """The same, as the controller has it in OVN."""
    place, (tenant, _, name) = relay(cluster_id, network), network.partition("/")
    return Relay(tenant, name, place.port, place.mac, ADDRESS)


def endpoint() -> str:
    """What a nested node's agent connects to."""
    return f"tcp://{ADDRESS}:{PORT}"
