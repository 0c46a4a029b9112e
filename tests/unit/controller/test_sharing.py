"""Equal parts of nodes' facts are one object."""

from swarmctl.controller import sharing
from swarmctl.controller.sharing import SharedFacts
from swarmctl.proto.messages import DriverFacts, NodeFacts


def facts(name, cpu_millis=4000, version="27.1", listed=True):
    """As a node's hello brings them: every part is an object of its own."""
    return NodeFacts(
        labels={"hostname": name, "os": "".join(["li", "nux"])},
        capacity={"cpu_millis": cpu_millis},
        drivers=(DriverFacts("docker", True, version, "", {"storage": "overlay2"}, listed),),
        release="1",
        facts={"process": name},
    )


def test_equal_parts_are_one_object_and_nothing_is_changed():
    """Two nodes of one kind share what they have in common, and say what they said."""
    shared = SharedFacts()
    first, second = (shared.share(facts(name)) for name in ("a", "b"))

    assert [first, second] == [facts("a"), facts("b")]
    assert first.drivers is second.drivers
    assert first.capacity is second.capacity
    assert first.labels["os"] is second.labels["os"]


def test_what_differs_is_kept_apart():
    """A node with another driver or capacity keeps its own."""
    shared = SharedFacts()
    shared.share(facts("a"))
    other = facts("b", cpu_millis=8000, version="28.0")

    assert shared.share(other) == other


def test_what_is_remembered_is_bounded(monkeypatch):
    """Nodes that are all different do not make it grow for ever."""
    monkeypatch.setattr(sharing, "_PARTS_MAX", 10)
    shared = SharedFacts()
    for number in range(100):
        one = facts(f"n{number}", cpu_millis=number)
        assert shared.share(one) == one

    # A node's own words come on top of what was below the bound.
    assert len(shared._words) <= 20
    assert len(shared._capacities) <= 10
