"""What a node is told fits its messages, however much it is."""

import pytest
from attrs import evolve

from swarmctl.proto import codec, limits
from swarmctl.proto.errors import Busy
from swarmctl.proto.messages import Assign
from swarmctl.spec.models import ContainerSpec
from tests.unit.controller.harness import cluster, spec


def large(name, size_bytes):
    """A service whose template takes that much."""
    small = spec(name)
    container = ContainerSpec("box", environment={"X": name + "x" * size_bytes})
    return evolve(small, template=evolve(small.template, container=container))


def assignments(harness):
    return [message for _, message in harness.outbox if isinstance(message, Assign)]


@pytest.mark.parametrize("full", [False, True])
def test_large_templates_travel_in_several_messages(full):
    """Each below the bound; the first may be full, and together they are all of it."""
    harness = cluster("a", cpu_millis=100_000)
    for number in range(30):
        harness.apply(large(f"s{number}", 450_000))
    harness.reconciler.cycle()
    if full:
        harness.state.resend(harness.state.nodes["a"])
    harness.sessions.flush()
    sent = assignments(harness)

    assert len(sent) >= 3
    assert [one.full for one in sent] == [full] + [False] * (len(sent) - 1)
    assert sorted(one.version for one in sent) == [one.version for one in sent]
    assert all(len(codec.encode(one)) <= limits.MESSAGE_MAX_BYTES for one in sent)
    assert len({name for one in sent for name in one.templates}) == 30
    assert sum(len(one.templates) for one in sent) == 30
    harness.step()
    harness.run()
    assert all(harness.running(f"s{number}") == {1: ["a"]} for number in range(30))


def test_very_many_instances_travel_in_several_messages():
    """A simulated node may have hundreds of thousands."""
    harness = cluster("a", cpu_millis=100_000_000)
    harness.apply(spec(replicas=300_000, cpu_millis=1))
    harness.reconciler.cycle()
    harness.sessions.flush()
    sent = assignments(harness)

    assert len(sent) > 1
    assert all(len(codec.encode(one)) <= limits.MESSAGE_MAX_BYTES for one in sent)
    assert sum(len(group.entries) for one in sent for group in one.groups) == 300_000


def test_an_ordinary_assignment_is_one_message():
    """With each template once."""
    harness = cluster("a", cpu_millis=100_000)
    harness.apply(spec(replicas=500))
    harness.reconciler.cycle()
    harness.sessions.flush()

    [sent] = assignments(harness)
    assert len(sent.templates) == 1


def test_what_a_peer_did_not_take_is_sent_again_whole():
    """With the templates, which it does not have either."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    send = harness.sessions._send

    def refuse(peer, message):
        raise Busy("full")

    harness.sessions._send = refuse
    harness.step()
    harness.sessions._send = send
    assert harness.running() == {}
    harness.run()

    assert sorted(harness.running()) == [1, 2]


def test_an_answer_that_a_peer_does_not_take_is_its_own_trouble():
    """Acknowledgements to a node that does not read are dropped; its session goes on."""
    harness = cluster("a")

    def refuse(peer, message):
        raise Busy("full")

    harness.sessions._send = refuse
    harness.beat()

    assert harness.state.nodes["a"].connected


def test_a_removal_that_was_lost_is_repeated_though_no_digest_shows_it():
    """What a node never had nor reported is in neither digest: its removal is told again."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.step(deliver=False)
    harness.apply(spec(replicas=0))
    harness.step(deliver=False)
    known = harness.state.nodes["a"]
    assert len(known.instances) == 2
    harness.run(8)

    assert not known.instances
    assert not known.leaving


def test_what_is_on_its_way_is_not_sent_again():
    """A node that is behind is given its time; what was lost is sent again after that."""
    harness = cluster("a")
    harness.apply(spec(replicas=2))
    harness.step(deliver=False)
    for _ in range(14):
        harness.beat()
    assert not harness.state.nodes["a"].needs_full
    for _ in range(4):
        harness.beat()
    assert harness.state.nodes["a"].needs_full
    harness.run(1)

    assert len(harness.running()) == 2
