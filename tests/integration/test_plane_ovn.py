"""The controller's plane on a real northbound database: told, lost, told again, collected."""

import shutil
from pathlib import Path

import pytest

from tests.integration.test_net_ovn import SCHEMA, OvnHarness
from tests.unit.controller.networks_fixture import a_plane, create, definition, service, until

pytestmark = pytest.mark.skipif(
    shutil.which("ovsdb-server") is None or not SCHEMA.exists(),
    reason="no ovsdb-server with OVN's schema: `python3 -m lab up --only ovn` brings it",
)


@pytest.fixture
def server(tmp_path: Path):
    """A database server of its own."""
    (tmp_path / "ovn").mkdir()
    harness = OvnHarness(tmp_path / "ovn", None)
    harness.start()
    yield harness
    harness.close()


def instances(server):
    """The instances whose ports the database has, in order."""
    listed = server.nbctl(
        *("--bare", "--no-headings", "--columns=external_ids", "list", "logical_switch_port")
    )
    words = [word.rstrip(",") for word in listed.replace("\n", " ").split()]
    marked = [word for word in words if word.startswith("swarmctl-instance=")]
    return sorted(word.partition("=")[2] for word in marked)


def a_real_plane(tmp_path, server, *names, disk=None):
    return a_plane(tmp_path, *names, disk=disk, ovn=f"unix:{server.socket}", real=True)


async def test_ports_come_heal_and_go(tmp_path, server):
    """With the instances; after a server that was killed, and one whose database was lost."""
    async with a_real_plane(tmp_path, server, "a") as rig:
        await create(rig)
        await rig.apply(service("web", 2))
        rig.run()
        await until(lambda: instances(server) == ["web.1", "web.2"])
        address = server.nbctl("lsp-get-addresses", next(iter(rig.cluster.state.ports.wishes)))
        assert "10.20.0." in address

        await server.go_away()
        await rig.ask("service.scale", replicas={"web": 3})
        rig.run()
        assert rig.running() == [1, 2, 3]
        server.make_database()
        await server.come_back()
        await until(lambda: instances(server) == ["web.1", "web.2", "web.3"])
        await until(lambda: rig.cluster.plane.standing(("default", "front"))[0] == "ready")

        await rig.ask("service.remove", names=["web"])
        rig.run()
        await until(lambda: not rig.cluster.state.ports.leaving)
        assert instances(server) == []


async def test_a_takeover_reads_what_ovn_has(tmp_path, server):
    """What a silent node has keeps its addresses: they are in the rows."""
    async with a_real_plane(tmp_path, server, "a", "b") as rig:
        await create(rig)
        await rig.apply(service("web", 4))
        rig.run()
        await until(lambda: len(instances(server)) == 4)
        before = {one.name: one.addresses for one in rig.cluster.state.ports.wishes.values()}
        disk, nodes = rig.disk, rig.nodes

    async with a_real_plane(tmp_path, server, disk=disk) as rig:
        rig.nodes = nodes
        rig.connect("a")
        await until(lambda: rig.cluster.state.ports.known)
        after = {one.name: one.addresses for one in rig.cluster.state.ports.wishes.values()}
        assert after == before
        rig.connect("b")
        rig.run()
        await until(lambda: not rig.cluster.state.ports.unclaimed)
        assert len(instances(server)) == 4


async def test_a_thousand_ports_are_told_while_instances_run(tmp_path, server):
    """Placing does not wait for them, and they come in transactions of some hundreds."""
    async with a_real_plane(tmp_path, server, "a") as rig:
        await create(rig, definition(cidr="10.20.0.0/16"))
        await until(lambda: rig.cluster.plane.standing(("default", "front"))[0] == "ready")
        rig.nodes["a"].cpu_millis = 10**9
        rig.disconnect("a")
        rig.connect("a")
        await rig.apply(service("web", 1000))
        rig.run()
        assert len(rig.running()) == 1000
        await until(lambda: len(instances(server)) == 1000)
