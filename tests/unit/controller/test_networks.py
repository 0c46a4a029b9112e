"""Tenant networks: records, what is refused before anything is made, and what services get."""

import pytest
from attrs import evolve

from swarmctl.controller import records, tenancy
from swarmctl.controller.networks import NetworkRecord
from swarmctl.net.model import (
    Direction,
    Protocol,
    Provider,
    Remote,
    RemoteKind,
    Rule,
    SecurityGroup,
)
from swarmctl.proto.errors import Conflict, InvalidSpec, NotFound
from swarmctl.spec import wire
from swarmctl.spec.models import NetworkUse, PortMapping, VmSpec
from tests.unit.controller.harness import spec
from tests.unit.controller.networks_fixture import (
    a_plane,
    create,
    definition,
    ports,
    rows,
    service,
    until,
)
from tests.unit.controller.requests_fixture import a_rig

KEY = ("default", "front")


def addresses(rig, name="web"):
    """Slot to the addresses of the instances, as ``ps`` shows them."""
    cluster = rig.cluster
    return {
        slot: cluster.state.ports.addresses_of(one.incarnation)
        for slot, one in sorted(cluster.state.services["default", name].holders.items())
    }


# --- records ---------------------------------------------------------------------------------


async def test_a_network_is_durable_with_what_was_chosen_for_it(autojump_clock, tmp_path):
    """Without a subnet one is chosen, and it is the same after a restart."""
    async with a_rig(tmp_path, None) as rig:
        await create(rig, definition(cidr=""))
        [before] = await rig.ask("network.list")
        disk = rig.disk
        entry = disk.entries["network/default/front"]
        assert records.decode(entry.value, NetworkRecord, "").subnets[0].cidr == "10.64.0.0/24"

    async with a_rig(tmp_path, disk) as rig:
        await tenancy.load(rig.cluster)
        [after] = await rig.ask("network.list")

    assert (before["subnets"], before["mtu"], before["state"]) == (["10.64.0.0/24"], 1442, "absent")
    assert after == before


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (definition("back", "10.20.0.128/25"), "overlaps"),
        (definition("back", "10.21.0.0/24", mtu=1500), "does not fit"),
        (definition("back", "10.21.0.0/24", mtu=300), "too small"),
        (definition("back", "10.21.0.0/24", security_groups=("web",)), "no security group"),
        (definition("back", "", provider=Provider("physnet1", 3)), "needs its subnet"),
        (definition(), "exists already"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_made(
    autojump_clock, tmp_path, asked, why
):
    """Overlaps, MTUs that do not fit, what is not there: each is named, and nothing is written."""
    async with a_rig(tmp_path, None) as rig:
        await create(rig)
        before = dict(rig.disk.entries)

        with pytest.raises((Conflict, InvalidSpec, NotFound), match=why):
            await create(rig, asked)

        assert dict(rig.disk.entries) == before


async def test_a_network_in_use_is_not_removed(autojump_clock, tmp_path):
    """Not while a service names it, nor while OVN has a port on it; then it goes."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(service())
        rig.run()
        with pytest.raises(Conflict, match=r"in use by web, web\.1"):
            await rig.ask("network.remove", name="front")
        rig.database.go_away()
        await rig.ask("service.remove", names=["web"])
        rig.run()
        with pytest.raises(Conflict, match="1 ports that OVN has not removed"):
            await rig.ask("network.remove", name="front")
        rig.database.come_back()
        await until(lambda: not rig.cluster.state.ports.leaving)
        await rig.ask("network.remove", name="front")

        assert await rig.ask("network.list") == []
        assert "network/default/front" not in rig.disk.entries
        await until(lambda: not rows(rig, "Logical_Switch"))


async def test_names_that_are_not_there_get_a_suggestion(autojump_clock, tmp_path):
    """Of a service and of a request alike."""
    async with a_rig(tmp_path, None) as rig:
        await create(rig)
        for asking in (
            rig.ask("network.inspect", name="frnt"),
            rig.apply(service("web", 1, "fron")),
        ):
            with pytest.raises(NotFound) as caught:
                await asking
            assert caught.value.hint == 'did you mean "front"?'


async def test_an_apply_makes_networks_with_their_services(autojump_clock, tmp_path):
    """Networks, groups and services of a file at once; a dry run none; prune what is left."""
    asked = {
        "networks": [
            wire.encode_plain(one)
            for one in (
                definition("shop_a", stack="shop", security_groups=("shop_web",)),
                definition("shop_b", "10.21.0.0/24", stack="shop"),
            )
        ],
        "groups": [wire.encode_plain(SecurityGroup("default", "shop_web"))],
    }
    async with a_plane(tmp_path, "a") as rig:
        dry = await rig.apply(service("web", 2, "shop_a"), **asked, dry_run=True)
        assert [one["action"] for one in dry["networks"]] == ["created", "created"]
        assert await rig.ask("network.list") == []

        await rig.apply(service("web", 2, "shop_a"), **asked)
        rig.run()
        again = await rig.apply(service("web", 2, "shop_a"), **asked)
        assert [one["action"] for one in again["networks"]] == ["unchanged", "unchanged"]

        asked["networks"].pop()
        pruned = await rig.apply(service("web", 2, "shop_a"), **asked, prune="shop")
        assert [(one["network"], one["action"]) for one in pruned["networks"]] == [
            ("shop_a", "unchanged"),
            ("shop_b", "removed"),
        ]
        await until(lambda: ports(rig) == ["web.1", "web.2"])
        [group] = [row for key, row in rows(rig, "Port_Group").items() if "shop_web" in key]
        assert len(group.columns["ports"]) == 2


async def test_what_is_in_use_keeps_its_addresses(autojump_clock, tmp_path):
    """A subnet may be added while instances are on it, not changed; nor the MTU."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(service())
        rig.run()
        for asked, field in (
            (definition(cidr="10.30.0.0/24"), "subnet"),
            (definition(mtu=1400), "mtu"),
        ):
            with pytest.raises(Conflict, match=f"its {field} cannot change"):
                await rig.apply(networks=[wire.encode_plain(asked)])
        both = (*definition().subnets, *definition(cidr="10.30.0.0/24").subnets)
        await rig.apply(
            networks=[wire.encode_plain(definition(cidr="").__class__("front", subnets=both))]
        )
        assert addresses(rig) == {1: ["10.20.0.2"]}


async def test_a_service_without_copies_keeps_its_address_and_so_its_subnet(
    autojump_clock, tmp_path
):
    """Its own address, and a fixed one of its copy: both would be outside of the new subnet."""
    other = [wire.encode_plain(definition(cidr="10.30.0.0/24"))]
    async with a_plane(tmp_path, "a") as rig:
        await create(rig, definition(), definition("back", "10.40.0.0/24"))
        await rig.apply(publishing(), service("db", 1, "back", addresses=["10.40.0.9"]))
        await rig.ask("service.scale", replicas={"web": 0, "db": 0})
        rig.run()
        await until(lambda: not ports(rig) and not rig.cluster.state.ports.leaving)
        with pytest.raises(Conflict, match="its subnet cannot change"):
            await rig.apply(networks=other)
        back = [wire.encode_plain(definition("back", "10.50.0.0/24"))]
        with pytest.raises(Conflict, match=r"10\.40\.0\.9 is in no subnet"):
            await rig.apply(networks=back)
        moved = service("db", 1, "back", addresses=["10.50.0.9"])
        await rig.apply(moved, networks=back)

        await rig.ask("service.remove", names=["web"])
        await until(lambda: not rig.cluster.state.ports.services)
        await rig.apply(networks=other)


async def test_over_ipv6_less_fits(autojump_clock, tmp_path):
    """Between hosts that speak IPv6 the header around a packet is longer."""
    async with a_rig(tmp_path, None) as rig:
        await tenancy.load(rig.cluster, is_v6=True)
        await create(rig)
        [found] = await rig.ask("network.list")
        assert found["mtu"] == 1422
        with pytest.raises(InvalidSpec, match="1422 is what one encapsulation leaves"):
            await create(rig, definition("back", "10.21.0.0/24", mtu=1442))


async def test_two_networks_are_not_on_one_segment(autojump_clock, tmp_path):
    """A VLAN of a physical network is one network; another VLAN is another."""
    async with a_rig(tmp_path, None) as rig:
        await create(rig, definition(provider=Provider("physnet1", 3)))
        again = definition("back", "10.21.0.0/24", provider=Provider("physnet1", 3))
        with pytest.raises(Conflict, match="default/front is on VLAN 3 of physnet1 already"):
            await create(rig, again)
        await create(rig, evolve(again, provider=Provider("physnet1")))


async def test_a_trunk_needs_a_network_with_ipv4(autojump_clock, tmp_path):
    """What its VM's agent reaches a controller by is of IPv4."""
    plain = service("pods", 1, "six")
    template = evolve(plain.template, container=None, vm=VmSpec(kernel="vmlinuz", trunk=True))
    async with a_rig(tmp_path, None) as rig:
        await create(rig, definition("six", "fd00:20::/64"), definition())
        with pytest.raises(Conflict, match="by IPv4, of which network six has no subnet"):
            await rig.apply(evolve(plain, template=template))
        both = (NetworkUse("front"), NetworkUse("six"))
        await rig.apply(evolve(plain, template=evolve(template, networks=both)))


# --- addresses -------------------------------------------------------------------------------


async def test_an_instance_has_an_address_before_it_runs(autojump_clock, tmp_path):
    """Its attachments go with its entry, with all that its node needs; ps and inspect show them."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig, definition(), definition("back", "fd00::/64", mtu=1280))
        await rig.apply(service("web", 2, "front", "back"))
        rig.run()

        assert addresses(rig) == {1: ["10.20.0.2", "fd00::2"], 2: ["10.20.0.3", "fd00::3"]}
        reports = sorted(rig.nodes["a"].instances.values(), key=lambda one: one.slot)
        front, back = reports[0].attachments
        assert (front.network, front.addresses, front.mtu) == (
            "default/front",
            ("10.20.0.2/24",),
            1442,
        )
        assert (front.routes, front.dns) == ((("0.0.0.0/0", "10.20.0.1"),), ("10.20.0.1",))
        assert (back.routes, back.mtu, back.vlan) == ((), 1280, 0)
        [one, _] = await rig.ask("instance.list")
        assert one["addresses"] == ["10.20.0.2", "fd00::2"]
        assert [each["network"] for each in one["networks"]] == ["front", "back"]
        found = await rig.ask("network.inspect", name="front")
        assert [each["path"] for each in found["attached"]] == [["web.1", "a"], ["web.2", "a"]]


async def test_a_service_is_known_by_its_aliases(autojump_clock, tmp_path):
    """Within its tenant, and with dots as they are; by all of its copies."""
    uses = (NetworkUse("front", aliases=("www", "www.shop")),)
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(evolve(service(), template=evolve(service().template, networks=uses)))
        rig.run()
        await until(lambda: rows(rig, "DNS"))
        [row] = rows(rig, "DNS").values()
        assert dict(row.columns["records"]) == dict.fromkeys(
            [
                *("web.default", "www.default", "www.shop.default", "www.shop"),
                *("web.1.default", "1.web.default"),
            ],
            "10.20.0.2",
        )


async def test_services_without_networks_have_no_ports(autojump_clock, tmp_path):
    """Nothing is kept for them, sent with them, or told to OVN."""
    async with a_plane(tmp_path, "a") as rig:
        await rig.apply(spec(replicas=3))
        rig.run()

        assert rig.running() == [1, 2, 3]
        assert not rig.cluster.state.ports.attachments
        assert all(not one.attachments for one in rig.nodes["a"].instances.values())


async def test_without_ovn_services_run_on_the_nodes_own_network(autojump_clock, tmp_path):
    """They are placed, and have no ports."""
    async with a_rig(tmp_path, None, "a") as rig:
        await create(rig)
        await rig.apply(service("web", 2))
        rig.run()

        assert rig.running() == [1, 2]
        assert not rig.cluster.state.ports.attachments


async def test_an_exhausted_pool_is_a_reason_and_ends_when_something_goes(autojump_clock, tmp_path):
    """Those beyond are nowhere and say why; a removal gives its address on."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig, definition(cidr="10.20.0.0/29"))
        await rig.apply(service("web", 7))
        rig.run()

        assert rig.running() == [1, 2, 3, 4, 5]
        explained = await rig.ask("instance.explain", name="web.6")
        assert (
            "network front has no free address: all of 10.20.0.0/29 are taken"
            in (explained["lines"][0])
        )
        pending = [one for one in await rig.ask("instance.list") if one["state"] == "pending"]
        assert "no free address" in pending[0]["reason"]

        await rig.ask("service.remove", names=["web.1"])

        def placed():
            rig.run()
            return rig.running() == [2, 3, 4, 5, 6]

        await until(placed)
        assert len({tuple(one) for one in addresses(rig).values()}) == 5


async def test_an_address_is_free_only_when_node_and_ovn_have_confirmed(autojump_clock, tmp_path):
    """Not when it is told to go, not when the node has lost it; when both have done so."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(service())
        rig.run()
        await until(lambda: ports(rig) == ["web.1"])
        holder = rig.cluster.state.ports.book.holder
        await rig.ask("service.remove", names=["web"])
        rig.step(deliver=False)
        assert holder(KEY, "10.20.0.2")

        rig.database.go_away()
        rig.cluster.state.resend(rig.cluster.state.nodes["a"])
        rig.disconnect("a")
        rig.connect("a")
        rig.run()
        assert not rig.nodes["a"].instances
        assert holder(KEY, "10.20.0.2")

        rig.database.come_back()
        await until(lambda: not holder(KEY, "10.20.0.2"))
        assert ports(rig) == []


async def test_a_fixed_address_waits_for_whoever_has_it(autojump_clock, tmp_path):
    """Replaced from a lost node, the copy is nowhere, and says on whom it waits."""
    async with a_plane(tmp_path, "a", "b") as rig:
        await create(rig)
        await rig.apply(service(addresses=["10.20.0.9"]))
        rig.run()
        assert addresses(rig) == {1: ["10.20.0.9"]}
        [lost] = [name for name, node in rig.nodes.items() if node.instances]
        rig.disconnect(lost)
        rig.run()
        explained = await rig.ask("instance.explain", name="web.1")
        assert any("10.20.0.9 is still held by web.1" in line for line in explained["lines"])

        await rig.ask("node.remove", name=lost, force=True)

        def moved():
            rig.run()
            return addresses(rig) == {1: ["10.20.0.9"]}

        await until(moved)


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_fixed_address_has_to_be_in_the_network_and_for_one(
    autojump_clock, tmp_path, replicas
):
    """Else the service is refused."""
    async with a_rig(tmp_path, None) as rig:
        await create(rig)
        address = "10.99.0.9" if replicas == 1 else "10.20.0.9"
        with pytest.raises((Conflict, InvalidSpec)):
            await rig.apply(service("web", replicas, addresses=[address]))


@pytest.mark.parametrize("address", ["10.20.0.1", "10.20.0.0", "10.20.0.255"])
async def test_a_fixed_address_is_one_that_a_port_can_have(autojump_clock, tmp_path, address):
    """Else it would wait for ever: the gateway's, and those of the subnet as a whole."""
    async with a_rig(tmp_path, None) as rig:
        await create(rig)
        with pytest.raises(Conflict, match=address):
            await rig.apply(service(addresses=[address]))


async def test_nodes_without_a_switch_take_none_of_them(autojump_clock, tmp_path):
    """What is on tenant networks goes where it can be plugged in; anything else goes anywhere."""
    async with a_plane(tmp_path, "a") as rig:
        rig.nodes["a"].facts = {"network": "none: Open vSwitch does not answer"}
        rig.disconnect("a")
        rig.connect("a")
        await create(rig)
        await rig.apply(service(), spec("own"))
        rig.run()

        assert (rig.running(), rig.running("own")) == ([], [1])
        explained = await rig.ask("instance.explain", name="web.1")
        assert "swarmctl/network" in explained["lines"][0]


async def test_nonsense_that_no_file_says_is_refused(autojump_clock, tmp_path):
    """Another client may send it: what would end up in OVN's expressions, or nowhere."""
    anywhere = Rule(Direction.INGRESS, remote=Remote(RemoteKind.CIDR, "0.0.0.0/0 || 1"))
    ports_ = Rule(Direction.INGRESS, Protocol.ICMP, (80, 80))
    async with a_rig(tmp_path, None) as rig:
        await create(rig)
        for rule in (anywhere, ports_):
            group = wire.encode_plain(SecurityGroup("default", "web", (rule,)))
            with pytest.raises(InvalidSpec):
                await rig.apply(groups=[group])
        hosts = evolve(service().template.container, network="host")
        for odd in (
            service(addresses=["x"]),
            service(addresses=["10.20.0.7", "10.20.0.8"]),
            service("web", 1, "front", "front"),
            evolve(service(), template=evolve(service().template, container=hosts)),
        ):
            with pytest.raises(InvalidSpec):
                await rig.apply(odd)
        assert not rig.cluster.state.services


# --- addresses of services -------------------------------------------------------------------


def publishing(name="web", *ports):
    """A service that publishes ports."""
    plain = service(name, 2)
    container = evolve(plain.template.container, ports=ports or (PortMapping(80, 8080),))
    return evolve(plain, template=evolve(plain.template, container=container))


async def test_what_publishes_ports_has_an_address_of_its_own(autojump_clock, tmp_path):
    """It is durable, answers for all copies, and is free when the service is gone."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(publishing())
        rig.run()
        assert rig.record().addresses == {"front": "10.20.0.2"}
        assert addresses(rig) == {1: ["10.20.0.3"], 2: ["10.20.0.4"]}

        def balanced():
            return [row.columns["vips"] for row in rows(rig, "Load_Balancer").values()]

        await until(lambda: balanced() == [{"10.20.0.2:8080": "10.20.0.3:80,10.20.0.4:80"}])
        assert (await rig.ask("service.inspect", name="web"))["addresses"] == rig.record().addresses
        with pytest.raises(InvalidSpec, match="is service web's own"):
            await rig.ask("instance.trace", name="web.1", to="10.20.0.2")
        again = await rig.apply(publishing())
        assert again["services"][0]["action"] == "unchanged"

        await rig.ask("service.remove", names=["web"])
        rig.run()
        await until(lambda: rig.cluster.state.ports.book.holder(KEY, "10.20.0.2") is None)
        assert balanced() == []


async def test_a_services_address_outlives_the_controller(autojump_clock, tmp_path):
    """After a restart it is held before anything else is given."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(publishing())
        rig.run()
        await until(lambda: rows(rig, "Load_Balancer"))
        disk, database, nodes = rig.disk, rig.database, rig.nodes

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("a")
        await rig.apply(publishing("new"))
        rig.run()
        assert rig.record().addresses == {"front": "10.20.0.2"}
        assert rig.record("new").addresses == {"front": "10.20.0.5"}


async def test_a_service_that_leaves_a_network_gives_its_address_there_back(
    autojump_clock, tmp_path
):
    """Nothing is on the network then, so it may go, or get another subnet."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig, definition(), definition("back", "10.21.0.0/24"))
        both = publishing()
        uses = (NetworkUse("front"), NetworkUse("back"))
        both = evolve(both, template=evolve(both.template, networks=uses))
        await rig.apply(both)
        rig.run()
        assert rig.record().addresses == {"front": "10.20.0.2", "back": "10.21.0.2"}

        await rig.apply(publishing())
        rig.run()
        assert rig.record().addresses == {"front": "10.20.0.2"}
        book, key = rig.cluster.state.ports.book, ("default", "back")
        await until(lambda: book.holder(key, "10.21.0.2") is None)
        await rig.ask("network.remove", name="back")
