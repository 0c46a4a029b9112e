"""An agent that starts without a driver that its journal has instances of."""

import trio.testing

from swarmctl.proto.states import NodeState
from tests.sim.cluster_fixture import a_cluster, service


async def start_with(world, machine, *drivers):
    """Its agent ends, and begins with other drivers."""
    machine.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    machine.drivers = drivers
    await world.start_node(machine.name)


async def without_its_driver(world, web):
    """A service runs, and then n1's agent is without the driver: what ran, n1, and its node."""
    await world.apply(web)
    await world.until_runs(web)
    before = world.incarnations()
    machine, node = world.machines["n1"], world.cluster.state.nodes["n1"]
    await start_with(world, machine)
    await world.until(lambda: node.state is NodeState.SICK)
    return before, machine, node


async def test_what_nobody_sees_to_says_so_and_goes_when_the_driver_is_back(
    autojump_clock, tmp_path
):
    """The node is sick and says why; nothing there counts as gone; then all is as asked for."""
    async with a_cluster(tmp_path, 2) as world:
        before, machine, node = await without_its_driver(world, service("web", 4))
        (reason,) = node.reasons
        assert reason == (
            "driver sim is missing, which the agent's journal has 2 of: "
            "start the agent with --drivers sim"
        )
        rows = await world.ask("instance.list", {"all": True})
        (shown,) = {row["reason"] for row in rows if row["node"] == "n1"}
        assert shown == (
            "the agent runs without driver sim: start it with --drivers sim, "
            "or take the node out with: swarmctl node rm n1"
        )
        assert world.incarnations() == before

        await world.ask("service.remove", {"names": ["web"]})
        await trio.sleep(60)
        assert len(node.instances) == len(world.book(machine)) == 2
        assert world.incarnations() < before
        await start_with(world, machine, "sim")
        await world.until(lambda: not world.incarnations() and not node.instances)
        await world.until(lambda: node.state is NodeState.READY)


async def test_what_runs_goes_on_when_the_driver_is_back(autojump_clock, tmp_path):
    """As it was: without a restart, and without the reason."""
    async with a_cluster(tmp_path, 1) as world:
        before, machine, node = await without_its_driver(world, service("web", 2))
        await start_with(world, machine, "sim")
        await world.until(lambda: node.state is NodeState.READY)
        await world.until(lambda: not any(one.reason for one in node.instances.values()))

        assert world.incarnations() == before
