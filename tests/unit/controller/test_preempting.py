"""Preemption: what matters more gets its room, and whoever had it says who took it."""

import attrs

from swarmctl.proto.states import Desired, InstanceState
from tests.unit.controller.harness import cluster, record, spec
from tests.unit.controller.requests_fixture import a_rig


def of(name, replicas, priority, **fields):
    """A service of that priority; four fit on a node."""
    return attrs.evolve(spec(name, replicas, cpu_millis=1000, **fields), priority=priority)


def test_the_lowest_priority_makes_room_and_no_more_than_needed():
    """Of three priorities on a full node; the most important one runs in the end."""
    harness = cluster("a")
    harness.apply(of("low", 2, 1))
    harness.apply(of("mid", 2, 5))
    harness.run()
    harness.apply(of("vip", 1, 50))
    harness.run()

    assert harness.running("vip") == {1: ["a"]}
    assert len(harness.running("low")) == 1
    assert len(harness.running("mid")) == 2
    low = harness.state.services[("default", "low")]
    [(slot, why)] = low.unplaced.items()
    assert why.startswith("preempted by vip.1 (priority 50) on a; 0 of 1 node")
    assert f"low.{slot} preempted by vip.1 (priority 50) on a" in [what for _, what in low.history]
    assert harness.fleet.snapshot.allocated("a")["cpu_millis"] == 4000


def test_nobody_goes_for_an_equal_or_lower_priority():
    """Whatever waits."""
    for priority in (0, 5):
        harness = cluster("a")
        harness.apply(of("web", 4, 5))
        harness.run()
        before = dict(harness.running("web"))
        harness.apply(of("other", 1, priority))
        harness.run()
        assert harness.running("other") == {}
        assert harness.running("web") == before


def test_what_is_fenced_never_goes():
    """It cannot be started elsewhere before its node has let go."""
    harness = cluster("a")
    fenced = of("web", 4, 1)
    harness.apply(fenced)
    harness.run()
    harness.state.services[fenced.tenant, "web"].record = record(
        attrs.evolve(fenced, fencing="lease")
    )
    harness.apply(of("vip", 1, 50))
    harness.run()
    assert harness.running("vip") == {}
    assert len(harness.running("web")) == 4


def test_victims_go_elsewhere_when_there_is_room():
    """To be sent away is not to be stopped."""
    harness = cluster("a", "b")
    harness.apply(of("web", 6, 1))
    harness.run()
    only_a = attrs.evolve(of("vip", 3, 50).placement, constraints=("node.labels.name == a",))
    harness.apply(attrs.evolve(of("vip", 3, 50), placement=only_a))
    harness.run(30)
    assert len(harness.running("vip")) == 3
    assert {name for at in harness.running("vip").values() for name in at} == {"a"}
    assert len(harness.running("web")) == 5
    assert harness.state.services[("default", "web")].unplaced


def test_the_room_is_kept_until_the_victims_have_gone():
    """Who comes in between does not get it, and nobody goes twice."""
    harness = cluster("a")
    harness.apply(of("low", 4, 1))
    harness.run()
    harness.apply(of("vip", 1, 50))
    for _ in range(3):
        harness.step(deliver=False)
    leaving = [one for one in harness.state.all_instances() if one.removing]
    assert len(leaving) == 1
    assert leaving[0].departure == "preempted by vip.1 (priority 50) on a"
    assert leaving[0].desired is Desired.RUNNING
    vip = harness.state.services[("default", "vip")]
    assert vip.unplaced == {1: f"waits on a for {leaving[0].name} to go"}
    harness.apply(of("mid", 1, 5))
    for _ in range(3):
        harness.step(deliver=False)
    # The one in between has a victim of its own, and does not take what is kept.
    assert sum(one.removing for one in harness.state.all_instances()) == 2
    harness.state.resend(harness.state.nodes["a"])
    harness.run(20)
    assert harness.running("vip") == {1: ["a"]}
    assert harness.running("mid") == {1: ["a"]}
    assert len(harness.running("low")) == 2


def test_room_that_is_wanted_no_more_is_given_back():
    """The service is gone, or its node is lost."""
    harness = cluster("a")
    harness.apply(of("low", 4, 1))
    harness.run()
    harness.apply(of("vip", 1, 50))
    harness.step(deliver=False)
    harness.state.drop_service(("default", "vip"))
    del harness.records["default", "vip"]
    harness.state.resend(harness.state.nodes["a"])
    harness.run(20)
    assert len(harness.running("low")) == 4
    assert harness.fleet.snapshot.allocated("a")["cpu_millis"] == 4000


def test_what_leaves_anyway_is_waited_for_before_anybody_goes():
    """Somebody scales down to make room."""
    harness = cluster("a")
    harness.apply(of("low", 4, 1))
    harness.run()
    harness.apply(of("low", 3, 1))
    harness.step(deliver=False)
    harness.apply(of("vip", 1, 50))
    harness.step(deliver=False)
    assert sum(one.removing for one in harness.state.all_instances()) == 1
    harness.state.resend(harness.state.nodes["a"])
    harness.run(20)
    assert len(harness.running("low")) == 3
    assert harness.running("vip") == {1: ["a"]}


async def test_ps_and_explain_name_who_took_the_place(autojump_clock, tmp_path):
    """For the victim and, while it waits, for the other."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(of("low", 4, 1))
        rig.run()
        await rig.apply(of("vip", 1, 50))
        rig.step(deliver=False)
        listed = await rig.ask("instance.list")
        [leaving] = [one for one in listed if one["desired"] == "removed"]
        assert leaving["reason"] == "preempted by vip.1 (priority 50) on a"
        rig.cluster.state.resend(rig.cluster.state.nodes["a"])
        rig.run()
        assert rig.running("vip") == [1]
        [pending] = [one for one in await rig.ask("instance.list") if one["state"] == "pending"]
        assert pending["reason"].startswith("preempted by vip.1 (priority 50) on a; 0 of 1")
        explained = await rig.ask("instance.explain", name=pending["instance"])
        assert "is nowhere: preempted by vip.1 (priority 50) on a" in explained["lines"][0]
        states = {one.state for one in rig.nodes["a"].instances.values()}
        assert states == {InstanceState.RUNNING}


def test_many_that_matter_more_get_their_room_a_few_a_cycle():
    """What one cycle does not look at, the next ones do, without anything else happening."""
    harness = cluster("a", "b", "c")
    harness.apply(of("low", 12, 1))
    harness.run()
    harness.apply(of("vip", 10, 50))
    harness.reconciler.cycle()
    assert sum(one.removing for one in harness.state.all_instances()) == 4
    assert harness.reconciler.preempting.unfinished
    harness.reconciler.cycle()
    assert sum(one.removing for one in harness.state.all_instances()) == 8
    harness.run(20)
    assert len(harness.running("vip")) == 10
    assert len(harness.running("low")) == 2
    assert not harness.reconciler.preempting.unfinished


def test_a_rolled_out_copy_waits_for_the_one_before_it_and_preempts_nobody():
    """Its slot is asked for once in a cycle, though the look at it is what has made it vacant."""
    harness = cluster("a")
    harness.apply(of("low", 2, 1))
    harness.apply(of("mid", 2, 5))
    harness.run()
    harness.apply(of("mid", 2, 5, image="newer"))
    harness.run()

    assert len(harness.running("low")) == 2
    assert len(harness.running("mid")) == 2
    assert not harness.state.services[("default", "low")].history
    assert harness.fleet.snapshot.allocated("a")["cpu_millis"] == 4000
