"""Tenant networks on real daemons: two hosts with Open vSwitch and OVN, and what may pass there."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import pytest
from attrs import evolve

from lab import hosts as lab_hosts
from lab import ovn, procs
from swarmctl.net.model import (
    Direction,
    FloatingAddress,
    Protocol,
    Provider,
    PublishedPort,
    Relay,
    Remote,
    RemoteKind,
    RouterAddress,
    Rule,
    SecurityGroup,
    ServiceAddress,
    Uplink,
    Wishes,
)
from swarmctl.net.mtu import GENEVE_V4_BYTES
from tests.integration import net_pods
from tests.integration.net_pods import ANSWER_S, SILENCE_S, Frames, Pod, socket_in
from tests.integration.ovn_rows import converge
from tests.lab_hosts_needed import need_hosts
from tests.unit.net.wishes import network, port

pytestmark = need_hosts

CLIENT = port(1, service="client")
WEB = port(2, service="web")
BACK = port(3, network="back", addresses=("10.30.0.3",), service="back")
OTHER_TENANT = port(4, tenant="zeta", addresses=("10.20.0.9",))
GUARDED = port(5, service="db", security_groups=("db",))
STRANGER = port(6, service="stranger")
VM = port(7, service="vm", addresses=("10.20.0.50",))
POD = port(8, service="pod", parent=VM.name, vlan=100)
ONLY_CLIENTS = Rule(Direction.INGRESS, Protocol.UDP, (80, 80), Remote(RemoteKind.SERVICE, "client"))
WORLD = Wishes(
    networks=(
        network(),
        network("acme", "back", "10.30.0.0/16"),
        network("zeta", "front"),
    ),
    groups=(SecurityGroup("acme", "db", (ONLY_CLIENTS,)),),
    ports=(CLIENT, WEB, BACK, OTHER_TENANT, GUARDED, STRANGER, VM, POD),
    services=(ServiceAddress("acme", "web", "front", "10.20.9.9", (PublishedPort(80, 8080),)),),
)


@pytest.fixture(scope="module")
def hosts():
    """Two hosts on OVN, with the networks of WORLD."""
    lab_hosts.remove_orphans()
    with lab_hosts.Hosts(f"t{os.getpid()}") as made:
        converge(made.northbound, WORLD)
        yield made


@pytest.fixture(scope="module")
def pods(hosts):
    """A pod for each port of its own, by service; client, vm and stranger on the first host."""
    first, second = hosts.hosts
    where = {CLIENT: first, STRANGER: first, VM: first, OTHER_TENANT: first}
    made = {}
    for wish in (CLIENT, WEB, BACK, OTHER_TENANT, GUARDED, STRANGER, VM):
        gateway = "10.30.0.1" if wish is BACK else "10.20.0.1"
        name = "other" if wish is OTHER_TENANT else wish.service
        made[name] = Pod(hosts.lab, where.get(wish, second), wish, gateway)
    for pod in made.values():
        pod.await_installed()
    return made


@pytest.fixture
def udp_server(pods):
    """Waits on the guarded pod's port 80."""
    with pods["db"].listen(80, socket.SOCK_DGRAM) as server:
        yield server


def send_until_heard(client, server, address):
    """What the server hears first of a client that says `legit` again and again."""
    deadline_s = time.monotonic() + ANSWER_S
    server.settimeout(0.2)
    while time.monotonic() < deadline_s:
        client.sendto(b"legit", address)
        with suppress(TimeoutError):
            return server.recv(100)
    return b""


def answer_to(client, query, address):
    """What comes back first to a query that is sent again and again: datagrams may be lost."""
    deadline_s = time.monotonic() + ANSWER_S
    client.settimeout(1.0)
    while time.monotonic() < deadline_s:
        client.sendto(query, address)
        with suppress(TimeoutError):
            return client.recv(512)
    raise AssertionError(f"no answer of {address}")


def await_reach(pod, address, number=8080, *, wanted=True):
    """Whether it comes to be reached, or not to be, once the flows of a change are there."""
    return procs.wait_until(
        lambda: pod.reaches(address, number, SILENCE_S) is wanted, net_pods.INSTALLED_S
    )


def test_the_same_network_reaches_across_hosts(pods):
    """TCP between pods of one network on two hosts."""
    with pods["web"].listen(8080):
        assert pods["client"].reaches("10.20.0.4", 8080)


def test_other_networks_do_not_reach(pods):
    """Neither a tenant's other network, nor another tenant's with the same addresses."""
    with pods["web"].listen(8080), pods["back"].listen(8080):
        assert pods["client"].reaches("10.20.0.4", 8080)
        assert not pods["client"].reaches("10.30.0.3", 8080, SILENCE_S)
        assert not pods["back"].reaches("10.20.0.4", 8080, SILENCE_S)
        assert not pods["other"].reaches("10.20.0.4", 8080, SILENCE_S)


def test_a_service_address_reaches_an_instance(pods):
    """The address and port of the service lead to the instance's own port."""
    with pods["web"].listen(8080):
        assert pods["client"].reaches("10.20.9.9", 80)
        assert not pods["client"].reaches("10.20.9.9", 81, SILENCE_S)


def test_dhcp_answers_with_the_ports_address(pods):
    """Address, gateway, resolver and the MTU that one encapsulation leaves."""
    with pods["client"].frames() as frames:
        frames.send(net_pods.dhcp_discover(CLIENT.mac))
        heard = frames.receive(lambda _, frame: (net_pods.udp_of(frame) or (0, 0))[:2] == (67, 68))
    assert heard is not None
    address, options = net_pods.dhcp_offer(net_pods.udp_of(heard[1])[2])

    assert address == CLIENT.addresses[0]
    assert options[3] == options[6] == socket.inet_aton("10.20.0.1")
    assert int.from_bytes(options[26], "big") == 1442


@pytest.mark.parametrize(
    ("name", "addresses"),
    [("web.acme", {"10.20.9.9"}), ("web.2.acme", {"10.20.0.4"}), ("2.web.acme", {"10.20.0.4"})],
)
def test_dns_answers_for_services_and_instances(pods, name, addresses):
    """A service by its address, an instance by its own."""
    with pods["client"].open_socket(socket.SOCK_DGRAM) as client:
        answer = answer_to(client, net_pods.dns_query(name), ("10.20.0.1", 53))

    assert net_pods.dns_addresses(answer) == addresses


def test_a_security_group_lets_in_what_it_names(pods, udp_server):
    """The port and the service of its rule; nothing of others, nothing at another port."""
    address = GUARDED.addresses[0]
    with pods["stranger"].open_socket(socket.SOCK_DGRAM) as stranger:
        for _ in range(5):
            stranger.sendto(b"stranger", (address, 80))
    with pods["client"].open_socket(socket.SOCK_DGRAM) as client:
        assert send_until_heard(client, udp_server, (address, 80)) == b"legit"
    with pods["db"].listen(8080):
        assert not pods["client"].reaches(address, 8080, SILENCE_S)


def test_a_rule_for_what_goes_out_closes_the_rest(hosts, pods):
    """A port may reach what its group names, and still ask for names; nothing else."""
    outward = Rule(Direction.EGRESS, Protocol.TCP, (8080, 8080), Remote(RemoteKind.GROUP, "served"))
    groups = (
        *WORLD.groups,
        SecurityGroup("acme", "out", (outward,)),
        SecurityGroup("acme", "served", (Rule(Direction.INGRESS),)),
    )
    world = evolve(
        WORLD,
        groups=groups,
        ports=(
            evolve(CLIENT, security_groups=("out",)),
            evolve(WEB, security_groups=("served",)),
            *WORLD.ports[2:],
        ),
    )
    with pods["web"].listen(8080), pods["web"].listen(8081), pods["vm"].listen(8080):
        assert pods["client"].reaches(VM.addresses[0], 8080)
        converge(hosts.northbound, world)
        assert await_reach(pods["client"], VM.addresses[0], wanted=False)
        assert pods["client"].reaches(WEB.addresses[0], 8080)
        assert not pods["client"].reaches(WEB.addresses[0], 8081, SILENCE_S)
        with pods["client"].open_socket(socket.SOCK_DGRAM) as client:
            answer = answer_to(client, net_pods.dns_query("web.2.acme"), ("10.20.0.1", 53))
            assert net_pods.dns_addresses(answer) == {WEB.addresses[0]}
        converge(hosts.northbound, WORLD)
        assert await_reach(pods["client"], VM.addresses[0])


SPOOFED = [
    (CLIENT.mac, CLIENT.addresses[0]),
    (STRANGER.mac, CLIENT.addresses[0]),
    (CLIENT.mac, STRANGER.addresses[0]),
]


@pytest.mark.parametrize(("mac", "address"), SPOOFED)
def test_spoofed_senders_are_not_heard(pods, mac, address):
    """Frames in the client's name from a stranger's port do not pass: MAC, IP, or both.

    They go to a port that is open to all: port security alone is in their way, and a frame in the
    stranger's own name comes through on it.
    """
    target, honest = (WEB.mac, WEB.addresses[0]), (STRANGER.mac, STRANGER.addresses[0])
    with (
        pods["web"].listen(90, socket.SOCK_DGRAM) as server,
        pods["stranger"].frames() as frames,
    ):
        for _ in range(5):
            frames.send(net_pods.datagram((mac, address), target, (1000, 90), b"forged"))
        server.settimeout(ANSWER_S)
        for _ in range(5):
            frames.send(net_pods.datagram(honest, target, (1000, 90), b"honest"))
        assert {server.recv(100) for _ in range(5)} == {b"honest"}


@pytest.mark.parametrize(("mac", "address"), SPOOFED)
def test_a_security_group_is_not_deceived(pods, udp_server, mac, address):
    """What it lets in from the client does not come in from a stranger in the client's name."""
    target = (GUARDED.mac, GUARDED.addresses[0])
    forged = net_pods.datagram((mac, address), target, (1000, 80), b"forged")
    with pods["stranger"].frames() as frames:
        for _ in range(5):
            frames.send(forged)
    with pods["client"].open_socket(socket.SOCK_DGRAM) as client:
        assert send_until_heard(client, udp_server, (target[1], 80)) == b"legit"


def test_one_geneve_header_is_on_the_underlay(hosts, pods):
    """Between the hosts a frame of a pod is wrapped once, and nothing else is around or in it."""
    payload = b"once only"
    with (
        Frames(hosts.central.place.namespace, "h1") as wire,
        pods["web"].listen(7, socket.SOCK_DGRAM) as server,
        pods["client"].open_socket(socket.SOCK_DGRAM) as client,
    ):
        assert send_until_heard(client, server, (WEB.addresses[0], 7)) == b"legit"
        client.sendto(payload, (WEB.addresses[0], 7))
        heard = wire.receive(lambda _, frame: frame.endswith(payload))
    assert heard is not None
    tag, frame = heard
    inner = net_pods.inside_geneve(frame)

    assert tag == 0
    assert inner[:12] == net_pods.mac_bytes(WEB.mac) + net_pods.mac_bytes(CLIENT.mac)
    assert net_pods.udp_of(inner)[1:] == (7, payload)
    assert net_pods.inside_geneve(inner) is None
    assert len(frame) - len(inner) == GENEVE_V4_BYTES  # its own Ethernet header, one of the wire


def test_a_pod_in_a_vm_speaks_through_its_trunk(pods):
    """Frames with its tag on the VM's port are its own; the answer has that one tag."""
    with pods["vm"].frames() as trunk:
        wanted = WEB.addresses[0]
        trunk.send(net_pods.arp_request(POD.mac, POD.addresses[0], wanted, vlan=POD.vlan))
        heard = trunk.receive(
            lambda _, frame: frame[:6] == net_pods.mac_bytes(POD.mac) and frame[20:22] == b"\0\x02"
        )
        assert heard is not None
        tag, frame = heard
        assert tag == POD.vlan
        assert frame[12:14] == b"\x08\x06"

        with pods["web"].listen(7, socket.SOCK_DGRAM) as server:
            source, target = (POD.mac, POD.addresses[0]), (WEB.mac, wanted)
            wrong_tag = net_pods.datagram(source, target, (1000, 7), b"tag", POD.vlan + 1)
            wrong_mac = net_pods.datagram((VM.mac, source[1]), target, (1000, 7), b"mac", POD.vlan)
            wrong_ip = net_pods.datagram(
                (POD.mac, VM.addresses[0]), target, (1000, 7), b"ip", POD.vlan
            )
            untagged = net_pods.datagram(source, target, (1000, 7), b"none")
            for forged in (wrong_tag, wrong_mac, wrong_ip, untagged):
                trunk.send(forged)
            trunk.send(net_pods.datagram(source, target, (1000, 7), b"own", POD.vlan))
            assert server.recv(100) == b"own"


def test_a_vm_reaches_its_own_hosts_relay(hosts, pods):
    """One address on every host at once, and each VM finds that of its own host there."""
    relay = Relay("acme", "front", "relay-front", "02:00:00:00:00:01", "169.254.0.1")
    converge(hosts.northbound, evolve(WORLD, relays=(relay,)))
    with ExitStack() as stack:
        for host in hosts.hosts:
            host.switch.vsctl(
                *("add-port", "br-int", "relay", "--", "set", "Interface", "relay"),
                *("type=internal", f"external_ids:iface-id={relay.port}"),
            )
            host.place.run("ip", "link", "set", "relay", "address", relay.mac, "up")
            host.place.run("ip", "address", "add", f"{relay.address}/32", "dev", "relay")
            host.place.run("ip", "route", "add", "10.20.0.0/16", "dev", "relay")
            server = stack.enter_context(socket_in(host.place.namespace, kind=socket.SOCK_DGRAM))
            server.bind((relay.address, 7077))
            name = "vm" if host is hosts.hosts[0] else "web"
            pods[name].place.run("ip", "route", "add", "169.254.0.0/16", "dev", "eth0")
            client = stack.enter_context(pods[name].open_socket(socket.SOCK_DGRAM))
            assert send_until_heard(client, server, (relay.address, 7077)) == b"legit"
            client.sendto(b"asked", (relay.address, 7077))
            server.settimeout(ANSWER_S)
            _, source = server.recvfrom(100)
            server.sendto(b"answer", source)
            assert client.recv(100) == b"answer"
    converge(hosts.northbound, WORLD)


def test_routed_networks_reach_each_other(hosts, pods):
    """What was apart is joined by the tenant's router when both networks ask for it, and parted."""
    routed = tuple(evolve(one, routed=True) for one in WORLD.networks)
    with pods["back"].listen(8080):
        assert not pods["client"].reaches(BACK.addresses[0], 8080, SILENCE_S)
        converge(hosts.northbound, evolve(WORLD, networks=routed))
        assert await_reach(pods["client"], BACK.addresses[0])
        converge(hosts.northbound, WORLD)
        assert await_reach(pods["client"], BACK.addresses[0], wanted=False)


def test_the_world_is_reached_and_reaches(hosts, pods):
    """Out behind the router's address; in by a floating address and an external service address."""
    outside, first = hosts.central.place, hosts.hosts[0]
    outside.run("ip", "address", "add", "192.0.2.1/24", "dev", "br0")
    first.switch.vsctl(
        *("set", "Open_vSwitch", "."),
        f"external_ids:ovn-bridge-mappings=physical:{lab_hosts.PHYSICAL_BRIDGE}",
    )
    outer = network("acme", "outer", "192.0.2.0/24", provider=Provider("physical"))
    published = ServiceAddress("acme", "web", "front", "192.0.2.80", (PublishedPort(80, 8080),))
    world = evolve(
        WORLD,
        networks=(*WORLD.networks, outer),
        uplink=Uplink(outer, (first.name,)),
        routers=(RouterAddress("acme", "192.0.2.10"),),
        floating=(FloatingAddress("acme", "192.0.2.100", WEB.name),),
        services=(*WORLD.services, evolve(published, external=True)),
    )
    converge(hosts.northbound, world)
    with socket_in(outside.namespace) as server, pods["web"].listen(8080):
        server.bind(("192.0.2.1", 8080))
        server.listen()
        assert await_reach(pods["client"], "192.0.2.1")
        connection, (source, _) = server.accept()
        connection.close()
        assert source == "192.0.2.10"
        for address, number in (("192.0.2.100", 8080), ("192.0.2.80", 80)):
            with socket_in(outside.namespace) as client:
                client.connect((address, number))
    converge(hosts.northbound, WORLD)


def test_ipv6_reaches_as_ipv4_does(hosts, pods):
    """A second subnet on the network; source addresses are as bound as those of IPv4."""
    both = network("acme", "front", "10.20.0.0/16", "fd00:20::/64")
    client = evolve(CLIENT, addresses=(*CLIENT.addresses, "fd00:20::3"))
    web = evolve(WEB, addresses=(*WEB.addresses, "fd00:20::4"))
    others = WORLD.ports[2:]
    converge(
        hosts.northbound,
        evolve(WORLD, networks=(both, *WORLD.networks[1:]), ports=(client, web, *others)),
    )
    for name, address in (("client", "fd00:20::3"), ("web", "fd00:20::4"), ("web", "fd00:20::66")):
        pods[name].place.run(
            *("ip", "-6", "address", "add", f"{address}/64", "dev", "eth0", "nodad")
        )
    with socket_in(pods["web"].place.namespace, socket.AF_INET6) as server:
        server.bind(("::", 8086))
        server.listen()
        assert await_reach(pods["client"], "fd00:20::4", 8086)
        assert not pods["client"].reaches("fd00:20::66", 8086, SILENCE_S)
    converge(hosts.northbound, WORLD)


def test_traffic_survives_its_control_plane(hosts, pods):
    """With ovn-controller and the northbound database dead, what runs goes on; both come back."""
    first = hosts.hosts[0]
    with pods["web"].listen(8080):
        assert pods["client"].reaches(WEB.addresses[0], 8080)
        first.place.kill("controller")
        hosts.central.place.kill("nb")
        assert pods["client"].reaches(WEB.addresses[0], 8080)
        hosts.central.start_northbound()
        ovn.start_controller(first.switch)
        assert pods["client"].reaches(WEB.addresses[0], 8080)
    late = evolve(
        CLIENT, name="c0ffee00-7-99-0", slot=99, addresses=("10.20.0.99",), mac="02:00:00:00:00:99"
    )
    converge(hosts.northbound, evolve(WORLD, ports=(*WORLD.ports, late)))
    pod = Pod(hosts.lab, first, late)
    pod.await_installed()
    with pods["web"].listen(8080):
        assert pod.reaches(WEB.addresses[0], 8080)


def test_ports_heal_when_the_switch_is_killed(hosts, pods):
    """With the switch in user space traffic ends with it, and begins again without our doing."""
    first = hosts.hosts[0]
    with pods["web"].listen(8080):
        assert await_reach(pods["client"], WEB.addresses[0])
        first.place.kill("switch")
        assert not pods["client"].reaches(WEB.addresses[0], 8080, SILENCE_S)
        first.restart_switch()
        assert await_reach(pods["client"], WEB.addresses[0])


def test_hosts_of_a_killed_program_are_taken_away():
    """Processes, namespaces and folder: nothing is left of it."""
    lab = f"k{os.getpid()}"
    code = (
        f"from lab.hosts import Hosts; Hosts({lab!r}, 1).start(); print('up', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout.readline() == b"up\n"
        program.kill()
    assert lab in lab_hosts.labs()
    lab_hosts.remove(lab)

    assert lab not in lab_hosts.labs()
    assert lab_hosts.namespaces(lab) == []
