"""Nodes that are called lost and were only late: heard again on the connection that they had."""

from attrs import evolve

from swarmctl.proto.messages import Assign, Report, SayHello
from swarmctl.proto.states import InstanceState, NodeState
from tests.unit.controller.harness import LOST_AFTER_S, cluster, spec

KEY = ("default", "web")


def fall_silent(harness, *names):
    """Time passes in which these say nothing, and are called lost."""
    harness.now += LOST_AFTER_S + 1
    for node in harness.nodes.values():
        if node.name not in names:
            harness.sessions.on_message(node.peer, f"node:{node.name}", node.heartbeat())
    harness.sessions.losses.check_lost(LOST_AFTER_S)
    for name in names:
        assert harness.state.nodes[name].state is NodeState.LOST


def test_a_loss_that_nothing_came_of_is_taken_back_without_a_word():
    """No hello, no inventory, no assignment: what it had is as it was."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.run()
    before = {one.slot: one.since for one in harness.state.services[KEY].holders.values()}

    fall_silent(harness, "a")
    holders = harness.state.services[KEY].holders
    assert {one.state for one in holders.values()} == {InstanceState.LOST}
    assert "silent" in holders[1].reason
    harness.outbox.clear()
    harness.beat()

    assert harness.state.nodes["a"].state is NodeState.READY
    assert {one.state for one in holders.values()} == {InstanceState.RUNNING}
    assert {one.slot: one.since for one in holders.values()} == before
    assert holders[1].reason == ""
    said = [type(message) for _, message in harness.outbox]
    assert SayHello not in said
    assert Assign not in said
    assert harness.state.counts(harness.state.services[KEY]) == {"running": 2}


def test_what_was_replaced_meanwhile_is_stopped_when_its_node_is_heard():
    """The replacement stays; the late node is told all that it should have."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=1))
    harness.run()
    [holder] = harness.running()[1]
    [other] = {"a", "b"} - {holder}

    fall_silent(harness, holder)
    harness.step()
    assert sorted(harness.running()[1]) == ["a", "b"]
    harness.run()

    assert harness.running() == {1: [other]}
    assert harness.nodes[holder].instances == {}


def test_a_late_node_gets_no_lease_before_it_knows_what_was_replaced():
    """Two fenced copies must never run: the lease waits for the assignment."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=1))
    harness.run()
    [holder] = harness.running()[1]

    fall_silent(harness, holder)
    harness.reconciler.cycle()
    node = harness.nodes[holder]
    harness.sessions.on_message(node.peer, f"node:{holder}", node.heartbeat())

    assert harness.state.nodes[holder].needs_full


def test_a_late_node_gets_no_lease_before_it_knows_what_was_taken_away_before():
    """It fell silent without having heard that; what is fenced may run elsewhere by now."""
    harness = cluster("a", "b")
    harness.apply(spec(replicas=1))
    harness.run()
    [holder] = harness.running()[1]
    harness.state.remove(harness.state.services[KEY].holders[1])
    harness.step(deliver=False)

    fall_silent(harness, holder)
    node = harness.nodes[holder]
    harness.sessions.on_message(node.peer, f"node:{holder}", node.heartbeat())

    assert harness.state.nodes[holder].needs_full


def test_a_report_from_before_the_hello_is_of_what_is_over():
    """The node has ended it and said so, but the report before that was overtaken by the hello."""
    harness = cluster("a")
    harness.apply(spec())
    harness.run()
    node = harness.nodes["a"]
    [stopping] = [evolve(one, state=int(InstanceState.STOPPING)) for one in node.instances.values()]
    node.sequence += 1
    late = Report(node.sequence, (stopping,))
    harness.apply(spec(replicas=0))
    harness.run()

    hello = evolve(node.hello(), sequence=2, reported=node.sequence)
    harness.sessions.on_message(node.peer, "node:a", hello)
    harness.sessions.on_message(node.peer, "node:a", late)
    assert not harness.state.nodes["a"].instances

    node.sequence += 1
    newer = Report(node.sequence, (evolve(stopping, slot=1),))
    harness.sessions.on_message(node.peer, "node:a", newer)
    assert list(harness.state.nodes["a"].instances) == [stopping.incarnation]
