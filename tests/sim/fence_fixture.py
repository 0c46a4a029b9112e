"""A fence without a guard's process: what the simulations of fencing have in common."""

import trio


class IdleFence:
    """Its guard lives, has listed, and kills nothing; how long the lease holds is a test's."""

    is_alive = True
    has_listed = True
    left_s = 30.0

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


class TimedFence(IdleFence):
    """Its lease runs out by the virtual clock."""

    def __init__(self):
        self.until_s = 0.0

    @property
    def left_s(self):
        return self.until_s - trio.current_time()

    def renew(self, until_ns):
        self.until_s = max(self.until_s, until_ns / 1e9)
