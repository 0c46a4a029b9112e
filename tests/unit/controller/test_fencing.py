"""Fencing in the controller: never two of one slot, whatever is lost, removed or changed."""

import pytest
from attrs import evolve
from harness import FakeNode, Harness, cluster, spec

from swarmctl.controller.election import LEASE_TTL_S, Election, Place
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.proto.messages import FactsChanged, HeartbeatAck, InstanceReport, Report
from swarmctl.proto.states import InstanceState

# Lease, drift and kill margin: 30 * 1.01 + 5.
WAIT_S = 35.3


class GuardedNode(FakeNode):
    """A node whose guard lives, or not; and that obeys removals only when it is told to."""

    guarded = True
    lease_left_s = 0.0

    def hello(self):
        return evolve(super().hello(), guarded=self.guarded, lease_left_s=self.lease_left_s)

    def heartbeat(self):
        return evolve(super().heartbeat(), guarded=self.guarded)


def fenced(replicas=1, **changes):
    made = spec("db", replicas, **changes)
    return evolve(made, template=evolve(made.template, fenced=True))


def guarded_cluster(*names):
    harness = Harness([GuardedNode(name) for name in names])
    for name in names:
        harness.connect(name)
    harness.run(2)
    return harness


def holder(harness, slot=1):
    return harness.state.services["default", "db"].holders.get(slot)


def until(harness, condition, most_s=200.0):
    """Seconds until it is so."""
    began = harness.now
    while not condition():
        assert harness.now - began < most_s, "it never came"
        harness.step()
        harness.beat()
    return harness.now - began


def where(harness):
    return harness.running("db").get(1, [])


def test_a_lost_nodes_slot_waits_for_its_lease():
    """Placed anew when the lease, the kill margin and the drift are over, and not before."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (node,) = where(harness)
    heard_at = harness.now
    harness.disconnect(node)
    until(harness, lambda: holder(harness).state is InstanceState.LOST)
    harness.step()
    service = harness.state.services["default", "db"]
    assert f"may still run on {node}" in service.unplaced[1]
    assert harness.state.fences.waits(service.key)

    until(harness, lambda: holder(harness).node != node)
    assert WAIT_S - 2.0 <= harness.now - heard_at <= WAIT_S + 6.0


def test_unfenced_services_do_not_wait():
    """Nothing changes for them."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(spec("db"))
    harness.run(3)
    (node,) = where(harness)
    harness.disconnect(node)
    assert until(harness, lambda: len(where(harness)) == 2) <= 12.0


def test_a_node_that_returns_in_time_keeps_it():
    """The one that runs is adopted; there is never another."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (node,) = where(harness)
    first = holder(harness).incarnation
    harness.disconnect(node)
    until(harness, lambda: holder(harness).state is InstanceState.LOST)
    harness.run(5)
    harness.connect(node)
    harness.run(40)

    assert holder(harness).incarnation == first
    assert where(harness) == [node]


def test_without_a_live_guard_an_operator_is_asked():
    """Silence of a node without a guard proves nothing, however long; its operator's word does."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (node,) = where(harness)
    harness.nodes[node].guarded = False
    harness.run(2)
    harness.disconnect(node)
    harness.run(60)
    assert where(harness) == [node]
    service = harness.state.services["default", "db"]
    assert f"swarmctl node fenced {node}" in service.unplaced[1]
    assert not harness.state.fences.waits(service.key)

    assert harness.state.fences.release(node)
    until(harness, lambda: len(where(harness)) == 2, 10.0)


def test_nothing_fenced_is_placed_where_no_guard_lives():
    """A node whose guard is dead takes none; it does when it lives again."""
    harness = guarded_cluster("n1")
    harness.nodes["n1"].guarded = False
    harness.run(2)
    harness.apply(fenced())
    harness.apply(spec("web"))
    harness.run(3)
    assert where(harness) == []
    assert len(harness.running("web")) == 1
    assert "guard" in harness.state.services["default", "db"].unplaced[1]

    harness.nodes["n1"].guarded = True
    harness.run(3)
    assert where(harness) == ["n1"]


@pytest.mark.parametrize("how", ["changed", "scaled", "removed"])
def test_a_slot_is_free_when_its_node_says_so(how):
    """What is told to go blocks its slot until it has gone."""
    harness = guarded_cluster("n1", "n2", "n3")
    harness.apply(fenced())
    harness.run(3)
    (node,) = where(harness)
    first = holder(harness).incarnation
    if how == "scaled":
        harness.apply(fenced(0))
        harness.step(deliver=False)
        harness.apply(fenced())
    elif how == "changed":
        harness.apply(fenced(image="newer"))
    else:
        harness.state.drop_service(("default", "db"))
        harness.step(deliver=False)
        del harness.records["default", "db"]
        harness.apply(fenced(image="newer"))
    for _ in range(5):
        harness.step(deliver=False)
        assert first in harness.nodes[node].instances
        assert holder(harness) is None or holder(harness).incarnation == first
    harness.run(8)

    assert len(where(harness)) == 1
    assert holder(harness).incarnation != first


def test_a_takeover_waits_for_the_longest_lease():
    """A node that does not report may run it under a lease of the controller before."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (node,) = where(harness)
    other = "n2" if node == "n1" else "n1"
    harness.disconnect(node)
    began = harness.now
    harness.start(2)
    harness.connect(other)
    until(harness, lambda: len(where(harness)) == 2)
    assert harness.now - began >= WAIT_S - 2.0


def test_a_takeover_with_all_nodes_places_at_once():
    """When everybody has reported, nothing can run unseen."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced(2))
    harness.run(3)
    harness.start(2)
    harness.connect("n1")
    harness.connect("n2")
    harness.apply(fenced(3))
    harness.run(4)
    assert len(harness.running("db")) == 3


def test_a_node_taken_out_of_the_registry_is_waited_for():
    """It may run on until its lease ends, and nobody will ever hear of it."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (node,) = where(harness)
    harness.disconnect(node)
    gone = harness.state.nodes[node]
    harness.state.fences.removed(node)
    for instance in list(gone.instances.values()):
        harness.state.forget(instance)
    harness.fleet.node_removed(node)
    harness.sessions.forget(gone)
    del harness.state.nodes[node]
    removed = harness.nodes.pop(node)
    took = until(harness, lambda: bool(where(harness)))

    assert removed.instances
    assert WAIT_S - 4.0 <= took <= WAIT_S + 6.0


def test_leases_are_granted_with_heartbeats_and_not_before_the_node_knows_all():
    """A node that may still have what was replaced is told so before it may start anything."""
    harness = cluster("n1")
    node = harness.nodes["n1"]
    harness.beat()
    (ack,) = [m for _, m in harness.outbox if isinstance(m, HeartbeatAck)]
    assert ack.lease_s == 30.0

    harness.outbox.clear()
    harness.connect("n1")
    harness.sessions.on_message(node.peer, "node:n1", node.heartbeat())
    (ack,) = [m for _, m in harness.outbox if isinstance(m, HeartbeatAck)]
    assert ack.lease_s == 0.0


def lease(harness, name):
    """What the answer to a heartbeat of a node grants it."""
    node = harness.nodes[name]
    harness.outbox.clear()
    harness.sessions.on_message(node.peer, f"node:{name}", node.heartbeat())
    (ack,) = [m for _, m in harness.outbox if isinstance(m, HeartbeatAck)]
    return ack.lease_s


def test_on_hold_a_lease_that_holds_is_renewed_and_one_that_ran_out_is_not():
    """Nodes are told nothing then; what runs runs on, and what the guard ended stays so."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced(2))
    harness.run(3)
    harness.start(2)
    harness.state.hold = "restored"
    harness.nodes["n1"].lease_left_s = 12.5
    harness.connect("n1")
    harness.connect("n2")
    assert [lease(harness, name) for name in ("n1", "n1", "n2")] == [30.0, 30.0, 0.0]

    harness.state.hold = ""
    assert lease(harness, "n1") == 0.0  # It is to hear first what has become of its slots.
    harness.step()
    assert [lease(harness, name) for name in ("n1", "n2")] == [30.0, 30.0]


def test_a_node_has_no_lease_until_it_says_that_what_was_replaced_has_gone():
    """What told it to take that away may have been overtaken by the welcome, and not taken in."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (name,) = where(harness)
    harness.disconnect(name)
    until(harness, lambda: holder(harness).node != name)
    node = harness.nodes[name]
    node.take = lambda _assign: ()
    harness.connect(name)
    harness.run(2)
    assert not harness.state.nodes[name].needs_full
    assert lease(harness, name) == 0.0

    del node.take
    until(harness, lambda: not node.instances)
    harness.run(2)
    assert lease(harness, name) == 30.0


def test_on_hold_the_older_of_two_loses_its_lease():
    """Should both say that theirs holds, there is one too many."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (node,) = where(harness)
    other = "n2" if node == "n1" else "n1"
    [report] = harness.nodes[node].instances.values()
    newer = evolve(report, incarnation=report.incarnation + 1)
    harness.nodes[other].instances[newer.incarnation] = newer
    harness.start(2)
    harness.state.hold = "restored"
    for name in (node, other):
        harness.nodes[name].lease_left_s = 20.0
        harness.connect(name)
    assert (lease(harness, node), lease(harness, other)) == (0.0, 30.0)


def test_a_quiet_heartbeat_is_answered_only_if_there_is_something_to_say():
    """Such as that reports have come, or that both sides differ."""
    harness = cluster("n1")
    node = harness.nodes["n1"]

    def answers(beat):
        harness.outbox.clear()
        harness.sessions.on_message(node.peer, "node:n1", beat)
        return [m for _, m in harness.outbox if isinstance(m, HeartbeatAck)]

    assert answers(evolve(node.heartbeat(), quiet=True)) == []
    assert len(answers(node.heartbeat())) == 1

    harness.sessions.on_message(node.peer, "node:n1", Report(1, ()))
    (ack,) = answers(evolve(node.heartbeat(), quiet=True))
    assert ack.reported == 1

    differs = evolve(node.heartbeat(), inventory_digest=12345, quiet=True)
    assert answers(differs) == []  # It may have crossed something.
    (ack,) = answers(differs)
    assert ack.resync


def test_a_controller_that_may_not_grant_grants_nothing():
    """One that is superseded lets the leases run out."""
    harness = cluster("n1")
    harness.state.fences.may_grant = lambda: False
    harness.beat()
    (ack,) = [m for _, m in harness.outbox if isinstance(m, HeartbeatAck)]
    assert ack.lease_s == 0.0


async def test_a_leader_that_was_stopped_knows_by_its_clock_that_it_may_not_grant():
    """Between waking up and hearing of it, one whose lease in etcd is over grants nothing."""
    clock = [100.0]
    address = EtcdAddress(("127.0.0.1:1",))
    election = Election(address, Place("c1", ("tcp://127.0.0.1:1",)), now=lambda: clock[0])
    assert not election.leads_surely
    election._leads, election._renewed_at = True, 100.0
    clock[0] += LEASE_TTL_S - 0.1
    assert election.leads_surely
    clock[0] += 0.2
    assert not election.leads_surely


def test_a_node_whose_driver_has_not_listed_has_what_it_had():
    """An agent whose journal was moved aside while dockerd is away knows of nothing yet."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (name,) = where(harness)
    node = harness.nodes[name]
    before, instances, node.instances = holder(harness), node.instances, {}
    node.listed = False
    node.assigned.clear()
    harness.connect(name)
    harness.step(deliver=False)
    assert holder(harness) is before
    # Asked to remove something, it knows of nothing either.
    harness.state.remove(before)
    gone = InstanceReport(before.incarnation, InstanceState.REMOVED)
    harness.sessions.on_message(node.peer, f"node:{name}", Report(1, (gone,)))
    for _ in range(5):
        harness.step(deliver=False)
        harness.beat()
    assert holder(harness) is None, "the slot waits, and is nowhere else"
    # Dockerd is back, and shows what it has: only then it can be taken away, and is placed anew.
    node.listed, node.instances = True, instances
    facts = node.hello().facts
    harness.sessions.on_message(node.peer, f"node:{name}", FactsChanged(facts))
    until(harness, lambda: holder(harness) is not None, 30.0)
    assert before.incarnation not in node.instances


def test_what_was_not_listed_is_found_by_the_next_inventory():
    """The same node, when nothing is asked of it meanwhile: the same instance runs on."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (name,) = where(harness)
    node, before = harness.nodes[name], holder(harness)
    instances, node.instances = node.instances, {}
    node.listed = False
    harness.connect(name)
    node.listed, node.instances = True, instances
    facts = node.hello().facts
    harness.sessions.on_message(node.peer, f"node:{name}", FactsChanged(facts))
    report = Report(1, tuple(instances.values()), full=True)
    harness.sessions.on_message(node.peer, f"node:{name}", report)
    harness.run(4)
    assert holder(harness) is before
    assert where(harness) == [name]


def forgetful_takeover():
    """A controller begins, and the node that has the only copy comes with a new journal."""
    harness = guarded_cluster("n1", "n2")
    harness.apply(fenced())
    harness.run(3)
    (name,) = where(harness)
    node = harness.nodes[name]
    kept, node.instances, node.term, node.listed = node.instances, {}, 0, False
    node.assigned.clear()
    node.forgotten = tuple(kept)
    harness.start(2)
    harness.connect("n1")
    harness.connect("n2")
    return harness, node, kept


def test_a_takeover_waits_for_a_node_that_may_run_what_nobody_knows_of():
    """Its lease is not renewed, and after it what it had can be elsewhere."""
    harness, node, _ = forgetful_takeover()
    began = harness.now
    assert lease(harness, node.name) == 0.0
    until(harness, lambda: holder(harness) is not None)
    assert harness.now - began >= WAIT_S - 2.0
    harness.run(3)
    assert lease(harness, node.name) > 0.0, "nothing of before can run there any more"


def test_a_second_hello_that_tells_no_more_is_believed_no_more():
    """The agent has been told of a term by then; what it has on its guard's list it lacks yet."""
    harness, node, _ = forgetful_takeover()
    began = harness.now
    harness.run(1)
    assert node.term > 0
    harness.connect(node.name)
    until(harness, lambda: holder(harness) is not None)
    assert harness.now - began >= WAIT_S - 2.0


def test_a_node_that_forgot_and_has_no_guard_is_waited_for_until_it_tells_or_is_off():
    """Nobody would have ended there what ran: no lease's end says anything; this is written."""
    harness, node, _ = forgetful_takeover()
    node.guarded = False
    harness.connect(node.name)
    harness.run(200)
    assert holder(harness) is None
    assert "lost its journal" in harness.state.services["default", "db"].unplaced[1]
    assert node.name in harness.state.fences.unwritten

    began, node.guarded = harness.now, True
    assert lease(harness, node.name) == 0.0
    until(harness, lambda: holder(harness) is not None)
    assert harness.now - began >= WAIT_S - 2.0


def test_once_a_node_has_told_all_it_keeps_what_it_runs():
    """It begins anew as soon as its drivers have listed."""
    harness, node, kept = forgetful_takeover()
    [incarnation] = kept
    node.listed, node.instances, node.forgotten = True, kept, ()
    harness.connect(node.name)
    harness.run(4)
    assert holder(harness).incarnation == incarnation
    assert where(harness) == [node.name]
    assert lease(harness, node.name) > 0.0
