"""Tenant networks from the command line to the wire: a controller, OVN, two hosts, containers.

Everything is real: the daemons of swarmctl, OVN's, Open vSwitch, runc, and the packets. Only the
hosts are network namespaces.
"""

import json
import os
import re

import pytest

from bench.net.capture import capturing
from bench.net.checks import cut_off
from bench.net.paths import around
from bench.net.world import look
from lab import hosts as lab_hosts
from lab import procs
from lab.config import IMAGE_TAG, paths_from
from lab.swarm import Swarm, remove
from swarmctl.net.mtu import GENEVE_V4_BYTES
from tests.lab_hosts_needed import need_hosts

pytestmark = need_hosts

SETTLED_S = 60
WAIT = ("--wait", "--timeout", "120s")
FRONT, BACK = "10.20.0.0/24", "10.20.1.0/24"
STACK = {
    "services": {
        "web": {
            "image": f"docker-daemon:{IMAGE_TAG}",
            "driver": "oci",
            "command": ["sh", "-c", "hostname >/www/index.html; exec httpd -f -p 80 -h /www"],
            "networks": ["front"],
            "stop_grace_period": "1s",
            "deploy": {"replicas": 2, "placement": {"max_replicas_per_node": 1}},
        },
    },
    "networks": {"front": {"external": True}, "back": {"external": True}},
}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    """Two hosts with `web` and `client` on one network, one of each a host, and two on another."""
    lab_hosts.remove_orphans()
    name = f"t{os.getpid()}"
    file = tmp_path_factory.mktemp("stack") / "compose.json"
    try:
        with Swarm(name, 2, ("oci",)) as made:
            made.run("network", "create", "front", "--subnet", FRONT)
            made.run("network", "create", "back", "--subnet", BACK)
            waiting = {
                "image": f"docker-daemon:{IMAGE_TAG}",
                "driver": "oci",
                "command": ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"],
            }
            services = STACK["services"] | {
                service: STACK["services"]["web"] | waiting | {"networks": [network]}
                for service, network in (("client", "front"), ("back", "back"))
            }
            file.write_text(json.dumps(STACK | {"services": services}))
            made.run("apply", "-f", str(file), *WAIT)
            yield made
    finally:
        remove(name, paths_from())


@pytest.fixture(scope="module")
def world(swarm):
    """Who has which address, and where."""
    return look(swarm, ("front", "back"))


def on(swarm, service, host):
    """The instance of a service on a host."""
    (found,) = (name for name, one in swarm.instances(service).items() if one["node"] == host)
    return found


def ports_of(swarm, service):
    """The names of the ports of a service in OVN's northbound database."""
    listed = swarm.hosts.central.place.run(
        *("ovn-nbctl", f"--db={swarm.hosts.northbound}", "--bare", "--columns=name,external_ids"),
        *("list", "Logical_Switch_Port"),
    )
    blocks = (block.split("\n", 1) for block in listed.split("\n\n") if "\n" in block)
    return {name for name, ids in blocks if f"swarmctl-instance={service}." in ids}


def plugged(swarm):
    """The names of the ports that are plugged into any of the switches."""
    found = (
        host.switch.vsctl("--bare", "--columns=external_ids", "list", "Interface")
        for host in swarm.hosts.hosts
    )
    return {name for text in found for name in re.findall(r"iface-id=(\S+?),? ", text + " ")}


def taken(swarm):
    """How many addresses of the first network are taken."""
    (front,) = (one for one in swarm.listed("network", "ls") if one["network"] == "front")
    return front["addresses_taken"]


def test_one_network_reaches_over_the_hosts(swarm, world):
    """A page of a web server on the other host comes, wrapped once in Geneve on its way."""
    client, web = (world.ends[on(swarm, *where)] for where in (("client", "h1"), ("web", "h2")))
    with (
        capturing(client.place, client.interface) as at_port,
        capturing(swarm.hosts.central.place, "h1") as on_wire,
    ):
        page = client.run("wget", "-q", "-O", "-", f"http://{web.address}/")

    assert page.strip() == web.instance.replace(".", "-")
    port, wire = (around(one.between(client.address, web.address)) for one in (at_port, on_wire))
    assert port["layers"] == ["ethernet ipv4"]
    assert wire["layers"] == ["ethernet ipv4 udp geneve ethernet ipv4"]
    assert (wire["overlay_headers"], wire["vlan_tags"], wire["fragments"]) == (1, 0, 0)
    # The MTU does not count the Ethernet header of the wire itself.
    assert wire["around_bytes"] == 14 + GENEVE_V4_BYTES


def test_another_network_is_out_of_reach(swarm, world):
    """Nothing arrives there, on the same host nor on the other, while its own members do."""
    client = world.ends[on(swarm, "client", "h1")]
    one, other = (world.ends[on(swarm, "back", host)] for host in ("h1", "h2"))
    for target, friend in ((one, other), (other, one)):
        assert not cut_off(client, target, friend).answered


def test_a_services_name_leads_to_its_instances(swarm, world):
    """Of a service all addresses, of an instance its own; what is behind them answers."""
    client = world.ends[on(swarm, "client", "h2")]
    webs = [one for name, one in world.ends.items() if name.startswith("web.")]

    assert resolved(client, "web.default") == {one.address for one in webs}
    for web in webs:
        assert resolved(client, f"{web.instance}.default") == {web.address}
        page = client.run("wget", "-q", "-O", "-", f"http://{web.address}/")
        assert page.strip() == web.instance.replace(".", "-")


def resolved(client, name):
    """What the network's own DNS says in an instance."""
    text = client.run("nslookup", "-type=a", name)
    return set(re.findall(r"^Address: (\S+)$", text, re.MULTILINE))


def test_inspect_shows_each_path(swarm):
    """Of a network: its ports, with who has them and by which host their packets go."""
    shown = json.loads(swarm.run("network", "inspect", "front"))
    instances = swarm.instances("web", "client")

    assert shown["services"] == ["client", "web"]
    assert (shown["mtu"], shown["state"]) == (1500 - GENEVE_V4_BYTES, "ready")
    assert {one["instance"]: one["path"] for one in shown["attached"]} == {
        name: [name, one["node"]] for name, one in instances.items()
    }
    assert {one["instance"]: one["addresses"] for one in shown["attached"]} == {
        name: one["addresses"] for name, one in instances.items()
    }


def test_trace_shows_the_path_and_the_way_to_another(swarm, world):
    """From the interface to the address that its host encapsulates from; each launch's port up."""
    client, web = on(swarm, "client", "h1"), on(swarm, "web", "h2")
    found = json.loads(swarm.run("trace", client, "--to", web, "-o", "json"))
    [path] = found["networks"]
    underlay = {
        host.name: host.switch.vsctl("get", "Open_vSwitch", ".", "external_ids:ovn-encap-ip")
        for host in swarm.hosts.hosts
    }
    encaps = {name: address.strip().strip('"') for name, address in underlay.items()}

    steps = [one["step"] for one in found["steps"]]
    assert steps[-5:] == ["starting", "plugged in", "created", "port up", "running"]
    assert (path["interface"], path["host"], path["installed"]) == ("eth0", "h1", True)
    assert [one.partition("/")[0] for one in path["addresses"]] == [world.ends[client].address]
    assert path["port"] in ports_of(swarm, "client")
    assert (path["underlay_address"], path["mtu_left"]) == (encaps["h1"], 1500 - GENEVE_V4_BYTES)
    to = found["to"]
    assert (to["reached"], to["passes"], to["same_host"]) == (True, ["any"], False)
    [wire] = [one["what"] for one in to["hops"] if one["hop"] == "geneve"]
    assert wire.startswith(f"{encaps['h1']} to {encaps['h2']}, one header of {GENEVE_V4_BYTES}")


def test_trace_finds_no_way_to_another_network(swarm):
    """What the packets show, too."""
    client, back = on(swarm, "client", "h1"), on(swarm, "back", "h1")
    to = json.loads(swarm.run("trace", client, "--to", back, "-o", "json"))["to"]
    assert (to["reached"], to["hops"]) == (False, [])
    assert to["why"].startswith("no path: other network (front here, back there)")


def test_what_is_scaled_or_taken_away_frees_its_ports(swarm):
    """In OVN, in the switches and in the network's book; nobody else's port is touched."""
    before, addresses = ports_of(swarm, "web"), taken(swarm)
    swarm.run("run", "--driver", "oci", "--name", "brief", "--replicas", "2", *WAIT,
              "--network", "front", f"docker-daemon:{IMAGE_TAG}",
              *("sh", "-c", "trap exit TERM; while :; do sleep 1; done"))  # fmt: skip
    made = ports_of(swarm, "brief")
    assert len(made) == 2
    assert made <= plugged(swarm)
    assert taken(swarm) == addresses + 2

    swarm.run("scale", "brief=1", *WAIT)
    assert procs.wait_until(lambda: len(ports_of(swarm, "brief")) == 1, SETTLED_S)
    left = ports_of(swarm, "brief")
    assert procs.wait_until(lambda: made & plugged(swarm) == left, SETTLED_S)
    assert procs.wait_until(lambda: taken(swarm) == addresses + 1, SETTLED_S)

    swarm.run("rm", *WAIT, "brief")
    assert procs.wait_until(lambda: not ports_of(swarm, "brief"), SETTLED_S)
    assert procs.wait_until(lambda: not made & plugged(swarm), SETTLED_S)
    assert procs.wait_until(lambda: taken(swarm) == addresses, SETTLED_S)
    assert ports_of(swarm, "web") == before
    assert before <= plugged(swarm)


def test_a_network_that_nobody_made_is_refused(swarm):
    """At once, with those that there are; no service is left of it."""
    refused = swarm.call("run", "--detach", "--name", "lost", "--network", "fron", "box")

    assert refused.returncode == 1
    assert 'there is no network "fron"' in refused.stderr
    assert 'did you mean "front"?' in refused.stderr
    assert "lost" not in {one["service"] for one in swarm.listed("service", "ls")}
