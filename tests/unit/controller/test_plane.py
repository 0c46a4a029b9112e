"""What OVN is told, and when it does not listen: rounds over a northbound in memory."""

import trio
from attrs import evolve

from swarmctl.net.relays import ADDRESS
from swarmctl.net.rows import desired_rows
from swarmctl.proto.errors import StaleTerm
from swarmctl.spec.models import VmSpec
from tests.unit.controller.networks_fixture import (
    a_plane,
    create,
    definition,
    ports,
    rows,
    service,
    until,
)


def given(rig):
    """Instance to addresses, of all that have ports."""
    return {one.instance: one.addresses for one in rig.cluster.state.ports.wishes.values()}


async def test_ovn_has_a_port_for_each_instance(autojump_clock, tmp_path):
    """They come with the instances, and go with them."""
    async with a_plane(tmp_path, "a", "b") as rig:
        await create(rig)
        await rig.apply(service("web", 3))
        rig.run()
        await until(lambda: ports(rig) == ["web.1", "web.2", "web.3"])
        await rig.ask("service.scale", replicas={"web": 1})
        rig.run()
        await until(lambda: ports(rig) == ["web.1"])

        [network] = await rig.ask("network.list")
        assert (network["state"], network["ports"], network["addresses_taken"]) == ("ready", 1, 1)


async def test_a_network_that_a_trunk_is_on_has_a_relay(autojump_clock, tmp_path):
    """The agent in the VM reaches a controller by it; other networks have none."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig, definition(), definition("back", "10.30.0.0/24"))
        web = service("web", 1)
        template = evolve(web.template, container=None, vm=VmSpec(kernel="vmlinuz", trunk=True))
        await rig.apply(evolve(web, name="vm", template=template), service("plain", 1, "back"))
        rig.run()
        await until(lambda: len(_relays(rig)) == 1)

        assert ADDRESS in str(_relays(rig)[0].columns["addresses"])


def _relays(rig):
    return [row for row in rows(rig).values() if row.columns.get("type") == "localport"]


async def test_a_database_that_is_away_is_a_condition_and_holds_nothing_up(
    autojump_clock, tmp_path
):
    """Instances run; the network says what is wrong and since when; then all is told."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await until(lambda: rows(rig, "Logical_Switch"))
        rig.database.go_away()
        await rig.apply(service("web", 2))
        rig.run()
        assert rig.running() == [1, 2]
        await until(lambda: rig.cluster.plane.fault)
        [network] = await rig.ask("network.list")
        assert network["state"] == "faulty"
        assert "does not answer" in network["reason"]
        assert network["since"] > 0

        rig.database.come_back()
        await until(lambda: ports(rig) == ["web.1", "web.2"])
        await until(lambda: not rig.cluster.plane.fault)


async def test_rows_that_were_lost_or_changed_come_back(autojump_clock, tmp_path):
    """After a new connection all is read anew: an empty database is filled, others' rows stay."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(service("web", 2))
        rig.run()
        await until(lambda: ports(rig) == ["web.1", "web.2"])
        others = rig.database.rows["another-cluster"] = {}
        rig.database.go_away()
        del rig.database.rows[rig.cluster.state.cluster_id]
        rig.database.come_back()

        await until(lambda: ports(rig) == ["web.1", "web.2"])
        assert rig.database.rows["another-cluster"] is others


async def test_a_takeover_gives_no_address_twice(autojump_clock, tmp_path):
    """Nodes bring back what they have, OVN what silent nodes have; new ones get others."""
    async with a_plane(tmp_path, "a", "b") as rig:
        await create(rig)
        await rig.apply(service("web", 4))
        rig.run()
        await until(lambda: len(ports(rig)) == 4)
        before, disk, database, nodes = given(rig), rig.disk, rig.database, rig.nodes

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.cluster.reconciler.settled = False
        rig.connect("a")
        await rig.apply(service("new", 3))
        await until(lambda: rig.cluster.state.ports.known)
        rig.run()
        after = given(rig)
        assert {name: after[name] for name in before} == before
        assert rig.running("new") == [1, 2, 3]
        every = [address for each in after.values() for address in each]
        assert len(every) == len(set(every)) == 7
        assert len(rig.cluster.state.ports.unclaimed) == len(rig.nodes["b"].instances)

        rig.connect("b")
        rig.run()
        await until(lambda: len(ports(rig)) == 7)
        assert not rig.cluster.state.ports.unclaimed
        assert {name: given(rig)[name] for name in before} == before


async def test_waiting_for_a_silent_node_costs_no_rounds(autojump_clock, tmp_path, monkeypatch):
    """Its ports are looked at, which are few; rows, which are many, are not computed for that."""
    async with a_plane(tmp_path, "a", "b") as rig:
        await create(rig)
        await rig.apply(service("web", 4))
        rig.run()
        await until(lambda: len(ports(rig)) == 4)
        disk, database, nodes = rig.disk, rig.database, rig.nodes

    rounds = []

    def counted(*args):
        rounds.append(trio.current_time())
        return desired_rows(*args)

    monkeypatch.setattr("swarmctl.controller.plane.desired_rows", counted)
    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("a")
        await until(lambda: rig.cluster.state.ports.known)
        await trio.sleep(100)
        assert rig.cluster.state.ports.unclaimed
        assert len(rounds) < 5

        rig.connect("b")
        await until(lambda: not rig.cluster.state.ports.unclaimed)
        assert len(ports(rig)) == 4


async def test_what_no_node_has_is_collected_once_all_have_told(autojump_clock, tmp_path):
    """A port that was left behind keeps its address until then, and no longer."""
    async with a_plane(tmp_path, "a", "b") as rig:
        await create(rig)
        await rig.apply(service("web", 2))
        rig.run()
        await until(lambda: len(ports(rig)) == 2)
        disk, database, nodes = rig.disk, rig.database, rig.nodes
        nodes["b"].instances.clear()

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("a")
        await until(lambda: rig.cluster.state.ports.known)
        assert len(ports(rig)) == 2
        rig.connect("b")
        rig.run()
        await until(lambda: not rig.cluster.state.ports.unclaimed)
        rig.run()
        await until(lambda: len(ports(rig)) == 2)
        assert not rig.cluster.state.ports.leaving


async def test_what_a_node_has_forgotten_ovn_still_knows(autojump_clock, tmp_path):
    """A node that lost its journal tells of instances without ports: they keep theirs."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig, definition(), definition("back", "10.30.0.0/24"))
        await rig.apply(service("web", 2, "front", "back"))
        rig.run()
        await until(lambda: len(ports(rig)) == 4)
        before = dict(rig.cluster.state.ports.attachments)
        disk, database, nodes = rig.disk, rig.database, rig.nodes
        for key, one in nodes["a"].instances.items():
            nodes["a"].instances[key] = evolve(one, attachments=())

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("a")
        rig.run()
        await until(lambda: rig.cluster.state.ports.attachments == before)
        assert len(ports(rig)) == 4
        assert not rig.cluster.state.ports.leaving


async def test_a_network_that_the_store_lost_is_left_alone(autojump_clock, tmp_path):
    """A restored store may not know it; while instances are on it, OVN keeps it as it is."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig, definition(), definition("lost", "10.30.0.0/24"))
        await rig.apply(service("web", 2, "lost"), service("db"))
        rig.run()
        await until(lambda: ports(rig) == ["db.1", "web.1", "web.2"])
        before, disk, database, nodes = rows(rig), rig.disk, rig.database, rig.nodes
        switches = rows(rig, "Logical_Switch")
        for key in ("network/default/lost", "service/default/web"):
            del disk.entries[key]

    async with a_plane(tmp_path, disk=disk, database=database) as rig:
        rig.nodes = nodes
        rig.connect("a")
        rig.run()
        await until(lambda: rig.cluster.plane.standing(("default", "front"))[0] == "ready")
        assert rig.running() == [1, 2]
        assert (rows(rig), rows(rig, "Logical_Switch")) == (before, switches)

        await rig.ask("service.remove", names=["web"])
        rig.run()
        await until(lambda: ports(rig) == ["db.1"])
        await until(lambda: len(rows(rig, "Logical_Switch")) == 1)


async def test_new_networks_wait_for_what_is_known(autojump_clock, tmp_path):
    """While neither OVN nor all nodes have told, nothing gets an address, and says so."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        rig.cluster.reconciler.settled = False
        rig.cluster.state.ports.known = False
        await rig.apply(service())
        rig.step()
        [view] = await rig.ask("instance.list")
        assert "waits for OVN's northbound database" in view["reason"]

        rig.cluster.reconciler.settle()
        rig.run()
        assert rig.running() == [1]


async def test_security_follows_a_change_of_the_network(autojump_clock, tmp_path):
    """Ports that are there join the groups that their network gets."""
    from swarmctl.net.model import SecurityGroup
    from swarmctl.spec import wire

    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await rig.apply(service())
        rig.run()
        await until(lambda: ports(rig) == ["web.1"])
        await rig.apply(
            networks=[wire.encode_plain(definition(security_groups=("web",)))],
            groups=[wire.encode_plain(SecurityGroup("default", "web"))],
        )

        def closed():
            return [row for key, row in rows(rig, "Port_Group").items() if row.columns["ports"]]

        await until(closed)


async def test_an_old_controller_writes_no_more(autojump_clock, tmp_path):
    """A higher term in the database and in the store ends it; in the database alone it waits."""
    async with a_plane(tmp_path, "a") as rig:
        await create(rig)
        await until(lambda: rows(rig, "Logical_Switch"))
        rig.database.terms[rig.cluster.state.cluster_id] = 9
        await rig.apply(service())
        rig.run()
        await until(lambda: "term 9" in rig.cluster.plane.fault)
        assert rig.cluster.deposed is None
        assert ports(rig) == []

        rig.disk.term = 9
        await until(lambda: isinstance(rig.cluster.deposed, StaleTerm))


async def test_a_held_cluster_tells_ovn_nothing(autojump_clock, tmp_path):
    """On hold all stays as it is; once released all is told."""
    async with a_plane(tmp_path, "a") as rig:
        rig.cluster.hold = "restored"
        await create(rig)
        assert rows(rig, "Logical_Switch") == {}
        rig.cluster.hold = ""
        await until(lambda: rows(rig, "Logical_Switch"))


async def test_where_ovn_is_has_to_be_said_once(autojump_clock, tmp_path):
    """It is kept in the store; "none" is kept as well, and then there are no ports."""
    async with a_plane(tmp_path, ovn="unix:/one") as rig:
        disk = rig.disk
    async with a_plane(tmp_path, disk=disk, ovn="") as rig:
        assert (rig.cluster.plane.address, rig.cluster.state.ports.active) == ("unix:/one", True)
    async with a_plane(tmp_path, disk=disk, ovn="none") as rig:
        assert (rig.cluster.plane.address, rig.cluster.state.ports.active) == ("", False)
    async with a_plane(tmp_path, disk=disk, ovn="") as rig:
        assert (rig.cluster.plane.address, rig.cluster.state.ports.active) == ("", False)


async def test_a_defect_in_a_round_is_a_condition(autojump_clock, tmp_path, monkeypatch):
    """It harms the networks alone, which show it, and is tried again."""
    async with a_plane(tmp_path, "a") as rig:
        with monkeypatch.context() as patched:
            patched.setattr("swarmctl.controller.plane.desired_rows", lambda *_: 1 / 0)
            await create(rig)
            await rig.apply(service())
            rig.run()
            await until(lambda: "ZeroDivisionError" in rig.cluster.plane.fault)
            assert rig.running() == [1]
        await until(lambda: ports(rig) == ["web.1"])
