"""A driver without a daemon: what an agent sees of a :class:`~.sim_host.SimHost`.

It is as thin as the drivers of real daemons: it waits as the settings say, meets the faults that
wait for it, and leaves the rest to the host.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from swarmctl.agent.drivers.api import (
    DriverEvent,
    Found,
    Health,
    Launch,
    Owner,
    Phase,
    Progress,
    Started,
)
from swarmctl.agent.drivers.outlet import open_outlet
from swarmctl.agent.drivers.sim_host import (
    EXIT_KILLED,
    EXIT_TERMINATED,
    Delay,
    SimHost,
    SimSettings,
    check_image,
    orders_of,
    runtime_id,
)
from swarmctl.proto.errors import DriverUnavailable
from swarmctl.spec import wire

__all__ = ["EXIT_KILLED", "EXIT_TERMINATED", "Delay", "SimDriver", "SimHost", "SimSettings"]


class SimDriver:
    """One owner's view of a :class:`SimHost`, as an agent's driver."""

    name = "sim"
    simulated = True

    def __init__(self, owner: Owner, host: SimHost) -> None:
        self.owner = owner
        self.host = host
        self.concurrency = host.settings.concurrency

    async def probe(self) -> Health:
        """Whether the host is reachable, and how many instances it has."""
        await trio.lowlevel.checkpoint()
        if not self.host.reachable:
            return Health(available=False, reason="the simulated host does not answer")
        return Health(available=True, version="1", facts={"instances": str(self.host.population)})

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Wait as the settings say."""
        await self._meet("prepare")
        check_image(launch)
        progress("simulated pull")
        await self._wait(self.host.settings.prepare)

    async def create(self, launch: Launch) -> str:
        """Make a row; see :meth:`SimHost.create`."""
        await self._meet("create", lambda: self.host.create(self.owner, launch))
        await self._wait(self.host.settings.create)
        return runtime_id(self.host.create(self.owner, launch).launch.incarnation)

    async def start(self, launch: Launch) -> Found:
        """Let it run; see :meth:`SimHost.start`."""
        await self._meet("start", lambda: self.host.start(self.owner, launch))
        await self._wait(self.host.settings.start)
        self.host.settle()
        return self.host.start(self.owner, launch).found()

    async def stop(self, incarnation: int, grace_s: float) -> None:
        """Let it end: after the settings' delay, and at once after ``grace_s`` if it must."""
        await self._meet("stop")
        host = self.host
        host.settle()
        instance = host.book(self.owner).get(incarnation)
        if instance is None or not instance.alive:
            return
        now = host.clock()
        instance.phase = Phase.STOPPING
        wait_s = host.settings.stop.draw(host.random)
        if wait_s < grace_s and not orders_of(instance.launch).stubborn:
            host.schedule_end(self.owner, instance, now + wait_s, EXIT_TERMINATED)
        else:
            host.schedule_end(self.owner, instance, now + grace_s, EXIT_KILLED)
        while instance.alive:
            host.settle()
            await trio.sleep(max(0.0, instance.ends_at - host.clock()) if instance.alive else 0.0)

    async def remove(self, incarnation: int) -> None:
        """Take the row away."""
        await self._meet("remove")
        self.host.settle()
        self.host.discard(self.owner, incarnation)

    async def list(self) -> list[Found]:
        """The owner's rows."""
        await self._meet("list")
        self.host.settle()
        rows = self.host.book(self.owner).values()
        # Thousands of rows share a few templates.
        templates = {id(row.launch.template): row.launch.template for row in rows}
        encoded = {key: wire.encode_template(one) for key, one in templates.items()}
        return [row.found(encoded[id(row.launch.template)]) for row in rows]

    @asynccontextmanager
    async def events(self) -> AsyncGenerator[trio.MemoryReceiveChannel[DriverEvent], None]:
        """The owner's events; time passes by itself as long as this is open."""
        host = self.host
        with open_outlet(host.clock, host.settings.events_max) as (outlet, channel):
            host.attach(self.owner, outlet)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(host.keep_time)
                    yield channel
                    nursery.cancel_scope.cancel()
            finally:
                host.detach(self.owner, outlet)

    # --- many at once -------------------------------------------------------------------------

    def launch_many(self, launches: Sequence[Launch]) -> Started:
        """Create and start each without waiting: the delays of the settings do not apply."""
        return self.host.launch_many(self.owner, launches)

    def remove_many(self, incarnations: Sequence[int]) -> None:
        """Stop by force and remove each."""
        for incarnation in incarnations:
            self.host.discard(self.owner, incarnation)

    # --- shared -------------------------------------------------------------------------------

    async def _wait(self, delay: Delay) -> None:
        await trio.sleep(delay.draw(self.host.random))

    async def _meet(self, operation: str, effect: Callable[[], object] | None = None) -> None:
        """Meet the fault that waits for ``operation``, if any."""
        await trio.lowlevel.checkpoint()
        fault = self.host.next_fault(operation)
        if fault is not None:
            if fault.error is not None:
                raise fault.error
            if fault.finish and effect is not None:
                effect()
            await trio.sleep_forever()
        if not self.host.reachable:
            raise DriverUnavailable("the simulated host does not answer", "sim")
