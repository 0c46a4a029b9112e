"""Moves end, only improve, and break no condition."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.scheduler import Affinity, Node, Request, Resident, Snapshot, plan_moves
from tests.unit.scheduler.scheduler_strategies import clusters, requests, steady

ENOUGH = 200


def loads(snapshot):
    """The loads of the schedulable nodes, from the top."""
    view = snapshot.fork()
    return sorted(view.usage.load[view.facts.schedulable].tolist(), reverse=True)


class World:
    """A snapshot and the instances on it."""

    def __init__(self, snapshot, requests):
        self.snapshot = snapshot
        self.where = {}
        for request in requests:
            made = snapshot.plan([request])
            snapshot.commit(made)
            for placement in made.placements:
                self.where[placement.service, placement.slot] = (placement.node, request)

    def residents(self, node):
        return [Resident(key, request) for key, (at, request) in self.where.items() if at == node]

    def move(self, move):
        """Carry one out; its node takes it."""
        at, request = self.where[move.key]
        assert at == move.source
        self.snapshot.free(at, request.service, request.resources)
        self.snapshot.allocate(move.target, request.service, request.resources)
        self.where[move.key] = (move.target, request)
        node = self.snapshot.nodes[move.target]
        used = self.snapshot.allocated(move.target)
        assert node.schedulable
        assert all(used.get(name, 0) <= node.capacity.get(name, 0) for name in request.resources)
        assert all(one.matches(node.name, node.labels) for one in request.constraints)


@st.composite
def worlds(draw):
    """Services on some nodes, and then more nodes."""
    snapshot = draw(clusters())
    wanted = []
    for name in ("x", "y"):
        slots = range(1, draw(st.integers(2, 7)))
        wanted.append(attrs.evolve(draw(requests), service=name, slots=slots))
    world = World(snapshot, wanted)
    for number in range(draw(st.integers(0, 2))):
        snapshot.add_node(
            Node(f"new{number}", {"zone": "eu-1"}, {"cpu_millis": 20, "gpu": 2, "memory_bytes": 16})
        )
    return world


@given(worlds(), st.sampled_from([0.0, 0.1, 0.3]))
@steady
def test_moves_end_and_each_makes_loads_more_even(world, margin):
    """The loads from the top go down with every move, whoever is asked again in between."""
    for _ in range(ENOUGH):
        moves = plan_moves(world.snapshot, world.residents, moves_max=3, margin=margin)
        if not moves:
            return
        for move in moves:
            before = loads(world.snapshot)
            world.move(move)
            assert loads(world.snapshot) < before
    raise AssertionError("it never ends")


@given(worlds())
@steady
def test_planning_changes_nothing(world):
    """The snapshot stays as it is."""
    before = {name: world.snapshot.allocated(name) for name in world.snapshot.nodes}
    plan_moves(world.snapshot, world.residents, moves_max=10)
    assert {name: world.snapshot.allocated(name) for name in world.snapshot.nodes} == before


def even_world(count=2, slots=8, **fields):
    snapshot = Snapshot(Node(f"n{i}", {}, {"cpu_millis": 8_000}) for i in range(count))
    request = Request(
        service="x", slots=range(1, slots + 1), resources={"cpu_millis": 500}, **fields
    )
    return World(snapshot, [request])


def test_a_new_node_gets_its_share():
    """And then nothing moves any more."""
    world = even_world()
    assert plan_moves(world.snapshot, world.residents, moves_max=9) == ()
    world.snapshot.add_node(Node("n9", {}, {"cpu_millis": 8_000}))
    moves = plan_moves(world.snapshot, world.residents, moves_max=9)
    assert {move.target for move in moves} == {"n9"}
    assert 1 <= len(moves) <= 3
    for move in moves:
        world.move(move)
    assert plan_moves(world.snapshot, world.residents, moves_max=9) == ()


def test_what_is_nearly_even_is_left_alone():
    """A difference below the margin is worth no move."""
    world = even_world(slots=3)
    assert plan_moves(world.snapshot, world.residents, moves_max=9) == ()


def test_who_packs_stays():
    """To be apart is not what it asked for."""
    world = even_world(strategy="binpack")
    assert plan_moves(world.snapshot, world.residents, moves_max=9) == ()


def test_a_wish_is_never_met_worse():
    """What likes to be beside another stays there."""
    snapshot = Snapshot(Node(f"n{i}", {}, {"cpu_millis": 8_000}) for i in range(2))
    snapshot.allocate("n0", "db", {"cpu_millis": 100})
    near = Request(
        service="x",
        slots=range(1, 5),
        resources={"cpu_millis": 500},
        affinity=(Affinity("db", weight=100),),
    )
    world = World(snapshot, [near])
    assert {at for at, _ in world.where.values()} == {"n0"}
    assert plan_moves(world.snapshot, world.residents, moves_max=9) == ()
