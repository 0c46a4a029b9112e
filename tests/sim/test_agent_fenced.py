"""Fenced instances on a node whose disk is full: what was reported gone never comes back."""

import attrs
import trio
import trio.testing

from swarmctl.proto.errors import StorageFault
from swarmctl.proto.states import InstanceState
from tests.sim.agent_fixture import World, a_world, inc, template

RUNNING = InstanceState.RUNNING


class LeasedFence:
    """A guard that lives, and a lease that holds."""

    is_alive = True
    left_s = 30.0
    has_listed = True

    def renew(self, until_ns):
        """The lease holds anyway."""

    def check(self):
        """Whatever is fenced may be started."""

    def enlist(self, incarnation, runtime_id):
        """It kills nothing."""

    def dismiss(self, incarnation):
        """As above."""

    async def run(self):
        await trio.sleep_forever()

    async def wait_alive(self):
        await trio.lowlevel.checkpoint()


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
