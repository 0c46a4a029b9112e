"""Operators: nodes are drained, cordoned and taken back, and loads made even, at any time.

A machine that is off for good is taken out of the registry, sooner or later; a hold is released.
"""

import trio

from swarmctl.proto.errors import InternalError, SwarmError
from tests.sim.world.users import request

# So many nodes at a time at the most: what is wanted has to have room.
_OUT_MAX = 3
_PATIENCE_S = 8.0


class Operator:
    """One who moves things; what she took out she puts back in the end."""

    def __init__(self, world, random):
        self.world = world
        self.random = random
        self.out = set()
        self.lost = set()
        self.on_hold = False

    def lose(self, name):
        """A machine is off for good: it is to be taken out, by and by."""
        self.lost.add(name)

    async def live(self, until_s):
        """Do something now and then."""
        while trio.current_time() < until_s:
            await trio.sleep(self.random.expovariate(1 / 4))
            if (self.lost or self.on_hold) and self.random.random() < 0.5:
                await self._mend_one()
                continue
            what = self.random.choice(
                ("drain", "drain", "cordon", "uncordon", "rebalance", "release")
            )
            if what == "release":
                await self._ask("node.release", {})
                continue
            if what == "rebalance":
                await self._ask("node.rebalance", {})
                continue
            name = self.random.choice(self.world.machines).name
            if what == "uncordon" or len(self.out) >= _OUT_MAX:
                if self.out:
                    await self._put_back(self.random.choice(sorted(self.out)))
                continue
            self.out.add(name)
            mode = {"draining": True} if what == "drain" else {"cordoned": True}
            await self._ask("node.change", {"names": [name], **mode})

    async def put_back(self):
        """Every node takes instances again; those that are lost are out, and nothing is on hold."""
        while self.lost or self.on_hold:
            await self._mend_one()
        for machine in self.world.machines:
            if machine.lost:
                self.out.discard(machine.name)
                await self._ask("node.fenced", {"names": [machine.name]})
        while self.out:
            await self._put_back(min(self.out))

    async def _mend_one(self):
        if self.on_hold:
            await self._release_hold()
            return
        name = min(self.lost)
        if await self._ask("node.remove", {"name": name, "force": True}, done="not-found"):
            self.lost.discard(name)
        else:
            await trio.sleep(0.5)

    async def _release_hold(self):
        """Until whoever serves is not on hold, and whoever starts will not be."""
        world = self.world
        released = await self._ask("store.release", {})
        if released and world.disk.on_hold:
            # It began before the store was put on hold, and goes on as if it were not.
            world.controllers[world.serving].kill()
        cluster = world.cluster
        held = world.disk.on_hold or cluster is None or bool(cluster.hold)
        self.on_hold = held or not released
        if self.on_hold:
            await trio.sleep(0.5)

    async def _put_back(self, name):
        if await self._ask("node.change", {"names": [name], "cordoned": False}):
            self.out.discard(name)
        else:
            await trio.sleep(0.5)

    async def _ask(self, method, params, done=""):
        """Whether it was acknowledged, or refused with the code ``done``.

        What was lost may have been done all the same.
        """
        self.world.trace.note("operator", method, *params.get("names", ()))
        try:
            with trio.fail_after(_PATIENCE_S):
                await request(self.world, self.random, method, params)
        except (trio.TooSlowError, SwarmError) as error:
            holds = not isinstance(error, InternalError)
            self.world.books.check("no-defect", holds, f"answered: {error}")
            return bool(done) and getattr(error, "code", "") == done
        return True
