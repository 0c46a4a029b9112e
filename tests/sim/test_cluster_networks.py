"""Tenant networks of a whole cluster in virtual time, while links, daemons and OVN fail."""

import random
from collections import Counter

import pytest
import trio
from attrs import evolve

from swarmctl.net.memory import MemoryDatabase
from swarmctl.net.model import subnet
from swarmctl.spec import wire
from swarmctl.spec.models import NetworkUse, Placement
from swarmctl.spec.networks import NetworkDefinition
from tests.sim.cluster_fixture import a_cluster, at_once, noise, service


def plugged(name="web", replicas=1, network="front"):
    """A service of simulated containers on a network."""
    plain = service(name, replicas)
    template = evolve(plain.template, networks=(NetworkUse(network),))
    return evolve(plain, template=template)


def port_rows(world):
    """The rows of instances' ports that OVN has."""
    rows = world.northbound.rows.get(world.cluster.state.cluster_id, {})
    return [row for row in rows.values() if row.key.startswith("port/")]


def addresses(world):
    """How many ports of OVN have each address."""
    return Counter(text for row in port_rows(world) for text in row.columns["addresses"])


def agrees(world):
    """Whether OVN has a port for each instance that the machines have, and no other."""
    prefix = world.cluster.state.cluster_id[:8]
    wanted = {
        f"{prefix}-{number >> 40}-{number & ((1 << 40) - 1)}-0"
        for machine in world.machines.values()
        for number in world.book(machine)
    }
    return wanted == {row.columns["name"] for row in port_rows(world)}


async def watch(world):
    """At no moment have two ports one address."""
    while True:
        shared = {text: count for text, count in addresses(world).items() if count > 1}
        assert not shared, shared
        await trio.sleep(0.02)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_addresses_are_never_shared_and_ports_follow(autojump_clock, tmp_path, seed):
    """Whatever is cut, killed and started again: in the end OVN has what the machines have."""
    chance = random.Random(seed)
    definition = NetworkDefinition("front", subnets=(subnet("10.20.0.0/26"),))
    async with a_cluster(tmp_path, 4, seed=seed, northbound=MemoryDatabase()) as world:
        await world.ask("network.create", {"network": wire.encode_plain(definition)})
        web = plugged(replicas=12)
        await world.apply(web)
        await world.until_runs(web)
        world.nursery.start_soon(watch, world)
        for _ in range(6):
            match chance.choice(["node", "controller", "ovn", "noise", "scale"]):
                case "node":
                    world.cut(chance.choice(list(world.machines)))
                    await trio.sleep(chance.uniform(1, 12))
                    world.heal()
                case "controller":
                    await world.restart_controller()
                case "ovn":
                    world.northbound.go_away()
                    await trio.sleep(chance.uniform(0, 5))
                    world.northbound.come_back()
                case "noise":
                    world.network.fate = noise(chance)
                    await trio.sleep(chance.uniform(1, 10))
                    world.network.fate = at_once
                case "scale":
                    web = plugged(replicas=chance.randint(4, 16))
                    await world.apply_at_last(web)
            await trio.sleep(chance.uniform(0, 4))
        await world.until_runs(web)
        await world.until(lambda: agrees(world))
        taken = world.cluster.state.ports.book.taken(
            world.cluster.state.ports.table.records["default", "front"]
        )
        assert taken[0] == web.replicas


def pod(name, replicas, *nodes):
    """A service on these nodes."""
    plain = plugged(name, replicas)
    outside = tuple(f"node.labels.name != {one}" for one in nodes)
    return evolve(plain, placement=Placement(constraints=outside))


def tags(world):
    """How many ports of OVN have each VLAN of each trunk."""
    return Counter(
        (row.columns["parent_name"], row.columns["tag_request"])
        for row in port_rows(world)
        if row.columns["parent_name"]
    )


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_pods_in_vms_share_neither_address_nor_vlan(autojump_clock, tmp_path, seed):
    """Controllers that took over while OVN was away could not know the spare ports of trunks."""
    chance = random.Random(seed)
    front = NetworkDefinition("front", subnets=(subnet("10.20.0.0/25"),))
    trunks = NetworkDefinition("trunks", subnets=(subnet("10.30.0.0/24"),))
    async with a_cluster(tmp_path, 2, seed=seed, northbound=MemoryDatabase()) as world:
        for one in (front, trunks):
            await world.ask("network.create", {"network": wire.encode_plain(one)})
        vms = plugged("vm", 2, "trunks")
        await world.apply(vms)
        await world.until_runs(vms)
        inner = {"inner1": "vm.1", "inner2": "vm.2"}
        for name, parent in inner.items():
            await world.start_node(name, parent=parent)
        web = pod("web", 6, "n1", "n2")
        await world.apply(web)
        await world.until_runs(web)
        for _ in range(4):
            world.northbound.go_away()
            await world.restart_controller()
            await trio.sleep(chance.uniform(0, 8))
            web = pod("web", chance.randint(2, 20), "n1", "n2")
            await world.apply_at_last(web)
            await trio.sleep(chance.uniform(0, 4))
            world.northbound.come_back()
            await world.until_runs(web)
            await world.until(lambda: not world.cluster.state.ports.unclaimed)
            await world.until(lambda: not world.cluster.state.ports.leaving)
            await world.until(lambda: not world.cluster.plane.fault)
            shared = {text: count for text, count in addresses(world).items() if count > 1}
            assert not shared
            assert set(tags(world).values()) == {1}
        carried = {one.name for one in world.cluster.state.ports.wishes.values() if one.parent}
        assert carried == {
            row.columns["name"] for row in port_rows(world) if row.columns["parent_name"]
        }


async def test_a_full_network_is_used_again_and_again(autojump_clock, tmp_path):
    """Rolled out anew in a network without an address to spare, every copy gets one."""
    definition = NetworkDefinition("front", subnets=(subnet("10.20.0.0/29"),))
    async with a_cluster(tmp_path, 2, northbound=MemoryDatabase()) as world:
        await world.ask("network.create", {"network": wire.encode_plain(definition)})
        for image in ("one", "two", "three"):
            plain = plugged(replicas=5)
            container = evolve(plain.template.container, image=image)
            web = evolve(plain, template=evolve(plain.template, container=container))
            await world.apply(web)
            await world.until(lambda: not world.cluster.state.services["default", "web"].rolling)
            await world.until_runs(web)
            await world.until(lambda: agrees(world))
