"""A whole cluster in virtual time: what is wanted runs, whatever is killed, cut off or lost."""

import pytest
import trio

from swarmctl.proto import limits
from swarmctl.proto.errors import StaleTerm, StorageFault, SwarmError
from swarmctl.proto.states import InstanceState, NodeState
from swarmctl.transport.memory import Direction
from tests.sim.cluster_fixture import a_cluster, at_once, noise, service


async def test_fifty_copies_run_on_five_machines(autojump_clock, tmp_path):
    """From an apply over the network to rows on the machines, spread evenly."""
    async with a_cluster(tmp_path) as world:
        web = service(replicas=50)
        result = await world.apply(web)
        took = await world.until_runs(web)

        assert result["services"][0]["action"] == "created"
        assert took < 5
        nodes = [node for [node] in world.running().values()]
        assert {nodes.count(name) for name in world.machines} == {10}
        await world.until(world.agrees)
        await world.ask("service.wait", {"names": ["web"]})


async def test_nothing_restarts_when_the_controller_is_killed(autojump_clock, tmp_path):
    """A new controller on the same disk adopts all that runs."""
    async with a_cluster(tmp_path) as world:
        web = service(replicas=50)
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()

        for _ in range(3):
            await world.restart_controller()
            await trio.sleep(20)
            assert world.incarnations() == before
            assert world.cluster.reconciler.settled
            assert world.agrees()
        counts = await world.ask("service.wait", {"names": ["web"]})
        assert counts["web"] == {"running": 50, "wanted": 50}


async def test_changes_are_possible_while_machines_are_still_silent(autojump_clock, tmp_path):
    """A new service is placed at once after a takeover, on those that have reported."""
    async with a_cluster(tmp_path) as world:
        await world.apply(service(replicas=5))
        await world.until_runs(service(replicas=5))
        world.cut("n1")
        await world.restart_controller()
        await world.until(
            lambda: sum(one.reported for one in world.cluster.state.nodes.values()) == 4
        )
        assert not world.cluster.reconciler.settled
        await world.apply(service("db", 3))

        assert await world.until_runs(service("db", 3)) < 2


async def test_nothing_is_replaced_while_machines_still_arrive(autojump_clock, tmp_path):
    """They come back one by one, the last long after a silent one would be given up."""
    async with a_cluster(tmp_path, nodes=20) as world:
        web = service(replicas=60)
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()
        order = sorted(world.machines)
        world.cut_only(order)
        await world.restart_controller()
        for count in range(1, len(order) + 1):
            # Closer than 5 s less what an attempt to connect may take to notice.
            await trio.sleep(0.5)
            assert not world.cluster.reconciler.settled
            world.cut_only(order[count:])

        await world.until(lambda: world.cluster.reconciler.settled, patience_s=20)
        await trio.sleep(10)
        assert world.incarnations() == before
        assert world.agrees()


async def test_a_machine_that_never_comes_is_given_up_after_the_last_arrival(
    autojump_clock, tmp_path
):
    """The others' arrivals put that off, and then it is time."""
    async with a_cluster(tmp_path, nodes=4) as world:
        web = service(replicas=8)
        await world.apply(web)
        await world.until_runs(web)
        world.cut_only(["n1", "n2"])
        await world.restart_controller()
        await trio.sleep(0.2)
        world.cut_only(["n2"])
        await world.until(lambda: world.cluster.state.nodes["n1"].reported)
        took = await world.until(lambda: world.cluster.reconciler.settled)
        await world.until(lambda: all(set(nodes) != {"n2"} for nodes in world.running().values()))

        assert 4 <= took <= 6


async def test_services_that_were_there_before_any_machine_are_placed(autojump_clock, tmp_path):
    """Also by a controller that was started again meanwhile, and has nobody to wait for."""
    async with a_cluster(tmp_path, nodes=0) as world:
        await world.apply(service(replicas=5))
        await world.restart_controller()
        await world.start_nodes(2)

        await world.until_runs(service(replicas=5), patience_s=10)


async def test_what_a_machine_was_never_told_to_have_is_taken_off_the_books(
    autojump_clock, tmp_path
):
    """Its assignment and its removal were both lost: the removal is told again."""
    async with a_cluster(tmp_path, nodes=1) as world:
        key = world.machines["n1"].key
        world.network.block(public_key=key, direction=Direction.TO_LINK)
        await world.apply(service(replicas=3))
        await world.ask("service.remove", {"names": ["web"]})
        node = world.cluster.state.nodes["n1"]
        assert len(node.instances) == 3
        await trio.sleep(1)
        world.heal()

        await world.until(lambda: not node.instances, patience_s=60)
        assert node.leaving == {}


async def test_a_machine_that_is_cut_off_is_lost_and_its_instances_go_elsewhere(
    autojump_clock, tmp_path
):
    """Within 5 s it is called lost; when it returns, what was replaced there is stopped."""
    async with a_cluster(tmp_path) as world:
        web = service(replicas=20)
        await world.apply(web)
        await world.until_runs(web)
        world.cut("n3")
        state = world.cluster.state.nodes["n3"]
        lost_after = await world.until(lambda: state.state is NodeState.LOST)
        replaced_after = await world.until(
            lambda: all(set(nodes) != {"n3"} for nodes in world.running().values())
        )

        # Not before a heartbeat has been missed; then what is promised, and a look of this test.
        assert 2 <= lost_after <= limits.NODE_LOST_S + 0.1
        assert replaced_after < 3
        assert sum("n3" in nodes for nodes in world.running().values()) == 4

        world.heal()
        await world.until_runs(web)
        await world.until(world.agrees)
        assert "n3" not in {node for [node] in world.running().values()}
        assert state.state is NodeState.READY


async def test_many_machines_that_vanish_at_once_are_waited_for(autojump_clock, tmp_path):
    """The fault is likelier here: nothing moves, `node ls` says so, and all go on afterwards."""
    async with a_cluster(tmp_path, nodes=10) as world:
        web = service(replicas=30)
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()
        nodes = world.cluster.state.nodes
        cut = sorted(world.machines)[:6]
        for name in cut:
            world.network.block(public_key=world.machines[name].key)
        await world.until(lambda: all(nodes[name].state is NodeState.LOST for name in cut))
        await trio.sleep(60)
        rows = {row["node"]: row for row in await world.ask("node.list")}

        assert world.incarnations() == before
        for name in world.machines:
            said = [one for one in rows[name]["reasons"] if "node release" in one]
            assert len(said) == (name in cut)

        world.heal()
        await world.until(lambda: all(one.state is NodeState.READY for one in nodes.values()))
        await world.until(world.agrees)
        assert world.incarnations() == before
        # No brake ends while nodes may still return.
        calm_s = limits.NODE_LOST_S + 1
        await world.until(lambda: not world.cluster.state.braked, patience_s=calm_s)


async def test_an_operator_who_knows_that_they_are_gone_releases_the_brake(
    autojump_clock, tmp_path
):
    """What the lost machines had is placed elsewhere at once."""
    async with a_cluster(tmp_path, nodes=10) as world:
        web = service(replicas=30)
        await world.apply(web)
        await world.until_runs(web)
        nodes = world.cluster.state.nodes
        cut = sorted(world.machines)[:5]
        for name in cut:
            world.network.block(public_key=world.machines[name].key)
        await world.until(lambda: all(nodes[name].state is NodeState.LOST for name in cut))

        assert await world.ask("node.release") == {"released": True, "instances": 15}
        await world.until(
            lambda: all(set(where) - set(cut) for where in world.running().values()),
            patience_s=5,
        )
        assert await world.ask("node.release") == {"released": False, "instances": 0}


async def test_a_controller_that_was_stopped_for_long_blames_nobody(autojump_clock, tmp_path):
    """Its own stall is not the nodes' silence, and what they sent meanwhile is read first."""
    async with a_cluster(tmp_path, nodes=5) as world:
        web = service(replicas=10)
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()
        lost = []
        losses = world.cluster.sessions.losses
        losses.check_lost = _watching(losses.check_lost, world, lost)
        for node in world.cluster.state.nodes.values():
            node.heard_at -= 4.0
        # As after SIGSTOP: the clock has gone on, and nothing was read.
        autojump_clock.jump(30.0)
        await trio.sleep(20)

        assert lost == []
        assert world.incarnations() == before


def _watching(check, world, lost):
    def checked(after_s):
        check(after_s)
        nodes = world.cluster.state.nodes.values()
        lost.extend(one.name for one in nodes if one.state is NodeState.LOST)

    return checked


async def test_an_agent_that_is_killed_leaves_its_instances_running(autojump_clock, tmp_path):
    """Its successor adopts them; a short absence moves nothing."""
    async with a_cluster(tmp_path) as world:
        web = service(replicas=10)
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()
        world.machines["n2"].scope.cancel()
        await trio.sleep(2)
        await world.start_node("n2")
        await trio.sleep(30)

        assert world.incarnations() == before
        assert world.agrees()
        assert world.machines["n2"].errors == []


async def test_assignments_that_are_lost_doubled_and_late_converge(autojump_clock, tmp_path):
    """The digests in the heartbeats show it, and all of it is sent again."""
    async with a_cluster(tmp_path, seed=7, duplicate=0.5) as world:
        world.network.fate = noise(world.random)
        web = service(replicas=30)
        await world.apply_at_last(web)
        await world.until_runs(web)
        world.network.fate = at_once

        await world.until(world.agrees)
        await world.until(
            lambda: (
                {one.state for one in world.cluster.state.all_instances()}
                == {InstanceState.RUNNING}
            )
        )


async def test_an_emptied_store_stops_nothing(autojump_clock, tmp_path):
    """What nobody knows is quarantined, counted, and adopted by applying its stack again."""
    async with a_cluster(tmp_path) as world:
        web = service(replicas=20, cpu_millis=500)
        await world.apply(web)
        await world.until_runs(web)
        before = world.incarnations()
        # The registry is kept: it is the services that a wrong backup lacks.
        world.disk.entries = {
            key: one for key, one in world.disk.entries.items() if not key.startswith("service/")
        }
        world.disk.term = 0
        await world.restart_controller()
        await world.until(world.agrees)
        await trio.sleep(60)

        assert world.incarnations() == before
        assert all(one.quarantined for one in world.cluster.state.all_instances())
        nodes = await world.ask("node.list")
        assert [one["allocated"].get("cpu_millis") for one in nodes] == [2000] * 5

        await world.apply(web)
        await trio.sleep(60)
        assert world.incarnations() == before
        counts = await world.ask("service.wait", {"names": ["web"]})
        assert counts["web"] == {"running": 20, "wanted": 20}
        nodes = await world.ask("node.list")
        assert [one["allocated"].get("cpu_millis") for one in nodes] == [2000] * 5


async def test_a_job_runs_each_copy_once_and_makes_room_for_the_next(autojump_clock, tmp_path):
    """Far more copies than fit at a time, over a controller that dies and a disk that refuses."""
    async with a_cluster(tmp_path, nodes=2, cpu_millis=500) as world:
        job = service("web", 60, "run_for=3", job=True)
        await world.apply(job)
        await trio.sleep(4)
        world.store.fail_next(StorageFault("disk full"), 3)
        await trio.sleep(10)
        await world.restart_controller()

        await world.ask("service.wait", {"names": ["web"]}, timeout_s=300)
        record = world.cluster.state.services[("default", "web")].record
        await world.until(
            lambda: (
                world.cluster.state.services[("default", "web")].record.completed
                == tuple(range(1, 61))
            )
        )
        starts = sum(m.host.calls["start"] for m in world.machines.values())
        assert starts == 60
        assert record.spec.replicas == 60


async def test_a_second_controller_on_the_disk_ends_the_first_at_its_next_change(
    autojump_clock, tmp_path
):
    """A stalled old leader can do nothing, and says why it ends."""
    async with a_cluster(tmp_path, nodes=1) as world:
        world.disk.term += 1
        with pytest.raises(StaleTerm, match="taken over"):
            await world.apply(service())
        await world.until(lambda: world.ended)

        assert [one.code for one in world.ended] == ["stale-term"]
        assert world.running() == {}


async def _cut(world, machine):
    world.cut(machine.name)
    await trio.lowlevel.checkpoint()


async def _heal(world, machine):
    del machine
    world.heal()
    await trio.lowlevel.checkpoint()


async def _sever(world, machine):
    del machine
    world.network.sever()
    await trio.lowlevel.checkpoint()


async def _restart_agent(world, machine):
    machine.scope.cancel()
    await trio.sleep(world.random.uniform(0, 10))
    await world.nursery.start(_begin, world, machine.name)


async def _restart_controller(world, machine):
    del machine
    world.kill_controller()
    await trio.sleep(world.random.uniform(0.1, 12))
    await world.start_controller()


async def _change(world, machine):
    del machine
    chosen = service(replicas=world.random.randint(0, 25), image=world.random.choice("xy"))
    with trio.move_on_after(5):
        try:
            await world.apply(chosen)
        except SwarmError:
            return  # The network or the disk took it; the last change is asked for until it is.


async def _make_noise(world, machine):
    del machine
    world.network.fate = noise(world.random)
    await trio.lowlevel.checkpoint()


async def _be_quiet(world, machine):
    del machine
    world.network.fate = at_once
    await trio.lowlevel.checkpoint()


async def _kill_instance(world, machine):
    alive = [number for number, one in world.book(machine).items() if one.alive]
    if alive:
        machine.host.kill(world.owner(machine.name), world.random.choice(alive))
    await trio.lowlevel.checkpoint()


async def _fill_disk(world, machine):
    del machine
    world.store.fail_next(StorageFault("disk full"), world.random.randint(1, 3))
    await trio.lowlevel.checkpoint()


EVENTS = (
    _cut, _cut, _heal, _sever, _restart_agent, _restart_controller, _change, _change,
    _make_noise, _be_quiet, _kill_instance, _fill_disk,
)  # fmt: skip


async def _begin(world, name, task_status):
    """Start an agent without waiting for its session: the network may be cut."""
    world.nursery.start_soon(world.start_node, name)
    task_status.started()
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", range(20))
async def test_after_any_trouble_the_cluster_converges(autojump_clock, tmp_path, seed):
    """Random faults of everything; once they stop, what is wanted runs, once, within a minute."""
    async with a_cluster(tmp_path, nodes=3, seed=seed) as world:
        await world.apply(service(replicas=5))
        for _ in range(25):
            machine = world.machines[world.random.choice(sorted(world.machines))]
            await world.random.choice(EVENTS)(world, machine)
            await trio.sleep(world.random.uniform(0, 6))
        world.heal()
        world.network.fate = at_once
        await trio.sleep(15)
        final = service(replicas=world.random.randint(1, 25), image="z")
        await world.apply_at_last(final)

        await world.until_runs(final, patience_s=60)
        await world.until(world.agrees, patience_s=30)
        assert world.ended == []
        for machine in world.machines.values():
            for one in world.book(machine).values():
                assert one.launch.template.container.image == "z"
            assert machine.errors == []
        nodes = world.cluster.state.nodes.values()
        # One whose heartbeats were lost is called sick for a minute after the last.
        await world.until(lambda: all(node.state is NodeState.READY for node in nodes))
        for node in nodes:
            allocated = world.cluster.fleet.snapshot.allocated(node.name).get("cpu_millis", 0)
            assert allocated == 100 * len(node.instances)
