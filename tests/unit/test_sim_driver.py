"""The simulated driver: the shared contract, its settings and its faults."""

import pytest
import trio

from swarmctl.agent.drivers.api import BulkLaunch, Driver, EventKind, Launch, Owner, Phase
from swarmctl.agent.drivers.outlet import open_outlet
from swarmctl.agent.drivers.sim import Delay, SimDriver, SimHost, SimSettings
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import DriverUnavailable, InvalidSpec, LaunchFailed
from swarmctl.spec.models import ContainerSpec, Template
from tests.integration.driver_contract import (
    Behaviour,
    DriverContract,
    ExitCodeContract,
    Harness,
    next_event,
)

COMMANDS = {
    Behaviour.RUNS: (),
    Behaviour.STUBBORN: ("stubborn",),
    Behaviour.ENDS: ("run_for=0.1",),
    Behaviour.ENDS_WITH_3: ("exit=3",),
    Behaviour.NO_IMAGE: (),
    Behaviour.NO_COMMAND: ("fail=start",),
}
OWNER = Owner("c1", "n1")


class SimHarness(Harness):
    def __init__(self):
        delay = Delay(fixed_s=0.02, spread_s=0.01, tail_mean_s=0.01)
        self.host = SimHost(SimSettings(create=delay, start=delay, stop=delay, seed=7))
        super().__init__("c1")

    def driver_for(self, owner) -> Driver:
        return SimDriver(owner, self.host)

    def template(self, behaviour):
        image = "missing/x" if behaviour is Behaviour.NO_IMAGE else "sim"
        return Template(container=ContainerSpec(image, COMMANDS[behaviour]))

    async def kill(self, found):
        self.host.kill(self.owner, found.incarnation)

    async def vanish(self, found):
        self.host.vanish(self.owner, found.incarnation)


@pytest.fixture
async def harness():
    return SimHarness()


class TestSimDriver(DriverContract, ExitCodeContract):
    """The contract, in real time: the fixture cannot give an inherited test a clock that jumps."""


def launch_of(*command: str, sequence: int = 1) -> Launch:
    template = Template(container=ContainerSpec("sim", command))
    return Launch("web", sequence, incarnations.make(1, sequence), template)


async def test_starts_take_the_time_that_the_settings_say(autojump_clock):
    """Delays pass on the injected clock."""
    driver = SimDriver(OWNER, SimHost(SimSettings(start=Delay(fixed_s=30.0))))
    await driver.create(launch_of())
    began = trio.current_time()
    await driver.start(launch_of())

    assert trio.current_time() - began == pytest.approx(30.0)


async def test_same_seed_same_failures():
    """Chance is the seed's: two hosts with one seed fail at the same launches."""

    def failures(seed: int) -> list[bool]:
        host = SimHost(SimSettings(create_failure_rate=0.3, start_failure_rate=0.2, seed=seed))
        launches = [launch_of(sequence=n) for n in range(1, 201)]
        answers = SimDriver(OWNER, host).launch_many(launches).answers
        return [isinstance(one, LaunchFailed) for one in answers]

    assert failures(1) == failures(1)
    assert failures(1) != failures(2)
    assert 0.3 < sum(failures(1)) / 200 < 0.6


async def test_full_host_refuses():
    """Past its capacity a host fails launches, until something is removed."""
    driver = SimDriver(OWNER, SimHost(SimSettings(capacity=1)))
    await driver.create(launch_of(sequence=1))
    with pytest.raises(LaunchFailed, match="full"):
        await driver.create(launch_of(sequence=2))
    await driver.remove(launch_of(sequence=1).incarnation)

    await driver.create(launch_of(sequence=2))


async def test_settled_host_needs_no_reader(autojump_clock):
    """An end that came due while nobody looked shows at the next look, with its own time."""
    driver = SimDriver(OWNER, SimHost(SimSettings(run_for_s=5.0, exit_code=9)))
    await driver.create(launch_of())
    started = await driver.start(launch_of())
    await trio.sleep(60)
    (found,) = await driver.list()

    assert found.phase is Phase.EXITED
    assert found.exit_code == 9
    assert found.finished_at == started.started_at + 5.0


async def test_next_creates_fail_then_work():
    """The fault hook fails exactly as many calls as it was told."""
    host = SimHost()
    driver = SimDriver(OWNER, host)
    host.fail_next("create", LaunchFailed("disk on fire"), times=2)
    for _ in range(2):
        with pytest.raises(LaunchFailed, match="disk on fire"):
            await driver.create(launch_of())

    await driver.create(launch_of())
    assert host.calls["create"] == 3


@pytest.mark.parametrize("finish", [True, False])
async def test_hanging_create_may_finish(autojump_clock, finish):
    """A create that hangs leaves an instance behind, or none, as the hook says."""
    host = SimHost()
    driver = SimDriver(OWNER, host)
    host.hang_next("create", finish=finish)
    with trio.move_on_after(10) as scope:
        await driver.create(launch_of())

    assert scope.cancelled_caught
    assert len(await driver.list()) == finish


async def test_unreachable_host():
    """A host that does not answer is told by probe, and by every call as an error."""
    host = SimHost()
    driver = SimDriver(OWNER, host)
    host.reachable = False

    assert not (await driver.probe()).available
    with pytest.raises(DriverUnavailable):
        await driver.list()


async def test_bulk_launch_answers_in_place_of_telling():
    """What a bulk launch answers comes by no event as well; its removal is told like others."""
    driver = SimDriver(OWNER, SimHost())
    assert isinstance(driver, BulkLaunch)
    async with driver.events() as channel:
        launches = [launch_of(sequence=1), launch_of("fail=start", sequence=2)]
        answers = driver.launch_many(launches).answers
        listed = await driver.list()
        with pytest.raises(trio.WouldBlock):
            channel.receive_nowait()
        driver.remove_many([incarnations.make(1, 1), incarnations.make(1, 2)])
        await next_event(channel, EventKind.REMOVED, incarnations.make(1, 2), 1)

    assert [one.phase for one in listed] == [Phase.RUNNING, Phase.CREATED]
    assert answers[0] == listed[0].runtime_id
    assert isinstance(answers[1], InvalidSpec)
    assert await driver.list() == []


@pytest.mark.parametrize("command", [(), ("run_for=5",), ("exit=3",), ("fail=start",)])
@pytest.mark.parametrize("settings", [SimSettings(), SimSettings(capacity=2, run_for_s=9.0)])
async def test_bulk_launch_does_what_single_ones_do(autojump_clock, command, settings):
    """Whether rows are made at once or one by one, the machine has the same, twice asked too."""
    bulk, single = (SimDriver(OWNER, SimHost(settings)) for _ in range(2))
    launches = [launch_of(*command, sequence=number) for number in (1, 2, 3, 2)]
    answers = bulk.launch_many(launches).answers
    outcomes = []
    for launch in launches:
        try:
            await single.create(launch)
            outcomes.append((await single.start(launch)).runtime_id)
        except (LaunchFailed, InvalidSpec) as error:
            outcomes.append(str(error))

    assert outcomes == [str(one) for one in answers]
    assert await bulk.list() == await single.list()
    await trio.sleep(7)
    assert await bulk.list() == await single.list()


def start_each(driver, sequences):
    """Start instances one by one on the driver's host: each start is told by an event."""
    for sequence in sequences:
        launch = launch_of(sequence=sequence)
        driver.host.create(OWNER, launch)
        driver.host.start(OWNER, launch)


async def test_overflowing_events_end_in_a_resync():
    """When more happens than the channel holds, its last event is a RESYNC."""
    driver = SimDriver(OWNER, SimHost(SimSettings(events_max=4)))
    async with driver.events() as channel:
        start_each(driver, range(1, 11))
        kinds = [channel.receive_nowait().kind for _ in range(4)]
        with pytest.raises(trio.WouldBlock):
            channel.receive_nowait()
        start_each(driver, [11])
        after = channel.receive_nowait()

    assert kinds == [EventKind.STARTED] * 3 + [EventKind.RESYNC]
    assert after.incarnation == incarnations.make(1, 11)


async def test_outlet_counts_what_it_drops():
    """What did not fit is counted; a reader that went away does no harm."""
    host = SimHost(SimSettings(events_max=4))
    driver = SimDriver(OWNER, host)
    with open_outlet(host.clock, 4) as (outlet, channel):
        host.attach(OWNER, outlet)
        start_each(driver, range(1, 11))
        assert outlet.dropped == 7
        channel.close()
        start_each(driver, [20])
        host.detach(OWNER, outlet)


def test_order_that_is_no_number_is_the_users_error():
    """A misspelt order is refused with the word in it."""
    driver = SimDriver(OWNER, SimHost(clock=lambda: 1.0))
    (answer,) = driver.launch_many([launch_of("exit=soon")]).answers

    assert isinstance(answer, InvalidSpec)
    assert "exit=soon" in str(answer)
