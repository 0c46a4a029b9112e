"""Frames as they are read: every encapsulation is seen, in its order, with what is around it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.net.frames import read_frame
from bench.net.pcap import frames_of
from tests.integration.net_pods import arp_request, datagram, ethernet

ONE, OTHER = ("02:00:00:00:00:01", "10.20.0.1"), ("02:00:00:00:00:02", "10.20.0.2")
HOSTS = ("02:00:00:00:00:03", "172.16.0.1"), ("02:00:00:00:00:04", "172.16.0.2")
PAYLOAD = b"x" * 100
# Ethernet, IPv4 and UDP around whatever is wrapped.
OUTER_BYTES = 14 + 20 + 8


def geneve(frame, options=8, vlan=0):
    """The frame in Geneve, with so many bytes of options."""
    header = struct.pack("!BBHI", options // 4, 0, 0x6558, 7 << 8) + bytes(options)
    return datagram(*HOSTS, (50000, 6081), header + frame, vlan)


def vxlan(frame, port=4789, vlan=0):
    """The frame in VXLAN."""
    return datagram(*HOSTS, (50000, port), struct.pack("!II", 8 << 24, 7 << 8) + frame, vlan)


def test_a_plain_packet():
    """Addresses, size, nothing around it."""
    frame = read_frame(datagram(ONE, OTHER, (1000, 7), PAYLOAD))

    assert frame.layers == ("ethernet", "ipv4", "udp")
    assert (frame.source, frame.target, frame.source_mac) == (ONE[1], OTHER[1], ONE[0])
    assert (frame.around_bytes, frame.packet_bytes, frame.overlays) == (14, 128, 0)
    assert frame.length_bytes == 14 + 128
    assert frame.is_between(OTHER[1], ONE[1])
    assert not frame.is_between(ONE[1], "10.20.0.3")


def test_a_tag_and_a_wrapping_are_counted():
    """A trunk's tag is a VLAN by its number; Geneve with OVN's option is 58 bytes more."""
    tagged = read_frame(datagram(ONE, OTHER, (1, 7), PAYLOAD, vlan=100))
    assert (tagged.vlans, tagged.overlays, tagged.packet_bytes) == ((100,), 0, 128)
    assert tagged.around_bytes == 18

    wrapped = read_frame(geneve(datagram(ONE, OTHER, (1, 7), PAYLOAD)))
    assert wrapped.layers == ("ethernet", "ipv4", "udp", "geneve", "ethernet", "ipv4", "udp")
    assert (wrapped.source, wrapped.around_bytes) == (ONE[1], OUTER_BYTES + 8 + 8 + 14)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["geneve", "vxlan"]), st.sampled_from([0, 4, 8, 64]), st.integers(0, 99)
        ),
        max_size=4,
    )
)
def test_wrappings_are_read_from_outside_in(wrappings):
    """However many there are, of whatever kind, each with its tag or without one."""
    frame, outside, expected, vlans = datagram(ONE, OTHER, (1, 7), PAYLOAD), 0, [], []
    for kind, options, vlan in wrappings:
        if kind == "vxlan":
            frame, options = vxlan(frame, vlan=vlan), 0
        else:
            frame = geneve(frame, options, vlan)
        outside += OUTER_BYTES + 8 + options + 4 * bool(vlan)
        expected.insert(0, kind)
        vlans[:0] = [vlan] if vlan else []

    found = read_frame(frame)

    assert [one for one in found.layers if one in ("geneve", "vxlan")] == expected
    assert (found.overlays, found.vlans) == (len(expected), tuple(vlans))
    assert (found.around_bytes, found.packet_bytes) == (outside + 14, 128)
    assert (found.source, found.target) == (ONE[1], OTHER[1])


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_without_a_word(content):
    """Frames of others, of any kind, or cut off anywhere."""
    assert read_frame(content).length_bytes == len(content)


@given(st.integers(0, 150))
def test_a_frame_that_is_cut_off_is_read_as_far_as_it_goes(length):
    """And it is as long as it was on the wire."""
    whole = geneve(datagram(ONE, OTHER, (1, 7), PAYLOAD))
    frame = read_frame(whole[:length], len(whole))

    assert frame.length_bytes == len(whole)
    assert frame.overlays == (1 if length >= OUTER_BYTES + 8 + 8 else 0)


def test_what_only_looks_like_a_wrapping_is_none():
    """The port alone does not make it: neither does a number that is not there."""
    assert read_frame(datagram(ONE, OTHER, (1, 6081), PAYLOAD)).overlays == 0
    assert read_frame(datagram(ONE, OTHER, (1, 4789), PAYLOAD)).overlays == 0
    inner = datagram(ONE, OTHER, (1, 7), PAYLOAD)
    assert read_frame(vxlan(inner, port=4790)).overlays == 0
    assert read_frame(vxlan(inner, port=8472)).overlays == 1


def test_pieces_of_packets_and_questions():
    """A fragment is said to be one; ARP has the addresses that it is about; IPv6 is read too."""
    whole = bytearray(datagram(ONE, OTHER, (1, 7), PAYLOAD))
    whole[20] |= 0x20  # more fragments
    assert read_frame(bytes(whole)).is_fragment
    asked = read_frame(arp_request(ONE[0], ONE[1], OTHER[1]))
    assert (asked.layers, asked.packet_bytes) == (("ethernet", "arp"), 0)
    assert asked.is_between(ONE[1], OTHER[1])
    six = struct.pack("!IHBB", 6 << 28, 4, 17, 64) + b"\xfd" + bytes(14) + b"\1"
    six += b"\xfd" + bytes(14) + b"\2" + bytes(8)
    found = read_frame(ethernet(ONE[0], OTHER[0], 0x86DD, six))
    assert (found.source, found.target, found.packet_bytes) == ("fd00::1", "fd00::2", 44)


@pytest.mark.parametrize(("order", "magic"), [("<", 0xA1B2C3D4), (">", 0xA1B23C4D)])
def test_a_file_of_tcpdump(order, magic):
    """Of either byte order; its last record may be cut off."""
    frame = datagram(ONE, OTHER, (1, 7), PAYLOAD)
    head = struct.pack(f"{order}IHHIIII", magic, 2, 4, 0, 0, 262144, 1)
    record = struct.pack(f"{order}IIII", 1, 2, 60, len(frame)) + frame[:60]
    found = list(frames_of(head + record + record + record[:-1]))

    assert [one.length_bytes for one in found] == [len(frame)] * 2
    assert found[0].packet_bytes == 128


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 40, struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 9, 113)]
)
def test_a_file_of_something_else_is_refused(content):
    """No such file, or frames that are not Ethernet's."""
    with pytest.raises(ValueError, match="not"):
        list(frames_of(content))
