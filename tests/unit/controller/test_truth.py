"""The rules that make a stateless controller safe (DESIGN 8), over nodes made of data."""

from attrs import evolve

from swarmctl.controller.records import SlotOverride, SlotWish, Tombstone
from swarmctl.proto.messages import Assign, Refuse, Report
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import Placement
from tests.unit.controller.harness import LOST_AFTER_S, FakeNode, Harness, cluster, spec

KEY = ("default", "web")


def test_copies_are_placed_told_and_known_to_run():
    """The main path: a record becomes running instances that the controller knows."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=4))
    harness.run()

    assert sorted(harness.running()) == [1, 2, 3, 4]
    holders = harness.state.services[KEY].holders
    assert {one.state for one in holders.values()} == {InstanceState.RUNNING}


def test_a_new_controller_adopts_what_runs_and_starts_nothing():
    """After a restart the same incarnations run as before."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=4))
    harness.run()
    before = {node.name: set(node.instances) for node in harness.nodes.values()}

    harness.start(term=2)
    harness.connect("a")
    harness.connect("b")
    harness.run()

    assert {node.name: set(node.instances) for node in harness.nodes.values()} == before


def test_an_old_slot_is_not_placed_before_every_node_has_reported():
    """Adoption before action: a slot may be running on the node that is still silent."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=2))
    harness.run()

    harness.start(term=2)
    harness.connect("a")
    harness.step()

    assert all(len(nodes) == 1 for nodes in harness.running().values())
    assert len(harness.state.services[KEY].holders) == 1


def test_a_new_service_is_placed_at_once_on_nodes_that_have_reported():
    """Only what existed before the takeover has to wait."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=2))
    harness.run()

    harness.start(term=2)
    harness.connect("a")
    harness.apply(spec("fresh"))
    harness.step()

    assert harness.running("fresh") == {1: ["a"]}


def test_an_old_slot_is_placed_anew_once_the_silent_node_is_lost():
    """The lost-timeout ends the waiting."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=2))
    harness.run()
    gone = harness.nodes["b"]

    harness.start(term=2)
    harness.connect("a")
    harness.run()

    assert not gone.peer
    assert {slot: nodes[0] for slot, nodes in harness.running().items() if "a" in nodes} == {
        1: "a",
        2: "a",
    }


def test_of_two_holders_of_a_slot_the_newer_incarnation_wins():
    """A node that returns finds its instance replaced, and stops it."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=1))
    harness.run()
    [holder] = harness.running()[1]
    other = {"a": "b", "b": "a"}[holder]

    harness.disconnect(holder)
    harness.run()
    assert sorted(harness.running()[1]) == ["a", "b"]
    harness.connect(holder)
    harness.run()

    assert harness.running() == {1: [other]}


def test_a_node_that_returns_before_it_is_replaced_keeps_its_instances():
    """With nowhere else to go, a lost instance is adopted back."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.run()
    before = set(harness.nodes["a"].instances)

    harness.disconnect("a")
    harness.run()
    assert {one.state for one in harness.state.services[KEY].holders.values()} == {
        InstanceState.LOST
    }
    harness.connect("a")
    harness.run()

    assert set(harness.nodes["a"].instances) == before
    assert harness.state.services[KEY].unplaced == {}


def test_an_instance_of_an_unknown_service_is_quarantined_and_keeps_running():
    """An empty store cannot kill a fleet."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.run()
    harness.records.clear()

    harness.start(term=2)
    harness.connect("a")
    harness.run()

    assert sorted(harness.running()) == [1, 2]
    assert [one.quarantined for one in harness.state.all_instances()] == [True, True]


def test_a_deleted_service_leaves_a_tombstone_that_removes_what_returns():
    """Deleted while its node was away: removed when the node comes back."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.run()
    newest = max(harness.nodes["a"].instances)
    harness.records.clear()

    harness.start(term=2)
    harness.state.tombstones[KEY] = Tombstone(*KEY, newest, 0.0)
    harness.connect("a")
    harness.run()

    assert harness.running() == {}


def test_a_tombstone_does_not_touch_a_service_made_again():
    """Newer incarnations of the same name are another service's."""
    harness = cluster("a")
    harness.state.tombstones[KEY] = Tombstone(*KEY, 1, 0.0)
    harness.apply(spec())
    harness.run()
    harness.start(term=2)
    harness.state.tombstones[KEY] = Tombstone(*KEY, 1, 0.0)
    harness.connect("a")
    harness.run()

    assert harness.running() == {1: ["a"]}


def test_scaling_down_removes_the_highest_slots():
    """Slots are 1..replicas."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=5))
    harness.run()
    harness.apply(spec(replicas=2))
    harness.run()

    assert sorted(harness.running()) == [1, 2]


def test_a_stopped_instance_is_the_exception_of_its_service():
    """`stop web.2` stops one, survives a restart of the controller, and `start` undoes it."""
    harness = cluster("a")
    harness.apply(spec(replicas=3))
    harness.run()
    record = harness.records[KEY].with_override(2, SlotOverride(SlotWish.STOPPED))
    harness.save(record)
    harness.run()
    assert sorted(harness.running()) == [1, 3]

    harness.start(term=2)
    harness.connect("a")
    harness.run()
    assert sorted(harness.running()) == [1, 3]

    harness.save(record.with_override(2, SlotOverride()))
    harness.run()
    assert sorted(harness.running()) == [1, 2, 3]


def test_a_removed_instance_stays_away_until_it_is_started():
    """`rm web.2` leaves a gap that is not filled by itself."""
    harness = cluster("a")
    harness.apply(spec(replicas=3))
    harness.run()
    record = harness.records[KEY].with_override(2, SlotOverride(SlotWish.REMOVED))
    harness.save(record)
    harness.run()

    assert sorted(harness.running()) == [1, 3]
    assert len(harness.nodes["a"].instances) == 2


def test_a_restart_is_a_new_attempt_of_the_same_incarnation():
    """`restart web` raises the generation; nothing is replaced."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.run()
    before = set(harness.nodes["a"].instances)
    harness.save(evolve(harness.records[KEY], generation=1))
    harness.run()

    after = harness.nodes["a"].instances
    assert set(after) == before
    assert {one.attempt for one in after.values()} == {2}


def test_a_changed_template_is_rolled_out_a_few_at_a_time():
    """Instances of the old template are replaced, at most a quarter of them away at once."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=8))
    harness.run()
    old = {one for node in harness.nodes.values() for one in node.instances}
    harness.apply(spec(replicas=8, image="newer"))
    lowest = 8
    for _ in range(20):
        harness.reconciler.cycle()
        holders = harness.state.services[KEY].holders
        running = sum(one.state is InstanceState.RUNNING for one in holders.values())
        lowest = min(lowest, running)
        harness.step()

    now = {one for node in harness.nodes.values() for one in node.instances}
    assert sorted(harness.running()) == list(range(1, 9))
    assert not old & now
    assert lowest >= 6


def test_an_agent_refuses_an_older_term():
    """A stalled old controller can do nothing: its assignments carry a lower term."""
    harness = cluster("a", term=7)
    harness.apply(spec())
    harness.run()
    node = harness.nodes["a"]
    node.take(Assign("c1", 6, 1, full=True))

    assert len(node.refused) == 1
    assert len(node.instances) == 1


def test_a_controller_that_is_behind_its_agents_is_told_so():
    """A restored store has a lower term: nothing is assigned before it is raised."""
    harness = Harness([FakeNode("a", term=9)], term=3)
    harness.connect("a")

    assert harness.sessions.term_seen == 9
    assert [type(message) for _, message in harness.outbox] == [Refuse]


def test_a_second_live_session_of_one_key_is_refused_and_both_are_named():
    """One process a node key."""
    harness = cluster("a")
    node = harness.nodes["a"]
    first = node.peer
    intruder = evolve(node.hello(), boot="other")

    def refused():
        harness.outbox.clear()
        node.peer = b"intruder"
        harness.sessions.on_message(b"intruder", "node:a", intruder)
        [(_, refusal)] = harness.outbox
        assert isinstance(refusal, Refuse)
        assert "live session" in refusal.what
        assert harness.state.nodes["a"].peer == first
        return refusal

    harness.now += 1.0
    assert not refused().final  # It may be the same machine, after a reboot.
    assert not refused().final
    harness.now += 1.0
    harness.sessions.on_message(first, "node:a", node.heartbeat())
    harness.now += 0.5
    assert refused().final


def test_an_agent_after_a_fast_reboot_is_let_in_once_its_old_session_is_silent_for_long_enough():
    """Nobody has ended the connection from before; it is refused for now, and never for good."""
    harness = cluster("a")
    node = harness.nodes["a"]
    harness.beat()
    hello = evolve(node.hello(), boot="after the reboot")
    tries = 0
    while harness.state.nodes["a"].boot != hello.boot:
        harness.now += 0.5
        tries += 1
        harness.outbox.clear()
        node.peer = b"again"
        harness.sessions.on_message(b"again", "node:a", hello)
        assert not [m for _, m in harness.outbox if isinstance(m, Refuse) and m.final]

    assert tries == 2 * LOST_AFTER_S
    assert harness.state.nodes["a"].peer == b"again"


def test_what_found_no_node_is_placed_when_one_joins():
    """Pending is not forgotten."""
    harness = Harness([FakeNode("a", cpu_millis=100), FakeNode("b")])
    harness.connect("a")
    harness.reconciler.settle()
    harness.apply(spec(replicas=3))
    harness.run()
    assert len(harness.running()) == 1
    assert "lacks cpu" in next(iter(harness.state.services[KEY].unplaced.values()))

    harness.connect("b")
    harness.run()

    assert sorted(harness.running()) == [1, 2, 3]


def test_a_completed_slot_of_a_job_is_not_run_again():
    """A completion is a durable fact."""
    harness = cluster("a")
    harness.apply(spec(replicas=2, job=True), completed=(1,))
    harness.run()

    assert sorted(harness.running()) == [2]


def test_constraints_keep_instances_on_matching_nodes():
    """What the record says reaches the scheduler."""
    harness = cluster("a", "b", "c")
    only_b = Placement(constraints=("node.labels.name == b",))
    harness.apply(spec(replicas=3, placement=only_b))
    harness.run()

    assert harness.running() == {1: ["b"], 2: ["b"], 3: ["b"]}


def test_a_lost_assignment_is_repaired_by_the_digest():
    """Two heartbeats with another digest bring the whole assignment."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.step(deliver=False)
    assert harness.running() == {}

    harness.run(cycles=20)

    assert sorted(harness.running()) == [1, 2]


def test_copies_of_a_service_would_rather_not_share_a_node():
    """A node that fails should not take all of them, even when another one is emptier."""
    harness = cluster("a", "b")
    harness.apply(spec("busy", replicas=1, cpu_millis=1000))
    harness.run()
    harness.apply(spec(replicas=2, cpu_millis=0))
    harness.run()

    assert sorted(nodes[0] for nodes in harness.running().values()) == ["a", "b"]


def test_a_quarantined_instance_that_ends_by_itself_leaves_no_trace():
    """Its node has it no more: the books are as if it had never been, and digests agree."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.run()
    harness.records.clear()
    harness.start(term=2)
    harness.connect("a")
    harness.run()
    assert len(harness.state.quarantine[KEY]) == 2

    harness.nodes["a"].instances.clear()
    harness.nodes["a"].assigned.clear()
    harness.connect("a")
    harness.run()

    known, beat = harness.state.nodes["a"], harness.nodes["a"].heartbeat()
    assert harness.state.quarantine == {}
    assert (known.assignment_digest, known.inventory_digest) == (
        beat.assignment_digest,
        beat.inventory_digest,
    )


def test_a_failed_instance_that_its_lost_node_would_have_tried_again_is_lost_with_it():
    """What still wants to run is placed elsewhere; what has failed for good stays as it is."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=2))
    harness.run()
    for name in ("a", "b"):
        node = harness.nodes[name]
        [one] = node.instances.values()
        failed = evolve(one, state=InstanceState.FAILED, retrying=name == "a")
        harness.sessions.on_message(node.peer, f"node:{name}", Report(99, (failed,)))
        harness.disconnect(name)
    harness.now += LOST_AFTER_S
    harness.sessions.losses.check_lost(LOST_AFTER_S)

    states = {one.node: one.state for one in harness.state.services[KEY].holders.values()}
    assert states == {"a": InstanceState.LOST, "b": InstanceState.FAILED}
