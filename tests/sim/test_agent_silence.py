"""A controller that says nothing: when an agent leaves it, and when it asks whether it lives."""

import pytest
import trio

from swarmctl.proto.states import InstanceState
from tests.sim.agent_fixture import a_world, template

OTHER = "tcp://10.0.0.2:7077"


async def start(world, *others):
    """An agent with one instance that runs, and its controller; of ``others`` it knows as well."""
    world.controller.want(1, template())
    await world.start_agent(controllers=(world.controller.endpoint, *others))
    await world.controller.until_state(1, InstanceState.RUNNING)


async def test_silent_controller_is_greeted_again(autojump_clock, tmp_path):
    """Heartbeats that stay unanswered make the agent begin anew."""
    async with a_world(tmp_path) as world:
        await start(world)
        world.controller.ack_beats = False
        hellos = len(world.controller.hellos)
        await world.controller.until(lambda: len(world.controller.hellos) > hellos + 1)
        world.controller.ack_beats = True
        await world.controller.until_agreed()


@pytest.mark.parametrize(("others", "greeted"), [((), False), ((OTHER,), True)])
async def test_the_only_controller_is_not_left_for_a_silence_of_seconds(
    autojump_clock, tmp_path, others, greeted
):
    """There is nobody else to turn to, and a hello costs it much; one of several is left."""
    async with a_world(tmp_path) as world:
        await start(world, *others)
        world.controller.ack_beats = False
        await trio.sleep(20)

        assert (len(world.controller.hellos) > 1) is greeted


async def test_heartbeats_want_an_answer_now_and_then(autojump_clock, tmp_path):
    """The only controller is asked whether it lives when it has said nothing for a while."""
    async with a_world(tmp_path) as world:
        await start(world)
        world.controller.beats.clear()
        await trio.sleep(60)

        asked = [one for one in world.controller.beats if not one.quiet]
        assert 0 < len(asked) < len(world.controller.beats)
        assert len(world.controller.hellos) == 1


async def test_each_heartbeat_wants_an_answer_where_there_are_others(autojump_clock, tmp_path):
    """One that hangs is to be left soon."""
    async with a_world(tmp_path) as world:
        await start(world, OTHER)
        await trio.sleep(10)

        assert world.controller.beats
        assert not any(one.quiet for one in world.controller.beats)
