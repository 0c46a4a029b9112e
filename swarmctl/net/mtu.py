"""What fits into one encapsulation: the MTU of a tenant network, from that of the network below.

Geneve wraps the whole Ethernet frame of a port. Around the port's packet there are, in bytes: its
own Ethernet header (14), OVN's option (8), the Geneve header (8), UDP (8), and the outer IP header
(20 of IPv4, 40 of IPv6). A VLAN tag on a trunk is outside of that count: it is gone before the host
encapsulates.
"""

from typing import Final

from swarmctl.proto.errors import InvalidSpec

GENEVE_V4_BYTES: Final = 14 + 8 + 8 + 8 + 20
GENEVE_V6_BYTES: Final = GENEVE_V4_BYTES + 20
# What every IPv4 host must take (RFC 791), and every IPv6 link must carry (RFC 8200).
PAYLOAD_MIN_V4: Final = 576
PAYLOAD_MIN_V6: Final = 1280


def payload_mtu(underlay_mtu: int, *, underlay_is_v6: bool = False, with_v6: bool = False) -> int:
    """The largest packet of a port that crosses the network below in one piece.

    Args:
        underlay_mtu: of the hosts' network.
        underlay_is_v6: whether hosts speak IPv6 to each other.
        with_v6: whether the tenant network has a subnet of IPv6.

    Raises:
        InvalidSpec: nothing useful is left.
    """
    header_bytes = GENEVE_V6_BYTES if underlay_is_v6 else GENEVE_V4_BYTES
    payload = underlay_mtu - header_bytes
    least = PAYLOAD_MIN_V6 if with_v6 else PAYLOAD_MIN_V4
    if payload < least:
        raise InvalidSpec(
            f"an MTU of {underlay_mtu} between the hosts is too small: {header_bytes} bytes are"
            f" Geneve's, and the {max(0, payload)} left are less than {least}",
            hint=f"raise the MTU of the hosts' network to {least + header_bytes} or more",
        )
    return payload


def check_mtu(wanted: int, payload: int, where: str, *, with_v6: bool = False) -> int:
    """The MTU that a network asks for, where 0 asks for all that fits.

    Raises:
        InvalidSpec: it does not fit, or is too small.
    """
    least = PAYLOAD_MIN_V6 if with_v6 else PAYLOAD_MIN_V4
    if wanted == 0:
        return payload
    if wanted > payload:
        raise InvalidSpec(
            f"an MTU of {wanted} does not fit: {payload} is what one encapsulation leaves",
            where,
            "leave it out, or raise the MTU of the hosts' network",
        )
    if wanted < least:
        raise InvalidSpec(
            f"an MTU of {wanted} is too small", where, f"{least} is the least, or leave it out"
        )
    return wanted
