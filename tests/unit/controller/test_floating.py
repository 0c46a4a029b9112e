"""The uplink: routers' addresses, gateways, and floating addresses as durable intent."""

from contextlib import asynccontextmanager

import pytest
from attrs import evolve

from swarmctl.controller import records
from swarmctl.controller.networks import NetworkRecord
from swarmctl.controller.records import ServiceRecord
from swarmctl.net.model import Provider, subnet
from swarmctl.proto.errors import Conflict, InvalidSpec, NothingFits
from swarmctl.spec.models import PortMapping
from swarmctl.spec.networks import NetworkDefinition
from tests.unit.controller.networks_fixture import a_plane, create, definition, rows, service, until

OUTSIDE = NetworkDefinition(
    "outside",
    subnets=(subnet("192.0.2.0/24", "192.0.2.1", "192.0.2.8/29"),),
    provider=Provider("physnet1"),
    uplink=True,
)
MAPPED = {"network": "ovs", "chassis": "chassis-a", "physical_networks": "physnet1,physnet2"}


def floating(address="auto", name="web", replicas=1, *, ports=False):
    """A service with a floating address; with ``ports`` it publishes one."""
    spec = service(name, replicas)
    if ports:
        mapping = PortMapping(container_port=8080, host_port=80)
        container = evolve(spec.template.container, ports=(mapping,))
        spec = evolve(spec, template=evolve(spec.template, container=container))
    return evolve(spec, floating=address)


@asynccontextmanager
async def an_uplink(folder, *names, facts=MAPPED):
    """A plane with the uplink and a network, whose nodes have ``facts``."""
    async with a_plane(folder, *(names or ("a",))) as rig:
        for name, node in rig.nodes.items():
            node.facts = facts
            rig.disconnect(name)
            rig.connect(name)
        rig.run()
        await create(rig, OUTSIDE, definition())
        yield rig


def nat(rig):
    """What the rows of NAT translate: type, outside, inside."""
    return {
        (one.columns["type"], one.columns["external_ip"], one.columns["logical_ip"])
        for one in rows(rig, "NAT").values()
    }


def kept(rig, name="web"):
    """The floating address in a service's record, as the store has it."""
    entry = rig.disk.entries[f"service/default/{name}"]
    return records.decode(entry.value, ServiceRecord, name).floating


SNAT = ("snat", "192.0.2.8", "10.20.0.0/24")


async def test_a_network_has_its_way_out_behind_its_tenants_router(autojump_clock, tmp_path):
    """One address of the range for the router, kept; the nodes that map the uplink are gateways."""
    async with an_uplink(tmp_path) as rig:
        await until(lambda: nat(rig) == {SNAT})
        [gateway] = rows(rig, "Gateway_Chassis").values()
        shown = await rig.ask("network.inspect", name="outside")
        entry = rig.disk.entries["network/default/outside"]

    assert gateway.columns["chassis_name"] == "chassis-a"
    assert shown["uplinked"] == {
        "routers": {"default": "192.0.2.8"},
        "gateway_nodes": ["a"],
        "floating": {},
    }
    assert records.decode(entry.value, NetworkRecord, "").routers == {"default": "192.0.2.8"}


async def test_without_a_gateway_nothing_of_the_uplink_is_told(autojump_clock, tmp_path):
    """The network says why, and what to do."""
    async with an_uplink(tmp_path, facts=MAPPED | {"physical_networks": "physnet2"}) as rig:
        await until(lambda: rows(rig, "Logical_Switch"))
        listed = {one["network"]: one for one in await rig.ask("network.list")}

        assert not rows(rig, "Gateway_Chassis")
        assert (listed["outside"]["state"], listed["front"]["state"]) == ("faulty", "ready")
        assert "--bridge physnet1=BRIDGE" in listed["outside"]["reason"]


async def test_an_internal_network_has_no_way_out(autojump_clock, tmp_path):
    """No translation, and what leaves for elsewhere is dropped."""
    async with an_uplink(tmp_path) as rig:
        await create(rig, definition("shut", "10.21.0.0/24", internal=True))
        await until(lambda: "inside/default/shut/4" in rows(rig, "Logical_Router_Policy"))

        assert nat(rig) == {SNAT}


async def test_a_floating_address_leads_to_the_one_instance(autojump_clock, tmp_path):
    """Chosen or asked for, it is committed with the service, and goes with the wish for it."""
    async with an_uplink(tmp_path) as rig:
        await rig.apply(floating())
        rig.run()
        assert kept(rig) == "192.0.2.9"
        await until(lambda: ("dnat_and_snat", "192.0.2.9", "10.20.0.2") in nat(rig))

        # Outside of the range, where only those are that somebody asks for.
        result = await rig.apply(floating("192.0.2.100"))
        assert [one[0] for one in result["services"][0]["changes"]] == ["floating"]
        await until(lambda: ("dnat_and_snat", "192.0.2.100", "10.20.0.2") in nat(rig))
        assert kept(rig) == "192.0.2.100"

        await rig.apply(floating(""))
        await until(lambda: nat(rig) == {SNAT})
        assert kept(rig) == ""


async def test_published_ports_share_a_floating_address(autojump_clock, tmp_path):
    """On the tenant's router, beside the service's own address on its network."""
    async with an_uplink(tmp_path, "a", "b") as rig:
        await rig.apply(floating(replicas=2, ports=True))
        rig.run()

        def balanced():
            return {
                vip: set(targets.split(","))
                for one in rows(rig, "Load_Balancer").values()
                for vip, targets in one.columns["vips"].items()
            }

        wanted = {"10.20.0.3:8080", "10.20.0.4:8080"}
        await until(lambda: balanced().get("192.0.2.9:80") == wanted)
        assert balanced() == {"10.20.0.2:80": wanted, "192.0.2.9:80": wanted}
        assert nat(rig) == {SNAT}


async def test_an_address_that_cannot_be_is_refused(autojump_clock, tmp_path):
    """Another's, outside of the uplink, its gateway; and no copies without ports."""
    async with an_uplink(tmp_path) as rig:
        await rig.apply(floating("192.0.2.50", "db"))
        for spec, why in (
            (floating("192.0.2.50"), "given to the service db"),
            (floating("192.0.2.8"), "the router of tenant default"),
            (floating("198.51.100.9"), "in no subnet"),
            (floating("192.0.2.1"), "not an address that a port can have"),
            (floating(replicas=2), "for 2 copies"),
        ):
            with pytest.raises((Conflict, InvalidSpec), match=why):
                await rig.apply(spec)

        assert "service/default/web" not in rig.disk.entries


async def test_an_uplink_runs_out_of_addresses(autojump_clock, tmp_path):
    """Eight in the range, one for the router; what is freed is given again."""
    async with an_uplink(tmp_path) as rig:
        names = [f"s{number}" for number in range(7)]
        await rig.apply(*(floating(name=name) for name in names))
        with pytest.raises(NothingFits, match=r"192\.0\.2\.8/29"):
            await rig.apply(floating())
        await rig.ask("service.remove", names=["s3"])
        rig.run()
        await until(lambda: len(rig.cluster.state.ports.services) == 6)
        await rig.apply(floating())

        assert kept(rig) == "192.0.2.12"


async def test_floating_addresses_outlive_a_controller(autojump_clock, tmp_path):
    """After a restart they are the same, and nobody else's."""
    async with an_uplink(tmp_path) as rig:
        await rig.apply(floating(), floating(name="db"))
        disk, before = rig.disk, kept(rig)

    async with a_plane(tmp_path, disk=disk) as rig:
        await until(lambda: rig.cluster.state.ports.known)
        with pytest.raises(Conflict, match="given to the service web"):
            await rig.apply(floating(before, "other"))
        with pytest.raises(Conflict, match="the router of tenant default"):
            await rig.apply(floating("192.0.2.8", "other"))

        assert {kept(rig), kept(rig, "db")} == {"192.0.2.9", "192.0.2.10"}


async def test_a_controller_that_has_just_begun_keeps_the_gateways(autojump_clock, tmp_path):
    """Those that OVN has, until the nodes have reported; what is wrong then is mended."""
    async with an_uplink(tmp_path) as rig:
        await until(lambda: nat(rig) == {SNAT})
        disk, database = rig.disk, rig.database

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        await until(lambda: rig.cluster.state.ports.known)
        await create(rig, definition("more", "10.22.0.0/24"))
        await until(lambda: "gateway/default/more" in rows(rig, "Logical_Router_Port"))
        [gateway] = rows(rig, "Gateway_Chassis").values()
        assert gateway.columns["chassis_name"] == "chassis-a"

        await rig.ask("node.remove", name="a", force=True)
        await create(rig, definition("last", "10.23.0.0/24"))
        await until(lambda: not rows(rig, "Gateway_Chassis"))


async def test_the_uplink_stays_while_something_is_behind_it(autojump_clock, tmp_path):
    """There is one; it is removed once no floating address is asked for."""
    async with an_uplink(tmp_path) as rig:
        with pytest.raises(Conflict, match="is the uplink already"):
            await create(rig, evolve(OUTSIDE, name="more", subnets=(subnet("198.51.100.0/24"),)))
        await rig.apply(floating())
        with pytest.raises(Conflict, match="the floating address of web"):
            await rig.ask("network.remove", name="outside")
        await rig.apply(floating(""))
        await until(lambda: not rig.cluster.state.ports.services)
        await rig.ask("network.remove", name="outside")
        await until(lambda: not nat(rig))
        with pytest.raises(Conflict, match="there is no uplink"):
            await rig.apply(floating())


async def test_what_is_on_a_provider_goes_where_it_leads(autojump_clock, tmp_path):
    """Nodes that do not map its physical network take none of it."""
    async with an_uplink(tmp_path, "a", "b") as rig:
        rig.nodes["a"].facts = MAPPED | {"physical_networks": "physnet2"}
        rig.disconnect("a")
        rig.connect("a")
        rig.run()
        await rig.apply(service("disks", 3, "outside"))
        rig.run()
        on = {one.node for one in rig.cluster.state.services["default", "disks"].holders.values()}

        assert on == {"b"}
