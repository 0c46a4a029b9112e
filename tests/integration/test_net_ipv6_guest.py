"""A VM's interface on an IPv6 network, on a real OVN: router advertisements, DHCPv6, and traffic.

In place of a VM a namespace with an interface that nobody has given an address: the kernel asks for
routers and listens to them, and DHCPv6 (RFC 8415) is spoken from its link-local address.  The rows
promise that the router is advertised with the MTU and with the flag that addresses are DHCPv6's to
give, and that a port is given its own.
"""

import secrets
import socket
import struct
from ipaddress import IPv6Address
from pathlib import Path

import pytest
import trio

from lab import procs
from swarmctl.net.model import Wishes
from swarmctl.net.plugging.api import InNamespace
from tests.integration.net_pods import ANSWER_S, Frames, mac_bytes, socket_in
from tests.integration.ovn_rows import converge
from tests.integration.ovn_sandbox import need_ovn, ovn
from tests.integration.ovs_sandbox import START_S, namespace, run
from tests.integration.plugging_contract import DEADLINE_S, INCARNATION, attachment
from tests.integration.test_plugging_ovs import OvsBench
from tests.unit.net.wishes import CLUSTER, network, port

GATEWAY = "fd00:20::1"
VM = port(7, service="vm", addresses=("10.20.0.50", "fd00:20::77"))
OTHER = port(8, service="other", addresses=("10.20.0.51", "fd00:20::78"))
# On a network whose routers are advertised every few seconds, not minutes.
LASTING = port(9, network="back", service="lasting", addresses=("10.30.0.9", "fd00:30::9"))
CONTAINER = port(10, network="back", service="box", addresses=("10.30.0.10", "fd00:30::10"))
WORLD = Wishes(
    networks=(
        network("acme", "front", "10.20.0.0/16", "fd00:20::/64"),
        network("acme", "back", "10.30.0.0/16", "fd00:30::/64"),
    ),
    ports=(VM, OTHER, LASTING, CONTAINER),
)
OFTEN = ("ipv6_ra_configs:max_interval=4", "ipv6_ra_configs:min_interval=3")
SOLICIT, ADVERTISE, REQUEST, REPLY = 1, 2, 3, 7
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDRESS, ASKED, RESOLVERS, DOMAINS = 1, 2, 3, 5, 6, 23, 24


class Guest:
    """An interface on a port, up when OVN has installed it."""

    def __init__(self, host, name, wish):
        self.name, self.wish = name, wish
        outside, inside = f"v{wish.slot}", "eth0"
        switch = host.switch
        inward = ["nsenter", f"--net={switch.namespace}"]
        run(
            *(*inward, "ip", "link", "add", outside, "type", "veth", "peer", "name", inside),
            *("address", wish.mac, "netns", name),
        )
        run(*inward, "ethtool", "-K", outside, "tx", "off")
        run(*inward, "ip", "link", "set", outside, "up")
        self.run("ethtool", "-K", inside, "tx", "off")
        switch.vsctl("add-port", "br-int", outside, "--", "set", "Interface", outside,
                     f"external_ids:iface-id={wish.name}")  # fmt: skip
        where = ("wait-until", "Interface", outside, "external_ids:ovn-installed=true")
        switch.vsctl(*where)
        self.run("ip", "link", "set", inside, "up")

    def run(self, *command):
        """Run it there."""
        return run("nsenter", f"--net=/run/netns/{self.name}", *command)

    def has_learnt(self):
        """Whether the kernel has a default route of a router's advertisement."""
        route = self.run("ip", "-6", "route", "show", "default", "dev", "eth0")
        return "proto ra" in route

    def addresses(self, scope):
        """Those of IPv6 that are ready."""
        shown = self.run("ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", scope)
        return [line.split()[3] for line in shown.splitlines() if "tentative" not in line]

    def lease(self):
        """Ask for an address by DHCPv6, and take it; the options of the answer."""
        assert procs.wait_until(lambda: self.addresses("link"), ANSWER_S), "no link-local address"
        with socket_in(self.name, socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            client.bind(("::", 546))
            offered = ask(client, self.wish.mac, SOLICIT, ADVERTISE)
            kept = {code: offered[code] for code in (SERVER_ID, IA_NA)}
            leased = ask(client, self.wish.mac, REQUEST, REPLY, kept)
        assert leased[IA_NA] == offered[IA_NA]
        own = str(IPv6Address(options_of(leased[IA_NA][12:])[IA_ADDRESS][:16]))
        self.run("ip", "-6", "address", "add", f"{own}/128", "dev", "eth0", "nodad")
        return own, leased


def ask(client, mac, kind, answer, kept=None):
    """Send a message of DHCPv6 to all servers; the options of what comes back."""
    own = {
        CLIENT_ID: struct.pack("!HH", 3, 1) + mac_bytes(mac),
        IA_NA: struct.pack("!III", 1, 0, 0),
    }
    own |= {ASKED: struct.pack("!HH", RESOLVERS, DOMAINS)} | (kept or {})
    payload = b"".join(struct.pack("!HH", code, len(one)) + one for code, one in own.items())
    number = bytes((kind, 0x5E, 0xED, kind))
    client.sendto(number + payload, ("ff02::1:2", 547))
    heard = client.recv(2048)
    assert heard[:4] == bytes((answer,)) + number[1:]
    return options_of(heard[4:])


def options_of(data):
    """Options of DHCPv6 by code."""
    found = {}
    while data:
        code, length = struct.unpack_from("!HH", data)
        found[code], data = data[4 : 4 + length], data[4 + length :]
    return found


@pytest.fixture(scope="module")
def host():
    """A host of OVN with WORLD's rows."""
    need_ovn()
    with ovn(f"swt-v6-{secrets.token_hex(3)}") as sandbox:
        converge(f"unix:{sandbox.switch.folder}/nb.sock", WORLD)
        # Before any port is bound: later ovn-controller waits for what it had chosen before.
        sandbox.nbctl("set", "Logical_Router_Port", f"{CLUSTER[:8]}:gw:acme:back", *OFTEN)
        yield sandbox


@pytest.fixture(scope="module")
def guests(host):
    """Both."""
    names = [f"swt-v6g-{secrets.token_hex(3)}" for _ in (VM, OTHER)]
    with namespace(names[0]), namespace(names[1]):
        yield [Guest(host, name, one) for name, one in zip(names, (VM, OTHER), strict=True)]


def test_a_guest_learns_router_and_mtu_and_leases_its_ports_address(guests):
    """The kernel makes no address up (no SLAAC); DHCPv6 gives the port's own, and it reaches."""
    for guest, wish in zip(guests, (VM, OTHER), strict=True):
        assert procs.wait_until(guest.has_learnt, START_S), "no router was heard of"
        assert guest.run("cat", "/proc/sys/net/ipv6/conf/eth0/mtu").strip() == "1442"
        assert guest.addresses("global") == []

        own, leased = guest.lease()
        assert own == wish.addresses[1]
        assert leased[RESOLVERS] == IPv6Address(GATEWAY).packed
        assert leased[DOMAINS] == b"\x04acme\0"

    vm, other = guests
    with (
        socket_in(other.name, socket.AF_INET6) as server,
        socket_in(vm.name, socket.AF_INET6) as to,
    ):
        server.bind(("::", 8086))
        server.listen()
        to.connect((OTHER.addresses[1], 8086))
        connection, (source, *_) = server.accept()
        connection.close()
    assert source == VM.addresses[1]


def test_a_guest_that_runs_for_long_keeps_its_router(host):
    """An advertisement is good for 18 hours, and a kernel asks once: so they come by themselves."""
    name = f"swt-v6g-{secrets.token_hex(3)}"
    with namespace(name):
        guest = Guest(host, name, LASTING)
        assert procs.wait_until(guest.has_learnt, START_S)
        # It was there, or this would fail; the next one may come at any moment.
        guest.run("ip", "-6", "route", "del", "default")

        assert procs.wait_until(guest.has_learnt, START_S), "no router was heard of again"


async def test_what_is_told_its_routes_learns_none(host):
    """A container without a default route, as on an internal network, stays without one."""
    address = f"{CONTAINER.addresses[1]}/64"
    told = attachment(
        port=CONTAINER.name, addresses=(address,), mac=CONTAINER.mac, routes=(), gateway=""
    )
    bench = OvsBench(host.switch)
    try:
        path = bench.new_namespace()
        await bench.plugs.plug(told, InNamespace(path, "eth0"), INCARNATION)
        await bench.plugs.wait_installed(told, DEADLINE_S)
        with Frames(Path(path).name, "eth0") as frames:
            heard = await trio.to_thread.run_sync(frames.receive, is_advertisement)
            again = await trio.to_thread.run_sync(frames.receive, is_advertisement)
        routes = run("nsenter", f"--net={path}", "ip", "-6", "route", "show", "default")
    finally:
        await bench.close()
    assert heard is not None
    assert again is not None
    assert routes == ""


def is_advertisement(_, frame):
    """Whether a frame is of a router that says that it is there."""
    return frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 134
