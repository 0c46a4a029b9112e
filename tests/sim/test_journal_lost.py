"""An agent with a new journal whose driver is away: it cannot say yet what it has."""

import attrs
import trio
import trio.testing

from swarmctl.agent.drivers.api import Phase
from swarmctl.agent.journal import MemoryJournal
from swarmctl.spec import wire
from tests.sim.cluster_fixture import a_cluster, service
from tests.sim.fence_fixture import IdleFence


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


@attrs.define
class Watched:
    """What a machine took at most, in thousandths of a core, and how many ran at least."""

    most: int = 0
    least: int = 1_000


def watch(world, name):
    """From now on; what it took is also what the controller thinks of it."""
    seen = Watched()

    async def look():
        while True:
            book = world.book(world.machines[name]).values()
            runs = [one.launch.template for one in book if one.phase is Phase.RUNNING]
            booked = world.cluster.fleet.snapshot.allocated(name).get("cpu_millis", 0)
            took = sum(one.resources.cpu_millis for one in runs)
            seen.most = max(seen.most, took, booked)
            seen.least = min(seen.least, len(runs))
            await trio.sleep(0.01)

    world.nursery.start_soon(look)
    return seen


async def change_meanwhile(world, machine, before, after):
    """It forgets all, its driver is away; by then the spec is another, and so is the controller.

    The spec changes twice: the one before the last is kept to roll back to.
    """
    await world.apply(before)
    await world.until_runs(before)
    machine.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    await world.apply(service(after.name, after.replicas, image="box:between"))
    await world.apply(after)
    await world.restart_controller()
    await forget_all(world, machine)


async def test_what_is_found_is_changed_a_few_at_a_time(autojump_clock, tmp_path):
    """A full node's copies are of an older spec: they are known as such, and none comes before."""
    before = service("web", 4, cpu_millis=1000)
    after = service("web", 4, image="box:2", cpu_millis=1000)
    async with a_cluster(tmp_path, 1) as world:
        machine = world.machines["n1"]
        await change_meanwhile(world, machine, before, after)
        seen = watch(world, "n1")
        await trio.sleep(20)
        machine.host.reachable = True

        def changed():
            book = world.book(machine).values()
            return len(book) == 4 and all(one.launch.template == after.template for one in book)

        await world.until(changed)
        await world.until(world.agrees)

        assert (seen.most, seen.least) == (4000, 3)


async def test_what_is_found_is_known_to_be_fenced(autojump_clock, tmp_path):
    """Though no spec says so any more, and the session was open before the driver answered."""
    web = service("web", 2)
    fenced = attrs.evolve(web, template=attrs.evolve(web.template, fenced=True), fencing="lease")
    async with a_cluster(tmp_path, 1, make_fence=lambda _: IdleFence()) as world:
        await change_meanwhile(world, world.machines["n1"], fenced, web)
        name = wire.digest(wire.encode_template(fenced.template))
        assert name not in world.cluster.state.templates
        world.machines["n1"].host.reachable = True
        await world.until(lambda: name in world.cluster.state.templates)
        assert name in world.cluster.state.fences.templates
        await world.until_runs(web)
