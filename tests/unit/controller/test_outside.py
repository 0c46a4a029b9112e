"""``instance.trace`` to an address outside: which router, which gateway, behind which address."""

import pytest
from attrs import evolve

from swarmctl.net.model import (
    Direction,
    Protocol,
    Provider,
    Remote,
    RemoteKind,
    Rule,
    SecurityGroup,
)
from swarmctl.proto.errors import NotFound
from swarmctl.spec import wire
from tests.unit.controller.networks_fixture import a_plane, create, definition, service
from tests.unit.controller.test_floating import MAPPED, OUTSIDE, an_uplink, floating

WORLD = "198.51.100.7"


async def way_of(rig, name="web.1", to=WORLD):
    """The way to an address."""
    return (await rig.ask("instance.trace", name=name, to=to))["to"]


async def test_the_way_out_is_over_the_router_and_behind_its_address(autojump_clock, tmp_path):
    """On the gateway's own host nothing is around it; from another there is one header."""
    async with an_uplink(tmp_path, "a", "b", facts=MAPPED) as rig:
        rig.nodes["b"].facts = {"network": "ovs", "chassis": "chassis-b"}
        rig.disconnect("b")
        rig.connect("b")
        await rig.apply(service("web", 2))
        rig.run()
        ways = {}
        for name in ("web.1", "web.2"):
            traced = await rig.ask("instance.trace", name=name, to=WORLD)
            ways[traced["node"]] = traced["to"]

    for node, between in (("a", []), ("b", ["geneve"])):
        way = ways[node]
        assert (way["reached"], way["passes"]) == (True, ["any"])
        assert (way["uplink"], way["seen_as"], way["address"]) == ("outside", "192.0.2.8", WORLD)
        assert [one["hop"] for one in way["hops"]] == [
            *("interface", "port", "router", *between, "snat", "provider", "beyond")
        ]
        snat = way["hops"][-3]
        assert (snat["where"], snat["what"].partition(" becomes ")[2]) == (
            "a",
            "192.0.2.8, the router's address",
        )
        assert way["hops"][-1] == {
            "hop": "beyond",
            "where": "physnet1",
            "what": "by the gateway 192.0.2.1 there, which is none of ours",
        }
    assert ways["b"]["hops"][-4]["where"] == "b to a"


async def test_who_has_a_floating_address_is_seen_as_that(autojump_clock, tmp_path):
    """Unless it is shared at ports that are published: then it is for what comes in."""
    async with an_uplink(tmp_path) as rig:
        await rig.apply(floating(), floating(name="shared", ports=True))
        rig.run()
        own, shared = await way_of(rig), await way_of(rig, "shared.1")
        near = await way_of(rig, to="192.0.2.77")

    assert own["seen_as"] == "192.0.2.9"
    assert "floating" in [one["hop"] for one in own["hops"]]
    assert shared["seen_as"] == "192.0.2.8"
    assert near["hops"][-1]["what"] == "192.0.2.77, if anybody there has it"


async def test_without_a_way_out_it_is_said_why(autojump_clock, tmp_path):
    """No network, no uplink, no gateway, an internal network, the other version of IP."""
    async with a_plane(tmp_path, "a") as rig:
        plain = service("bare")
        bare = evolve(plain, template=evolve(plain.template, networks=()))
        await create(rig, definition(), definition("shut", "10.21.0.0/24", internal=True))
        await rig.apply(bare, service("web"), service("hidden", 1, "shut"))
        rig.run()

        async def why(name="web.1", to=WORLD):
            way = await way_of(rig, name, to)
            assert (way["reached"], way["hops"]) == (False, [])
            return way["why"]

        assert await why("bare.1") == "no path: bare.1 is on no tenant network"
        assert await why() == (
            "no path: there is no uplink, by which tenants' networks have their way out"
        )
        await create(rig, OUTSIDE)
        assert await why() == "no path: the uplink outside has no gateway node"
        assert await why("hidden.1") == "no path: network shut is internal"
        assert await why(to="2001:db8::7") == "no path: network front has no way out of IPv6"
        with pytest.raises(NotFound, match=r"no instance has the address 10\.20\.0\.99"):
            await way_of(rig, to="10.20.0.99")


async def test_a_providers_network_is_the_way_out_itself(autojump_clock, tmp_path):
    """By its gateway, or straight to who is on it; also from an interface that is not the first."""
    disks = definition("disks", "10.9.0.0/24", provider=Provider("physnet2", 30))
    async with an_uplink(tmp_path) as rig:
        await create(rig, disks)
        await rig.apply(service("web", 1, "disks"), service("both", 1, "front", "disks"))
        rig.run()
        by_gateway, straight = await way_of(rig), await way_of(rig, "both.1", "10.9.0.77")

    assert (by_gateway["reached"], by_gateway["uplink"], by_gateway["seen_as"]) == (True, "", "")
    assert [one["hop"] for one in by_gateway["hops"]] == [
        *("interface", "port", "provider", "beyond")
    ]
    assert by_gateway["hops"][-1]["what"].startswith("by the gateway 10.9.0.1 there")
    assert straight["hops"][-1]["where"] == "physnet2, VLAN 30"
    assert straight["hops"][0]["what"].startswith("eth1, ")


async def test_a_security_group_says_what_may_leave(autojump_clock, tmp_path):
    """A rule for a range of addresses counts, one for a service does not; names are asked for."""
    rules = (
        Rule(
            Direction.EGRESS, Protocol.TCP, (443, 443), Remote(RemoteKind.CIDR, "198.51.100.0/24")
        ),
        Rule(Direction.EGRESS, Protocol.TCP, (80, 80), Remote(RemoteKind.SERVICE, "web")),
    )
    group = SecurityGroup("default", "out", rules)
    guarded = definition("guarded", "10.22.0.0/24", security_groups=("out",))
    async with an_uplink(tmp_path) as rig:
        await rig.apply(
            service("web", 1, "guarded"),
            networks=[wire.encode_plain(guarded)],
            groups=[wire.encode_plain(group)],
        )
        rig.run()
        let_out, other = await way_of(rig), await way_of(rig, to="203.0.113.9")

    names = ["tcp 53", "udp 53", "udp 67", "udp 547"]
    assert let_out["passes"] == ["tcp 53", "tcp 443", *names[1:]]
    assert other["passes"] == names
