"""The snapshot's changes and commits, and requests that are not valid."""

import pytest

from swarmctl.proto.errors import InternalError, InvalidSpec
from swarmctl.scheduler import Affinity, Node, Request, Snapshot, plan


def cluster(count=3, cpu_millis=1_000):
    """Identical nodes n0, n1, ..."""
    return Snapshot(Node(f"n{i}", {}, {"cpu_millis": cpu_millis}) for i in range(count))


def request(copies=1, cpu_millis=400, **fields):
    """Copies of a web server."""
    return Request(
        service="web", slots=range(1, copies + 1), resources={"cpu_millis": cpu_millis}, **fields
    )


def test_a_stale_plan_is_committed_as_far_as_it_still_fits():
    """Copies whose node has filled up, is gone or cordoned are handed back."""
    snapshot = cluster()
    result = plan(snapshot, [request(copies=6)])
    assert len(result.placements) == 6
    snapshot.allocate("n0", "other", {"cpu_millis": 500})
    snapshot.remove_node("n1")

    refused = snapshot.commit(result)

    assert sorted(p.node for p in refused) == ["n0", "n1", "n1"]
    assert dict(snapshot.copies("web")) == {"n0": 1, "n2": 2}
    assert snapshot.allocated("n0") == {"cpu_millis": 900}


def test_a_node_that_leaves_and_joins_again_starts_empty():
    """What was on it has gone with it, whether it was laid out in between or not."""
    snapshot = cluster(2)
    snapshot.commit(plan(snapshot, [request(copies=4)]))
    node = snapshot.nodes["n0"]
    snapshot.remove_node("n0")
    snapshot.add_node(node)

    assert snapshot.allocated("n0") == {}
    assert dict(snapshot.copies("web")) == {"n1": 2}


def test_a_cordoned_node_keeps_what_it_has_and_gets_nothing():
    """Health changes where new copies go, not what is there."""
    snapshot = cluster(2)
    snapshot.commit(plan(snapshot, [request(copies=2)]))
    snapshot.update_node(
        Node("n0", {}, {"cpu_millis": 1_000}, schedulable=False, unschedulable_reason="cordoned")
    )
    result = plan(snapshot, [request(copies=3)])

    assert {p.node for p in result.placements} == {"n1"}
    assert result.unplaced[0].slots == range(2, 4)
    assert result.unplaced[0].rejection.text == (
        "0 of 2 nodes fit: 1 cordoned, 1 lacks cpu (need 0.4, best has 0.2)"
    )
    assert snapshot.allocated("n0") == {"cpu_millis": 400}


def test_instances_without_reservations_are_spread_by_number():
    """Nothing reserved is still something there."""
    result = plan(cluster(3), [Request(service="web", slots=range(9))])

    assert {n: len(copies) for n, copies in result.placements.by_node().items()} == {
        "n0": 3,
        "n1": 3,
        "n2": 3,
    }


def test_higher_priority_goes_first():
    """Whatever the order of the requests."""
    low, high = request(priority=1), attrs_service(request(priority=5), "db")
    result = plan(cluster(1, cpu_millis=500), [low, high])

    assert [(p.service, p.node) for p in result.placements] == [("db", "n0")]
    assert [one.service for one in result.unplaced] == ["web"]


def attrs_service(one, service):
    """The same request of another service."""
    return Request(service=service, slots=one.slots, resources=one.resources, priority=one.priority)


def test_a_service_that_must_be_beside_a_later_one_is_placed():
    """Within a plan the order of such requests does not matter."""
    web = request(affinity=(Affinity("db", required=True),))
    result = plan(cluster(), [web, attrs_service(request(), "db")])

    assert not result.unplaced
    assert len({p.node for p in result.placements}) == 1


def test_a_service_that_must_be_beside_itself_stays_on_one_node():
    """However many copies it has."""
    web = request(copies=1_500, cpu_millis=1, affinity=(Affinity("web", required=True),))
    result = plan(cluster(cpu_millis=1_200), [web])

    assert {name: len(copies) for name, copies in result.placements.by_node().items()} == {
        "n0": 1_200
    }
    assert len(result.unplaced[0].slots) == 300


def test_a_seed_chooses_among_equals():
    """Different seeds use different nodes; one seed always the same."""
    snapshot = cluster(50)
    chosen = {
        seed: next(iter(plan(snapshot, [request()], seed).placements)).node for seed in range(20)
    }

    assert chosen[0] == "n0"
    assert len(set(chosen.values())) > 5


@pytest.mark.parametrize(
    "change",
    [
        lambda snapshot: snapshot.add_node(Node("n0")),
        lambda snapshot: snapshot.update_node(Node("other")),
        lambda snapshot: snapshot.remove_node("other"),
        lambda snapshot: snapshot.allocate("other", "web", {}),
        lambda snapshot: snapshot.free("n0", "web", {}),
    ],
)
def test_changes_that_make_no_sense_are_defects(change):
    """The caller is wrong, loudly, and nothing is changed."""
    snapshot = cluster()
    with pytest.raises(InternalError):
        change(snapshot)

    assert snapshot.allocated("n0") == {}
    assert sorted(snapshot.nodes) == ["n0", "n1", "n2"]


@pytest.mark.parametrize(
    "fields",
    [
        {"resources": {"cpu_millis": -1}},
        {"resources": {"cpu_millis": 0.5}},
        {"resources": {"memory_bytes": 1 << 60}},
        {"slots": (1, 1)},
        {"spread": ("rack",)},
    ],
)
def test_requests_that_cannot_be_meant_are_refused(fields):
    """Each is an error of the specification."""
    with pytest.raises(InvalidSpec):
        Request(**{"service": "web", "slots": (1,), **fields})
