"""Draining a node of a whole cluster: the real agents, in virtual time."""

import trio

from tests.sim.cluster_fixture import a_cluster, service


async def test_a_node_is_drained_while_the_service_goes_on(autojump_clock, tmp_path):
    """Never more than one copy is away, and at the end nothing runs on the node."""
    async with a_cluster(tmp_path, 3) as world:
        web, db = service(replicas=9), service("db", 1)
        await world.apply(web, db)
        await world.until_runs(web, db)
        fewest = 9
        async with trio.open_nursery() as nursery:

            async def count():
                nonlocal fewest
                while True:
                    fewest = min(fewest, len(world.running()))
                    await trio.sleep(0.01)

            nursery.start_soon(count)
            await world.ask("node.change", {"names": ["n1"], "draining": True})
            views = await world.ask("node.drained", {"names": ["n1"]}, timeout_s=100)
            await world.until_runs(web, db)
            nursery.cancel_scope.cancel()

        assert views["n1"]["left"] == 0
        assert fewest >= 8
        on_it = [
            name for name in ("web", "db") for at in world.running(name).values() if "n1" in at
        ]
        assert on_it == []


async def test_a_drain_goes_on_when_the_controller_is_killed(autojump_clock, tmp_path):
    """It is durable, and begins again once the nodes have reported."""
    async with a_cluster(tmp_path, 3) as world:
        web = service(replicas=9)
        await world.apply(web)
        await world.until_runs(web)
        await world.ask("node.change", {"names": ["n1"], "draining": True})
        await world.restart_controller()
        await world.ask("node.drained", {"names": ["n1"]}, timeout_s=100)
        await world.until_runs(web)
        assert all(at != ["n1"] for at in world.running().values())


async def test_a_crash_loop_waits_no_less_where_it_is_moved(autojump_clock, tmp_path):
    """What it counted on one machine the next one goes on from, agents included."""
    async with a_cluster(tmp_path, nodes=2) as world:
        await world.apply(service("web", 1, "run_for=0.1", "exit=1"))
        holders = world.cluster.state.services["default", "web"].holders
        await world.until(lambda: 1 in holders and holders[1].failures >= 6)
        before = holders[1]
        await world.ask("node.change", {"names": [before.node], "draining": True})
        await world.until(lambda: 1 in holders and holders[1].node != before.node)
        await world.until(lambda: holders[1].retrying)

        assert holders[1].failures > before.failures
        assert holders[1].restarts > before.restarts
        # Its first end was on the other machine: nobody here knows when.
        assert f"crash loop: {holders[1].failures} ends, next try" in holders[1].reason
