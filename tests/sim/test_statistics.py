"""What the daemons say of themselves, asked by a user."""

import pytest

from swarmctl.proto.errors import NotFound, PeerUnreachable
from tests.sim.cluster_fixture import a_cluster, service


async def test_a_node_and_its_controller_count_their_tasks(autojump_clock, tmp_path):
    """The controller passes the question on; of a node that is away it says so at once."""
    async with a_cluster(tmp_path, 2) as world:
        web = service("web", 4)
        await world.apply(web)
        await world.until_runs(web)

        said = await world.ask("node.statistics", {"name": "n1"})
        assert said["tasks"] > 0
        assert said["instances"]["running"] == 2
        assert (await world.ask("cluster.statistics"))["tasks"] > 0

        with pytest.raises(NotFound):
            await world.ask("node.statistics", {"name": "nobody"})
        world.cut("n1")
        await world.until(lambda: world.cluster.state.nodes["n1"].state.value == "lost")
        with pytest.raises(PeerUnreachable):
            await world.ask("node.statistics", {"name": "n1"})
