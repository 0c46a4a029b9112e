"""Pods in network namespaces, plugged into the hosts of `lab.hosts` with plain veths; and frames.

A socket belongs to the namespace in which it was made, whoever uses it later: so a test holds
sockets of all its pods, and needs no programs in them.
"""

import socket
import struct
import threading
import time
from contextlib import suppress

from pyroute2 import netns

from lab import procs
from lab.hosts import namespace_name
from lab.ovs import Place, run

INSTALLED_S = 60
ANSWER_S = 30  # a busy machine; where nothing may come, SILENCE_S
SILENCE_S = 1.5
GENEVE_PORT = 6081
SOL_PACKET, PACKET_AUXDATA = 263, 8
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_8021Q = 0x0003, 0x0800, 0x0806, 0x8100


def socket_in(namespace, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
    """A socket of that namespace."""
    made = []

    def make():
        netns.setns(f"/run/netns/{namespace}")
        made.append(socket.socket(family, kind, protocol))

    thread = threading.Thread(target=make)  # the namespace is a thread's
    thread.start()
    thread.join(ANSWER_S)
    made[0].settimeout(ANSWER_S)
    return made[0]


class Pod:
    """A namespace with one interface, on a port of OVN."""

    def __init__(self, lab, host, wish, gateway="10.20.0.1", mtu=1442):
        self.host = host
        self.wish = wish
        self.mac = wish.mac
        self.address = wish.addresses[0] if wish.addresses else ""
        self.place = Place(namespace_name(lab, f"p{wish.slot}"), host.place.folder)
        self.veth = f"v{wish.slot}"
        run(["ip", "netns", "add", self.place.namespace])
        host.place.run(
            *("ip", "link", "add", self.veth, "type", "veth", "peer", "name", "eth0"),
            *("address", self.mac, "netns", self.place.namespace),
        )
        host.place.run("ethtool", "-K", self.veth, "tx", "off")
        host.place.run("ip", "link", "set", self.veth, "up")
        self.place.run("ethtool", "-K", "eth0", "tx", "off")
        self.place.run("ip", "link", "set", "eth0", "up", "mtu", str(mtu))
        if self.address:
            self.place.run("ip", "address", "add", f"{self.address}/16", "dev", "eth0")
            self.place.run("ip", "route", "add", "default", "via", gateway)
        host.switch.vsctl(
            *("add-port", "br-int", self.veth, "--", "set", "Interface", self.veth),
            f"external_ids:iface-id={wish.name}",
        )

    def is_installed(self):
        """Whether OVN says that its flows are there."""
        said = (
            self.host.switch.vsctl("get", "Interface", self.veth, "external_ids:ovn-installed")
            if "ovn-installed"
            in self.host.switch.vsctl("get", "Interface", self.veth, "external_ids")
            else ""
        )
        return said == '"true"'

    def await_installed(self):
        """Wait for it."""
        assert procs.wait_until(self.is_installed, INSTALLED_S), f"{self.wish.name} is not up"

    def open_socket(self, kind=socket.SOCK_STREAM):
        """A socket of the pod."""
        return socket_in(self.place.namespace, socket.AF_INET, kind)

    def listen(self, port, kind=socket.SOCK_STREAM):
        """One that waits at a port."""
        server = self.open_socket(kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        if kind == socket.SOCK_STREAM:
            server.listen()
        return server

    def frames(self):
        """A socket that sends and takes whole frames of the pod's interface."""
        return Frames(self.place.namespace, "eth0")

    def reaches(self, address, port, timeout_s=ANSWER_S):
        """Whether a TCP connection is made."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket_in(self.place.namespace, family) as client:
            client.settimeout(timeout_s)
            with suppress(OSError):
                client.connect((address, port))
                return True
        return False


class Frames:
    """Whole frames of an interface, with the VLAN tag that the kernel takes off."""

    def __init__(self, namespace, interface):
        self.socket = socket_in(
            namespace, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
        )
        self.socket.bind((interface, ETH_P_ALL))
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, frame):
        """Send one."""
        self.socket.send(frame)

    def receive(self, wanted, timeout_s=ANSWER_S):
        """The first (tag, frame) that is wanted, or None; tag 0 is none."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                frame, ancillary, _, _ = self.socket.recvmsg(65535, 256)
            except TimeoutError:
                return None
            tag = 0
            for level, kind, data in ancillary:
                if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                    tag = struct.unpack_from("=IIIHHHH", data)[5] & 0xFFF
            if wanted(tag, frame):
                return tag, frame
        return None


# --- frames ---------------------------------------------------------------------------------------


def mac_bytes(mac):
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source, target, kind, payload, vlan=0):
    tag = struct.pack("!HH", ETH_P_8021Q, vlan) if vlan else b""
    return mac_bytes(target) + mac_bytes(source) + tag + struct.pack("!H", kind) + payload


def arp_request(mac, address, wanted, vlan=0):
    payload = (
        struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, 1)
        + mac_bytes(mac)
        + socket.inet_aton(address)
        + bytes(6)
        + socket.inet_aton(wanted)
    )
    return ethernet(mac, "ff:ff:ff:ff:ff:ff", ETH_P_ARP, payload, vlan)


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source, target, ports, payload, vlan=0):
    """A UDP frame; `source` and `target` are (MAC, address). UDP's checksum is left out (0)."""
    udp = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source[1]) + socket.inet_aton(target[1])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + addresses
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return ethernet(source[0], target[0], ETH_P_IP, header + udp, vlan)


def udp_of(frame):
    """(source port, target port, payload) of a frame of UDP over IPv4 without a tag, or None."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    start = 14 + 4 * (frame[14] & 0xF)
    source, target = struct.unpack_from("!HH", frame, start)
    return source, target, frame[start + 8 :]


def inside_geneve(frame):
    """The frame in one of Geneve, or None where it is none."""
    udp = udp_of(frame)
    if udp is None or udp[1] != GENEVE_PORT:
        return None
    payload = udp[2]
    return payload[8 + 4 * (payload[0] & 0x3F) :]


def dhcp_discover(mac):
    options = bytes([53, 1, 1, 55, 4, 1, 3, 6, 26, 255])
    payload = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x5EED, 0, 0x8000) + bytes(16)
    payload += mac_bytes(mac) + bytes(10 + 64 + 128) + b"\x63\x82\x53\x63" + options
    everyone = ("ff:ff:ff:ff:ff:ff", "255.255.255.255")
    return datagram((mac, "0.0.0.0"), everyone, (68, 67), payload)


def dhcp_offer(payload):
    """The offered address and the options of an answer."""
    options, rest = {}, payload[240:]
    while rest and rest[0] != 255:
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return socket.inet_ntoa(payload[16:20]), options


def dns_query(name):
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question + b"\0\0\x01\0\x01"


def dns_addresses(answer):
    """The addresses in an answer to that; each record there is 16 bytes, with a pointer as name."""
    count = struct.unpack_from("!H", answer, 6)[0]
    return {socket.inet_ntoa(answer[len(answer) - 16 * n :][12:16]) for n in range(1, count + 1)}
