"""A crash loop goes on where its slot runs next, whichever controller places it there."""

import pytest

from swarmctl.controller import records
from tests.sim.cluster_fixture import a_cluster, service

LOOP = service("web", 1, "run_for=0.2", "exit=1")
KEY = ("default", "web")


def holder(world):
    return world.cluster.state.services[KEY].holders.get(1)


def is_noted(world):
    """Whether the store knows how often it has failed."""
    one, pasts = holder(world), world.cluster.state.pasts
    past = pasts.get(KEY, 1, one.template)
    return past is not None and past.failures == one.failures and not pasts.unwritten


async def looping(world):
    """It has failed nine times, and that is written down; its node."""
    await world.apply(LOOP)
    await world.until(lambda: holder(world) and holder(world).failures >= 9)
    await world.until(lambda: is_noted(world))
    return holder(world).node


async def carried_to_another(world, node):
    """Once another node has it: what it was told of before."""
    await world.until(lambda: holder(world) and holder(world).node != node)
    return holder(world).carried


@pytest.mark.parametrize("restarted", [False, True])
async def test_it_goes_on_when_node_and_controller_die_together(
    autojump_clock, tmp_path, restarted
):
    """Nobody who is left has ever seen it fail."""
    async with a_cluster(tmp_path, 2) as world:
        node = await looping(world)
        failures = holder(world).failures
        world.machines[node].scope.cancel()
        if restarted:
            await world.restart_controller()
        assert await carried_to_another(world, node) == (failures, failures)
        await world.until(lambda: holder(world).failures == failures + 1)
        assert "next try in 60 s" in holder(world).reason


async def test_it_goes_on_when_it_has_waited_for_room_over_a_new_start(autojump_clock, tmp_path):
    """It was sent away, and had no other place yet."""
    async with a_cluster(tmp_path, 2) as world:
        node = await looping(world)
        [other] = set(world.machines) - {node}
        failures = holder(world).failures
        await world.ask("node.change", {"names": [other], "cordoned": True})
        world.machines[node].scope.cancel()
        await world.until(lambda: world.cluster.state.services[KEY].unplaced)
        await world.restart_controller()
        await world.until(lambda: world.cluster.state.services[KEY].unplaced)
        await world.ask("node.change", {"names": [other], "cordoned": False})
        assert await carried_to_another(world, node) == (failures, failures)


async def test_it_is_forgotten_with_its_service(autojump_clock, tmp_path):
    """One that is made again under the same name has never failed."""
    async with a_cluster(tmp_path, 2) as world:
        await looping(world)
        assert list(await world.store.read(records.PAST)) == ["past/default/web"]
        await world.ask("service.remove", {"names": ["web"]})
        await world.until(lambda: not world.incarnations())
        assert not await world.store.read(records.PAST)


async def test_it_is_forgotten_once_it_is_well(autojump_clock, tmp_path):
    """A changed template begins anew; the record goes."""
    async with a_cluster(tmp_path, 2) as world:
        await looping(world)
        await world.apply(service("web", 1))
        await world.until_runs(service("web", 1))
        await world.until(
            lambda: not any(key.startswith(records.PAST) for key in world.disk.entries)
        )
