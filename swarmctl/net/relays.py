"""Where a VM's agent finds a controller: an address on each network that trunks are on.

A nested node has no other way out than its VM's port, and a tenant's network leads to no
controller.  So OVN has a ``localport`` on the network, a port that is on every host at once and on
each leads to that host alone, and there the host's agent passes bytes on.  It is the same for all
hosts, and computed by controller and agents alike from the cluster's id and the network's name.
"""

import hashlib
from typing import Final

from swarmctl.proto.messages import Attachment

# Link-local (RFC 3927), which no router is asked for; not the metadata address of other clouds.
ADDRESS: Final = "169.254.70.77"
PREFIX: Final = 16
# The controllers' own.
PORT: Final = 7077


def relay(cluster_id: str, network: str, mtu: int = 0) -> Attachment:
    """The host's own place on ``network`` (``tenant/name``)."""
    name = f"{cluster_id[:8]}-relay-{network.replace('/', '-')}"
    mac = bytearray(hashlib.blake2b(f"{cluster_id}/{name}".encode(), digest_size=6).digest())
    mac[0] = (mac[0] & 0xFC) | 0x02
    return Attachment(
        name,
        network,
        mac.hex(":"),
        (f"{ADDRESS}/{PREFIX}",),
        mtu,
        # Its guests are all on this link, whatever their addresses.
        (("0.0.0.0/0", ""),),
    )


def endpoint() -> str:
    """What a nested node's agent connects to."""
    return f"tcp://{ADDRESS}:{PORT}"
