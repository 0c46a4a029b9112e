"""Virtual time: it stands still while anything can run, and then is that of the next deadline.

trio's own autojumping clock finds out that nothing can run by waiting for I/O once in vain, and
asks for the run's whole statistics to see how far to jump; a run does so thousands of times.  But
trio asks a clock how long to sleep only when no task can run, and where neither sockets nor threads
are that is the same moment.  So this clock jumps right then: half as many turns of trio's loop a
sleep.  In a world with I/O, or with ``wait_all_tasks_blocked``, it would jump too early.
"""

import math

import trio


class Jumping(trio.abc.Clock):
    """Begins at 0 s; see the module."""

    def __init__(self):
        self._now_s = 0.0

    def start_clock(self):
        """Nothing to begin with."""

    def current_time(self):
        """The virtual time, in seconds."""
        return self._now_s

    def deadline_to_sleep_time(self, deadline):
        """No task can run before ``deadline``: it is then, already.

        Without one only trio itself can go on: it tells itself by a socket that its run is over.
        """
        if deadline == math.inf:
            return math.inf
        self._now_s = max(self._now_s, deadline)
        return 0.0
