"""Names in OVN, all computed and none remembered, so that a repeated create finds the first one.

Names of ports are unique in a northbound database, which several clusters may share: ours begin
with a part of the cluster's id. Their parts are joined by ``:``, which is in no tenant's or
network's name (and not by ``/``, which Open vSwitch takes in no interface's). Names that stand in
matches (port groups) are letters, digits and ``_`` only, so tenants' names are put into them beside
a digest of the exact ones.
"""

import hashlib
import re
from typing import Final

from swarmctl.net.model import PortWish
from swarmctl.proto import incarnation as incarnations

# As much of a cluster's id as its containers and domains carry.
CLUSTER_CHARS: Final = 8
# Of a tenant's and a group's names in the name of a port group; what is cut is in the digest.
READABLE_CHARS: Final = 40


def port_name(cluster_id: str, incarnation: int, index: int) -> str:
    """The port of an incarnation on the network with that index: ``c0c0c0c0-7-42-0``."""
    assert index >= 0, index
    return f"{cluster_id[:CLUSTER_CHARS]}-{incarnations.label(incarnation)}-{index}"


def parse_port_name(cluster_id: str, name: str) -> tuple[int, int] | None:
    """Incarnation and index of one of the cluster's ports; None for any other name."""
    head, _, rest = name.partition("-")
    label, _, index = rest.rpartition("-")
    if head != cluster_id[:CLUSTER_CHARS] or not (index.isascii() and index.isdecimal()):
        return None
    try:
        return incarnations.parse(label), int(index)
    except ValueError:
        return None


def mac_address(cluster_id: str, incarnation: int, index: int) -> str:
    """The MAC address of that port: locally administered, 46 bits of a digest.

    Among 10,000 ports of one network two are the same once in a million clusters.
    """
    return derived_mac(f"{cluster_id}/{incarnation}/{index}")


def derived_mac(text: str) -> str:
    """A locally administered MAC address that depends on ``text`` alone."""
    digest = bytearray(hashlib.blake2b(text.encode(), digest_size=6).digest())
    digest[0] = (digest[0] & 0xFC) | 0x02
    return digest.hex(":")


def scoped(cluster_id: str, kind: str, *names: str) -> str:
    """The name of a switch, a router or a port of one: ``c0c0c0c0:net:acme:front``."""
    return ":".join((cluster_id[:CLUSTER_CHARS], kind, *names))


def match_name(cluster_id: str, kind: str, *names: str) -> str:
    """A name that may stand in a match: ``sg_acme_web_1f…``; unique in the database."""
    digest = hashlib.blake2b("/".join((cluster_id, kind, *names)).encode(), digest_size=6)
    readable = re.sub(r"[^a-zA-Z0-9]", "_", "_".join(names))[:READABLE_CHARS]
    return f"{kind}_{readable}_{digest.hexdigest()}"


def host_names(port: PortWish) -> tuple[str, ...]:
    """What DNS calls one instance: ``web.3.acme`` and ``3.web.acme``."""
    return (
        f"{port.service}.{port.slot}.{port.tenant}",
        f"{port.slot}.{port.service}.{port.tenant}",
    )


def service_host_name(service: str, tenant: str) -> str:
    """What DNS calls a service: ``web.acme``."""
    return f"{service}.{tenant}"


def alias_host_names(alias: str, tenant: str) -> tuple[str, ...]:
    """What DNS calls a service besides: ``www.acme``; one with a dot also as it is."""
    return (f"{alias}.{tenant}", alias) if "." in alias else (f"{alias}.{tenant}",)
