"""The independent checker finds what is wrong: every fault that is planted, and no other."""

import pytest

from bench.launch.check import compare, skew
from bench.launch.scenario import service
from swarmctl.proto import incarnation as incarnations
from swarmctl.spec.models import AffinityTerm, Kind, Placement

NEEDS = {"cpu_millis": 1000}
SPECS = [service("web", Kind.CONTAINER, 6, NEEDS)]


def cluster():
    """Three nodes with two instances each, as both sides see them."""
    lists = []
    for number in range(3):
        first = number * 2 + 1
        lists.append(
            {
                "node": f"n{number}",
                "capacity": {"cpu_millis": 2000},
                "labels": {"rack": f"r{number}"},
                "instances": [
                    ["docker", incarnations.make(1, slot), "web", slot, "running"]
                    for slot in (first, first + 1)
                ],
            }
        )
    known = {incarnations.label(one[1]): row["node"] for row in lists for one in row["instances"]}
    return known, lists


def faults(check):
    return {name: count for name, count in check.to_json().items() if count and name not in KNOWN}


KNOWN = ("on_nodes", "known_running")


def test_two_sides_that_agree_pass():
    """Nothing is found where nothing is wrong."""
    known, lists = cluster()
    found = compare(SPECS, known, lists)

    assert found.passed
    assert (found.on_nodes, found.known_running) == (6, 6)


def test_an_instance_that_is_not_on_its_node_is_missing():
    """The controller believes in something that is gone."""
    known, lists = cluster()
    del lists[1]["instances"][0]

    assert faults(compare(SPECS, known, lists)) == {"missing": 1}


def test_an_instance_that_nobody_knows_is_found():
    """It runs, and the controller does not say so."""
    known, lists = cluster()
    del known[incarnations.label(incarnations.make(1, 3))]

    assert faults(compare(SPECS, known, lists)) == {"unknown": 1}


def test_a_slot_that_runs_twice_is_found():
    """A second incarnation of a slot, on a node with room for it."""
    known, lists = cluster()
    lists[2]["capacity"] = {"cpu_millis": 9000}
    lists[2]["instances"].append(["docker", incarnations.make(1, 99), "web", 1, "running"])

    assert faults(compare(SPECS, known, lists)) == {"unknown": 1, "twice": 1}


def test_the_same_instance_on_two_nodes_is_found():
    """Also when it is the same incarnation."""
    known, lists = cluster()
    lists[2]["capacity"] = {"cpu_millis": 9000}
    lists[2]["instances"].append(lists[0]["instances"][0])
    found = faults(compare(SPECS, known, lists))

    assert found["twice"] == 1


def test_a_node_that_holds_more_than_it_has_is_found():
    """By the capacities that the machines have, not by the scheduler's books."""
    known, lists = cluster()
    lists[0]["capacity"] = {"cpu_millis": 1999}

    assert faults(compare(SPECS, known, lists)) == {"over_capacity": 1}


def test_a_device_that_a_node_does_not_have_is_found():
    """A named resource that a machine does not list is one that it has none of."""
    known, lists = cluster()
    specs = [service("web", Kind.CONTAINER, 6, {"gpu": 1})]

    assert faults(compare(specs, known, lists)) == {"over_capacity": 3}


@pytest.mark.parametrize(
    ("placement", "misplaced"),
    [
        (Placement(constraints=("node.labels.rack == r0",)), 4),
        (Placement(max_replicas_per_node=1), 3),
        (Placement(anti_affinity=(AffinityTerm("web", required=True),)), 3),
        (Placement(max_replicas_per_node=2), 0),
    ],
)
def test_an_instance_where_its_service_does_not_allow_it_is_found(placement, misplaced):
    """Constraints, caps and anti-affinity are looked at again."""
    known, lists = cluster()
    specs = [service("web", Kind.CONTAINER, 6, NEEDS, placement=placement)]

    assert compare(specs, known, lists).misplaced == misplaced


def test_what_has_ended_is_not_counted():
    """Only what runs is compared."""
    known, lists = cluster()
    lists[0]["instances"][0][4] = "exited"

    assert faults(compare(SPECS, known, lists)) == {"missing": 1}


def test_skew_counts_places_without_any():
    """A rack that got nothing is part of how even it is."""
    _, lists = cluster()
    specs = [
        service("web", Kind.CONTAINER, 6, NEEDS, placement=Placement(spread=("node.labels.rack",)))
    ]
    assert skew(specs, lists) == 0

    lists[1]["instances"] = []
    assert skew(specs, lists) == 2


def test_only_what_two_looks_can_differ_by_is_looked_at_again():
    """A copy that moved between them; not one too many, which the nodes' own lists show."""
    known, lists = cluster()
    assert not compare(SPECS, known, lists).may_be_under_way

    known.pop(incarnations.label(lists[0]["instances"].pop()[1]))
    lists[0]["instances"].append(["docker", incarnations.make(1, 99), "web", 2, "running"])
    assert compare(SPECS, known, lists).may_be_under_way

    lists[1]["instances"].append(["docker", incarnations.make(1, 100), "web", 2, "running"])
    assert not compare(SPECS, known, lists).may_be_under_way
