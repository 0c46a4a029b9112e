"""Fenced instances on a node: what was reported gone, and what the guard has ended."""

import attrs
import trio
import trio.testing

from swarmctl.agent.fencing import NotFenced
from swarmctl.proto.errors import StorageFault
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import RestartCondition, RestartPolicy
from tests.sim.agent_fixture import World, a_world, inc, template
from tests.sim.fence_fixture import IdleFence

RUNNING = InstanceState.RUNNING


class LeasedFence(IdleFence):
    """Nothing starts while its lease does not hold."""

    def check(self):
        """Whatever is fenced may be started while it holds."""
        if self.left_s < 5:
            raise NotFenced("no lease")


async def test_a_removal_is_not_reported_before_the_journal_has_it(
    autojump_clock, tmp_path, monkeypatch
):
    """Reported earlier, the slot runs elsewhere while a restarted agent runs it here once more."""
    edges = World.edges
    fence = LeasedFence()
    monkeypatch.setattr(
        World, "edges", lambda self: attrs.evolve(edges(self), make_fence=lambda _config: fence)
    )
    async with a_world(tmp_path) as world:
        controller = world.controller
        controller.want(1, template(fenced=True))
        controller.want(2, template())
        agent = await world.start_agent()
        await controller.until_state(1, RUNNING)
        await controller.until_state(2, RUNNING)

        world.journal.fault = StorageFault("the disk is full", "journal.db")
        for number in (1, 2):
            controller.unwant(number)
        controller.assign(removed=[1, 2])
        # What is not fenced goes all the same; what is fenced is stopped, and stays on the books.
        await controller.until(lambda: inc(2) not in world.book)
        await controller.until_state(1, InstanceState.STOPPED)
        assert inc(1) in world.book

        # It restarts with what the journal knew before, and the controller says it once more.
        agent.cancel()
        await trio.testing.wait_all_tasks_blocked()
        world.journal.fault = None
        await world.start_agent()
        await controller.until_gone(1)
        assert inc(1) not in world.book


async def test_what_the_guard_ended_starts_again_and_is_no_failure(
    autojump_clock, tmp_path, monkeypatch
):
    """Also with ``restart: no``, of one that may fail once only, and by an agent that was away."""
    edges = World.edges
    fence = LeasedFence()
    monkeypatch.setattr(
        World, "edges", lambda self: attrs.evolve(edges(self), make_fence=lambda _config: fence)
    )
    never = RestartPolicy(RestartCondition.NEVER)
    once = RestartPolicy(RestartCondition.ON_FAILURE, 0.0, max_attempts=1)
    async with a_world(tmp_path) as world:
        controller = world.controller
        controller.want(1, template(fenced=True, restart=never))
        controller.want(2, template(fenced=True, restart=once))
        agent = await world.start_agent()
        for round_ in range(1, 4):
            for number in (1, 2):
                await controller.until_state(number, RUNNING, restarts=round_ - 1)
            fence.left_s = -0.1
            if round_ == 2:
                agent.cancel()
                await trio.testing.wait_all_tasks_blocked()
            for number in (1, 2):
                world.host.kill(world.owner, inc(number))
            if round_ == 2:
                await trio.sleep(30)
                fence.left_s -= 30
                agent = await world.start_agent()
            report = await controller.until_state(1, InstanceState.STARTING, restarts=round_)
            assert "fencing lease" in report.reason
            await trio.sleep(60)
            assert controller.now[inc(1)].state == InstanceState.STARTING
            assert "lease" in controller.now[inc(1)].reason
            fence.left_s = 30.0
        await controller.until_state(2, RUNNING, restarts=3)
        world.host.kill(world.owner, inc(1), 1)
        await controller.until_state(1, InstanceState.FAILED)


async def test_what_ended_before_the_lease_did_is_a_failure(autojump_clock, tmp_path, monkeypatch):
    """An agent that hears of it only after the lease does not take it for the guard's doing."""
    edges = World.edges
    fence = LeasedFence()
    monkeypatch.setattr(
        World, "edges", lambda self: attrs.evolve(edges(self), make_fence=lambda _config: fence)
    )
    never = RestartPolicy(RestartCondition.NEVER)
    async with a_world(tmp_path) as world:
        world.controller.want(1, template(fenced=True, restart=never))
        agent = await world.start_agent()
        await world.controller.until_state(1, RUNNING)
        agent.cancel()
        await trio.sleep(30)
        world.host.kill(world.owner, inc(1))
        await trio.sleep(30)
        fence.left_s = -10.0
        await world.start_agent()
        await world.controller.until_state(1, InstanceState.FAILED)
