"""The storm brake, and the clock by which silence is measured."""

import pytest
import trio

from swarmctl.controller.listening import Listening
from swarmctl.controller.storm import StormBrake, is_storm
from swarmctl.proto import limits
from swarmctl.proto.states import InstanceState, NodeState
from tests.unit.controller.harness import LOST_AFTER_S, FakeNode, Harness, cluster, spec

NAMES = tuple(f"n{number}" for number in range(10))


def _braked(harness):
    return harness.state.braked


def _vanish(harness, *names):
    """The nodes fall silent, and are called lost."""
    for name in names:
        harness.disconnect(name)
    for _ in range(4):
        harness.beat()


def _running_cluster():
    harness = cluster(*NAMES)
    harness.apply(spec(replicas=20))
    harness.run()
    assert len(harness.running()) == 20
    return harness


@pytest.mark.parametrize(
    ("vanished", "nodes", "storm"),
    [
        (4, 10, False),
        (5, 10, True),
        (5, 25, False),
        (6, 25, True),
        (2, 2, False),
        (2_001, 10_000, True),
    ],
)
def test_a_storm_is_more_than_a_fifth_and_at_least_five(vanished, nodes, storm):
    """Both bounds count."""
    assert is_storm(vanished, nodes) is storm


def test_what_many_lost_nodes_had_is_not_placed_elsewhere():
    """Five of ten vanish at once: their instances are lost and stay theirs."""
    harness = _running_cluster()
    before = harness.running()
    _vanish(harness, *NAMES[:5])
    harness.run(5)

    assert _braked(harness)
    assert harness.state.tally[InstanceState.LOST] == 10
    assert harness.running() == before


def test_what_a_few_lost_nodes_had_is_placed_elsewhere_at_once():
    """Four nodes are no storm."""
    harness = _running_cluster()
    _vanish(harness, *NAMES[:4])
    harness.step()

    assert not _braked(harness)
    assert harness.state.tally[InstanceState.RUNNING] == 20


def test_nodes_that_return_under_the_brake_go_on_as_if_nothing_had_happened():
    """Nothing was replaced, so nothing is stopped; the brake ends with the last one back."""
    harness = _running_cluster()
    before = {name: dict(node.instances) for name, node in harness.nodes.items()}
    _vanish(harness, *NAMES[:6])
    for name in NAMES[:6]:
        harness.connect(name)
    harness.run(3)

    assert {name: dict(node.instances) for name, node in harness.nodes.items()} == before
    assert harness.state.totals() == {"running": 20}
    assert not _braked(harness)


def test_an_operator_releases_the_brake():
    """What was lost is placed elsewhere then, and the same losses brake no more."""
    harness = _running_cluster()
    _vanish(harness, *NAMES[:5])
    assert harness.sessions.losses.brake_ends_at > 1000.0 + harness.now
    assert harness.sessions.losses.release_brake()
    harness.run(5)

    assert not _braked(harness)
    assert harness.state.totals() == {"running": 20}
    assert not harness.sessions.losses.release_brake()


def test_the_brake_ends_by_itself():
    """After five minutes the nodes are given up."""
    harness = _running_cluster()
    _vanish(harness, *NAMES[:5])
    while _braked(harness):
        assert harness.state.tally[InstanceState.LOST] == 10
        harness.run(1)
    harness.step()

    assert harness.now >= limits.STORM_BRAKE_S
    assert harness.state.tally[InstanceState.RUNNING] == 20


def test_nodes_that_vanish_one_after_the_other_are_no_storm():
    """Each is placed elsewhere before the next ten seconds bring the fifth."""
    harness = _running_cluster()
    for name in NAMES[:5]:
        _vanish(harness, name)
        harness.step()
        assert harness.state.tally[InstanceState.RUNNING] == 20
    assert not _braked(harness)


def test_the_first_of_many_to_be_called_lost_is_not_replaced_either():
    """Their heartbeats were spread: those that have missed one count with the lost one."""
    harness = _running_cluster()
    for number, name in enumerate(NAMES[:5]):
        harness.disconnect(name)
        harness.state.nodes[name].heard_at = harness.now - LOST_AFTER_S + 0.5 * number
    harness.sessions.losses.check_lost(LOST_AFTER_S)
    harness.step()

    assert [harness.state.nodes[name].state for name in NAMES[:2]] == [
        NodeState.LOST,
        NodeState.READY,
    ]
    assert _braked(harness)
    assert harness.state.tally[InstanceState.LOST] == 2


def test_a_brake_that_rested_on_suspects_ends_when_they_are_heard():
    """One node was lost, the others were only late."""
    harness = _running_cluster()
    harness.disconnect(NAMES[0])
    harness.now += LOST_AFTER_S
    for node in harness.state.nodes.values():
        if node.name != NAMES[0]:
            node.heard_at = harness.now - 3.0
    harness.sessions.losses.check_lost(LOST_AFTER_S)
    assert _braked(harness)
    harness.beat()
    harness.step()

    assert not _braked(harness)
    assert harness.state.tally[InstanceState.RUNNING] == 20


def test_a_controller_that_takes_over_waits_for_many_silent_nodes():
    """They may be late all together; a new service is placed meanwhile."""
    harness = _running_cluster()
    for name in NAMES:
        harness.disconnect(name)
    harness.start(2)
    for name in NAMES[:4]:
        harness.connect(name)
    for _ in range(6):
        harness.beat()
        harness.step()
    assert not harness.reconciler.settled
    assert _braked(harness)
    harness.apply(spec("db", 2))
    harness.run(2)
    assert len(harness.running("db")) == 2
    for name in NAMES[4:]:
        harness.connect(name)
    harness.run(3)

    assert harness.reconciler.settled
    assert not _braked(harness)
    assert harness.state.totals() == {"running": 22}


def test_a_takeover_goes_on_without_them_when_the_brake_is_released():
    """An operator who knows that they are gone need not wait."""
    harness = Harness([FakeNode(name) for name in NAMES])
    harness.apply(spec(replicas=4))
    harness.start(2)
    for name in NAMES[:4]:
        harness.connect(name)
    for _ in range(6):
        harness.beat()
        harness.step()
    assert not harness.running()
    harness.sessions.losses.release_brake()
    harness.run(2)

    assert len(harness.running()) == 4


def test_a_brake_says_when_it_ends_only_while_it_holds():
    """The rules by themselves, without a cluster."""
    brake = StormBrake()
    for number in range(5):
        brake.lost(f"n{number}", 100.0)
    assert brake.judge(100.0, alive=5, suspects=0, missing=5)
    assert brake.until == 100.0 + limits.STORM_BRAKE_S
    assert not brake.judge(200.0, alive=5, suspects=0, missing=5)
    assert brake.judge(400.0, alive=5, suspects=0, missing=5)
    assert not brake.holds


def test_a_brake_that_rests_on_suspects_waits_for_the_last_that_return():
    """The tail of a fleet that comes back is no longer a fifth of it, and not given up either."""
    brake = StormBrake()
    brake.lost("n0", 100.0)
    assert brake.judge(100.0, alive=99, suspects=60, missing=1)
    for number in range(1, 4):
        brake.lost(f"n{number}", 104.0)
    brake.returned("n9", 104.0)
    assert not brake.judge(104.0, alive=96, suspects=5, missing=4)
    assert brake.holds
    # Nobody returns any more: what is missing is missing for reasons of its own.
    assert brake.judge(104.0 + limits.NODE_LOST_S, alive=96, suspects=0, missing=4)
    assert not brake.holds


class _Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


def test_time_in_which_nothing_was_read_counts_little():
    """A stall of a minute is one step."""
    clock = _Clock()
    listening = Listening(clock)
    began = listening.time()
    for _ in range(10):
        clock.now += 0.5
        listening.took(3, 100, emptied=True)
    assert listening.time() - began == pytest.approx(5.0)
    clock.now += 60.0
    listening.took(3, 100, emptied=True)

    assert listening.time() - began <= 6.0


def test_time_stands_still_while_more_waits_than_is_read():
    """What a node has sent may be among it."""
    clock = _Clock()
    listening = Listening(clock)
    began = listening.time()
    for _ in range(9):
        clock.now += 0.5
        listening.took(100, 1_000, emptied=False)
    assert listening.time() == began


def test_what_is_taken_in_had_waited_since_all_was_read_before():
    """Its clock says so, that of the machine; see clocks."""
    clock = _Clock()
    listening = Listening(clock)
    began = clock.now
    clock.now += 0.5
    listening.took(3, 100, emptied=True)
    assert listening.arrival() == (clock.now, began)
    clock.now += 20.0
    listening.took(100, 1_000, emptied=False)
    clock.now += 10.0
    listening.took(50, 1_000, emptied=True)
    assert listening.arrival() == (began + 30.5, began + 0.5)
    listening.took(3, 100, emptied=True)
    assert listening.arrival() == (began + 30.5, began + 30.5)


def test_a_flood_does_not_hide_a_node_for_ever():
    """After as many messages as there are peers each has had its turn."""
    clock = _Clock()
    listening = Listening(clock)
    began = listening.time()
    for _ in range(100):
        clock.now += 0.5
        listening.took(1_000, 1_000, emptied=False)
    assert listening.time() - began > 40


@pytest.mark.parametrize(("batches", "least_s", "most_s"), [(3, 0.3, 0.4), (100, 1.0, 1.2)])
async def test_giving_way_ends_when_all_that_arrived_is_read(batches, least_s, most_s):
    """Or after the longest time, while more comes in than is read."""
    clock = _Clock()
    listening = Listening(clock)
    began = clock.now

    async def receive():
        for _ in range(batches):
            listening.took(100, 1_000, emptied=False)
            clock.now += 0.1
            await trio.lowlevel.checkpoint()
            listening.done()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await listening.catch_up(1.0)
        took_s = clock.now - began
        nursery.cancel_scope.cancel()
    assert least_s - 0.01 <= took_s <= most_s + 0.01
