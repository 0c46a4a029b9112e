"""Reports: the latest of each instance, removals until acknowledged, bounded under way."""

import msgpack
import pytest

from swarmctl.agent import assignment, outbox
from swarmctl.agent.instance import Instance, from_journal
from swarmctl.agent.supervisor import REASON_MAX_CHARS
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import NotFound, ProtocolError
from swarmctl.proto.messages import Assign, AssignedGroup, Attachment, Report
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


def test_what_is_plugged_in_is_told_in_full():
    """Attachments are no part of a group: the controller rebuilds its addresses from them."""
    node = node_with(3)
    port = Attachment("p0", "acme/front", "02:00:00:00:00:01", ("10.20.0.7/24", "fd00::7/64"))
    plugged = node.supervisor.instances[inc(2)]
    plugged.attachments = (port,)
    node.act()
    for op in list(node.ops):
        node.answer(op)
    report = node.outbox.next_report(groups=True)

    (told,) = report.instances
    assert told.attachments == (port,)
    assert told.addresses == ("10.20.0.7", "fd00::7")
    assert {entry[0] for group in report.groups for entry in group.entries} == {inc(1), inc(3)}


def test_attachments_are_in_the_journal():
    """They come back as they were assigned; an entry of before has none, a later one's are read."""
    port = Attachment("p0", "acme/front", "02:00:00:00:00:01", ("10.20.0.7/24",), 1400,
                      (("0.0.0.0/0", "10.20.0.1"),), ("10.20.0.1",), ("acme",), 100)  # fmt: skip
    one = Instance(inc(1), "web", 1, attachments=(port,))
    fields = msgpack.unpackb(one.to_journal())
    later = [*fields[:20], [[*fields[20][0], "of a later release"]], "as well"]

    assert from_journal(inc(1), one.to_journal()).attachments == (port,)
    assert from_journal(inc(1), msgpack.packb(fields[:20])).attachments == ()
    assert from_journal(inc(1), msgpack.packb(later)).attachments == (port,)


def test_an_assignment_says_of_all_or_none_where_they_go():
    """One that says it of some is refused whole, before anything of it is taken in."""
    node = node_with(1)
    group = AssignedGroup("web", "default", b"t" * 8, "sim", ((1, inc(1), 1, 0, 0),), ((), ()))
    message = Assign("c1", 9, 9, full=False, groups=(group,))

    with pytest.raises(ProtocolError, match="says of some where they go"):
        assignment.apply(node.supervisor, message, node.now)


def take_away(node):
    """Its one instance is not wanted any more, and goes."""
    node.unwant(1)
    node.assign(removed=(1,))
    for _ in range(20):
        node.act()
        if node.ops:
            node.answer(node.ops[0])


def test_removal_is_told_until_it_is_acknowledged():
    """A removal that may have been lost is told again in the next session, then forgotten."""
    node = node_with(1)
    node.run()
    take_away(node)
    first = node.outbox.next_report()
    assert first.instances[-1].state == InstanceState.REMOVED
    node.outbox.inventory()
    again = node.outbox.next_report()
    assert again.instances[-1].incarnation == inc(1)
    node.outbox.acknowledged(again.sequence)
    node.outbox.inventory()

    assert node.outbox.next_report() is None


def test_an_acknowledgement_that_was_lost_is_asked_for():
    """From the second heartbeat after a report on, ever more rarely; nothing of it grows."""
    node = node_with(1)
    node.run()
    assert node.outbox.nudge() is None
    take_away(node)
    removal = node.outbox.next_report()
    assert node.outbox.nudge() is None
    nudges = [node.outbox.nudge() for _ in range(64)]

    asked = [beat for beat, one in enumerate(nudges) if one is not None]
    assert asked == [0, 1, 3, 7, 15, 31, 47, 63]
    assert [nudges[beat].sequence - removal.sequence for beat in asked] == list(range(1, 9))
    assert not node.outbox.full
    node.outbox.acknowledged(nudges[-1].sequence)
    assert node.supervisor.gone == {}
    assert node.outbox.nudge() is None


def test_a_late_acknowledgement_is_one_however_often_it_was_asked_for_meanwhile():
    """A controller that is always late is not asked for ever."""
    node = node_with(1)
    node.run()
    take_away(node)
    removal = node.outbox.next_report()
    assert node.outbox.nudge() is None
    assert node.outbox.nudge() is not None
    node.outbox.acknowledged(removal.sequence)

    assert node.supervisor.gone == {}
    assert [node.outbox.nudge() for _ in range(64)] == [None] * 64


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
