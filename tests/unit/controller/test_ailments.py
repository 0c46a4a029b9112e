"""Sick nodes: named from what is seen of them, avoided, and healed by themselves."""

from attrs import evolve

from swarmctl.controller.ailments import Ailments
from swarmctl.controller.records import NodeRecord
from swarmctl.controller.state import Node
from swarmctl.proto.messages import Report
from swarmctl.proto.states import InstanceState, NodeState
from tests.unit.controller.harness import cluster, spec

IMAGE, OTHER = b"image", b"other"


def fail(ailments, node, times, template=IMAGE, at=100.0):
    """Launches that fail; whether the last one made it sick."""
    return [ailments.launch_failed(node, template, at) for _ in range(times)][-1]


# --- launches ---------------------------------------------------------------------------------


def test_launches_that_fail_there_and_not_elsewhere_make_a_node_sick():
    """Three in a row, of something that runs on another node."""
    ailments = Ailments(lambda: 4)
    ailments.launched("good", (IMAGE,), 90.0)
    assert not fail(ailments, "bad", 2)
    assert fail(ailments, "bad", 1)
    [reason] = ailments.reasons("bad", 101.0)
    assert reason.startswith("launches fail here and not elsewhere")
    assert ailments.reasons("good", 101.0) == ()


def test_what_fails_everywhere_is_no_nodes_illness():
    """Nor what has run on this node alone, nor long ago."""
    for prepare in (
        lambda _: None,
        lambda it: it.launched("bad", (IMAGE,), 90.0),
        lambda it: it.launched("good", (OTHER,), 90.0),
        lambda it: it.launched("good", (IMAGE,), -1000.0),
    ):
        ailments = Ailments(lambda: 4)
        prepare(ailments)
        assert not fail(ailments, "bad", 10)
        assert ailments.reasons("bad", 101.0) == ()


def test_a_success_in_between_ends_the_row():
    """One that fails now and then is not sick."""
    ailments = Ailments(lambda: 4)
    ailments.launched("good", (IMAGE,), 90.0)
    for _ in range(5):
        assert not fail(ailments, "so-so", 2)
        ailments.launched("so-so", (IMAGE,), 100.0)
    assert ailments.reasons("so-so", 101.0) == ()


def test_it_is_tried_again_later_and_later():
    """A minute at first, twice as long each time that it fails once more."""
    ailments = Ailments(lambda: 4)
    now, rests = 100.0, []
    for _ in range(4):
        ailments.launched("good", (IMAGE,), now)
        assert fail(ailments, "bad", 3, at=now)
        began = now
        while ailments.reasons("bad", now):
            now += 1
        rests.append(now - began)
    assert rests == [60, 120, 240, 480]


# --- heartbeats and clocks --------------------------------------------------------------------


def test_heartbeats_that_come_late_again_and_again():
    """Three gaps in a minute; a minute without heals."""
    ailments = Ailments(lambda: 4)
    node = Node(NodeRecord("n", "k", 0.0))
    now = 0.0
    for gap in (2.0, 3.0, 2.0, 4.0, 2.0):
        now += gap
        ailments.hear(node, now)
    assert ailments.reasons("n", now) == ()
    now += 3.5
    ailments.hear(node, now)
    assert ailments.reasons("n", now) == ("heartbeats come late: 3 times in 60 s",)
    while ailments.reasons("n", now):
        now += 2.0
        ailments.hear(node, now)
    assert 50 < now < 80


def test_nodes_that_are_late_together_have_a_cause_in_common():
    """More than a tenth of the fleet within seconds: what slows all is the network, or us."""
    ailments = Ailments(lambda: 100)
    nodes = [Node(NodeRecord(f"n{number}", "k", 0.0)) for number in range(100)]

    def late(which, *times):
        for now in times:
            for node in which:
                ailments.hear(node, now)
        return [node.name for node in which if ailments.reasons(node.name, times[-1])]

    # The first tenth of such a burst cannot be told from others, but no burst is three.
    assert late(nodes, 10.0) == []
    assert late(nodes, 13.0, 16.0, 19.0, 22.0) == []
    # Those that go on when the others are well again are late for reasons of their own.
    assert late(nodes[:10], 40.0, 44.0, 48.0) == [f"n{number}" for number in range(10)]


# --- in the cluster ---------------------------------------------------------------------------


def test_a_node_where_launches_fail_is_avoided_and_what_failed_runs_elsewhere():
    """And after its rest it takes instances again."""
    harness = cluster("a", "b")
    harness.apply(spec("web", 2))
    harness.run(2)
    harness.apply(spec("web", 8))
    harness.reconciler.cycle()
    harness.sessions.flush()
    messages, harness.outbox = harness.outbox, []
    bad = harness.nodes["b"]
    for node, message in messages:
        reports = node.take(message) if hasattr(message, "groups") else ()
        if node is bad:
            reports = tuple(
                evolve(one, state=int(InstanceState.FAILED), reason="no such device")
                for one in reports
            )
            bad.instances.update({one.incarnation: one for one in reports})
        if reports:
            node.sequence += 1
            report = Report(node.sequence, reports)
            harness.sessions.on_message(node.peer, f"node:{node.name}", report)

    known = harness.state.nodes["b"]
    assert known.state is NodeState.SICK
    assert "launches fail here and not elsewhere" in known.reasons[0]
    harness.run(6)
    running = harness.running()
    assert sorted(running) == list(range(1, 9))
    assert list(running.values()).count(["b"]) == 1
    harness.run(60)
    assert harness.state.nodes["b"].state is NodeState.READY
