"""Digests that differ: when all of it is sent again, and when it only seems to be needed."""

from swarmctl.proto.messages import Assign
from tests.unit.controller.harness import cluster, spec


def told(harness):
    """The assignments sent since the last look."""
    sent = [message for _, message in harness.outbox if isinstance(message, Assign)]
    harness.outbox.clear()
    return sent


def test_a_node_that_lost_an_assignment_is_sent_all_of_it():
    """It says so by its digest, twice; a while after it was told, since it may be busy."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.step(deliver=False)
    told(harness)
    for _ in range(20):
        harness.beat()
    harness.sessions.flush()

    [again] = told(harness)
    assert again.full
    assert sum(len(group.entries) for group in again.groups) == 2


def test_what_a_node_was_not_told_of_yet_is_no_divergence():
    """In a large launch nodes are told of what was placed some seconds later."""
    harness = cluster("a")
    harness.apply(spec(replicas=1))
    harness.run()
    harness.apply(spec(replicas=3))
    harness.reconciler.cycle()
    harness.outbox.clear()
    for _ in range(20):
        harness.beat()
    harness.sessions.flush()

    [first] = told(harness)
    assert not first.full
    assert sum(len(group.entries) for group in first.groups) == 2
