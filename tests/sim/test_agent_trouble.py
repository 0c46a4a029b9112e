"""An agent in trouble: what goes away, hangs, lies or crashes harms itself only."""

import math
import random

import attrs
import pytest
import trio

from swarmctl.agent import facts
from swarmctl.agent.config import MissingDriver
from swarmctl.agent.drivers.api import Launch, Phase
from swarmctl.agent.drivers.sim import SimDriver
from swarmctl.proto.errors import Conflict, LaunchFailed, StorageFault
from swarmctl.proto.messages import Refuse, SayHello
from swarmctl.proto.states import Desired, InstanceState
from tests.sim.agent_fixture import FakeController, a_world, inc, template

RUNNING = InstanceState.RUNNING


async def started(world, count=1, **fields):
    """An agent with ``count`` instances running."""
    for sequence in range(1, count + 1):
        world.controller.want(sequence, template(**fields))
    agent = await world.start_agent()
    for sequence in range(1, count + 1):
        await world.controller.until_state(sequence, RUNNING)
    return agent


# --- the agent's own death --------------------------------------------------------------------


async def test_nothing_restarts_because_an_agent_did(autojump_clock, tmp_path):
    """A killed agent's instances run on, and the next one adopts them as they are."""
    async with a_world(tmp_path) as world:
        agent = await started(world, 20)
        starts = world.host.calls["start"]
        agent.cancel()
        await trio.sleep(60)
        await world.start_agent(join="")
        await world.controller.until(lambda: len(world.controller.hellos) == 2)

        inventory = world.controller.hellos[1].inventory
        assert [one.state for one in inventory] == [RUNNING] * 20
        assert {one.attempt for one in inventory} == {1}
        await world.controller.until_agreed()
        assert world.host.calls["start"] == starts


async def test_instances_that_ended_meanwhile_are_restarted(autojump_clock, tmp_path):
    """What ended while no agent looked is treated as if it had been seen."""
    async with a_world(tmp_path) as world:
        agent = await started(world, 2)
        agent.cancel()
        await trio.sleep(1)
        world.host.kill(world.owner, inc(1))
        world.host.vanish(world.owner, inc(2))
        await world.start_agent()

        await world.controller.until_state(1, RUNNING, attempt=2, restarts=1)
        await world.controller.until_state(2, RUNNING, attempt=2)


async def test_an_end_is_seen_though_the_clock_was_set_back(autojump_clock, tmp_path):
    """An end that by the machine's clock came before the start is no old news."""
    async with a_world(tmp_path) as world:
        await started(world)
        world.host.clock = lambda: trio.current_time() - 3600
        world.host.kill(world.owner, inc(1))

        await world.controller.until_state(1, RUNNING, attempt=2, restarts=1)


async def test_create_repeated_after_a_crash_collides_with_itself(autojump_clock, tmp_path):
    """An agent killed between create and start goes on with the same instance."""
    async with a_world(tmp_path) as world:
        world.host.hang_next("start")
        world.controller.want(1, template())
        agent = await world.start_agent()
        await trio.sleep(5)
        assert world.host.calls["start"] == 1
        agent.cancel()
        await trio.sleep(1)
        assert [one.phase for one in world.book.values()] == [Phase.CREATED]
        await world.start_agent()

        await world.controller.until_state(1, RUNNING)
        assert len(world.book) == 1


async def test_lost_journal_is_replaced_by_labels(autojump_clock, tmp_path):
    """Without its journal an agent finds its instances by what the driver says of them."""
    async with a_world(tmp_path) as world:
        agent = await started(world, 3)
        agent.cancel()
        await trio.sleep(1)
        world.journal = type(world.journal)()
        starts = world.host.calls["start"]
        await world.start_agent()
        await world.controller.until_agreed()

        assert {one.state for one in world.controller.now.values()} == {RUNNING}
        assert world.host.calls["start"] == starts


async def test_restart_counts_survive_the_agent(autojump_clock, tmp_path):
    """Attempts and restarts are the agent's, kept in its journal."""
    async with a_world(tmp_path) as world:
        agent = await started(world)
        for restarts in (1, 2):
            world.host.kill(world.owner, inc(1))
            await world.controller.until_state(1, RUNNING, restarts=restarts)
        agent.cancel()
        await trio.sleep(1)
        await world.start_agent()
        await world.controller.until(lambda: len(world.controller.hellos) == 2)

        [report] = world.controller.hellos[1].inventory
        assert (report.restarts, report.attempt, report.state) == (2, 3, RUNNING)


async def test_cancelled_agent_ends_at_once_and_leaves_everything(autojump_clock, tmp_path):
    """Ending the daemon takes less than 5 s, even with launches under way and a stop hanging."""
    async with a_world(tmp_path) as world:
        agent = await started(world, 2)
        world.host.hang_next("stop")
        world.host.hang_next("create", times=5)
        world.controller.want(1, template(), desired=Desired.STOPPED)
        world.controller.want(7, template())
        world.controller.assign(1, 7)
        await trio.sleep(1)
        began = trio.current_time()
        agent.cancel()
        await trio.testing.wait_all_tasks_blocked()

        assert trio.current_time() - began < 5
        assert world.book[inc(2)].phase is Phase.RUNNING


# --- truth ------------------------------------------------------------------------------------


async def test_unknown_instances_are_left_alone(autojump_clock, tmp_path):
    """A controller with an empty store stops nothing; what it does not know is reported."""
    async with a_world(tmp_path) as world:
        await started(world, 3)
        controller = world.controller
        kept = dict(controller.wanted)
        controller.wanted.clear()
        controller.assign_all()
        await trio.sleep(120)
        world.host.kill(world.owner, inc(1))
        await controller.until_state(1, InstanceState.FAILED)
        await trio.sleep(120)

        assert controller.now[inc(2)].state == controller.now[inc(3)].state == RUNNING
        assert world.book[inc(1)].phase is Phase.EXITED, "quarantined: not restarted either"
        assert "stop" not in world.host.calls
        await controller.until_agreed()

        controller.wanted.update(kept)
        controller.assign_all()
        await controller.until_state(1, RUNNING, attempt=2)


async def test_stale_term_is_refused_also_after_a_restart(autojump_clock, tmp_path):
    """An old leader can do nothing: the highest term seen is kept."""
    async with a_world(tmp_path) as world:
        world.controller.term = 7
        agent = await started(world, 1)
        world.controller.term = 6
        world.controller.unwant(1)
        world.controller.assign_all()
        await trio.sleep(20)
        assert world.book[inc(1)].phase is Phase.RUNNING
        agent.cancel()
        await trio.sleep(1)
        await world.start_agent()
        await trio.sleep(20)

        assert world.controller.hellos[-1].term == 7
        assert world.book[inc(1)].phase is Phase.RUNNING
        world.controller.term = 8
        await world.controller.until_gone(1)


async def test_assignment_of_another_cluster_is_refused(autojump_clock, tmp_path):
    """A message with another cluster's id changes nothing."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        world.controller.removed.add(inc(1))
        message = world.controller.message({}, full=True, removed=(inc(1),))
        world.controller.send(attrs.evolve(message, cluster_id="other"))
        await trio.sleep(20)

        assert world.book[inc(1)].phase is Phase.RUNNING


async def test_orphaned_create_is_reaped_and_running_stranger_is_not(autojump_clock, tmp_path):
    """Created, never started and known to nobody: gone after a grace. Running: reported."""
    async with a_world(tmp_path) as world:
        for sequence in (50, 51):
            world.host.create(world.owner, Launch("old", sequence, inc(sequence), template()))
        world.host.start(world.owner, Launch("old", 51, inc(51), template()))
        await world.start_agent()
        await world.controller.until_gone(50)
        await trio.sleep(300)

        assert list(world.book) == [inc(51)]
        assert world.controller.now[inc(51)].service == "old"
        assert world.controller.now[inc(51)].state == RUNNING


async def test_removed_one_that_is_not_there_is_told_so(autojump_clock, tmp_path):
    """The controller may forget what a node never had, or removed before."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        world.controller.assign(removed=[99])
        await world.controller.until_gone(99)


# --- the link ---------------------------------------------------------------------------------


async def test_instances_are_restarted_without_a_controller(autojump_clock, tmp_path):
    """The agent supervises on its own, and tells of it when the controller is back."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        world.network.block()
        world.host.kill(world.owner, inc(1))
        await trio.sleep(60)
        assert world.book[inc(1)].phase is Phase.RUNNING
        world.network.unblock()

        await world.controller.until_state(1, RUNNING, restarts=1)
        await world.controller.until_agreed()


async def test_lossy_link_heals(autojump_clock, tmp_path):
    """Lost messages show in the digests, and a resync mends both sides."""
    async with a_world(tmp_path) as world:
        await started(world, 5)
        chance = random.Random(3)
        world.network.fate = lambda _: None if chance.random() < 0.3 else 0.01
        for sequence in range(1, 6):
            world.controller.want(sequence, template(), generation=1)
            world.controller.assign(sequence)
            world.host.kill(world.owner, inc(sequence))
            await trio.sleep(3)
        world.network.fate = lambda _: 0.0
        world.controller.send(SayHello())
        await world.controller.until_agreed()

        assert {one.state for one in world.controller.now.values()} == {RUNNING}


async def test_missing_template_is_asked_for(autojump_clock, tmp_path):
    """An assignment whose template did not come along leads to a hello, and then to all of it."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        controller = world.controller
        controller.want(2, template("other"))
        controller.known.update(controller.templates)
        controller.assign(2)

        await controller.until_state(2, RUNNING)
        assert len(controller.hellos) == 2


async def test_second_controller_takes_over(autojump_clock, tmp_path):
    """With several addresses the agent finds the one that answers."""
    async with a_world(tmp_path) as world:
        second = FakeController(world.network, "tcp://10.0.0.2:7077", term=2)
        second.keypair, second.pinned = world.controller.keypair, world.controller.pinned
        second.want(1, template())
        await world.nursery.start(second.run)
        world.controller.want(1, template())
        addresses = (world.controller.endpoint, second.endpoint)
        await world.start_agent(controllers=addresses)
        await world.controller.until_state(1, RUNNING)
        world.network.block(endpoint=world.controller.endpoint)

        await second.until_state(1, RUNNING)
        assert world.host.calls["start"] == 1


async def test_refusal_for_good_ends_the_agent_with_the_reason(autojump_clock, tmp_path):
    """A second live session of one node is refused, in the controller's words."""
    async with a_world(tmp_path) as world:
        world.controller.refuse = Refuse(
            "conflict", "node n1 has a live session from process 7", final=True
        )
        await world.start_agent()
        await trio.sleep(60)

        [error] = world.errors
        assert isinstance(error, Conflict)
        assert "process 7" in error.what


async def test_removed_node_ends_with_the_reason(autojump_clock, tmp_path):
    """After node rm the agent says so and ends; its instances run on."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        world.controller.refuse_enrol = Refuse("refused", "node n1 was removed", final=True)
        forget_key(world)
        await trio.sleep(60)

        assert "does not accept the key of node n1" in world.errors[0].what
        assert "was removed" in world.errors[0].what
        assert world.book[inc(1)].phase is Phase.RUNNING


async def test_node_that_an_emptied_store_forgot_enrols_again(autojump_clock, tmp_path):
    """A controller that has lost its records gets its nodes back, and nothing restarts."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        forget_key(world)
        await world.controller.until(lambda: len(world.controller.hellos) == 2)
        await world.controller.until_agreed()

        assert not world.errors
        assert world.host.calls["start"] == 1


def forget_key(world):
    """The controller does not know the node's key any more."""
    pinned = world.controller.pinned
    for key in [key for key, user in pinned.items() if user == "n1"]:
        del pinned[key]
    world.network.sever()


# --- drivers and disks ------------------------------------------------------------------------


async def test_driver_that_is_away_is_waited_for(autojump_clock, tmp_path):
    """Launches wait with the reason, the node is sick, and all heals when the daemon is back."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        await started(world, 1)
        await trio.sleep(15)
        world.host.reachable = False
        controller.want(2, template())
        controller.assign(2)
        await controller.until(
            lambda: "does not answer" in getattr(controller.now.get(inc(2)), "reason", "")
        )
        assert controller.now[inc(2)].state == InstanceState.PREPARING
        await controller.until(lambda: controller.beats[-1].reasons)
        assert "does not answer" in controller.beats[-1].reasons[0]
        world.host.reachable = True
        await controller.until_state(2, RUNNING)
        await controller.until(lambda: not controller.beats[-1].reasons)


async def test_a_daemon_that_goes_away_is_noticed_before_the_next_look(autojump_clock, tmp_path):
    """Its stream of events breaks: the agent looks at once, and the next heartbeat says so."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        await trio.sleep(15)
        began = trio.current_time()
        world.host.go_away()
        await world.controller.until(lambda: world.controller.beats[-1].reasons)
        assert trio.current_time() - began < 3.0 < facts.PROBE_EVERY_S


async def test_driver_away_at_start_is_adopted_from_later(autojump_clock, tmp_path):
    """Nothing is launched on a driver that has not said what it has."""
    async with a_world(tmp_path) as world:
        agent = await started(world, 2)
        starts = world.host.calls["start"]
        agent.cancel()
        await trio.sleep(1)
        world.host.reachable = False
        await world.start_agent()
        await world.controller.until(lambda: len(world.controller.hellos) == 2)
        assert {one.state for one in world.controller.now.values()} <= {
            InstanceState.PREPARING,
            InstanceState.ASSIGNED,
            RUNNING,
        }
        world.host.reachable = True

        await world.controller.until_state(1, RUNNING, attempt=1)
        await world.controller.until_state(2, RUNNING, attempt=1)
        assert world.host.calls["start"] == starts


async def test_hung_call_is_given_up_and_others_go_on(autojump_clock, tmp_path):
    """A start that never returns makes its driver sick, and nothing else wait."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        world.host.hang_next("start")
        for sequence in range(1, 11):
            controller.want(sequence, template())
        began = trio.current_time()
        await world.start_agent()
        await controller.until(
            lambda: sum(one.state == RUNNING for one in controller.now.values()) == 9
        )
        assert trio.current_time() - began < 1
        for sequence in range(1, 11):
            await controller.until_state(sequence, RUNNING)
        assert trio.current_time() - began < 120


async def test_launch_given_up_too_early_is_adopted(autojump_clock, tmp_path):
    """A call that comes through after its deadline is not repeated."""
    async with a_world(tmp_path) as world:
        world.host.hang_next("start", finish=True)
        world.controller.want(1, template())
        await world.start_agent()
        await world.controller.until_state(1, RUNNING)
        await world.controller.until_agreed()

        assert world.host.calls["create"] == 1


async def test_gap_in_events_is_made_up_for(autojump_clock, tmp_path):
    """After a gap the agent lists, and sees what it missed."""
    async with a_world(tmp_path) as world:
        await started(world, 2)
        outlets, world.host._outlets = world.host._outlets, {}
        world.host.kill(world.owner, inc(1))
        world.host.vanish(world.owner, inc(2))
        world.host._outlets = outlets
        world.host.lose_events(world.owner)

        await world.controller.until_state(1, RUNNING, restarts=1)
        await world.controller.until_state(2, RUNNING, restarts=1)


async def test_defect_in_a_driver_harms_one_launch(autojump_clock, tmp_path):
    """An unexpected exception is one instance's failure, not the agent's end."""

    class Broken(SimDriver):
        async def create(self, launch):
            if launch.slot == 1:
                raise ZeroDivisionError("oops")
            return await super().create(launch)

    async with a_world(tmp_path) as world:
        world.make_drivers = lambda _config, owner: {"sim": Broken(owner, world.host)}
        for sequence in (1, 2):
            world.controller.want(sequence, template())
        await world.start_agent()
        await world.controller.until_state(2, RUNNING)
        report = await world.controller.until_state(1, InstanceState.FAILED)

        assert "ZeroDivisionError: oops" in report.reason


async def test_missing_driver_is_named_and_the_node_lives(autojump_clock, tmp_path):
    """A driver that cannot be loaded is not available, with the reason; others work."""
    async with a_world(tmp_path) as world:
        world.make_drivers = lambda _config, owner: {
            "libvirt": MissingDriver("libvirt", "libvirt is not installed on this machine"),
            "sim": SimDriver(owner, world.host),
        }
        await started(world, 1)

        [hello] = world.controller.hellos
        assert [(one.name, one.available) for one in hello.facts.drivers] == [
            ("libvirt", False),
            ("sim", True),
        ]
        assert "not installed" in hello.facts.drivers[0].reason
        await trio.sleep(15)
        assert world.controller.beats[-1].reasons == ()


async def test_journal_that_refuses_holds_up_launches_only(autojump_clock, tmp_path):
    """On a full disk nothing new is created, stops work, and it heals by itself."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        await started(world, 1)
        world.journal.fault = StorageFault("the disk is full", "journal.db")
        controller.want(1, template(), desired=Desired.STOPPED)
        controller.want(2, template())
        controller.assign(1, 2)
        await controller.until_state(1, InstanceState.STOPPED)
        await controller.until(lambda: controller.beats and controller.beats[-1].reasons)
        assert "the disk is full" in controller.beats[-1].reasons[0]
        assert inc(2) not in world.book
        world.journal.fault = None
        await controller.until_state(2, RUNNING)


async def test_slow_preparation_is_cancelled_by_removal(autojump_clock, tmp_path):
    """An instance whose image is still being pulled is gone at once when it is removed."""
    async with a_world(tmp_path) as world:
        world.host.hang_next("prepare")
        world.controller.want(1, template())
        await world.start_agent()
        await trio.sleep(5)
        world.controller.unwant(1)
        world.controller.assign(removed=[1])
        began = trio.current_time()
        await world.controller.until_gone(1)

        assert trio.current_time() - began < 1
        assert not world.book


async def test_stop_takes_no_longer_than_its_grace(autojump_clock, tmp_path):
    """A stubborn instance is ended by force, in parallel with others."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        spec = template("stubborn", stop_grace_period_s=3.0)
        for sequence in range(1, 41):
            controller.want(sequence, spec)
        await world.start_agent()
        for sequence in range(1, 41):
            await controller.until_state(sequence, RUNNING)
        began = trio.current_time()
        for sequence in range(1, 41):
            controller.want(sequence, spec, desired=Desired.STOPPED)
        controller.assign(*range(1, 41))
        for sequence in range(1, 41):
            await controller.until_state(sequence, InstanceState.STOPPED, exit_code=137)
        assert trio.current_time() - began < 4


async def test_failing_launches_do_not_multiply(autojump_clock, tmp_path):
    """A create that fails for an hour is tried ever more slowly."""
    async with a_world(tmp_path) as world:
        world.host.fail_next("create", LaunchFailed("no room"), times=10_000)
        world.controller.want(1, template())
        await world.start_agent()
        await trio.sleep(3600)

        assert 60 < world.host.calls["create"] < 80
        assert world.controller.now[inc(1)].reason == "no room; next try in 60 s"


async def test_what_is_tried_again_says_what_was_wrong_before(autojump_clock, tmp_path):
    """Whoever asks in the middle of the second try still learns why the first one failed."""
    async with a_world(tmp_path) as world:
        world.host.fail_next("create", LaunchFailed("no room"))
        world.controller.want(1, template())
        await world.start_agent()
        await world.controller.until_state(1, InstanceState.FAILED)
        world.host.hang_next("create")
        await world.controller.until_state(1, InstanceState.STARTING, attempt=2)
        await trio.sleep(20)

        assert world.controller.now[inc(1)].state == InstanceState.STARTING
        assert world.controller.now[inc(1)].reason.startswith("no room; next try in")


async def test_facts_that_change_are_told(autojump_clock, tmp_path):
    """A driver that goes and comes back changes the node's facts without a new session."""
    async with a_world(tmp_path) as world:
        await started(world, 1)
        world.host.reachable = False
        await world.controller.until(lambda: world.controller.facts)
        [driver] = world.controller.facts[-1].facts.drivers

        assert not driver.available
        assert driver.reason == "the simulated host does not answer"
        # While it is away it is looked at more often, so that it is not sick for long.
        world.host.reachable = True
        back_at = trio.current_time()
        await world.controller.until(lambda: world.controller.facts[-1].facts.drivers[0].available)
        assert trio.current_time() - back_at <= facts.PROBE_SICK_S + facts.PROBE_PAUSE_S


async def test_idle_agent_does_next_to_nothing(autojump_clock, tmp_path):
    """With nothing to do there is a heartbeat every 2 s, and a look every 10 s."""
    async with a_world(tmp_path) as world:
        await started(world, 100)
        await trio.sleep(10)
        beats, reports = len(world.controller.beats), len(world.controller.reports)
        calls = dict(world.host.calls)
        await trio.sleep(3600)

        assert math.isclose(len(world.controller.beats) - beats, 1800, rel_tol=0.05)
        assert len(world.controller.reports) == reports
        assert world.host.calls == calls


@pytest.mark.parametrize("seed", range(6))
async def test_storm_of_trouble_ends_in_what_is_wanted(autojump_clock, tmp_path, seed):
    """Kills, crashes, losses and hangs in any order: afterwards all is as the controller wants."""
    chance = random.Random(seed)
    # Trio shuffles tasks that are ready; seeded, a failure can be seen again.
    trio._core._run._r.seed(seed)
    async with a_world(tmp_path) as world:
        controller, host = world.controller, world.host
        agent = await started(world, 6)
        world.network.fate = lambda _: None if chance.random() < 0.05 else chance.random() * 0.2
        for _ in range(60):
            await trio.sleep(chance.random() * 3)
            await _trouble(world, chance)
            if chance.random() < 0.1:
                agent.cancel()
                await trio.sleep(chance.random() * 3)
                agent = await world.start_agent()
        world.network.fate = lambda _: 0.0
        host.reachable = True
        # Longer than the longest deadline: a pull that hangs is given up after half an hour.
        await trio.sleep(2_500)
        controller.send(SayHello())
        await trio.sleep(200)
        await controller.until_agreed()

        alive = {one for one, row in world.book.items() if row.alive}
        assert alive == set(controller.wanted), f"seed {seed}"


async def _trouble(world, chance):
    controller, host = world.controller, world.host
    running = [one for one, row in world.book.items() if row.alive]
    match chance.choice(["kill", "vanish", "hang", "sever", "away", "restart", "replace", "gap"]):
        case "kill" if running:
            host.kill(world.owner, chance.choice(running), chance.choice([0, 1, 137]))
        case "vanish" if running:
            host.vanish(world.owner, chance.choice(running))
        case "hang":
            operation = chance.choice(["prepare", "create", "start", "remove", "list"])
            host.hang_next(operation, finish=chance.random() < 0.5)
        case "sever":
            world.network.sever()
        case "away":
            host.reachable = not host.reachable
        case "restart":
            one = chance.choice(sorted(controller.wanted))
            service, name, entry = controller.wanted[one]
            controller.wanted[one] = (service, name, (*entry[:3], entry[3] + 1, entry[4]))
        case "replace":
            sequence = chance.choice(sorted(controller.wanted)) & 0xFFFFFFFF
            controller.unwant(sequence)
            controller.want(sequence + 100, template())
        case "gap":
            host.lose_events(world.owner)
    if controller.peer is not None and chance.random() < 0.7:
        controller.assign_all()
