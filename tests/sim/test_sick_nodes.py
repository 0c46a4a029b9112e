"""A node where nothing comes to run: named, avoided, and healed, with the real agents."""

import trio

from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.states import NodeState
from tests.sim.cluster_fixture import a_cluster, service


async def test_what_cannot_be_launched_on_one_node_runs_on_the_others(autojump_clock, tmp_path):
    """All of it runs, the node says why it gets nothing, and takes instances again once it can."""
    async with a_cluster(tmp_path, 3) as world:
        host = world.machines["n1"].host
        host.fail_next("create", LaunchFailed("the device is busy"), times=10_000)
        web = service(replicas=12)
        await world.apply(web)
        await world.until_runs(web)

        assert {at for [at] in world.running().values()} == {"n2", "n3"}
        node = world.cluster.state.nodes["n1"]
        assert node.state is NodeState.SICK
        assert "launches fail here and not elsewhere" in node.reasons[0]
        [row] = [one for one in await world.ask("node.list") if one["node"] == "n1"]
        assert tuple(row["reasons"]) == node.reasons

        host._faults.clear()
        await world.until(lambda: node.state is NodeState.READY, patience_s=90)
        more = service("db", 6)
        await world.apply(more)
        await world.until_runs(web, more)
        assert "n1" in {at for [at] in world.running("db").values()}


async def test_what_fails_everywhere_makes_no_node_sick(autojump_clock, tmp_path):
    """It is the service's fault."""
    async with a_cluster(tmp_path, 3) as world:
        for machine in world.machines.values():
            machine.host.fail_next("create", LaunchFailed("no such device"), times=10_000)
        await world.apply(service(replicas=12))
        await trio.sleep(30)
        tries = [one.attempt for one in world.cluster.state.all_instances()]
        assert len(tries) == 12
        assert min(tries) >= 3
        assert {one.state for one in world.cluster.state.nodes.values()} == {NodeState.READY}
