"""Pods in VMs: their ports are VLANs on the VM's port, and go with it."""

from attrs import evolve

from swarmctl.controller.paths import Seen, place_of, tenant_paths
from swarmctl.controller.subports import SPARES
from swarmctl.net.model import Provider
from swarmctl.net.vlans import VLAN_MAX
from swarmctl.proto.messages import Report
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import DiskSpec, NetworkUse, Placement, ServiceSpec, Template, VmSpec
from tests.unit.controller.networks_fixture import (
    a_plane,
    create,
    definition,
    ports,
    rows,
    service,
    spares,
    until,
)

INSIDE = Placement(constraints=("node.labels.name == inner",))
OUTSIDE = Placement(constraints=("node.labels.name == host",))


def vm():
    """A VM that may host pods."""
    template = Template(
        vm=VmSpec(DiskSpec("d.qcow2"), trunk=True), networks=(NetworkUse("trunks"),)
    )
    return ServiceSpec("db", template, driver="docker", placement=OUTSIDE)


async def nest(rig):
    """A VM on the host, and the node that it is."""
    await create(rig, definition(), definition("trunks", "10.30.0.0/24"))
    await rig.apply(vm())
    rig.run()
    inner = await rig.join("inner")
    inner.parent = "db.1"
    rig.disconnect("inner")
    rig.connect("inner")
    rig.run()
    return inner


def pods(replicas=2):
    """A service that runs in the VM."""
    return evolve(service("web", replicas), placement=INSIDE)


async def test_a_pod_is_a_vlan_on_its_vms_port(autojump_clock, tmp_path):
    """Each has one of its own there; ps and network inspect show VM, host and path."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        await rig.apply(pods())
        rig.run()
        await until(lambda: ports(rig) == ["db.1", "web.1", "web.2"])

        [trunk] = rig.nodes["host"].instances.values()
        given = [one.attachments[0] for one in inner.instances.values()]
        assert sorted(one.vlan for one in given) == [1, 2]
        nested = [row for row in rows(rig).values() if row.columns["parent_name"]]
        assert {row.columns["parent_name"] for row in nested} == {trunk.attachments[0].port}
        assert {row.columns["tag_request"] for row in nested} >= {1, 2}
        views = {one["instance"]: one for one in await rig.ask("instance.list")}
        assert (views["web.1"]["vm"], views["web.1"]["host"]) == ("db.1", "host")
        assert (views["db.1"]["vm"], views["db.1"]["host"]) == ("", "host")
        found = await rig.ask("network.inspect", name="front")
        vlan = {one.slot: one.attachments[0].vlan for one in inner.instances.values()}
        assert found["attached"][0]["path"] == [
            "web.1",
            f"VLAN {vlan[1]}",
            "db.1 (inner)",
            "host",
        ]


async def test_the_path_of_a_pod_goes_through_its_vm(autojump_clock, tmp_path):
    """Its VLAN on the VM's port, and the host's own way out; what no agent says is not seen."""
    async with a_plane(tmp_path, "host") as rig:
        await nest(rig)
        await rig.apply(pods())
        rig.run()
        found = await rig.ask("instance.trace", name="web.1", to="web.2")
        vm = await rig.ask("instance.trace", name="db")

    [path] = found["networks"]
    [trunk] = vm["networks"]
    assert (path["trunk"], path["vm"], path["host"]) == (trunk["port"], "db.1", "host")
    assert [one["hop"] for one in path["hops"]] == ["interface", "trunk", "port", "geneve"]
    assert path["hops"][1] == {
        "hop": "trunk",
        "where": "db.1 (inner)",
        "what": f"VLAN {path['vlan']} on the VM's port {trunk['port']}",
    }
    assert path["hops"][2]["what"].endswith("not seen: the agent of host does not say")
    assert path["installed"] is None
    assert sorted(found["notes"]) == [
        "its node inner does not answer: what the controller knows is shown",
        "the host of db.1 host does not answer: its part is left out",
        "the node of web.2 inner does not answer: what the controller knows is shown",
    ]
    assert [one["hop"] for one in found["to"]["hops"]] == [
        *("interface", "trunk", "port", "switch", "port", "trunk", "interface")
    ]


async def test_what_ovn_says_of_a_trunk_is_no_alarm(autojump_clock, tmp_path):
    """It takes "installed" back from a VM that is well, when a pod's port goes: so nobody knows."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        state = rig.cluster.state
        [db] = state.services["default", "db"].holders.values()
        port = state.ports.attachments[db.incarnation][0].port

        def standing(instance, installed):
            plug = {port: {"device": "tap0", "installed": installed}}
            seen = Seen({"bridge": "br-int", "address": ""}, plug)
            [path] = tenant_paths(state, instance, place_of(state, instance), seen)
            [text] = [hop["what"] for hop in path["hops"] if hop["hop"] == "port"]
            return path["installed"], text.partition("tap0 on br-int, ")[2]

        # No pod was on it yet: what OVN says is so.
        assert standing(db, False) == (False, "OVN has not installed it")
        await rig.apply(pods(1))
        rig.run()
        [pod] = state.services["default", "web"].holders.values()
        for one in (db, pod):
            assert standing(one, True) == (True, "installed")
            assert standing(one, False) == (None, "not known whether OVN has installed it")
        assert inner.instances


async def test_with_the_vm_its_pods_and_their_ports_go(autojump_clock, tmp_path):
    """Once its host has confirmed that it is gone, nothing is held for them."""
    async with a_plane(tmp_path, "host") as rig:
        await nest(rig)
        await rig.apply(pods())
        rig.run()
        await until(lambda: len(ports(rig)) == 3)
        await rig.ask("service.remove", names=["db"])
        rig.run()

        assert rig.cluster.state.nodes["inner"].state.value == "lost"
        await until(lambda: ports(rig) == [])
        await until(lambda: not rig.cluster.state.ports.leaving)
        explained = await rig.ask("instance.explain", name="web.1")
        assert "lost" in explained["lines"][0]


async def test_a_pod_waits_while_the_vm_has_no_port(autojump_clock, tmp_path):
    """A node that is in an unknown VM takes no pods on networks, and that is the reason."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        inner.parent = "7-99"
        rig.disconnect("inner")
        rig.connect("inner")
        await rig.apply(pods(1))
        rig.run()
        [view] = [one for one in await rig.ask("instance.list") if one["service"] == "web"]
        assert view["state"] == "pending"
        assert "in the VM 7-99, of which no port is known" in view["reason"]


async def test_vlans_that_run_out_are_a_reason(autojump_clock, tmp_path):
    """A trunk carries 4094; one pod more is nowhere, and its node keeps its room."""
    async with a_plane(tmp_path, "host") as rig:
        await nest(rig)
        [trunk] = rig.nodes["host"].instances.values()
        for _ in range(VLAN_MAX):
            rig.cluster.state.ports.book.give_vlan(trunk.attachments[0].port, str)
        before = rig.cluster.fleet.snapshot.allocated("inner")
        await rig.apply(pods(1))
        rig.run()
        explained = await rig.ask("instance.explain", name="web.1")
        assert f"all {VLAN_MAX} VLANs of the trunk are taken" in explained["lines"][0]
        assert rig.cluster.fleet.snapshot.allocated("inner") == before


async def test_a_takeover_finds_the_trunks_again(autojump_clock, tmp_path):
    """Though the node in the VM reports before the host does: its pods' rows stay as they are."""
    async with a_plane(tmp_path, "host") as rig:
        await nest(rig)
        await rig.apply(pods())
        rig.run()
        await until(lambda: len(ports(rig)) == 3)
        before, disk, database, nodes = rows(rig), rig.disk, rig.database, rig.nodes

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("inner")
        await until(lambda: rig.cluster.state.ports.known)
        assert rows(rig) == before
        rig.connect("host")
        rig.run()
        await until(lambda: not rig.cluster.state.ports.unclaimed)
        await until(lambda: rows(rig) == before)


async def test_a_pod_is_given_a_port_that_ovn_has_already(autojump_clock, tmp_path):
    """Spares are made many at once; a pod takes one, and leaves it for the next when it goes."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        await rig.apply(pods(1))
        rig.run()
        await until(lambda: len(spares(rig)) == SPARES)
        before = spares(rig)
        await rig.apply(pods(3))
        rig.run()
        used = {one.attachments[0].port for one in inner.instances.values()}
        assert len(used & before) >= 2
        await until(lambda: len(spares(rig)) == SPARES)

        await rig.ask("service.scale", replicas={"web": 0})
        rig.run()
        await until(lambda: ports(rig) == ["db.1"] and len(spares(rig)) == SPARES)
        await rig.ask("service.remove", names=["web"])
        [front] = [one for one in await rig.ask("network.list") if one["network"] == "front"]
        assert front["ports"] == 0
        await until(lambda: not rig.cluster.state.ports.leaving)
        await rig.ask("network.remove", name="front")
        await until(lambda: spares(rig) == set())


async def test_spares_go_when_their_addresses_are_needed(autojump_clock, tmp_path):
    """They never take the last ones: what wants an address has it."""
    async with a_plane(tmp_path, "host") as rig:
        await create(rig, definition("small", "10.40.0.0/27"))
        await nest(rig)
        small = evolve(service("web", 1, "small"), placement=INSIDE)
        await rig.apply(small)
        rig.run()
        await until(lambda: len(spares(rig)) == SPARES)
        await rig.apply(evolve(service("out", 28, "small"), placement=OUTSIDE))

        def all_placed():
            rig.run()
            return len(rig.running("out")) == 28

        await until(all_placed)
        assert spares(rig) == set()


async def test_a_takeover_finds_the_spares_again(autojump_clock, tmp_path):
    """They are kept, and given to the next pods."""
    async with a_plane(tmp_path, "host") as rig:
        await nest(rig)
        await rig.apply(pods(2))
        rig.run()
        await until(lambda: len(spares(rig)) == SPARES)
        before, disk, database, nodes = rows(rig), rig.disk, rig.database, rig.nodes

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("inner")
        rig.connect("host")
        rig.run()
        await until(lambda: rig.cluster.state.ports.known)
        await until(lambda: not rig.cluster.state.ports.unclaimed)
        assert rig.cluster.state.ports.subports.count(("default", "front")) == SPARES
        await until(lambda: rows(rig) == before)


async def test_a_port_that_ovn_has_as_anothers_is_given_to_nobody(autojump_clock, tmp_path):
    """Until OVN was told, it is in the groups of the service that had it, and has its names."""
    async with a_plane(tmp_path, "host") as rig:
        await create(rig, definition("small", "10.40.0.0/27"))
        inner = await nest(rig)
        await rig.apply(evolve(service("web", 9, "small"), placement=INSIDE))
        rig.run()
        await until(lambda: len(ports(rig)) == 10)
        kept = len(spares(rig))
        [gone] = [one for one in inner.instances.values() if one.slot == 9]
        port = gone.attachments[0].port

        rig.database.go_away()
        await rig.ask("service.scale", replicas={"web": 8})
        rig.run()
        await rig.apply(evolve(service("other", kept + 1, "small"), placement=INSIDE))
        rig.run()
        used = {one.attachments[0].port for one in inner.instances.values()}
        assert len(used) == 8 + kept + 1
        assert port not in used

        rig.database.come_back()
        await until(lambda: spares(rig) == {port})


async def test_spares_that_could_not_be_known_share_nothing(autojump_clock, tmp_path):
    """With OVN away in a takeover, pods are given what spares have there: those go, once seen."""
    async with a_plane(tmp_path, "host") as rig:
        await nest(rig)
        await rig.apply(pods(1))
        rig.run()
        await until(lambda: len(spares(rig)) == SPARES)
        disk, database, nodes = rig.disk, rig.database, rig.nodes

    database.go_away()
    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("inner")
        rig.connect("host")
        rig.run()
        await rig.apply(pods(4))
        rig.run()
        assert len(rig.running()) == 4

        database.come_back()
        await until(lambda: rig.cluster.state.ports.known)
        await until(lambda: not rig.cluster.state.ports.leaving)
        await rig.apply(pods(4 + 2 * SPARES))
        rig.run()
        await until(lambda: len(ports(rig)) == 5 + 2 * SPARES)
        texts = [text for row in rows(rig).values() for text in row.columns["addresses"]]
        given = [text.split()[1] for text in texts if " " in text]
        assert len(set(given)) == len(given)
        tags = [row.columns["tag_request"] for row in rows(rig).values()]
        tags = [tag for tag in tags if tag]
        assert len(set(tags)) == len(tags)


async def join_in(rig, name, parent):
    """A node that says which VM it is."""
    node = await rig.join(name)
    node.parent = parent
    rig.disconnect(name)
    rig.connect(name)
    rig.run()
    return node


async def test_a_trunk_that_takes_nothing_is_passed_over(autojump_clock, tmp_path):
    """An empty VM that is not known is the scheduler's first choice, once: pods go to another."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        await rig.apply(evolve(service("busy", 4), placement=INSIDE))
        rig.run()
        strange = await join_in(rig, "strange", "7-99")
        anywhere = Placement(constraints=("node.labels.name != host",))
        await rig.apply(evolve(service("web", 2), placement=anywhere))
        rig.run()
        assert rig.running() == [1, 2]
        assert not strange.instances

        strange.parent = "db.1"
        rig.disconnect("strange")
        rig.connect("strange")
        await rig.apply(evolve(service("more", 2), placement=anywhere))
        rig.run()
        assert strange.instances
        assert len(strange.instances) + len(inner.instances) == 8


async def test_a_full_trunk_is_passed_over_until_a_vlan_is_free(autojump_clock, tmp_path):
    """Spares of other networks leave it first; their VLANs are for whoever comes."""
    async with a_plane(tmp_path, "host") as rig:
        await create(rig, definition("back", "10.40.0.0/24"))
        inner = await nest(rig)
        await rig.apply(pods(1))
        rig.run()
        await until(lambda: len(spares(rig)) == SPARES)
        trunk = rig.cluster.state.ports.wishes[inner.instances.popitem()[1].attachments[0].port]
        book = rig.cluster.state.ports.book
        while book.vlans_free(trunk.parent):
            book.give_vlan(trunk.parent, str)
        await rig.apply(evolve(service("other", 2, "back"), placement=INSIDE))
        rig.step()
        assert rig.running("other") == []
        assert rig.cluster.state.nodes["inner"].obstacles

        def placed():
            rig.run()
            return rig.running("other") == [1, 2]

        await until(placed)
        assert not rig.cluster.state.nodes["inner"].obstacles


async def test_a_trunk_is_too_narrow_for_a_wider_network(autojump_clock, tmp_path):
    """Its router would send what the trunk loses: pods of it are not there, and it says why."""
    async with a_plane(tmp_path, "host") as rig:
        await create(rig, definition("disks", "10.40.0.0/24", provider=Provider("physnet1", 3)))
        inner = await nest(rig)
        await rig.apply(evolve(service("web", 1, "disks"), placement=INSIDE), service("own"))
        rig.run()
        [view] = [one for one in await rig.ask("instance.list") if one["service"] == "web"]
        assert view["state"] == "pending"
        assert (
            "network default/disks has an MTU of 1500, and the VM's own network default/trunks"
            " carries 1442"
        ) in view["reason"]

        await rig.apply(service("free", 4, "disks"))
        rig.run()
        assert rig.running("free") == [1, 2, 3, 4]
        assert {one.service for one in inner.instances.values()} <= {"own"}
        await rig.apply(evolve(service("front", 1), placement=INSIDE))
        rig.run()
        assert rig.running("front") == [1]


async def test_spares_stay_where_nothing_is_short(autojump_clock, tmp_path):
    """A service that waits for one network's address takes no spares from its other network."""
    async with a_plane(tmp_path, "host") as rig:
        await create(rig, definition("tiny", "10.40.0.0/29"))
        await nest(rig)
        await rig.apply(pods(1))
        rig.run()
        await until(lambda: len(spares(rig)) == SPARES)
        await rig.apply(
            evolve(service("both", 9, "front", "tiny"), placement=OUTSIDE),
            evolve(service("fixed", 1, addresses=["10.20.0.250"]), placement=OUTSIDE),
        )
        rig.run()
        other = service("same", 1, addresses=["10.20.0.250"])
        await rig.apply(evolve(other, placement=OUTSIDE))
        rig.run()
        await until(lambda: len(ports(rig)) == 13)
        assert rig.running("same") == []
        assert len(spares(rig)) == SPARES


async def test_a_spare_leaves_a_fixed_address_to_who_asks_for_it(autojump_clock, tmp_path):
    """It is nobody's, so nobody need be waited for."""
    async with a_plane(tmp_path, "host") as rig:
        await nest(rig)
        await rig.apply(pods(1))
        rig.run()
        await until(lambda: len(spares(rig)) == SPARES)
        wishes = rig.cluster.state.ports.wishes.values()
        address = next(one.addresses[0] for one in wishes if not one.service)
        await rig.apply(evolve(service("own", 1, addresses=[address]), placement=OUTSIDE))

        def placed():
            rig.run()
            return rig.running("own") == [1]

        await until(placed)


def port_failed(rig, inner, incarnation, port):
    """The node reports a launch that failed since its port did not come up."""
    one = inner.instances[incarnation]
    inner.instances[incarnation] = evolve(
        one,
        state=int(InstanceState.FAILED),
        attempt=one.attempt + 1,
        reason=f"port {port} did not come up within 30 s",
        retrying=True,
        port_down=port,
    )
    inner.sequence += 1
    report = Report(inner.sequence, (inner.instances[incarnation],))
    rig.cluster.sessions.on_message(inner.peer, f"node:{inner.name}", report)
    rig.run()


async def test_a_subport_that_does_not_come_up_is_replaced(autojump_clock, tmp_path):
    """Its pod gets another, the history says why, and the bad one is no spare: it is deleted."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        await rig.apply(pods(1))
        rig.run()
        await until(lambda: ports(rig) == ["db.1", "web.1"])
        [bad] = inner.instances.values()
        port = bad.attachments[0].port
        port_failed(rig, inner, bad.incarnation, port)

        [good] = inner.instances.values()
        assert good.incarnation != bad.incarnation
        assert good.attachments[0].port != port
        await until(lambda: port not in [row.columns["name"] for row in rows(rig).values()])
        await until(lambda: not rig.cluster.state.ports.leaving)
        assert rig.cluster.state.ports.condemned == set()
        explained = await rig.ask("instance.explain", name="web.1")
        assert [text for _, text in explained["history"]][-1] == (
            f"web.1: its port {port} did not come up, and is replaced"
        )


async def test_every_port_has_a_gateway_that_is_sure_to_answer_or_none(autojump_clock, tmp_path):
    """Also a second one and an internal one, without routes; none where it is a provider's."""
    async with a_plane(tmp_path, "host") as rig:
        provider = Provider("physnet1", 30)
        await create(rig, definition("inside", "10.41.0.0/24", internal=True))
        await create(rig, definition("outside", "10.42.0.0/24", provider=provider, mtu=1400))
        inner = await nest(rig)
        web = service("web", 1, "inside", "front")
        await rig.apply(evolve(web, placement=INSIDE))
        await rig.apply(evolve(service("out", 1, "outside"), placement=INSIDE))
        rig.run()

        told = {one.service: one.attachments for one in inner.instances.values()}
        assert [one.gateway for one in told["web"]] == ["10.41.0.1", "10.20.0.1"]
        assert [one.routes for one in told["web"]] == [(), ()]
        [outside] = told["out"]
        assert outside.gateway == ""
        assert outside.routes == (("0.0.0.0/0", "10.42.0.1"),)


async def test_a_node_condemns_no_port_but_its_own_pods(autojump_clock, tmp_path):
    """What it says of another's, or of a machine's own port, moves nothing."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        await rig.apply(pods(2))
        rig.run()
        one, two = inner.instances.values()
        port_failed(rig, inner, one.incarnation, two.attachments[0].port)
        [vm_port] = [one.attachments[0].port for one in rig.nodes["host"].instances.values()]
        port_failed(rig, rig.nodes["host"], next(iter(rig.nodes["host"].instances)), vm_port)

        assert set(inner.instances) == {one.incarnation, two.incarnation}
        assert rig.cluster.state.ports.condemned == set()


async def test_while_ovn_is_away_ports_are_replaced_no_more_than_a_few_times(
    autojump_clock, tmp_path
):
    """Each holds an address until OVN has removed it: the pod then waits with the one it has."""
    async with a_plane(tmp_path, "host") as rig:
        inner = await nest(rig)
        await rig.apply(pods(1))
        rig.run()
        await until(lambda: spares(rig))
        rig.database.go_away()
        seen = set()
        for _ in range(3 * SPARES):
            [one] = inner.instances.values()
            seen.add(one.incarnation)
            port_failed(rig, inner, one.incarnation, one.attachments[0].port)

        assert len(seen) == SPARES + 1
