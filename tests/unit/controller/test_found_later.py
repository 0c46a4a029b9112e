"""What a node had before anybody here knew what it is made of."""

import attrs
import pytest

from swarmctl.proto import incarnation
from swarmctl.proto.messages import FactsChanged, InstanceReport, Report
from swarmctl.proto.states import InstanceState
from swarmctl.spec import wire
from tests.unit.controller.harness import FakeNode, Harness, cluster, spec

RUNNING, SUCCEEDED = InstanceState.RUNNING, InstanceState.SUCCEEDED


def stranger(a_spec, state=RUNNING):
    """Its name, its template, and what a node reports of it."""
    encoded = wire.encode_template(a_spec.template)
    number = incarnation.make(1, 7)
    report = InstanceReport(
        number,
        state,
        1,
        0,
        service=a_spec.name,
        slot=1,
        template=wire.digest(encoded),
        driver="docker",
    )
    return number, encoded, report


def say(harness, report):
    """Node ``a`` reports it, in the session that it has."""
    node = harness.nodes["a"]
    node.instances[report.incarnation] = report
    node.sequence += 1
    harness.sessions.on_message(node.peer, "node:a", Report(node.sequence, (report,)))


def allocated(harness):
    """What is counted on node ``a``."""
    return dict(harness.fleet.snapshot.allocated("a"))


def test_it_is_counted_and_fenced_once_its_template_is_known():
    """Also in quarantine, and once however often the node says hello."""
    harness = cluster("a")
    lone = spec("lone", cpu_millis=300)
    lone = attrs.evolve(lone, template=attrs.evolve(lone.template, fenced=True))
    number, encoded, report = stranger(lone)
    say(harness, report)
    assert not allocated(harness)
    harness.nodes["a"].templates[report.template] = encoded
    for _ in range(2):
        harness.connect("a")
        say(harness, report)
        assert allocated(harness) == {"cpu_millis": 300}

    assert harness.state.fences.leave(harness.state.nodes["a"].instances[number])


@pytest.mark.parametrize(("job", "state", "counts"), [
    (True, SUCCEEDED, False),
    (True, RUNNING, True),
    (False, SUCCEEDED, True),
])  # fmt: skip
def test_a_copy_of_a_job_that_has_succeeded_takes_nothing(job, state, counts):
    """Whether its service is known here or not."""
    harness = cluster("a")
    _, encoded, report = stranger(spec("lone", cpu_millis=300, job=job), state)
    say(harness, report)
    harness.nodes["a"].templates[report.template] = encoded
    harness.connect("a")

    assert bool(allocated(harness)) is counts


def test_nothing_is_placed_where_it_is_not_known_what_runs():
    """A node gets new instances when its driver has said what it has."""
    node = FakeNode("a", listed=False)
    harness = Harness([node])
    harness.connect("a")
    harness.apply(spec("web"))
    harness.run(3)
    assert not harness.running()
    node.listed = True
    harness.sessions.on_message(node.peer, "node:a", FactsChanged(node.hello().facts))
    harness.run(3)

    assert harness.running() == {1: ["a"]}
