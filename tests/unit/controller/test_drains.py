"""Draining: what runs on a node goes elsewhere, no faster than its service allows."""

import attrs
import pytest
import trio

from swarmctl.controller.availability import away, may_leave, wanted_running
from swarmctl.controller.records import SlotOverride, SlotWish
from swarmctl.controller.state import Service
from swarmctl.proto.errors import Conflict, NothingFits, WaitExpired
from swarmctl.proto.messages import InstanceReport, Report
from swarmctl.proto.states import InstanceState, NodeState
from swarmctl.spec.models import Placement
from tests.unit.controller.harness import record, spec
from tests.unit.controller.requests_fixture import a_rig


def turn(rig, *, deliver=True):
    """What the controller does when it is woken."""
    rig.cluster.relocate(trio.current_time())
    rig.step(deliver=deliver)


async def drain_to_the_end(rig, turns=20):
    """Let the drain take its steps."""
    for _ in range(turns):
        await trio.sleep(0.2)
        turn(rig)


def on(rig, node):
    """The instances that a node runs."""
    return sorted(
        f"{one.service}.{one.slot}"
        for one in rig.nodes[node].instances.values()
        if one.state == InstanceState.RUNNING
    )


# --- availability -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, 4),
        ({"stopped": True}, 0),
        ({"overrides": {2: SlotOverride(SlotWish.STOPPED)}}, 3),
        ({"overrides": {9: SlotOverride(SlotWish.REMOVED)}}, 4),
        ({"stopped": True, "overrides": {1: SlotOverride(SlotWish.RUNNING)}}, 1),
        ({"overrides": {1: SlotOverride(None, generation=3)}}, 4),
        ({"completed": (1, 3)}, 2),
    ],
)
def test_wanted_counts_what_is_to_run(changes, wanted):
    """Stopped, removed and completed slots are not missed by anybody."""
    assert wanted_running(record(spec(replicas=4), **changes)) == wanted


def test_a_service_lets_go_of_as_many_as_its_policy_says():
    """One unless it says more, less those that are away already."""
    service = Service(record(spec(replicas=4)))
    service.tally[InstanceState.RUNNING] = 4
    assert (away(service), may_leave(service)) == (0, 1)
    service.tally[InstanceState.RUNNING] = 3
    assert (away(service), may_leave(service)) == (1, 0)
    service.set_record(record(attrs.evolve(spec(replicas=4), max_unavailable=3)))
    assert may_leave(service) == 2


# --- drains -----------------------------------------------------------------------------------


async def test_a_drained_node_is_empty_and_everything_runs_elsewhere(autojump_clock, tmp_path):
    """One copy of a service after the other; the node is shown as draining."""
    async with a_rig(tmp_path, None, "a", "b", "c") as rig:
        await rig.apply(spec("web", 6), spec("db", 1))
        rig.run()
        assert on(rig, "a")

        await rig.ask("node.change", names=["a"], draining=True)
        assert rig.cluster.state.nodes["a"].state is NodeState.DRAINING
        await drain_to_the_end(rig)

        assert on(rig, "a") == []
        assert rig.running("web") == [1, 2, 3, 4, 5, 6]
        assert rig.running("db") == [1]
        assert rig.cluster.drains.status(rig.cluster.state.nodes["a"]).left == 0


async def test_no_more_copies_are_away_than_the_policy_allows(autojump_clock, tmp_path):
    """While a replacement starts nothing else goes, and what stays says why."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec("web", 6))
        rig.run()
        here = on(rig, "a")
        assert len(here) == 3

        await rig.ask("node.change", names=["a"], draining=True)
        for _ in range(5):
            await trio.sleep(0.2)
            turn(rig, deliver=False)
        node = rig.cluster.state.nodes["a"]
        status = rig.cluster.drains.status(node)
        assert (status.left, status.leaving) == (3, 1)
        assert set(status.staying.values()) == {"1 other copy is away, and web allows 1 at a time"}
        explained = await rig.ask("instance.explain", name=next(iter(status.staying)))
        assert "being drained: 1 other copy is away" in explained["lines"][0]


async def test_max_unavailable_lets_more_go_at_once(autojump_clock, tmp_path):
    """The update policy of the service decides."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(attrs.evolve(spec("web", 6), max_unavailable=2))
        rig.run()
        await rig.ask("node.change", names=["a"], draining=True)
        await trio.sleep(0.2)
        turn(rig, deliver=False)
        assert rig.cluster.drains.status(rig.cluster.state.nodes["a"]).leaving == 2


async def test_what_is_not_well_goes_at_once_and_keeps_the_well_ones_there(
    autojump_clock, tmp_path
):
    """A copy that is unhealthy serves nobody; until it is well elsewhere the others stay."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec("web", 4))
        rig.run()
        node = rig.nodes["a"]
        first, *_ = node.instances.values()
        node.instances[first.incarnation] = starting = attrs.evolve(
            first, state=InstanceState.STARTING, attempt=first.attempt + 1
        )
        assert isinstance(starting, InstanceReport)
        rig.cluster.sessions.on_message(node.peer, "node:a", Report(99, (starting,)))

        await rig.ask("node.change", names=["a"], draining=True)
        await trio.sleep(0.2)
        turn(rig, deliver=False)
        leaving = [one for one in rig.cluster.state.nodes["a"].instances.values() if one.removing]
        assert [one.slot for one in leaving] == [first.slot]
        assert leaving[0].departure == "a is being drained"


async def test_without_room_elsewhere_it_stays_and_the_drain_says_so(autojump_clock, tmp_path):
    """What has no other place is not stopped; the command ends with the reasons, the drain not."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        only_there = Placement(constraints=("node.name == a",))
        await rig.apply(spec("pinned", 1, placement=only_there), spec("web", 2))
        rig.run()
        await rig.ask("node.change", names=["a"], draining=True)

        async with trio.open_nursery() as nursery:

            async def keep_turning():
                while True:
                    await trio.sleep(0.2)
                    turn(rig)

            nursery.start_soon(keep_turning)
            with pytest.raises(NothingFits) as caught:
                await rig.ask("node.drained", names=["a"])
            nursery.cancel_scope.cancel()
        assert "pinned.1: no other node takes it: 0 of 2 nodes fit" in caught.value.what
        assert "uncordon a" in caught.value.hint
        assert on(rig, "a") == ["pinned.1"]
        assert rig.running("web") == [1, 2]

        await rig.join("c")
        await rig.apply(spec("pinned", 1))
        await drain_to_the_end(rig)
        assert on(rig, "a") == []
        assert (await rig.ask("node.drained", names=["a"]))["a"]["left"] == 0


async def test_from_its_deadline_on_nothing_stays(autojump_clock, tmp_path):
    """Neither what fits nowhere else, nor what its service would keep; until then both do."""
    async with a_rig(tmp_path, None, "a") as rig:
        rig.cluster.wall = trio.current_time
        await rig.apply(spec("web", 3))
        rig.run()
        await rig.ask("node.change", names=["a"], draining=True, deadline_s=60)
        await drain_to_the_end(rig)
        assert on(rig, "a") == ["web.1", "web.2", "web.3"]
        async with trio.open_nursery() as nursery:

            async def keep_turning():
                while True:
                    await trio.sleep(0.2)
                    turn(rig)

            nursery.start_soon(keep_turning)
            views = await rig.ask("node.drained", names=["a"])
            nursery.cancel_scope.cancel()

        assert views["a"]["left"] == 0
        assert trio.current_time() >= 60
        assert on(rig, "a") == []
        assert "0 of 1 node fit" in rig.cluster.state.services["default", "web"].unplaced[1]
        await rig.ask("node.change", names=["a"], draining=False)
        rig.run()
        assert rig.running("web") == [1, 2, 3]


async def test_all_copies_say_that_nothing_fits_where_the_first_found_no_room(
    autojump_clock, tmp_path
):
    """On the only node none is away, so that is not why the others stay; and the wait ends."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("web", 3))
        rig.run()
        await rig.ask("node.change", names=["a"], draining=True)
        await trio.sleep(0.2)
        turn(rig)
        status = rig.cluster.drains.status(rig.cluster.state.nodes["a"])
        assert status.stuck
        assert set(status.staying) == set(status.no_room) == {"web.1", "web.2", "web.3"}
        [why] = set(status.staying.values())
        assert why.startswith("no other node takes it: 0 of 1 node fit")
        assert "draining" in why
        assert rig.running("web") == [1, 2, 3]


async def test_copies_that_wait_for_another_say_so_until_there_is_no_more_room(
    autojump_clock, tmp_path
):
    """There is room for one of three: it goes, and the others are told apart from before."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("web", 3, cpu_millis=1000))
        rig.run()
        await rig.join("b", cpu_millis=1000)
        rig.step()
        await rig.ask("node.change", names=["a"], draining=True)
        await trio.sleep(0.2)
        turn(rig, deliver=False)
        drains, node = rig.cluster.drains, rig.cluster.state.nodes["a"]
        assert set(drains.status(node).staying.values()) == {
            "1 other copy is away, and web allows 1 at a time"
        }
        for one in rig.cluster.state.nodes.values():
            rig.cluster.state.resend(one)
        for _ in range(20):
            await trio.sleep(0.2)
            turn(rig)
        status = drains.status(node)
        assert len(on(rig, "a")) == 2
        assert status.stuck
        assert all(
            one.startswith("no other node takes it: 0 of 2") for one in status.staying.values()
        )


async def test_a_deadline_ends_the_wait_and_not_the_drain(autojump_clock, tmp_path):
    """It says what is still there, and why."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec("web", 4))
        rig.run()
        await rig.ask("node.change", names=["a"], draining=True)
        with pytest.raises(WaitExpired) as caught:
            await rig.ask("node.drained", names=["a"], timeout_s=2)
        assert "2 instances still there after 2 s" in caught.value.what
        assert rig.cluster.state.nodes["a"].record.draining


async def test_uncordon_and_cordon_end_a_drain(autojump_clock, tmp_path):
    """What is there stays; after cordon nothing new comes."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec("web", 4))
        rig.run()
        for change, state in (({"cordoned": False}, "ready"), ({"cordoned": True}, "cordoned")):
            await rig.ask("node.change", names=["a"], draining=True)
            await rig.ask("node.change", names=["a"], **change)
            assert rig.cluster.state.nodes["a"].state.value == state
            await drain_to_the_end(rig, 3)
            assert len(on(rig, "a")) == 2
            with pytest.raises(Conflict, match="not being drained"):
                await rig.ask("node.drained", names=["a"])


async def test_labels_leave_a_drain_as_it_is(autojump_clock, tmp_path):
    """A change says only what it says."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.ask("node.change", names=["a"], draining=True)
        await rig.ask("node.change", names=["a"], labels={"zone": "eu"})
        assert rig.cluster.state.nodes["a"].record.draining


async def test_a_controller_that_starts_goes_on_draining(autojump_clock, tmp_path):
    """The drain is in the node's record."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec("web", 4))
        rig.run()
        await rig.ask("node.change", names=["a"], draining=True)
        disk, machines = rig.disk, rig.nodes
    async with a_rig(tmp_path, disk) as rig:
        assert rig.cluster.drains.active
        rig.nodes = machines
        for name in machines:
            rig.connect(name)
        await drain_to_the_end(rig)
        assert on(rig, "a") == []
        assert rig.running("web") == [1, 2, 3, 4]


async def test_what_a_lost_node_had_is_not_gone_before_it_runs_elsewhere(autojump_clock, tmp_path):
    """There is no room for it: the command says so, and does not end as if all were well."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        only_there = Placement(constraints=("node.name == a",))
        await rig.apply(spec("pinned", 1, placement=only_there), spec("web", 2))
        rig.run()
        rig.disconnect("a")
        await rig.ask("node.change", names=["a"], draining=True)
        await drain_to_the_end(rig)
        status = rig.cluster.drains.status(rig.cluster.state.nodes["a"])
        assert set(status.staying) == {"pinned.1"}
        with pytest.raises(NothingFits, match=r"pinned\.1: lost with its node"):
            await rig.ask("node.drained", names=["a"])

        await rig.apply(spec("pinned", 1))
        await drain_to_the_end(rig)
        assert (await rig.ask("node.drained", names=["a"]))["a"]["left"] == 0
        assert rig.running("web") == [1, 1, 2] or rig.running("web") == [1, 2, 2]


async def test_under_the_storm_brake_a_drain_waits_and_says_for_what(autojump_clock, tmp_path):
    """What lost nodes had is nowhere until it ends."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec("web", 2))
        rig.run()
        rig.cluster.state.braked = True
        rig.disconnect("a")
        await rig.ask("node.change", names=["a"], draining=True)
        await drain_to_the_end(rig)
        status = rig.cluster.drains.status(rig.cluster.state.nodes["a"])
        [why] = status.staying.values()
        assert "node release" in why
        assert not status.stuck
        with pytest.raises(WaitExpired, match="node release"):
            await rig.ask("node.drained", names=["a"], timeout_s=5)
