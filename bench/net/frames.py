"""What is around a packet in a frame, by reading the frame: pure.

A frame is read from outside in, through every encapsulation that is known (802.1Q, Geneve, VXLAN),
to the innermost packet. What cannot be read any further, for it is cut off or of another kind, is
where reading ends: whoever looks for a packet inside then does not find it.
"""

import ipaddress
import struct
from typing import Final

from attrs import frozen

_ETHERNET_BYTES: Final = 14
_VLANS: Final = (0x8100, 0x88A8)
_IPV4, _IPV6, _ARP, _BRIDGED = 0x0800, 0x86DD, 0x0806, 0x6558
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_GENEVE_PORT: Final = 6081
# The assigned port, and the one that Linux had before it was assigned and still has by default.
_VXLAN_PORTS: Final = (4789, 8472)
_VXLAN_HAS_NUMBER: Final = 0x08
OVERLAYS: Final = ("geneve", "vxlan")


@frozen
class Frame:
    """A frame as it was read.

    Attributes:
        layers: what is in it, from outside in: ``ethernet``, ``vlan``, ``ipv4``, …
        length_bytes: of all of it, on the wire.
        around_bytes: of all headers before the innermost packet: 14 for a plain frame of Ethernet.
        packet_bytes: of the innermost IP packet, by its own header; 0 where there is none.
        source: the innermost packet's sender, an IP address (also ARP's); empty for none.
        target: its receiver.
        source_mac: the innermost Ethernet frame's sender.
        vlans: the VLANs of its 802.1Q tags, from outside in.
        is_fragment: some IP packet on the way is a piece of one.
    """

    layers: tuple[str, ...]
    length_bytes: int
    around_bytes: int = 0
    packet_bytes: int = 0
    source: str = ""
    target: str = ""
    source_mac: str = ""
    vlans: tuple[int, ...] = ()
    is_fragment: bool = False

    @property
    def overlays(self) -> int:
        """How many times the packet is wrapped."""
        return sum(self.layers.count(one) for one in OVERLAYS)

    def is_between(self, one: str, other: str) -> bool:
        """Whether the innermost packet goes from one of these to the other."""
        return {self.source, self.target} == {one, other}


class _Reader:
    """Reads on from where it is; one for each frame."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0
        self.layers: list[str] = []
        self.vlans: list[int] = []
        self.around_bytes = 0
        self.packet_bytes = 0
        self.source = self.target = self.source_mac = ""
        self.is_fragment = False

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            EOFError: they are not all there.
        """
        found = self.content[self.at : self.at + count]
        if len(found) < count:
            raise EOFError
        self.at += count
        return found

    def ethernet(self) -> None:
        """A frame, with what is in it."""
        header = self.take(_ETHERNET_BYTES)
        self.layers.append("ethernet")
        self.source, self.target, self.packet_bytes = "", "", 0
        self.source_mac = header[6:12].hex(":")
        kind = int.from_bytes(header[12:])
        while kind in _VLANS:
            tag = self.take(4)
            self.layers.append("vlan")
            self.vlans.append(int.from_bytes(tag[:2]) & 0x0FFF)
            kind = int.from_bytes(tag[2:])
        self.around_bytes = self.at
        if kind == _IPV4:
            self.ipv4()
        elif kind == _IPV6:
            self.ipv6()
        elif kind == _ARP:
            self.arp()
        else:
            self.layers.append("other")

    def ipv4(self) -> None:
        """A packet of IPv4, with what is in it."""
        header = self.take(20)
        self.take(4 * (header[0] & 0x0F) - 20)
        self.layers.append("ipv4")
        self.packet_bytes = int.from_bytes(header[2:4])
        self.source = str(ipaddress.IPv4Address(header[12:16]))
        self.target = str(ipaddress.IPv4Address(header[16:20]))
        flags_and_offset = int.from_bytes(header[6:8])
        self.is_fragment |= bool(flags_and_offset & 0x3FFF)  # more to come, or not the first
        if not flags_and_offset & 0x1FFF:
            self.transport(header[9])

    def ipv6(self) -> None:
        """A packet of IPv6; one with extension headers is read no further."""
        header = self.take(40)
        self.layers.append("ipv6")
        self.packet_bytes = 40 + int.from_bytes(header[4:6])
        self.source = str(ipaddress.IPv6Address(header[8:24]))
        self.target = str(ipaddress.IPv6Address(header[24:40]))
        self.transport(header[6])

    def arp(self) -> None:
        """A question or an answer: whose address it is about."""
        content = self.take(28)
        self.layers.append("arp")
        self.source = str(ipaddress.IPv4Address(content[14:18]))
        self.target = str(ipaddress.IPv4Address(content[24:28]))

    def transport(self, protocol: int) -> None:
        """What an IP packet carries."""
        self.layers.append(_PROTOCOLS.get(protocol, "other"))
        if self.layers[-1] != "udp":
            return
        port = struct.unpack("!HHHH", self.take(8))[1]
        before = self.at
        if port == _GENEVE_PORT:
            self.geneve()
        elif port in _VXLAN_PORTS:
            self.vxlan()
        else:
            assert self.at == before, "nothing is read of what is not known"

    def geneve(self) -> None:
        """The frame in it, with its options skipped (RFC 8926)."""
        header = self.take(8)
        version, options_bytes = header[0] >> 6, 4 * (header[0] & 0x3F)
        if version == 0 and int.from_bytes(header[2:4]) == _BRIDGED:
            self.take(options_bytes)
            self.layers.append("geneve")
            self.ethernet()

    def vxlan(self) -> None:
        """The frame in it (RFC 7348)."""
        header = self.take(8)
        if header[0] == _VXLAN_HAS_NUMBER and header[1:4] == bytes(3) and header[7] == 0:
            self.layers.append("vxlan")
            self.ethernet()


def read_frame(content: bytes, length_bytes: int = 0) -> Frame:
    """Read a frame of Ethernet.

    Args:
        content: its first bytes, or all.
        length_bytes: how long it was on the wire, when ``content`` is cut off.
    """
    reader = _Reader(content)
    try:
        reader.ethernet()
    except EOFError:
        reader.layers.append("cut off")
    return Frame(
        layers=tuple(reader.layers),
        length_bytes=length_bytes or len(content),
        around_bytes=reader.around_bytes,
        packet_bytes=reader.packet_bytes,
        source=reader.source,
        target=reader.target,
        source_mac=reader.source_mac,
        vlans=tuple(reader.vlans),
        is_fragment=reader.is_fragment,
    )
