"""On hold a node is told nothing, and what is fenced there runs on for as long as that takes."""

import attrs
import trio

from swarmctl.controller.holding import HOLD
from tests.sim.cluster_fixture import a_cluster
from tests.sim.fence_fixture import Fences, fenced_service


async def test_leases_outlive_a_long_hold_and_its_release(autojump_clock, tmp_path):
    """Minutes of it, over a new start of the controller: no lease runs out, nothing restarts."""
    fences, web = Fences(), fenced_service(3)
    async with a_cluster(tmp_path, nodes=3, make_fence=fences.of) as world:
        await world.apply(web)
        await world.until_runs(web)

        def renewed():
            return all(fence.left_s > 20 for fence in fences.values())

        await world.until(renewed)
        before = world.incarnations()
        world.disk.entries[HOLD] = attrs.evolve(
            next(iter(world.disk.entries.values())), value=b"restored"
        )
        for _ in range(2):
            await world.restart_controller()
            assert world.cluster.hold == "restored"
            for _ in range(30):
                await trio.sleep(10)
                assert renewed()

        await world.ask("store.release")
        await trio.sleep(60)
        assert renewed()
        assert world.incarnations() == before
