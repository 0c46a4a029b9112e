"""A fenced copy stays fenced when it is adopted from quarantine."""

import attrs
import pytest
import trio
import trio.testing

from swarmctl.agent.drivers.sim import SimDriver
from swarmctl.agent.journal import MemoryJournal
from swarmctl.proto.states import NodeState
from tests.sim.cluster_fixture import a_cluster
from tests.sim.fence_fixture import Fences, fenced_service


async def list_as_older_releases(driver, list_=SimDriver.list):
    """What they made does not say what it was made of."""
    return [attrs.evolve(one, template=b"") for one in await list_(driver)]


@pytest.mark.parametrize("tells", [True, False])
async def test_an_adopted_copy_is_not_doubled_while_its_lease_holds(
    autojump_clock, tmp_path, monkeypatch, tells
):
    """An older store, a lost journal: the stack is applied, then the node is cut off.

    Whether the copy says what it was made of or nobody knows.
    """
    if not tells:
        monkeypatch.setattr(SimDriver, "list", list_as_older_releases)
    fences, web = Fences(), fenced_service(1)
    async with a_cluster(tmp_path, nodes=3, make_fence=fences.of) as world:
        await world.apply(web)
        await world.until_runs(web)
        [node] = world.running()[1]
        machine = world.machines[node]
        world.kill_controller()
        machine.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        machine.journal = MemoryJournal()
        for key in [key for key in world.disk.entries if key.startswith("service/")]:
            del world.disk.entries[key]
        await world.start_controller()
        await world.start_node(node)
        await world.until(lambda: world.cluster.state.quarantine)
        [found] = world.cluster.state.quarantine["default", "web"].values()
        assert bool(found.template) is tells

        await world.apply(web)
        await world.until(lambda: fences[node].left_s > 20)
        world.cut(node)
        await world.until(lambda: world.cluster.state.nodes[node].state is NodeState.LOST)
        assert fences[node].left_s > 15
        while fences[node].left_s > 0:
            assert world.running() == {1: [node]}
            await trio.sleep(0.5)
        await world.until(lambda: len(world.running()[1]) == 2)
