"""Victims are of lower priority, as few and as low as they can be, and make room."""

from itertools import combinations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.scheduler import Constraint, Node, Request, Snapshot
from swarmctl.scheduler.preemption import Occupant, choose_victims
from tests.unit.scheduler.scheduler_strategies import requests, steady


@st.composite
def crowds(draw):
    """Nodes that are as good as full, who is on them, and a copy that hardly fits."""
    snapshot = Snapshot()
    there = {}
    number = 0
    for name in [f"n{index}" for index in range(draw(st.integers(1, 4)))]:
        crowd = []
        for _ in range(draw(st.integers(1, 5))):
            number += 1
            leaving = draw(st.sampled_from([False] * 4 + [True]))
            takes = {"cpu_millis": draw(st.integers(0, 3)), "gpu": draw(st.integers(0, 1))}
            rank = draw(st.integers(-2, 3))
            service = draw(st.sampled_from(["x", "y", "a"]))
            crowd.append(Occupant(number, service, takes, rank, leaving))
        taken = {kind: sum(one.resources[kind] for one in crowd) for kind in ("cpu_millis", "gpu")}
        snapshot.add_node(Node(name, {"zone": draw(st.sampled_from(["eu-1", "us"]))}, taken))
        for one in crowd:
            snapshot.allocate(name, one.service, one.resources)
        there[name] = crowd
    wanted = attrs.evolve(
        draw(requests),
        slots=range(1, 2),
        resources={"cpu_millis": draw(st.integers(1, 6)), "gpu": draw(st.integers(0, 1))},
        driver="docker",
        priority=draw(st.integers(-1, 4)),
        affinity=(),
    )
    return snapshot, there, wanted


def fits(snapshot, there, request, node, gone):
    """Asked of the scheduler itself, with nobody else's nodes in its way."""
    only = attrs.evolve(
        request, constraints=(*request.constraints, Constraint.parse(f"node.name == {node}"))
    )
    for one in gone:
        snapshot.free(node, one.service, one.resources)
    placed = len(snapshot.plan([only]).placements) == 1
    for one in gone:
        snapshot.allocate(node, one.service, one.resources)
    return placed


@given(crowds())
@steady
def test_victims_make_room_and_none_is_superfluous(crowd):
    """Nor is any of the copy's own priority or more."""
    snapshot, there, request = crowd
    found = choose_victims(snapshot, request, there.__getitem__)
    if found is None:
        return
    gone = [*found.victims, *found.awaited]
    assert all(one.priority < request.priority for one in found.victims)
    assert all(one in there[found.node] for one in gone)
    assert fits(snapshot, there, request, found.node, gone)
    for one in gone:
        assert not fits(snapshot, there, request, found.node, [o for o in gone if o is not one])


@given(crowds())
@steady
def test_no_set_of_lower_priorities_would_have_done(crowd):
    """On no node; and where nothing is found there is nothing."""
    snapshot, there, request = crowd
    # Conditions about who else is there count those on the way out.
    request = attrs.evolve(request, anti_affinity=(), max_per_node=0)
    found = choose_victims(snapshot, request, there.__getitem__)
    limit = (
        request.priority
        if found is None
        else max((one.rank for one in found.victims), default=-(1 << 40))
    )
    for node, crowd_there in there.items():
        low = [one for one in crowd_there if one.rank < limit]
        for size in range(1, min(4, len(low)) + 1):
            for gone in combinations(low, size):
                assert not fits(snapshot, there, request, node, gone)


def occupied(*priorities, cpu_millis=1_000):
    """One node that is full of copies of these priorities."""
    snapshot = Snapshot([Node("n0", {}, {"cpu_millis": cpu_millis * len(priorities)})])
    there = []
    for number, priority in enumerate(priorities):
        snapshot.allocate("n0", "low", {"cpu_millis": cpu_millis})
        there.append(Occupant(number, "low", {"cpu_millis": cpu_millis}, priority))
    return snapshot, lambda _name: there


def asking(priority, cpu_millis=1_000):
    """One copy that wants in."""
    return Request(
        service="vip", slots=[1], resources={"cpu_millis": cpu_millis}, priority=priority
    )


def test_the_lowest_goes_first():
    """And no more than one has to."""
    found = choose_victims(occupied(20, 5, 10)[0], asking(50), occupied(20, 5, 10)[1])
    assert [one.priority for one in found.victims] == [5]


def test_an_equal_priority_stays():
    """Nothing goes for its like."""
    snapshot, there = occupied(50, 50)
    assert choose_victims(snapshot, asking(50), there) is None


def test_what_is_larger_than_a_node_costs_nobody_anything():
    """Emptying a node for it would not help."""
    snapshot, there = occupied(1, 1)
    assert choose_victims(snapshot, asking(50, cpu_millis=9_000), there) is None


def test_a_large_one_goes_rather_than_many_small():
    """Of one priority."""
    snapshot = Snapshot([Node("n0", {}, {"cpu_millis": 4_000})])
    there = []
    for number, takes in enumerate((500, 500, 1_000, 2_000)):
        snapshot.allocate("n0", "low", {"cpu_millis": takes})
        there.append(Occupant(number, "low", {"cpu_millis": takes}, 0))
    found = choose_victims(snapshot, asking(50, cpu_millis=2_000), lambda _: there)
    assert [one.key for one in found.victims] == [3]


def test_what_leaves_anyway_is_waited_for():
    """Nobody else has to go."""
    snapshot, there = occupied(0, 0)
    leaving = [attrs.evolve(one, leaving=number == 1) for number, one in enumerate(there(""))]
    found = choose_victims(snapshot, asking(50), lambda _: leaving)
    assert (found.victims, [one.key for one in found.awaited]) == ((), [1])


def test_many_nodes_have_their_turns():
    """A bounded number is looked at each time."""
    snapshot = Snapshot([Node(f"n{i}", {}, {"cpu_millis": 1_000}) for i in range(6)])
    for number in range(6):
        snapshot.allocate(f"n{number}", "low", {"cpu_millis": 1_000})
    asked = []

    def there(name):
        asked.append(name)
        return []

    for turn in range(3):
        assert choose_victims(snapshot, asking(50), there, nodes_max=2, turn=turn) is None
    assert sorted(asked) == sorted(snapshot.nodes)
