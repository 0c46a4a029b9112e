"""Agents in VMs: tokens that are good for one VM, once, and nodes that go with their VM."""

import pytest
import trio
from attrs import evolve

from swarmctl.controller import guests
from swarmctl.controller.handlers import nodes
from swarmctl.credentials import parse_token
from swarmctl.net import relays
from swarmctl.proto.errors import Refused
from swarmctl.proto.messages import Enrol, InstanceReport, Report
from swarmctl.proto.states import InstanceState
from swarmctl.transport import keys
from tests.unit.controller.networks_fixture import a_plane, ports, until
from tests.unit.controller.test_nesting import nest, pods, vm


def vm_incarnation(rig):
    """Of the one VM."""
    [found] = rig.nodes["host"].instances
    return found


def token_user(rig):
    """Who comes in with the token that the host was told for its VM; refused keys are nobody."""
    token = parse_token(rig.nodes["host"].tokens[vm_incarnation(rig)])
    return rig.cluster.access.authorise(token.public_key)


async def enrol(rig, name="inner"):
    """The VM's agent enrols with the token on its seed, and says hello."""
    await nest_vm(rig)
    inner = await rig.join(name, user=token_user(rig))
    rig.run()
    return inner


async def nest_vm(rig):
    """A VM on the host, with nothing in it."""
    inner = await nest(rig)
    await rig.ask("node.remove", name="inner", force=True)
    del rig.nodes["inner"]
    return inner


async def test_the_token_of_a_vm_enrols_the_node_in_it(autojump_clock, tmp_path):
    """It leads to the relay, and the node is in that VM, whatever its agent says of itself."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await enrol(rig)
        inner.parent = "7-99"
        rig.disconnect("inner")
        rig.connect("inner")
        await rig.apply(pods())
        rig.run()
        await until(lambda: ports(rig) == ["db.1", "web.1", "web.2"])
        token = parse_token(rig.nodes["host"].tokens[vm_incarnation(rig)])
        [view] = [one for one in await rig.ask("node.list") if one["node"] == "inner"]

    assert token.addresses == (relays.endpoint(),)
    assert token.server_key == rig.cluster.identity.public_key
    assert (view["parent"], view["host"]) == ("db.1", "host")


async def test_a_vms_token_is_valid_once(autojump_clock, tmp_path):
    """For one node; that one may ask again, as after an answer that was lost."""
    async with a_plane(tmp_path, "host") as rig:
        await nest_vm(rig)
        user, pair = token_user(rig), keys.generate()
        for _ in range(2):
            await nodes.enrol(rig.cluster, user, Enrol(1, "0", "inner", pair.public))
        with pytest.raises(Refused, match="used by inner"):
            await nodes.enrol(rig.cluster, user, Enrol(1, "0", "other", keys.generate().public))
        await rig.ask("node.remove", name="inner")
        with pytest.raises(Refused, match="used by a node that was removed"):
            await nodes.enrol(rig.cluster, user, Enrol(1, "0", "other", keys.generate().public))


async def test_a_used_token_stays_used_after_a_takeover(autojump_clock, tmp_path):
    """Who used it is in the registry; and the next controller derives the same token."""
    async with a_plane(tmp_path, "host") as rig:
        await enrol(rig)
        before, disk, database, known = rig.cluster.identity, rig.disk, rig.database, rig.nodes
    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.cluster.state.guests.identity = before
        rig.nodes = known
        rig.connect("host")
        rig.run()
        user = token_user(rig)
        assert user is not None
        with pytest.raises(Refused, match="used by inner"):
            await nodes.enrol(rig.cluster, user, Enrol(1, "0", "other", keys.generate().public))


async def test_no_token_for_what_hosts_no_pods(autojump_clock, tmp_path):
    """A VM without a trunk and a container get none."""
    async with a_plane(tmp_path, "host") as rig:
        await nest_vm(rig)
        plain = vm()
        plain = evolve(
            plain,
            name="plain",
            template=evolve(plain.template, vm=evolve(plain.template.vm, trunk=False)),
        )
        await rig.apply(plain, evolve(pods(1), placement=plain.placement))
        rig.run()
        host = rig.nodes["host"]
        told = {host.instances[one].service for one in host.tokens}
        assert {one.service for one in host.instances.values()} == {"db", "plain", "web"}
        assert told == {"db"}


async def test_a_token_is_revoked_with_its_vm(autojump_clock, tmp_path):
    """From when the VM is to go: neither its key nor who had it in hand is let in."""
    async with a_plane(tmp_path, "host") as rig:
        await nest_vm(rig)
        user = token_user(rig)
        await rig.ask("service.remove", names=["db"])
        rig.step(deliver=False)  # The host has not taken it away yet.
        assert token_user(rig) is None
        with pytest.raises(Refused, match="for a VM that is gone, or was replaced"):
            await nodes.enrol(rig.cluster, user, Enrol(1, "0", "inner", keys.generate().public))


async def test_a_node_goes_with_its_vm(autojump_clock, tmp_path):
    """Its pods are placed elsewhere, its ports are free, and it is registered no more."""
    async with a_plane(tmp_path, "host", "spare") as rig:
        rig.nursery.start_soon(rig.cluster.state.guests.run, rig.cluster)
        await enrol(rig)
        revoked = set(rig.cluster.revoked)
        await rig.apply(evolve(pods(), placement=evolve(pods().placement, constraints=())))
        await rig.ask("node.change", names=["host", "spare"], cordoned=True)
        await rig.ask("service.scale", replicas={"web": 4})
        rig.run()
        assert any(one.node == "inner" for one in holders(rig))
        await rig.ask("node.change", names=["host", "spare"], cordoned=False)
        await rig.ask("service.remove", names=["db"])
        rig.run()
        assert {one.node for one in holders(rig)} <= {"host", "spare"}
        await until(lambda: "inner" not in rig.cluster.state.nodes)
        await until(lambda: ports(rig) == ["web.1", "web.2", "web.3", "web.4"])
        assert all(not one.vlan for one in rig.cluster.state.ports.wishes.values())
        assert rig.cluster.revoked.keys() == revoked  # Nothing more is left in the store.


def holders(rig):
    """The pods."""
    return rig.cluster.state.services[("default", "web")].holders.values()


async def test_a_node_is_lost_when_its_vm_stops_running(autojump_clock, tmp_path):
    """At once, without waiting for its silence; it is back as soon as it says so."""
    async with a_plane(tmp_path, "host", "spare") as rig:
        inner = await enrol(rig)
        await rig.apply(pods())
        rig.run()
        assert len(rig.running()) == 2
        host = rig.nodes["host"]
        failed = evolve(host.instances[vm_incarnation(rig)], state=int(InstanceState.FAILED))
        report(rig, host, failed)
        assert rig.cluster.state.nodes["inner"].state.value == "lost"
        assert not rig.cluster.sessions.losses.brake.holds
        explained = await rig.ask("instance.explain", name="web.1")
        assert any("db.1, which does not run" in line for line in explained["lines"])

        report(rig, host, evolve(failed, state=int(InstanceState.RUNNING), attempt=2))
        inner.peer = b""
        rig.connect("inner")
        rig.run()
        assert rig.cluster.state.nodes["inner"].state.value == "ready"


def report(rig, node, one: InstanceReport):
    """A node tells of an instance."""
    node.instances[one.incarnation] = one
    node.sequence += 1
    rig.cluster.sessions.on_message(node.peer, f"node:{node.name}", Report(node.sequence, (one,)))


async def test_many_vms_that_end_are_no_storm(autojump_clock, tmp_path):
    """Their nodes are lost for a reason that is known: nothing brakes."""
    async with a_plane(tmp_path, "host") as rig:
        await nest_vm(rig)
        rig.nursery.start_soon(rig.cluster.state.guests.run, rig.cluster)
        await rig.apply(evolve(vm(), replicas=8))
        rig.run()
        for incarnation, text in sorted(rig.nodes["host"].tokens.items()):
            user = rig.cluster.access.authorise(parse_token(text).public_key)
            await rig.join(f"inner-{incarnation}", user=user)
        rig.run()
        assert len(rig.cluster.state.nodes) == 9
        await rig.ask("service.remove", names=["db"])
        rig.run()
        rig.cluster.sessions.losses.check_lost(100.0)
        assert not rig.cluster.state.braked
        await until(lambda: list(rig.cluster.state.nodes) == ["host"])


async def test_a_node_whose_vm_went_unseen_is_found(autojump_clock, tmp_path):
    """The VM was taken away while no controller ran: known once every machine has reported."""
    async with a_plane(tmp_path, "host") as rig:
        await enrol(rig)
        disk, database, known = rig.disk, rig.database, rig.nodes
    known["host"].instances.clear()
    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = known
        rig.nursery.start_soon(rig.cluster.state.guests.run, rig.cluster)
        await trio.sleep(3 * guests.LOOK_EVERY_S)
        assert "inner" in rig.cluster.state.nodes  # The host may have its VM.
        rig.connect("host")
        await until(lambda: "inner" not in rig.cluster.state.nodes)
