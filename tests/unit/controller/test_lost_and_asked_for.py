"""What had ended on a node that was then lost, and is asked to run again: it runs elsewhere."""

import pytest
from attrs import evolve
from harness import FakeNode, Harness, cluster, spec

from swarmctl.controller.records import SlotOverride, SlotWish
from swarmctl.proto.messages import Report
from swarmctl.proto.states import InstanceState

KEY = ("default", "web")


def placed(a_spec, *names):
    """A cluster in which ``a_spec`` runs, and the node that has its first slot."""
    harness = cluster(*names)
    harness.apply(a_spec)
    harness.run(3)
    return harness, harness.running()[1][0]


def lose(harness, *names):
    """Their machines are gone for good."""
    for name in names:
        harness.disconnect(name)
    harness.run(6)


def ended(harness, name, state, exit_code):
    """A node says that what it has has ended so, for good."""
    node = harness.nodes[name]
    done = tuple(
        evolve(one, state=int(state), exit_code=exit_code) for one in node.instances.values()
    )
    node.instances = {one.incarnation: one for one in done}
    node.sequence += 1
    harness.sessions.on_message(node.peer, f"node:{name}", Report(node.sequence, done))


def holder(harness):
    return harness.state.services[KEY].holders.get(1)


def test_a_stopped_copy_is_started_elsewhere_when_its_node_is_lost():
    """Its node is gone, so `start` finds it another; while it is stopped it needs none."""
    harness, node = placed(spec(), "n1", "n2")
    harness.apply(spec(), stopped=True)
    harness.run(2)
    lose(harness, node)
    assert holder(harness).state is InstanceState.STOPPED
    assert holder(harness).node == node

    harness.apply(spec(), stopped=False)
    harness.run(3)
    assert holder(harness).node != node
    assert holder(harness).state is InstanceState.RUNNING


def test_a_start_under_way_is_lost_with_its_node():
    """It was asked for, and never heard: the slot runs elsewhere."""
    harness, node = placed(spec(), "n1", "n2")
    harness.apply(spec(), stopped=True)
    harness.run(2)
    harness.disconnect(node)
    harness.apply(spec(), stopped=False)
    harness.run(6)
    assert holder(harness).node != node
    assert holder(harness).state is InstanceState.RUNNING


@pytest.mark.parametrize(
    ("state", "exit_code"), [(InstanceState.SUCCEEDED, 0), (InstanceState.FAILED, 1)]
)
def test_a_copy_that_has_ended_is_restarted_elsewhere(state, exit_code):
    """A restart of a job's copy that is done, or of one that has failed for good."""
    harness, node = placed(spec(job=True), "n1", "n2")
    ended(harness, node, state, exit_code)
    lose(harness, node)
    assert holder(harness).node == node

    harness.save(harness.records[KEY].with_override(1, SlotOverride(generation=1)))
    harness.run(3)
    assert holder(harness).node != node
    assert holder(harness).state is InstanceState.RUNNING


def test_it_waits_while_many_nodes_have_vanished_at_once():
    """The storm brake holds for what is asked for of it, too; and ends for it."""
    names = [f"n{number}" for number in range(1, 11)]
    harness, node = placed(spec(), *names)
    harness.apply(spec(), stopped=True)
    harness.run(2)
    others = [name for name in names if name != node]
    for name in [node, *others[:6]]:
        harness.disconnect(name)
    while not harness.state.braked:
        harness.beat()
    while harness.state.nodes[node].state.value != "lost":
        harness.beat()
    harness.apply(spec(), stopped=False)
    harness.run(2)
    assert holder(harness).node == node

    harness.sessions.losses.release_brake()
    harness.run(3)
    assert holder(harness).node != node
    assert holder(harness).state is InstanceState.RUNNING


def test_a_node_that_returns_starts_what_it_had_when_there_was_no_other():
    """What was stopped there, and asked for meanwhile, is begun on the spot."""
    harness, node = placed(spec(), "n1")
    harness.apply(spec(), stopped=True)
    harness.run(2)
    before = holder(harness).incarnation
    lose(harness, node)
    harness.apply(spec(), stopped=False)
    harness.run(2)
    assert holder(harness).state is InstanceState.LOST

    harness.connect(node)
    harness.run(3)
    assert holder(harness).incarnation == before
    assert holder(harness).state is InstanceState.RUNNING


def test_only_the_wish_of_the_moment_counts():
    """Started and stopped again while its node is away, it stays where it is."""
    harness = Harness([FakeNode("n1"), FakeNode("n2")])
    harness.connect("n1")
    harness.connect("n2")
    harness.apply(spec())
    harness.run(3)
    [node] = harness.running()[1]
    stopped = harness.records[KEY].with_override(1, SlotOverride(SlotWish.STOPPED))
    harness.save(stopped)
    harness.run(2)
    lose(harness, node)
    harness.save(stopped.with_override(1, SlotOverride()))
    harness.save(stopped)
    harness.run(3)
    assert holder(harness).node == node
    assert not [one for one in harness.running().get(1, []) if one != node]
