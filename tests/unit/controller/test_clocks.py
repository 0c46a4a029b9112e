"""Whose clock is off, by what most clocks say."""

import random

import pytest
from attrs import define, evolve, field

from swarmctl.controller.ailments import Ailments
from swarmctl.controller.clocks import Clocks
from swarmctl.proto import limits
from tests.unit.controller.harness import cluster

EPOCH_S = 1_000_000.0


@define
class Fleet:
    """Nodes that say their clocks in heartbeats with a jitter; each clock is set at will."""

    count: int
    own_s: float = 0.0
    now: float = 100.0
    clocks: Clocks = field(factory=Clocks)
    set_s: dict[str, float] = field(factory=dict)
    blamed: dict[str, str] = field(factory=dict)
    rng: random.Random = field(factory=lambda: random.Random(7))
    due: list[tuple[float, str]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.due = [
            (self.now + self.rng.uniform(0, limits.HEARTBEAT_S), f"n{number}")
            for number in range(self.count)
        ]

    def beat(self, node: str, late_s: float = 0.0, waited_s: float = 0.0) -> None:
        """One heartbeat, said ``late_s`` ago; it lay in our sockets for ``waited_s`` at most."""
        said_s = EPOCH_S + self.now - late_s + self.set_s.get(node, 0.0)
        self.clocks.heard(
            node, said_s, self.now, self.now - waited_s, EPOCH_S + self.now + self.own_s
        )

    def run(self, seconds: float) -> dict[str, str]:
        """Let them beat; who was blamed at any time meanwhile, and what for."""
        end, blamed = self.now + seconds, dict[str, str]()
        while min(self.due)[0] < end:
            self.now, node = min(self.due)
            self.due.remove((self.now, node))
            jitter = limits.HEARTBEAT_JITTER * self.rng.uniform(-1, 1)
            self.due.append((self.now + limits.HEARTBEAT_S * (1 + jitter), node))
            self.beat(node)
            for number in range(self.count):
                if reason := self.clocks.reason(f"n{number}"):
                    blamed[f"n{number}"] = reason
        self.now = end
        return blamed


@pytest.mark.parametrize("count", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 6.0])
def test_our_own_clock_is_stepped(count, step_s):
    """No node is blamed at any time: not before it, not in the first beats, not when it is set."""
    fleet = Fleet(count)
    assert fleet.run(20) == {}
    fleet.own_s = step_s
    assert fleet.run(20) == {}
    fleet.own_s = 0.0
    assert fleet.run(20) == {}


@pytest.mark.parametrize("count", [2, 3, 4, 20])
@pytest.mark.parametrize("way", ["ahead", "behind"])
def test_one_nodes_clock_is_stepped(count, way):
    """It is named, and it alone, within three heartbeats; once it is set nobody is."""
    fleet = Fleet(count)
    fleet.run(20)
    fleet.set_s["n0"] = 3600.0 if way == "ahead" else -3600.0
    assert fleet.run(4 * limits.HEARTBEAT_S) == {"n0": f"its clock is 3600 s {way}"}
    fleet.set_s["n0"] = 0.0
    assert fleet.run(4 * limits.HEARTBEAT_S).keys() == {"n0"}
    assert fleet.run(20) == {}


def test_one_nodes_clock_is_named_while_ours_is_off_too():
    """By what the other nodes say; it is as far off as it is from them."""
    fleet = Fleet(20)
    fleet.set_s["n7"] = 60.0
    fleet.run(20)
    fleet.own_s = 3600.0
    assert fleet.run(20) == {"n7": "its clock is 60 s ahead"}


def test_all_nodes_clocks_are_stepped_together():
    """By a time server that was wrong, for one: nobody is blamed, nor when ours follows."""
    fleet = Fleet(20)
    fleet.run(20)
    fleet.set_s = {f"n{number}": 3600.0 for number in range(20)}
    assert fleet.run(20) == {}
    fleet.own_s = 3600.0
    assert fleet.run(20) == {}


@pytest.mark.parametrize("first", range(4))
def test_a_clock_that_is_off_from_the_beginning(first):
    """Also that of the node which is heard first, when there is only ours to compare it with."""
    fleet = Fleet(4)
    fleet.set_s[f"n{first}"] = 60.0
    fleet.beat(f"n{first}")
    assert fleet.run(20) == {f"n{first}": "its clock is 60 s ahead"}


@pytest.mark.parametrize(("count", "off"), [(1, 1), (3, 2), (5, 3)])
def test_as_many_say_one_time_as_the_other(count, off):
    """We count as one: nobody knows what time it is, and nobody is blamed."""
    fleet = Fleet(count)
    fleet.set_s = {f"n{number}": 60.0 for number in range(off)}
    assert fleet.run(30) == {}


def test_heartbeats_that_waited_while_we_hung():
    """Ten seconds' worth of each node comes at once, each late, one node after the other."""
    fleet = Fleet(20)
    fleet.run(20)
    fleet.now += 10.0
    for number in range(20):
        for late_s in (10.0, 8.0, 6.0, 4.0, 2.0):
            fleet.beat(f"n{number}", late_s)
            assert fleet.clocks.reason(f"n{number}") == ""
    assert fleet.run(20) == {}


def test_one_heartbeat_that_was_on_its_way_for_long():
    """One is no sign."""
    fleet = Fleet(4)
    fleet.run(20)
    fleet.beat("n0", 9.0)
    assert fleet.run(20) == {}


def test_nodes_that_are_gone_say_nothing_of_the_time():
    """Most were lost with clocks that were right; those that are left are set together."""
    fleet = Fleet(20)
    fleet.run(20)
    fleet.due = fleet.due[:4]
    fleet.run(20)
    fleet.set_s = {node: 3600.0 for _, node in fleet.due}
    assert fleet.run(20) == {}


def test_a_node_that_was_taken_out_is_forgotten():
    """Nothing is said of it, nor is it compared with."""
    fleet = Fleet(4)
    fleet.set_s["n0"] = 60.0
    assert fleet.run(20).keys() == {"n0"}
    fleet.clocks.forget("n0")
    assert fleet.clocks.reason("n0") == ""


def test_what_lay_in_our_sockets_says_nothing_of_clocks():
    """In a storm a part of the nodes is read at once, the rest half a minute late, for minutes."""
    fleet = Fleet(20)
    fleet.run(20)
    for _ in range(60):
        fleet.now += limits.HEARTBEAT_S
        for number in range(20):
            fleet.beat(f"n{number}", late_s=23.0 if number % 3 else 0.0, waited_s=23.0)
            assert fleet.clocks.reason(f"n{number}") == ""
    assert fleet.run(20) == {}


def test_a_clock_that_drifts_is_said_by_the_same_words():
    """A reason that changes with each heartbeat would make the controller plan at each."""
    fleet = Fleet(4)
    said = set()
    for second in range(30):
        fleet.set_s["n0"] = 60.0 + 0.05 * second
        said.update(fleet.run(1).values())
    assert said == {"its clock is 60 s ahead"}


def test_beside_what_else_is_seen_of_the_node():
    """A clock is a reason as the others are."""
    ailments = Ailments(lambda: 4)
    for now in range(0, 8, 2):
        for node, offset_s in (("well", 0.0), ("n", 7.2)):
            ailments.clocks.heard(node, 1000.0 + now + offset_s, now, now, 1000.0 + now)

    assert ailments.reasons("well", 8.0) == ()
    assert ailments.reasons("n", 8.0) == ("its clock is 7 s ahead",)


# --- in heartbeats ----------------------------------------------------------------------------


def beats(harness, step_s, seconds=20, *, says=()):
    """Four nodes beat for so long, n0 with a clock that is off; what is wrong with them."""
    for _ in range(0, seconds, 2):
        harness.now += 2.0
        for name, node in harness.nodes.items():
            wall_s = 1000.0 + harness.now + (step_s if name == "n0" else 0.0)
            beat = evolve(node.heartbeat(), wall_s=wall_s if step_s else 0.0, reasons=says)
            harness.sessions.on_message(node.peer, f"node:{name}", beat)
    return {name: node.reasons for name, node in harness.state.nodes.items()}


@pytest.mark.parametrize(
    ("step_s", "waited_s", "named"),
    [(60.0, 0.0, True), (60.0, 2.0, True), (60.0, 10.0, False), (0.0, 0.0, False)],
)
def test_a_heartbeat_says_what_time_it_is_unless_it_waited_or_is_of_an_older_release(
    step_s, waited_s, named
):
    """Beside what the node says itself; one of an older release has no clock in it."""
    harness = cluster("n0", "n1", "n2", "n3")
    harness.waited_s = waited_s
    clock = ("its clock is 60 s ahead",) if named else ()

    found = beats(harness, step_s, says=("disk: full",))

    assert found.pop("n0") == ("disk: full", *clock)
    assert set(found.values()) == {("disk: full",)}


def test_other_words_for_what_is_wrong_are_no_reason_to_plan():
    """They are shown; that it is sick at all, or is no longer, changes what can be placed."""
    harness = cluster("n0", "n1", "n2", "n3")
    for says, changed in (
        (("disk: 9 MiB free",), True),
        (("disk: 8 MiB free",), False),
        ((), True),
    ):
        harness.state.capacity_changed = False
        found = beats(harness, 0.0, seconds=2, says=says)

        assert found["n0"] == says
        assert harness.state.capacity_changed is changed
        why = harness.fleet.snapshot.nodes["n0"].unschedulable_reason
        assert why == (f"sick: {says[0]}" if says else "")
