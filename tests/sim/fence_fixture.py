"""A fence without a guard's process: what the simulations of fencing have in common."""

import attrs
import trio

from tests.sim.cluster_fixture import service


class IdleFence:
    """Its guard lives, has listed, and kills nothing; how long the lease holds is a test's."""

    is_alive = True
    has_listed = True
    left_s = 30.0
    listed: frozenset[int] = frozenset()

    def renew(self, until_ns):
        """The lease holds anyway."""

    def check(self):
        """Whatever is fenced may be started."""

    def enlist(self, incarnation, _runtime_id):
        """It kills nothing, and remembers."""
        self.listed |= {incarnation}

    def dismiss(self, incarnation):
        """As above."""
        self.listed -= {incarnation}

    async def dismiss_dead(self, incarnations):
        """There are no processes."""
        self.listed -= set(incarnations)

    async def run(self):
        await trio.sleep_forever()

    async def wait_alive(self):
        await trio.lowlevel.checkpoint()


class TimedFence(IdleFence):
    """Its lease runs out by the virtual clock."""

    def __init__(self):
        self.until_s = 0.0

    @property
    def left_s(self):
        return self.until_s - trio.current_time()

    def renew(self, until_ns):
        self.until_s = max(self.until_s, until_ns / 1e9)


class Fences(dict):
    """Those of a cluster's nodes, which outlive the agents; ``of`` is a cluster's make_fence."""

    def of(self, config):
        return self.setdefault(config.name, TimedFence())


def fenced_service(replicas=1):
    """A service whose copies run only under a lease."""
    web = service(replicas=replicas)
    return attrs.evolve(web, template=attrs.evolve(web.template, fenced=True), fencing="lease")
