"""An agent with a new journal whose driver is away: it cannot say yet what it has."""

import trio
import trio.testing

from swarmctl.agent.journal import MemoryJournal
from tests.sim.cluster_fixture import a_cluster, service


async def forget_all(world, machine):
    """Its agent is killed, the journal moved aside, the driver's daemon gone; and it begins."""
    machine.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    machine.journal = MemoryJournal()
    machine.host.reachable = False
    await world.start_node(machine.name)
    await world.until(lambda: world.cluster.state.nodes[machine.name].peer is not None)


def begun(world):
    """What the machines have and had run, with when it began."""
    return {
        (number, one.started_at)
        for machine in world.machines.values()
        for number, one in world.book(machine).items()
    }


async def test_what_ran_is_not_placed_elsewhere(autojump_clock, tmp_path):
    """It runs once, as before, whether the daemon is back at once or late."""
    web = service("web", 4)
    async with a_cluster(tmp_path, 2) as world:
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()
        await forget_all(world, world.machines["n1"])
        await trio.sleep(60)
        assert world.incarnations() == before
        world.machines["n1"].host.reachable = True
        await world.until(world.agrees)
        await trio.sleep(60)
        assert world.incarnations() == before


async def test_a_job_that_has_succeeded_is_not_run_once_more(autojump_clock, tmp_path):
    """Its copies take nothing any more, so the node that forgot them is not told of them either."""
    job = service("job", 4, "run_for=2", job=True)
    async with a_cluster(tmp_path, 2) as world:
        await world.apply(job)
        record = world.cluster.state.services["default", "job"]
        await world.until(lambda: len(record.record.completed) == 4)
        before = begun(world)
        await forget_all(world, world.machines["n1"])
        await trio.sleep(10)
        assert not world.cluster.fleet.snapshot.allocated("n1")
        world.machines["n1"].host.reachable = True
        await world.until(world.agrees)
        assert begun(world) == before


async def test_what_was_removed_meanwhile_goes_when_the_daemon_is_back(autojump_clock, tmp_path):
    """A node that knows of nothing does not confirm a removal."""
    web = service("web", 4)
    async with a_cluster(tmp_path, 2) as world:
        await world.apply(web)
        await world.until_runs(web)
        await forget_all(world, world.machines["n1"])
        await world.ask("service.remove", {"names": ["web"]})
        await trio.sleep(60)
        left = world.cluster.state.nodes["n1"].leaving
        assert len(left) == len(world.book(world.machines["n1"])) == 2
        world.machines["n1"].host.reachable = True
        await world.until(lambda: not world.incarnations() and not left)
