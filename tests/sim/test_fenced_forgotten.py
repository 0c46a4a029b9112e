"""A fenced copy whose node has forgotten it, with its driver away: it never runs twice."""

import pytest
import trio
import trio.testing

from swarmctl.agent.config import MissingDriver
from swarmctl.agent.journal import MemoryJournal
from tests.sim.cluster_fixture import a_cluster
from tests.sim.fence_fixture import Fences, fenced_service


async def forgets(world, name):
    """The agent of a node loses its journal while the driver's daemon is away; all begin anew."""
    machine = world.machines[name]
    machine.scope.cancel()
    world.kill_controller()
    await trio.testing.wait_all_tasks_blocked()
    machine.journal = MemoryJournal()
    machine.host.reachable = False
    await world.start_controller()
    await world.start_node(name)
    await world.until(lambda: is_connected(world, name))


def is_connected(world, name):
    return world.cluster.state.nodes[name].peer is not None


def lose_connection(world, name):
    world.cluster.sessions.peer_departed(world.cluster.state.nodes[name].peer)


@pytest.mark.parametrize("again", ["controller", "connection"])
async def test_a_second_session_is_believed_no_more_than_the_first(autojump_clock, tmp_path, again):
    """While the node's lease may hold, the slot is nobody else's; then its guard has ended it."""
    fences, web = Fences(), fenced_service()
    async with a_cluster(tmp_path, nodes=3, make_fence=fences.of) as world:
        await world.apply(web)
        await world.until_runs(web)
        await trio.sleep(20)
        (name,) = world.running()[1]
        await forgets(world, name)
        if again == "controller":
            await world.restart_controller()
        else:
            lose_connection(world, name)
        await world.until(lambda: is_connected(world, name))
        left_s = fences[name].left_s
        assert left_s > 15

        def is_elsewhere():
            return world.running()[1] != [name]

        assert await world.until(is_elsewhere) > left_s


async def test_once_the_driver_tells_the_lease_is_renewed_and_it_runs_on(autojump_clock, tmp_path):
    """Nothing is started anew, and nothing is ended."""
    fences, web = Fences(), fenced_service()
    async with a_cluster(tmp_path, nodes=3, make_fence=fences.of) as world:
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()
        (name,) = world.running()[1]
        await forgets(world, name)
        await trio.sleep(10)
        world.machines[name].host.reachable = True
        await world.until(lambda: fences[name].left_s > 20)
        await trio.sleep(60)
        assert fences[name].left_s > 20
        assert world.incarnations() == before


async def test_a_missing_driver_makes_no_fresh_node_doubtful(autojump_clock, tmp_path):
    """Nothing is on its guard's list: what is fenced runs there at once."""
    fences, web = Fences(), fenced_service()
    missing = MissingDriver("libvirt", "libvirt is not installed on this machine")
    async with a_cluster(
        tmp_path, nodes=1, make_fence=fences.of, more_drivers={"libvirt": missing}
    ) as world:
        await world.apply(web)
        assert await world.until_runs(web) < 10


async def test_what_the_guard_lists_and_nobody_has_is_taken_off(autojump_clock, tmp_path):
    """Else the node would be in doubt at each start of a controller."""
    fences, web = Fences(), fenced_service()
    async with a_cluster(tmp_path, nodes=1, make_fence=fences.of) as world:
        fences["n1"].enlist(17, "gone")
        await world.apply(web)
        await world.until_runs(web)
        await world.until(lambda: 17 not in fences["n1"].listed)
        assert len(fences["n1"].listed) == 1
