"""From wishes to rows: what each wish becomes in OVN's words."""

import json
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given

from swarmctl.net import schema
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
    Wishes,
)
from swarmctl.net.rows import desired_rows
from swarmctl.net.security import match_of
from tests.unit.net import wishes
from tests.unit.net.wishes import CLUSTER, network, port

NORTHBOUND_SCHEMA = Path("/usr/share/ovn/ovn-nb.ovsschema")


def rows_of(**world):
    return desired_rows(CLUSTER, Wishes(**world))


def of_table(rows, table):
    return [row.columns for row in rows.values() if row.table == table]


@given(wishes.worlds)
def test_rows_fit_the_schema_and_each_other(world):
    """Every reference and every parent is a row that is there, and every value of its kind."""
    rows = desired_rows(CLUSTER, world)

    for key, row in rows.items():
        table = schema.TABLES[row.table]
        assert row.key == key
        assert row.columns.keys() == table.columns.keys()
        assert row.columns["external_ids"][schema.ID_KEY] == key
        assert row.columns["external_ids"][schema.CLUSTER_KEY] == CLUSTER
        if table.parent:
            assert rows[row.parent].table == table.parent[0]
        for column, kind in table.columns.items():
            value = row.columns[column]
            if kind is schema.Kind.REFERENCES:
                assert value <= rows.keys()
            elif kind is schema.Kind.REFERENCE:
                assert value is None or value in rows
    for table in ("Logical_Switch_Port", "Logical_Router_Port", "Port_Group"):
        names = [columns["name"] for columns in of_table(rows, table)]
        assert len(names) == len(set(names))


@given(wishes.worlds)
def test_the_same_wishes_make_the_same_rows(world):
    """Nothing depends on when or how often."""
    assert desired_rows(CLUSTER, world) == desired_rows(CLUSTER, world)


def test_the_tables_are_ovns():
    """Every column that we set is in the schema, of that type; so is every parent's."""
    if not NORTHBOUND_SCHEMA.exists():
        pytest.skip(f"no {NORTHBOUND_SCHEMA}: `python3 -m lab up --only ovn` brings it")
    tables = json.loads(NORTHBOUND_SCHEMA.read_text())["tables"]
    shapes = {
        schema.Kind.TEXT: ("string", None, 1, 1),
        schema.Kind.NUMBER: ("integer", None, 1, 1),
        schema.Kind.OPTIONAL_TEXT: ("string", None, 0, 1),
        schema.Kind.OPTIONAL_NUMBER: ("integer", None, 0, 1),
        schema.Kind.TEXTS: ("string", None, 0, "unlimited"),
        schema.Kind.MAP: ("string", "string", 0, "unlimited"),
        schema.Kind.REFERENCE: ("uuid", None, 0, 1),
        schema.Kind.REFERENCES: ("uuid", None, 0, "unlimited"),
    }

    def shape(kind):
        if isinstance(kind, str):
            return (kind, None, 1, 1)
        key = kind["key"] if isinstance(kind["key"], str) else kind["key"]["type"]
        return (key, kind.get("value"), kind.get("min", 1), kind.get("max", 1))

    for name, table in schema.TABLES.items():
        for column, kind in table.columns.items():
            found = shape(tables[name]["columns"][column]["type"])
            if column == "networks":  # of a router's port: at least one
                found = (found[0], found[1], 0, found[3])
            assert found == shapes[kind], f"{name}.{column}"
        if table.parent:
            parent, column = table.parent
            assert tables[parent]["columns"][column]["type"]["key"]["refTable"] == name
        else:
            assert tables[name]["isRoot"]


def test_a_port_may_speak_as_itself_alone():
    """Its address is its MAC and IPs, and so is what it may send."""
    one = port(1, addresses=("10.20.0.3", "fd00::3"))
    rows = rows_of(networks=(network("acme", "front", "10.20.0.0/16", "fd00::/64"),), ports=(one,))
    found = rows[f"port/{one.name}"]

    assert found.parent == "switch/acme/front"
    assert found.columns["addresses"] == {f"{one.mac} 10.20.0.3 fd00::3"}
    assert found.columns["port_security"] == found.columns["addresses"]
    assert found.columns["dhcpv4_options"] == "dhcp/acme/front/10.20.0.0/16"
    assert found.columns["dhcpv6_options"] == "dhcp/acme/front/fd00::/64"
    assert found.columns["tag_request"] is None


def test_dhcp_gives_the_options_of_the_subnet_that_the_address_is_in():
    """A network that was full has got another subnet of the same version."""
    ports = (port(1, addresses=("10.20.0.3",)), port(2, addresses=("10.20.1.3", "fd00:1::3")))
    subnets = ("10.20.0.0/29", "10.20.1.0/24", "fd00::/64", "fd00:1::/64")
    rows = rows_of(networks=(network("acme", "front", *subnets),), ports=ports)
    first, second = (rows[f"port/{one.name}"].columns for one in ports)

    assert first["dhcpv4_options"] == "dhcp/acme/front/10.20.0.0/29"
    assert first["dhcpv6_options"] is None
    assert second["dhcpv4_options"] == "dhcp/acme/front/10.20.1.0/24"
    assert second["dhcpv6_options"] == "dhcp/acme/front/fd00:1::/64"


@pytest.mark.parametrize("of_network", [True, False])
def test_without_port_security_anything_passes(of_network):
    """For appliances: asked for by the port or by its network."""
    one = port(1, port_security=of_network)
    rows = rows_of(networks=(network(port_security=not of_network),), ports=(one,))

    assert rows[f"port/{one.name}"].columns["port_security"] == frozenset()
    assert "unknown" in rows[f"port/{one.name}"].columns["addresses"]


def test_a_pod_in_a_vm_is_a_tag_on_the_vms_port():
    """Parent and VLAN; its own address and security as any port."""
    vm = port(1, service="vm")
    pod = port(2, parent=vm.name, vlan=100)
    rows = rows_of(networks=(network(),), ports=(vm, pod))

    assert rows[f"port/{pod.name}"].columns["parent_name"] == vm.name
    assert rows[f"port/{pod.name}"].columns["tag_request"] == 100


def test_a_provider_network_has_no_router_of_ours():
    """It is on the physical network with its VLAN; its gateway is there."""
    provided = network(provider=Provider("storage", 42))
    rows = rows_of(networks=(provided,))

    assert rows["localnet/switch/acme/front"].columns["options"] == {"network_name": "storage"}
    assert rows["localnet/switch/acme/front"].columns["tag_request"] == 42
    assert of_table(rows, "Logical_Router") == []


def test_dhcp_tells_what_a_vm_needs():
    """Gateway, MTU, resolver, search; and the way to the relay where there is one."""
    relay = Relay("acme", "front", "relay-1", "02:00:00:00:00:01", "169.254.0.1")
    rows = rows_of(networks=(network(),), relays=(relay,))
    options = rows["dhcp/acme/front/10.20.0.0/16"].columns["options"]

    assert options["mtu"] == "1442"
    assert options["router"] == options["server_id"] == options["dns_server"] == "10.20.0.1"
    assert options["classless_static_route"] == "{169.254.0.0/16,0.0.0.0, 0.0.0.0/0,10.20.0.1}"
    assert rows["relay/acme/front"].columns["type"] == "localport"


def test_names_are_a_services_and_an_instances():
    """Of instances all ways to say it; of a service its address, or those of its copies."""
    ports = (port(1), port(2), port(3, service="db"))
    shared = ServiceAddress("acme", "db", "front", "10.20.9.9")
    rows = rows_of(networks=(network(),), ports=ports, services=(shared,))

    assert rows["dns/acme/front/web"].columns["records"] == {
        "web.acme": "10.20.0.3 10.20.0.4",
        "web.1.acme": "10.20.0.3",
        "1.web.acme": "10.20.0.3",
        "web.2.acme": "10.20.0.4",
        "2.web.acme": "10.20.0.4",
    }
    assert rows["dns/acme/front/db"].columns["records"]["db.acme"] == "10.20.9.9"


def test_networks_are_apart_unless_routed():
    """A policy drops what goes from one to the other; routed ones reach and name each other."""
    ports = (port(1), port(2, network="back", service="db", addresses=("10.30.0.2",)))
    both = (network(), network("acme", "back", "10.30.0.0/16"))
    apart = rows_of(networks=both, ports=ports)
    joined = rows_of(networks=tuple(evolve(one, routed=True) for one in both), ports=ports)

    assert apart["apart/acme/front/4"].columns["match"].endswith("ip4.dst == {10.30.0.0/16}")
    assert apart["apart/acme/back/4"].columns["match"].endswith("ip4.dst == {10.20.0.0/16}")
    assert apart["switch/acme/front"].columns["dns_records"] == {"dns/acme/front/web"}
    assert of_table(joined, "Logical_Router_Policy") == []
    assert "dns/acme/back/db" in joined["switch/acme/front"].columns["dns_records"]


def test_a_service_address_shares_its_load():
    """By protocol, over the ports of the service on that network; the router answers ARP."""
    shared = ServiceAddress(
        "acme",
        "web",
        "front",
        "10.20.9.9",
        (PublishedPort(80, 8080), PublishedPort(53, 5353, Protocol.UDP)),
    )
    rows = rows_of(
        networks=(network(),),
        ports=(port(1), port(2), port(3, service="db")),
        services=(shared,),
    )
    key = "balancer/acme/front/web/10.20.9.9"

    assert rows[f"{key}/tcp"].columns["vips"] == {"10.20.9.9:80": "10.20.0.3:8080,10.20.0.4:8080"}
    assert rows[f"{key}/udp"].columns["vips"] == {"10.20.9.9:53": "10.20.0.3:5353,10.20.0.4:5353"}
    assert rows["switch/acme/front"].columns["load_balancer"] == {f"{key}/tcp", f"{key}/udp"}
    assert rows["router/acme"].columns["load_balancer"] == {f"{key}/tcp", f"{key}/udp"}


def test_a_whole_address_is_shared_without_ports():
    """Every protocol; IPv6 is written in brackets where a port follows."""
    v6 = ServiceAddress("acme", "web", "front", "fd00::99", (PublishedPort(80, 80),))
    v4 = ServiceAddress("acme", "web", "front", "10.20.9.9")
    rows = rows_of(
        networks=(network("acme", "front", "10.20.0.0/16", "fd00::/64"),),
        ports=(port(1, addresses=("10.20.0.3", "fd00::3")),),
        services=(v4, v6),
    )

    assert {json.dumps(row["vips"]) for row in of_table(rows, "Load_Balancer")} == {
        '{"10.20.9.9": "10.20.0.3"}',
        '{"[fd00::99]:80": "[fd00::3]:80"}',
    }


def test_the_world_is_reached_through_the_uplink():
    """Masquerading for a tenant's networks, floating addresses, gateways in order."""
    one = port(1)
    rows = rows_of(
        networks=(network(), network("zeta", "front", "10.20.0.0/16"), wishes.OUTSIDE),
        ports=(one,),
        uplink=wishes.uplink,
        routers=(RouterAddress("acme", "192.0.2.10"),),
        floating=(FloatingAddress("acme", "192.0.2.100", one.name),),
        services=(
            ServiceAddress("acme", "web", "front", "192.0.2.80", (PublishedPort(80, 80),), True),
        ),
    )

    assert {
        (nat["type"], nat["external_ip"], nat["logical_ip"]) for nat in of_table(rows, "NAT")
    } == {
        ("snat", "192.0.2.10", "10.20.0.0/16"),
        ("dnat_and_snat", "192.0.2.100", "10.20.0.3"),
    }
    assert {
        (one["chassis_name"], one["priority"]) for one in of_table(rows, "Gateway_Chassis")
    } == {
        ("gw1", 100),
        ("gw2", 99),
    }
    assert rows["default/acme"].columns["nexthop"] == "192.0.2.1"
    balancer = "balancer/acme/front/web/192.0.2.80/tcp"
    assert rows["router/acme"].columns["load_balancer"] == {balancer}
    assert rows["switch/acme/front"].columns["load_balancer"] == frozenset()


def test_an_internal_network_has_no_way_out():
    """Not by an address translated, nor as it is; nor is its VMs' DHCP answered with a router."""
    rows = rows_of(
        networks=(network(internal=True), network("acme", "back", "10.30.0.0/16"), wishes.OUTSIDE),
        uplink=wishes.uplink,
        routers=(RouterAddress("acme", "192.0.2.10"),),
    )

    assert [nat["logical_ip"] for nat in of_table(rows, "NAT")] == ["10.30.0.0/16"]
    assert (
        rows["inside/acme/front/4"]
        .columns["match"]
        .endswith("ip4.dst != {10.20.0.0/16, 10.30.0.0/16}")
    )
    assert "router" not in rows["dhcp/acme/front/10.20.0.0/16"].columns["options"]
    assert "router" in rows["dhcp/acme/back/10.30.0.0/16"].columns["options"]


# --- security groups ------------------------------------------------------------------------------

GROUP = SecurityGroup("acme", "web")


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (Rule(Direction.INGRESS), "outport == @GROUP && ip"),
        (
            Rule(Direction.INGRESS, Protocol.TCP, (80, 80)),
            "outport == @GROUP && ip && tcp && tcp.dst == 80",
        ),
        (
            Rule(Direction.EGRESS, Protocol.UDP, (1, 9), Remote(RemoteKind.CIDR, "1.0.0.0/8")),
            "inport == @GROUP && ip && ip4.dst == 1.0.0.0/8 && udp && udp.dst >= 1 && udp.dst <= 9",
        ),
        (
            Rule(Direction.INGRESS, Protocol.ICMP, remote=Remote(RemoteKind.CIDR, "fd00::/8")),
            "outport == @GROUP && ip && ip6.src == fd00::/8 && (icmp4 || icmp6)",
        ),
        (
            Rule(Direction.INGRESS, remote=Remote(RemoteKind.GROUP, "web")),
            "outport == @GROUP && ip && (ip4.src == $GROUP_ip4 || ip6.src == $GROUP_ip6)",
        ),
    ],
)
def test_rules_as_expressions(rule, match):
    """A rule says who, which way, which protocol and ports."""
    name = rows_of(groups=(GROUP,))["group/group/acme/web"].columns["name"]

    assert match_of(CLUSTER, GROUP, rule) == match.replace("GROUP", name)


def test_a_rule_for_a_service_follows_its_instances():
    """The ports of what a rule names are a port group, also while there are none."""
    rule = Rule(Direction.INGRESS, remote=Remote(RemoteKind.SERVICE, "web"))
    labelled = Rule(Direction.INGRESS, remote=Remote(RemoteKind.LABEL, "tier=front"))
    group = SecurityGroup("acme", "db", (rule, labelled))
    one, other = port(1), port(2, service="db", labels=(("tier", "front"),))
    rows = rows_of(networks=(network(),), groups=(group,), ports=(one, other))

    assert rows["group/service/acme/web"].columns["ports"] == {f"port/{one.name}"}
    assert rows["group/label/acme/tier=front"].columns["ports"] == {f"port/{other.name}"}
    assert rows_of(groups=(group,))["group/service/acme/web"].columns["ports"] == frozenset()


def test_a_port_with_a_group_is_closed():
    """For what comes in always; for what goes out when a group of it has a rule for that."""
    inward = SecurityGroup("acme", "in", (Rule(Direction.INGRESS),))
    outward = SecurityGroup("acme", "out", (Rule(Direction.EGRESS),))
    ports = (
        port(1),
        port(2, security_groups=("in",)),
        port(3, security_groups=("in", "out")),
        port(4, security_groups=("deleted",)),
    )
    rows = rows_of(networks=(network(),), groups=(inward, outward), ports=ports)
    keys = [f"port/{one.name}" for one in ports]

    assert rows["group/closed/acme/ingress"].columns["ports"] == set(keys[1:])
    assert rows["group/closed/acme/egress"].columns["ports"] == {keys[2]}
    assert rows["acl/closed/acme/ingress/drop"].columns["action"] == "drop"
