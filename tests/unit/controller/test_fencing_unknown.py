"""What nobody knows the template of is taken for fenced: found by its labels, or not told of."""

import pytest
from attrs import evolve
from harness import FakeNode, Harness, spec

from swarmctl.controller.records import Tombstone
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.messages import InstanceReport
from swarmctl.proto.states import InstanceState

BEFORE = incarnations.make(1, 7)
KEY = ("default", "db")
UNKNOWN = [b"", b"not in the hello"]


class StubbornNode(FakeNode):
    """Its guard lives, and it takes its time over removals."""

    stubborn = True

    def hello(self):
        return evolve(super().hello(), guarded=True)

    def heartbeat(self):
        return evolve(super().heartbeat(), guarded=True)

    def take(self, assign):
        return super().take(evolve(assign, removed=()) if self.stubborn else assign)


def fenced():
    made = spec("db")
    return evolve(made, template=evolve(made.template, fenced=True))


def found(template, slot=1):
    """Two nodes, of which one runs what this term's controller has never heard of."""
    one = InstanceReport(
        BEFORE, InstanceState.RUNNING, service="db", slot=slot, template=template, driver="docker"
    )
    return Harness(
        [StubbornNode("n1", instances={BEFORE: one}), StubbornNode("n2")],
        term=2,
    )


def connect(harness):
    for name in harness.nodes:
        harness.connect(name)
    harness.run(2)


@pytest.mark.parametrize("template", UNKNOWN)
@pytest.mark.parametrize("why", ["deleted", "scaled down"])
def test_what_is_to_go_is_waited_for(template, why):
    """The service is there again, or has the slot again: not beside one that stops yet."""
    harness = found(template)
    if why == "deleted":
        harness.state.tombstones[KEY] = Tombstone(*KEY, BEFORE, 0.0)
        connect(harness)
        harness.apply(fenced())
    else:
        harness.apply(evolve(fenced(), replicas=0))
        connect(harness)
        harness.apply(fenced())
    harness.run(3)
    assert harness.running("db") == {1: ["n1"]}
    assert harness.state.services[KEY].unplaced == {1: "fenced: waits until it has ended on n1"}

    harness.nodes["n1"].stubborn = False
    harness.run(10)
    [number] = [one for node in harness.nodes.values() for one in node.instances]
    assert incarnations.term_of(number) == 2


@pytest.mark.parametrize("template", UNKNOWN)
def test_what_is_adopted_keeps_its_slot_until_its_lease_is_over(template):
    """Its node is lost: it may run there for as long as any other that is fenced."""
    harness = found(template)
    harness.apply(fenced())
    connect(harness)
    harness.disconnect("n1")
    harness.run(8)
    assert "may still run on n1" in harness.state.services[KEY].unplaced[1]
    harness.run(15)
    assert harness.running("db") == {1: ["n1", "n2"]}


def test_once_it_is_known_that_it_is_not_fenced_the_book_is_left_alone():
    """A service whose template was unknown at first costs what others cost."""
    plain = spec("db", 3)
    harness = Harness([StubbornNode("n1")])
    harness.apply(plain)
    template = harness.state.services[KEY].template
    again = found(template)
    connect(again)
    assert template in again.state.fences.templates
    again.apply(plain)
    again.run(3)
    assert not again.state.fences.templates
    assert not again.state.fences.outdated(again.state.all_instances())
