"""Who was preempted by whom is told by the next controller as well."""

import attrs
import pytest

from swarmctl.controller import records
from swarmctl.proto.errors import StorageFault
from tests.sim.cluster_fixture import a_cluster, service


def of(name, replicas, priority, **fields):
    """A service of that priority; four fit on a machine."""
    return attrs.evolve(service(name, replicas, cpu_millis=1000, **fields), priority=priority)


async def explained(world, name):
    """What ``explain`` prints of an instance: the line of it, and the history."""
    answer = await world.ask("instance.explain", {"name": name})
    return answer["lines"][0], [what for _, what in answer["history"]]


async def preempt(world):
    """One of four goes for what matters more; its name."""
    await world.apply(of("low", 4, 1))
    await world.until_runs(of("low", 4, 1))
    await world.apply(of("vip", 1, 50))
    await world.until(lambda: len(world.running("vip")) == 1 and len(world.running("low")) == 3)
    [slot] = {1, 2, 3, 4} - world.running("low").keys()
    await world.until(lambda: not world.cluster.state.victims.unwritten)
    return f"low.{slot}"


async def stored(world):
    """The records of preemptions in the store."""
    return await world.store.read(records.PREEMPTED)


@pytest.fixture
def why():
    """What a victim says."""
    return "preempted by vip.1 (priority 50) on n1"


async def test_a_victim_says_why_after_a_new_start(autojump_clock, tmp_path, why):
    """The next controller is told by the store; and again the one after it."""
    async with a_cluster(tmp_path, 1) as world:
        victim = await preempt(world)
        for _ in range(2):
            await world.restart_controller()
            await world.until(lambda: world.cluster.reconciler.settled)
            await world.until(lambda: world.cluster.state.services["default", "low"].unplaced)
            line, history = await explained(world, victim)
            assert line.startswith(f"{victim} is nowhere: {why}; ")
            assert f"{victim} {why}" in history
            [pending] = [
                one for one in await world.ask("instance.list") if one["state"] == "pending"
            ]
            assert pending["reason"].startswith(why)


async def test_a_victim_that_found_a_place_says_why_it_is_there(autojump_clock, tmp_path, why):
    """Also after a new start; and what it says of being nowhere has ended."""
    async with a_cluster(tmp_path, 1) as world:
        victim = await preempt(world)
        await world.start_node("n2")
        await world.until_runs(of("low", 4, 1))
        await world.until(lambda: not world.cluster.state.victims.any_nowhere)
        await world.until(lambda: not world.cluster.state.victims.unwritten)
        await world.restart_controller()
        await world.until(world.agrees)
        await world.until(lambda: len(world.cluster.state.services["default", "low"].holders) == 4)
        line, history = await explained(world, victim)
        assert line.startswith(f"{victim} is running on n2: it was {why} before; ")
        assert f"{victim} {why}" in history
        assert not world.cluster.state.victims.any_nowhere


async def test_it_is_forgotten_with_its_service(autojump_clock, tmp_path):
    """One that is made again under the same name was never preempted."""
    async with a_cluster(tmp_path, 1) as world:
        await preempt(world)
        assert list(await stored(world)) == ["preempted/default/low"]
        await world.ask("service.remove", {"names": ["low"]})
        await world.until(lambda: not world.running("low"))
        assert not await stored(world)
        await world.apply(of("low", 2, 1))
        await world.restart_controller()
        await world.until(lambda: len(world.running("low")) == 2)
        _, history = await explained(world, "low.1")
        assert not [what for what in history if "preempted" in what]


async def test_a_store_that_refuses_is_asked_again(autojump_clock, tmp_path):
    """Who matters more does not wait for it."""
    async with a_cluster(tmp_path, 1) as world:
        await world.apply(of("low", 4, 1))
        await world.until_runs(of("low", 4, 1))
        await world.start_node("n2")
        await world.apply(of("vip", 1, 50))
        await world.until(lambda: world.running("vip") == {1: ["n2"]})
        # It loses its node: nobody has asked for anything, so the next write is the victim's.
        world.store.fail_next(StorageFault("the disk is full"), 2)
        world.machines["n2"].scope.cancel()
        await world.until(lambda: world.running("vip") == {1: ["n1", "n2"]})
        assert not await stored(world)
        await world.until(lambda: not world.cluster.state.victims.unwritten)
        assert list(await stored(world)) == ["preempted/default/low"]
