"""A controller that another one has superseded, or that cannot know: what leases it grants."""

import trio

from swarmctl.controller.confirming import CONFIRM_S
from swarmctl.controller.store.memory import MemoryStore
from swarmctl.proto.errors import StaleTerm
from tests.sim.cluster_fixture import a_cluster


async def test_it_ends_without_having_to_write(autojump_clock, tmp_path):
    """Agents that are still connected get their leases from it until then, and not longer."""
    async with a_cluster(tmp_path, 1) as world:
        await trio.sleep(60)
        other = await MemoryStore.open(world.disk)
        await other.take_term()
        took_s = await world.until(lambda: world.ended)
        assert took_s <= CONFIRM_S + 0.1
        assert isinstance(world.ended[0], StaleTerm)


async def test_leases_end_a_lease_after_the_store_was_last_asked(autojump_clock, tmp_path):
    """While the disk hangs nobody can tell whether another one has taken over."""
    async with a_cluster(tmp_path, 1) as world:
        fences = world.cluster.state.fences

        def granted():
            return fences.grant("n1", guarded=True, now=world.cluster.listening.time())

        await trio.sleep(20)
        assert fences.lease_s - CONFIRM_S <= granted() <= fences.lease_s
        world.store.hold()
        hangs_at = trio.current_time()
        for _ in range(20):
            await trio.sleep(2)
            ends_at = trio.current_time() + granted()
            assert not granted() or ends_at <= hangs_at + fences.lease_s
        assert granted() == 0
        world.store.release()
        await trio.sleep(2 * CONFIRM_S)
        assert granted() >= fences.lease_s - CONFIRM_S
