"""The edges of tenant networks, by commands of a user: providers, the uplink, floating addresses.

Everything is real, as in the module beside this one. What is outside is the namespace between the
hosts, with an address on the physical network.
"""

import json
import os
import socket
import threading
from contextlib import contextmanager

import pytest

from bench.net.capture import capturing
from bench.net.paths import around
from lab import hosts as lab_hosts
from lab import procs
from lab.config import IMAGE_TAG, paths_from
from lab.faults import LabFault
from lab.swarm import Swarm, remove
from tests.integration.net_pods import socket_in
from tests.lab_hosts_needed import need_hosts

pytestmark = need_hosts

WAIT = ("--wait", "--timeout", "120s")
SETTLED_S = 60
# Waited for what comes, and for what must not: what does come takes some milliseconds.
ANSWER_S, SILENCE_S = 30, 3
OUTSIDE, ROUTER, SHARED, SOLO = "192.0.2.1", "192.0.2.8", "192.0.2.9", "192.0.2.100"
PAGE = "hostname >/www/index.html; exec httpd -f -p 80 -h /www"
IDLE = "trap exit TERM; while :; do sleep 1; done"


def container(network, script, **fields):
    """A service on a network."""
    return {
        "image": f"docker-daemon:{IMAGE_TAG}",
        "driver": "oci",
        "command": ["sh", "-c", script],
        "networks": [network],
        "stop_grace_period": "1s",
        **fields,
    }


def apart(replicas):
    """One on each host."""
    return {"replicas": replicas, "placement": {"max_replicas_per_node": 1}}


STACK = {
    "name": "edge",
    "services": {
        "client": container("front", IDLE),
        "hidden": container("shut", IDLE, cap_add=["NET_ADMIN"]),
        "solo": container("front", PAGE, floating=SOLO, healthcheck={"http": "80/index.html"}),
        "web": container("front", PAGE, floating="auto", ports=["8080:80"], deploy=apart(2)),
        "guarded": container("guarded", PAGE),
        "friend": container("guarded", IDLE),
        "marked": container("guarded", IDLE, labels={"tier": "front"}),
        "stranger": container("guarded", IDLE),
        "appliance": container("loose", IDLE, cap_add=["NET_ADMIN"]),
        "strict": container("front", IDLE, cap_add=["NET_ADMIN"]),
        "peer": container("loose", PAGE),
        "disk": container("disks", PAGE, deploy=apart(2)),
        "six": container("sixes", PAGE, deploy=apart(2)),
        "six-friend": container("sixes", IDLE),
        "six-stranger": container("sixes", IDLE),
    },
    "networks": {
        "front": {"ipam": {"config": [{"subnet": "10.20.0.0/24"}]}},
        "shut": {"ipam": {"config": [{"subnet": "10.21.0.0/24"}]}, "internal": True},
        "guarded": {"ipam": {"config": [{"subnet": "10.22.0.0/24"}]}, "security_group": "pages"},
        "loose": {"ipam": {"config": [{"subnet": "10.23.0.0/24"}]}, "port_security": False},
        "sixes": {
            "ipam": {"config": [{"subnet": "fd00:24::/64"}]},
            "security_group": "six-pages",
        },
        "disks": {
            "provider": {"network": "physical", "vlan": 30},
            "ipam": {"config": [{"subnet": "10.9.0.0/24", "ip_range": "10.9.0.128/25"}]},
        },
    },
    "security_groups": {
        "pages": {
            "ingress": [
                {"protocol": "tcp", "ports": 80, "from": {"service": "friend"}},
                {"protocol": "tcp", "ports": 80, "from": {"label": "tier=front"}},
            ],
        },
        "six-pages": {
            "ingress": [{"protocol": "tcp", "ports": 80, "from": {"service": "six-friend"}}],
        },
    },
}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    """Two hosts with the uplink and the stack."""
    lab_hosts.remove_orphans()
    name = f"t{os.getpid()}"
    file = tmp_path_factory.mktemp("stack") / "compose.json"
    file.write_text(json.dumps(STACK))
    try:
        with Swarm(name, 2, ("oci",)) as made:
            made.hosts.central.place.run("ip", "address", "add", f"{OUTSIDE}/24", "dev", "br0")
            made.run("network", "create", "outside", "--provider", "physical", "--uplink",
                     "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.8/29")  # fmt: skip
            made.run("apply", "-f", str(file), *WAIT)
            yield made
    finally:
        remove(name, paths_from())


@contextmanager
def asked(swarm):
    """A listener outside; what is yielded has the source of each connection."""
    sources = []
    with socket_in(swarm.hosts.central.place.namespace) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((OUTSIDE, 8000))
        server.listen()

        def answer():
            while True:
                try:
                    connection, (source, _) = server.accept()
                except OSError:
                    return  # It was shut down.
                sources.append(source)
                with connection:
                    connection.settimeout(ANSWER_S)
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield sources
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def fetch(swarm, instance, address, port=80, wait_s=ANSWER_S):
    """The page that an instance gets from there; None when it gets nothing."""
    asking = f"printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w {wait_s} {address} {port}"
    done = swarm.call("exec", instance, "sh", "-c", asking)
    return done.stdout.split()[-1] if done.stdout else None


def fetch_outside(swarm, address, port=80):
    """The page that somebody outside gets; None when it is nothing."""
    url = f"http://{address}:{port}/"
    try:
        return swarm.hosts.central.place.run("curl", "-s", "-m", str(ANSWER_S), url).strip()
    except LabFault:
        return None


def test_what_is_on_a_tenants_network_reaches_outside(swarm):
    """Behind its router's address, or, where it has one, its own floating address."""
    with asked(swarm) as sources:
        assert fetch(swarm, "client.1", OUTSIDE, 8000) == "hello"
        assert fetch(swarm, "solo.1", OUTSIDE, 8000) == "hello"
        assert sources == [ROUTER, SOLO]


def test_trace_shows_the_way_outside_that_packets_take(swarm):
    """By which gateway, and behind the address that is seen there; of none, why."""

    def way(instance):
        return json.loads(swarm.run("trace", instance, "--to", OUTSIDE, "-o", "json"))["to"]

    for instance, kind, source in (("client.1", "snat", ROUTER), ("solo.1", "floating", SOLO)):
        shown = way(instance)
        assert (shown["reached"], shown["uplink"], shown["seen_as"]) == (True, "outside", source)
        [[changed, where]] = [
            [one["what"], one["where"]] for one in shown["hops"] if one["hop"] == kind
        ]
        assert (where, f"becomes {source}" in changed) == ("h1", True)
    assert way("hidden.1")["why"] == "no path: network edge_shut is internal"


def test_an_internal_network_does_not_lead_outside(swarm):
    """Not by a route that somebody adds in the container, either."""
    swarm.run("exec", "hidden.1", "ip", "route", "add", "default", "via", "10.21.0.1")
    with asked(swarm) as sources:
        assert fetch(swarm, "hidden.1", OUTSIDE, 8000, SILENCE_S) is None
        assert sources == []


def test_floating_addresses_are_reached_from_outside(swarm):
    """One of a whole instance, and one that a service's copies share at its published port."""
    assert fetch_outside(swarm, SOLO) == "solo-1"
    pages = set()

    def both_have_answered():
        pages.add(fetch_outside(swarm, SHARED, 8080))
        return len(pages) > 1

    assert procs.wait_until(both_have_answered, SETTLED_S), pages
    assert pages == {"web-1", "web-2"}


def test_a_floating_address_moves_with_its_instance(swarm):
    """It leads to whoever has the place of the one that went, without a new decision."""
    [before] = [one["node"] for one in swarm.instances("solo").values()]
    swarm.run("node", "cordon", before)
    swarm.run("rm", "solo.1")
    try:
        swarm.run("start", "solo.1")

        def moved():
            [one] = swarm.instances("solo").values()
            return one["state"] == "running" and one["node"] not in ("", before)

        assert procs.wait_until(moved, SETTLED_S)
        assert procs.wait_until(lambda: fetch_outside(swarm, SOLO) == "solo-1", SETTLED_S)
    finally:
        swarm.run("node", "uncordon", before)


def test_http_checks_reach_into_a_tenants_network(swarm):
    """The node has no way there, the container's namespace has."""
    [solo] = swarm.instances("solo").values()

    assert (solo["state"], solo["health"]) == ("running", "healthy")


def test_a_provider_network_is_a_vlan_on_the_wire(swarm):
    """Its frames have the tag between the hosts, and no Geneve; its addresses are of the range."""
    one, other = sorted(swarm.instances("disk").values(), key=lambda each: each["node"])
    with capturing(swarm.hosts.central.place, "h1") as wire:
        page = fetch(swarm, one["instance"], other["addresses"][0])

    assert page == other["instance"].replace(".", "-")
    seen = around(wire.between(one["addresses"][0], other["addresses"][0]))
    assert seen["layers"] == ["ethernet vlan ipv4"]
    assert (seen["overlay_headers"], seen["vlan_tags"]) == (0, 1)
    assert all(int(each["addresses"][0].rpartition(".")[2]) >= 128 for each in (one, other))


def test_the_uplink_shows_what_is_behind_it(swarm):
    """Its gateways are the hosts that map its physical network."""
    shown = json.loads(swarm.run("network", "inspect", "outside"))

    assert shown["state"] == "ready"
    assert shown["uplinked"] == {
        "routers": {"default": ROUTER},
        "gateway_nodes": ["h1", "h2"],
        "floating": {SOLO: "solo", SHARED: "web"},
    }


def test_a_security_group_lets_in_services_and_labels(swarm):
    """By the names and labels that the instances have now; nobody else on the same network."""
    [page] = swarm.instances("guarded").values()
    heard = {
        name: fetch(swarm, f"{name}.1", page["addresses"][0], wait_s=wait_s)
        for name, wait_s in (("friend", ANSWER_S), ("marked", ANSWER_S), ("stranger", SILENCE_S))
    }

    assert heard == {"friend": "guarded-1", "marked": "guarded-1", "stranger": None}


def test_a_network_of_ipv6_alone(swarm):
    """Over the hosts, by addresses of its subnet; its security group knows services there, too."""
    pages = swarm.instances("six")
    addresses = {name: one["addresses"][0] for name, one in pages.items()}
    assert all(address.startswith("fd00:24:") for address in addresses.values())
    assert {one["node"] for one in pages.values()} == {"h1", "h2"}

    for name, address in addresses.items():
        assert fetch(swarm, "six-friend.1", address) == name.replace(".", "-")
        assert fetch(swarm, "six-stranger.1", address, wait_s=SILENCE_S) is None


@pytest.mark.parametrize(("sender", "passes"), [("appliance", True), ("strict", False)])
def test_without_port_security_others_addresses_may_be_used(swarm, sender, passes):
    """An appliance speaks with an address that it was not given; elsewhere that is dropped."""
    target, added = {
        "appliance": (swarm.instances("peer")["peer.1"]["addresses"][0], "10.23.0.200"),
        "strict": (swarm.instances("solo")["solo.1"]["addresses"][0], "10.20.0.200"),
    }[sender]
    swarm.run("exec", f"{sender}.1", "ip", "address", "add", f"{added}/24", "dev", "eth0")
    route = ("ip", "route", "replace", f"{target}/32", "dev", "eth0", "src", added)
    swarm.run("exec", f"{sender}.1", *route)

    wait_s = ANSWER_S if passes else SILENCE_S
    assert bool(fetch(swarm, f"{sender}.1", target, wait_s=wait_s)) is passes
