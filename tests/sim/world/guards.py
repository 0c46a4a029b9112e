"""The guard of a machine: ends what is fenced when the lease has run out, agent or not.

The real one is a process apart, with its list on a memory disk; here it is a task of the world and
a list of the machine, so it outlives the agent and not a loss of power.  Its clock is that of the
machine's boot: it drifts, and nobody sets it.
"""

import trio

from swarmctl.agent.drivers.sim import EXIT_KILLED
from swarmctl.agent.fencing import NotFenced

_NS = 1_000_000_000
# It looks at its page four times a second.
_REACTS_WITHIN_S = 0.25


class Guard:
    """Keeps the contract of :class:`swarmctl.agent.fencing.Fence`."""

    def __init__(self, machine):
        self.machine = machine
        self.until_ns = 0
        self.listed = set()
        self.is_alive = True

    def now_ns(self):
        """The time since the boot, by the machine's own quartz."""
        return int(self.machine.quartz.at(trio.current_time()) * _NS)

    @property
    def left_s(self):
        return (self.until_ns - self.now_ns()) / _NS

    def renew(self, until_ns):
        self.until_ns = max(self.until_ns, until_ns)

    def check(self):
        if self.left_s <= 0:
            raise NotFenced("the lease has run out")

    def enlist(self, incarnation, runtime_id):
        del runtime_id
        self.listed.add(incarnation)

    def dismiss(self, incarnation):
        self.listed.discard(incarnation)

    async def run(self):
        """The agent looks after it: nothing to do, its task is the world's."""
        await trio.sleep_forever()

    async def wait_alive(self):
        await trio.lowlevel.checkpoint()

    async def watch(self):
        """End what is fenced whenever the lease has run out."""
        machine = self.machine
        while True:
            # By its own clock the lease ends a little earlier or later than by the true one.
            await trio.sleep(max(self.left_s, 0.0) + machine.random.uniform(0, _REACTS_WITHIN_S))
            if self.left_s > 0:
                continue
            owner = machine.world.owner(machine.name)
            for incarnation in sorted(self.listed & machine.alive().keys()):
                machine.world.books.fire("lease-ran-out", machine.name)
                machine.host._end(
                    owner, machine.book[incarnation], EXIT_KILLED, trio.current_time()
                )

    def lose_power(self):
        """Neither guard nor list is left; the next boot begins without a lease."""
        self.until_ns = 0
        self.listed.clear()
