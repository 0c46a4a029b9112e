"""Operators: nodes are drained, cordoned and taken back, and loads made even, at any time."""

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

    async def live(self, until_s):
        """Do something now and then."""
        while trio.current_time() < until_s:
            await trio.sleep(self.random.expovariate(1 / 4))
            what = self.random.choice(("drain", "drain", "cordon", "uncordon", "rebalance"))
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
        """Every node takes instances again."""
        while self.out:
            await self._put_back(min(self.out))

    async def _put_back(self, name):
        if await self._ask("node.change", {"names": [name], "cordoned": False}):
            self.out.discard(name)
        else:
            await trio.sleep(0.5)

    async def _ask(self, method, params):
        """Whether it was acknowledged; what was lost may have been done all the same."""
        self.world.trace.note("operator", method, *params.get("names", ()))
        try:
            with trio.fail_after(_PATIENCE_S):
                await request(self.world, self.random, method, params)
        except (trio.TooSlowError, SwarmError) as error:
            holds = not isinstance(error, InternalError)
            self.world.books.check("no-defect", holds, f"answered: {error}")
            return False
        return True
