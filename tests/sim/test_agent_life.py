"""An agent end to end, in virtual time: what its controller wants comes to be, and is told."""

import pytest
import trio

from swarmctl.agent.drivers.api import Phase
from swarmctl.agent.drivers.sim import Delay, SimSettings
from swarmctl.proto.states import Desired, InstanceState
from swarmctl.spec.models import RestartCondition, RestartPolicy
from tests.sim.agent_fixture import a_world, inc, template

RUNNING, STOPPED = InstanceState.RUNNING, InstanceState.STOPPED


async def test_what_is_assigned_runs_and_is_reported(autojump_clock, tmp_path):
    """Instances assigned by a change run, and both sides' digests agree."""
    async with a_world(tmp_path, SimSettings(start=Delay(fixed_s=0.3))) as world:
        controller = world.controller
        await world.start_agent()
        await controller.until(lambda: controller.hellos)
        for sequence in range(1, 41):
            controller.want(sequence, template())
        controller.assign(*range(1, 41))
        for sequence in range(1, 41):
            report = await controller.until_state(sequence, RUNNING)
            assert report.runtime_id.startswith("sim-")
        await controller.until_agreed()

        assert {one.phase for one in world.book.values()} == {Phase.RUNNING}
        assert world.host.calls["create"] == 40


async def test_stop_start_restart_and_remove_follow_the_assignment(autojump_clock, tmp_path):
    """Desired states and generations of an instance are carried out, one attempt after another."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        controller.want(1, template())
        await world.start_agent()
        await controller.until_state(1, RUNNING, attempt=1)

        controller.want(1, template(), desired=Desired.STOPPED)
        controller.assign(1)
        await controller.until_state(1, STOPPED, attempt=1)
        assert world.book[inc(1)].phase is Phase.EXITED

        controller.want(1, template())
        controller.assign(1)
        await controller.until_state(1, RUNNING, attempt=2, restarts=0)

        controller.want(1, template(), generation=1)
        controller.assign(1)
        await controller.until_state(1, RUNNING, attempt=3, restarts=0)

        controller.unwant(1)
        controller.assign(removed=[1])
        await controller.until_gone(1)
        await controller.until_agreed()
        assert not world.book
        assert not [key for key in world.journal.load() if key >= 1 << 40]


async def test_killed_instance_is_back_within_two_seconds(autojump_clock, tmp_path):
    """What ends behind the agent's back is restarted by policy, and counted."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        controller.want(1, template())
        await world.start_agent()
        await controller.until_state(1, RUNNING)
        began = trio.current_time()
        world.host.kill(world.owner, inc(1))

        await controller.until_state(1, RUNNING, restarts=1, attempt=2)
        assert trio.current_time() - began < 2


async def test_job_succeeds_for_good(autojump_clock, tmp_path):
    """A job that exits 0 is not run again, and its completion survives the agent."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        controller.want(1, template("run_for=1", job=True))
        agent = await world.start_agent()
        await controller.until_state(1, InstanceState.SUCCEEDED, exit_code=0)
        agent.cancel()
        await trio.sleep(100)
        await world.start_agent()
        await controller.until(lambda: len(controller.hellos) == 2)

        [report] = controller.hellos[1].inventory
        assert report.state == InstanceState.SUCCEEDED
        assert world.host.calls["start"] == 1


async def test_crash_loop_is_named_and_slows_down(autojump_clock, tmp_path):
    """An instance that keeps failing is retried ever more slowly, and called a crash loop."""
    async with a_world(tmp_path) as world:
        controller = world.controller
        controller.want(1, template("exit=1"))
        await world.start_agent()
        await controller.until(
            lambda: "crash loop" in getattr(controller.now.get(inc(1)), "reason", "")
        )

        reason = controller.now[inc(1)].reason
        assert reason.startswith("crash loop: 4 ends in ")
        assert reason.endswith(", next try in 2 s, last exit code 1")
        starts = world.host.calls["start"]
        await trio.sleep(600)
        assert 8 < world.host.calls["start"] - starts < 20


async def test_what_was_wrong_is_said_while_it_is_tried_again(autojump_clock, tmp_path):
    """A second attempt that is under way, and has nothing to tell yet, does not hide it."""
    async with a_world(tmp_path, SimSettings(start=Delay(fixed_s=3.0))) as world:
        controller = world.controller
        controller.want(1, template("exit=3"))
        await world.start_agent()
        await controller.until_state(1, InstanceState.STARTING, attempt=2)
        await controller.until(lambda: world.host.calls["start"] == 2)
        await trio.sleep(1.0)

        report = controller.now[inc(1)]
        assert report.state == InstanceState.STARTING
        assert "exited 3" in report.reason


@pytest.mark.parametrize(
    ("spec", "state", "said"),
    [
        (template(image="missing/x"), InstanceState.FAILED, "image missing/x does not exist"),
        (template("fail=start"), InstanceState.FAILED, "simulated command does not exist"),
        (
            template("exit=3", restart=RestartPolicy(RestartCondition.NEVER)),
            InstanceState.FAILED,
            "exited 3",
        ),
    ],
)
async def test_failure_is_explained(autojump_clock, tmp_path, spec, state, said):
    """A launch that cannot work is failed, with the reason in words."""
    async with a_world(tmp_path) as world:
        world.controller.want(1, spec)
        await world.start_agent()
        report = await world.controller.until_state(1, state)

        assert said in report.reason
