"""Rebalancing: bounded, as services allow, and it comes to an end."""

import attrs
import trio

from swarmctl.controller.rebalancing import keeps_to_its_node
from swarmctl.proto.messages import Report
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import ContainerSpec, Mount
from tests.unit.controller.harness import spec
from tests.unit.controller.requests_fixture import a_rig


def counts(rig):
    """How many each node runs."""
    return {
        name: sum(one.state == InstanceState.RUNNING for one in node.instances.values())
        for name, node in rig.nodes.items()
    }


def starts(rig):
    """The incarnations that run."""
    return {number for node in rig.nodes.values() for number in node.instances}


async def pass_s(rig, seconds):
    """Time in which the controller is woken now and then."""
    for _ in range(int(seconds / 0.5)):
        await trio.sleep(0.5)
        rig.cluster.relocate(trio.current_time())
        rig.step()


async def crowded(rig):
    """Twelve copies on two nodes, and a third node that is empty."""
    await rig.apply(spec("web", 12, cpu_millis=500))
    rig.run()
    await rig.join("c")
    rig.run()
    assert counts(rig) == {"a": 6, "b": 6, "c": 0}


async def test_a_dry_run_moves_nothing(autojump_clock, tmp_path):
    """It says what would go where."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await crowded(rig)
        answer = await rig.ask("node.rebalance", dry_run=True)
        assert {move["to"] for move in answer["moves"]} == {"c"}
        assert len(answer["moves"]) in (3, 4)
        await pass_s(rig, 10)
        assert counts(rig) == {"a": 6, "b": 6, "c": 0}


async def test_on_request_loads_become_even_and_then_nothing_moves(autojump_clock, tmp_path):
    """One copy at a time, unless the service allows more."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await crowded(rig)
        await rig.ask("node.rebalance")
        rig.cluster.relocate(trio.current_time())
        rig.step(deliver=False)
        leaving = [one for one in rig.cluster.state.all_instances() if one.removing]
        assert len(leaving) == 1
        assert leaving[0].departure.endswith("to even loads")
        rig.cluster.state.nodes[leaving[0].node].needs_full = True
        for name in rig.nodes:
            rig.cluster.state.resend(rig.cluster.state.nodes[name])
        await pass_s(rig, 20)
        found = counts(rig)
        assert max(found.values()) - min(found.values()) <= 1
        assert rig.running() == list(range(1, 13))
        assert not rig.cluster.rebalancing.active

        before = starts(rig)
        await rig.ask("node.rebalance")
        await pass_s(rig, 10)
        assert starts(rig) == before


async def test_a_node_that_joins_is_filled_gently(autojump_clock, tmp_path):
    """After a while, and not as far as on request."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await crowded(rig)
        await pass_s(rig, 30)
        assert counts(rig)["c"] == 0
        await pass_s(rig, 120)
        assert counts(rig)["c"] >= 2
        assert rig.running() == list(range(1, 13))
        assert not rig.cluster.rebalancing.active
        before = starts(rig)
        await pass_s(rig, 60)
        assert starts(rig) == before


async def test_a_node_that_joins_is_not_filled_while_much_is_launched(autojump_clock, tmp_path):
    """Loads are uneven then, and everybody is busy; afterwards it is."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await crowded(rig)
        await rig.apply(spec("more", 1, cpu_millis=100))
        rig.cluster.reconciler.cycle()
        rig.cluster.sessions.flush()  # It takes its node long.
        for _ in range(300):
            await trio.sleep(0.5)
            rig.cluster.relocate(trio.current_time())
        holders = rig.cluster.state.services[("default", "web")].holders.values()
        assert not any(one.removing for one in holders)

        await pass_s(rig, 60)
        assert counts(rig)["c"] >= 2


async def test_jobs_stay_where_they_are(autojump_clock, tmp_path):
    """Their work would be lost."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("job", 6, cpu_millis=500, job=True))
        rig.run()
        await rig.join("c")
        assert (await rig.ask("node.rebalance"))["moves"] == []
        before = starts(rig)
        await pass_s(rig, 100)
        assert starts(rig) == before


def test_what_keeps_data_on_its_node_stays():
    """A named volume does not come along."""
    plain = spec()
    data = Mount("volume", "data", "/data")
    container = ContainerSpec("box", mounts=(data,))
    with_data = attrs.evolve(plain, template=attrs.evolve(plain.template, container=container))
    assert not keeps_to_its_node(plain)
    assert keeps_to_its_node(with_data)
    assert keeps_to_its_node(attrs.evolve(plain, fencing="lease"))


async def test_a_service_that_is_never_well_ends_it(autojump_clock, tmp_path):
    """A copy has failed for good, so none may leave: nothing moves hours later, when one may."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await crowded(rig)
        node = rig.nodes["a"]
        first, *_ = node.instances.values()
        failed = attrs.evolve(first, state=int(InstanceState.FAILED), exit_code=1)
        node.instances[first.incarnation] = failed
        rig.cluster.sessions.on_message(node.peer, "node:a", Report(99, (failed,)))

        assert (await rig.ask("node.rebalance"))["moves"]
        before = starts(rig)
        await pass_s(rig, 50)
        assert rig.cluster.rebalancing.active
        await pass_s(rig, 20)
        assert not rig.cluster.rebalancing.active
        assert starts(rig) == before
