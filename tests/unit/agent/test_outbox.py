"""Reports: the latest of each instance, removals until acknowledged, bounded under way."""

from swarmctl.agent import outbox
from swarmctl.agent.supervisor import REASON_MAX_CHARS
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import NotFound
from swarmctl.proto.messages import Report
from swarmctl.proto.states import InstanceState
from tests.unit.agent.machine import Node, inc, template


def node_with(count: int) -> Node:
    node = Node()
    node.run()
    for sequence in range(1, count + 1):
        node.want(sequence, template())
    node.assign_all()
    return node


def test_many_changes_make_one_report():
    """What happened between two reports is told by its outcome."""
    node = node_with(1)
    node.act()
    node.answer(node.ops[0])
    report = node.outbox.next_report()

    assert [one.state for one in report.instances] == [InstanceState.RUNNING]
    assert node.outbox.next_report() is None


def test_removal_is_told_until_it_is_acknowledged():
    """A removal that may have been lost is told again in the next session, then forgotten."""
    node = node_with(1)
    node.run()
    node.unwant(1)
    node.assign(removed=(1,))
    for _ in range(20):
        node.act()
        if node.ops:
            node.answer(node.ops[0])
    first = node.outbox.next_report()
    assert first.instances[-1].state == InstanceState.REMOVED
    node.outbox.inventory()
    again = node.outbox.next_report()
    assert again.instances[-1].incarnation == inc(1)
    node.outbox.acknowledged(again.sequence)
    node.outbox.inventory()

    assert node.outbox.next_report() is None


def test_an_acknowledgement_that_was_lost_is_asked_for():
    """At the second heartbeat after a report; nothing stays under way for ever, nor grows."""
    node = node_with(1)
    node.run()
    assert node.outbox.nudge() is None
    node.unwant(1)
    node.assign(removed=(1,))
    for _ in range(20):
        node.act()
        if node.ops:
            node.answer(node.ops[0])
    removal = node.outbox.next_report()
    assert node.outbox.nudge() is None
    nudges = [node.outbox.nudge() for _ in range(outbox.REPORTS_UNDER_WAY_MAX)]

    assert [one.sequence - removal.sequence for one in nudges] == list(range(1, 33))
    assert not node.outbox.full
    node.outbox.acknowledged(nudges[-1].sequence)
    assert node.supervisor.gone == {}
    assert node.outbox.nudge() is None


def test_report_taken_back_is_told_later():
    """News that the link did not take are not lost, and the order of sequences holds."""
    node = node_with(3)
    node.act()
    report = node.outbox.next_report()
    node.outbox.take_back(report)

    assert {one.incarnation for one in node.outbox.next_report().instances} == {
        one.incarnation for one in report.instances
    }


def test_reports_under_way_are_bounded():
    """A controller that acknowledges nothing is not flooded."""
    node = node_with(limits.REPORT_BATCH * (outbox.REPORTS_UNDER_WAY_MAX + 1))
    node.act()
    sent: list[Report] = []
    while not node.outbox.full:
        sent.append(node.outbox.next_report())

    assert len(sent) == outbox.REPORTS_UNDER_WAY_MAX
    node.outbox.acknowledged(sent[0].sequence)
    assert not node.outbox.full


def test_long_reasons_keep_the_inventory_within_a_message():
    """10,000 failures with endless texts still fit one hello."""
    node = node_with(10_000)
    node.act()
    for op in list(node.ops):
        node.supervisor.launch_failed(op.incarnation, NotFound("x" * 100_000), node.now)
    inventory = node.outbox.inventory()

    assert {len(one.reason) for one in inventory} == {REASON_MAX_CHARS}
    assert len(codec.encode(Report(1, inventory))) < limits.MESSAGE_MAX_BYTES
