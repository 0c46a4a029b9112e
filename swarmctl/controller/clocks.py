"""Whose clock is off: a node's is compared with those of all others, of which ours is but one.

Every heartbeat brings its node's wall clock.  What is kept of it is how far that is ahead of our
*monotonic* clock, which nobody sets: so a step of our own wall clock changes nothing of what is
known of nodes, and is seen as what it is.  What time it is say most of the clocks, the nodes' and
ours: their median, or all between the two in the middle where their number is even.  A node is
off when it is further than five seconds from that in several heartbeats in a row, which came one
after the other: those that waited while we hung come all at once, and each was right when it was
said.

So one node's clock is named whatever ours does; where as many say one time as the other, and of
one node and us, nobody is blamed; and all that are set together go before any of them is blamed,
as no heartbeat is later than the first by more than an interval.

Pure: times come in as arguments.  A node that is right costs two comparisons a heartbeat; while
one is not, all clocks are sorted once a second.
"""

import math
from typing import Final

import structlog
from attrs import define, field

from swarmctl.proto import limits

_log = structlog.get_logger(__name__)

# Beyond this, logs of two nodes cannot be read beside each other; below half of it all is well.
_OFF_S: Final = 5.0
# In so many heartbeats, of which the first and the last are at least so far apart: one may have
# been on its way for long.
_BEATS: Final = 3
_SPREAD_S: Final = 1.5 * limits.HEARTBEAT_S
# Who has not said anything for so long says nothing of what time it is now.
_SAID_S: Final = limits.NODE_LOST_S
_COMPARED_EVERY_S: Final = 1.0
# What waited for longer may seem behind for that alone.
_WAITED_MAX_S: Final = _OFF_S / 2


@define
class _Clock:
    """A node's clock.

    ``ahead_s`` is of our monotonic clock, and ``said_at`` on that; ``off_s`` is from most clocks.
    """

    ahead_s: float
    said_at: float
    beats: int = 0
    since: float = 0.0
    off_s: float = 0.0
    blamed: bool = False


@define
class Clocks:
    """Those of all nodes that say it, and ours; see the module's docstring."""

    _clocks: dict[str, _Clock] = field(factory=dict)
    _low: float = math.inf
    _high: float = -math.inf
    _compared_at: float = -math.inf
    _own_is_off: bool = False

    def heard(
        self, node: str, node_wall_s: float, now: float, arrived_after: float, wall_s: float
    ) -> None:
        """A node's clock said ``node_wall_s`` when ours said ``wall_s``; the way is included.

        Args:
            node: its name.
            node_wall_s: epoch seconds when it said so.
            now: monotonic seconds, real ones: they go on while we do not listen.
            arrived_after: before that it had not arrived.
            wall_s: epoch seconds, by this machine's clock.
        """
        if now - arrived_after > _WAITED_MAX_S:
            return
        clock = self._clocks.get(node)
        if clock is None:
            clock = self._clocks[node] = _Clock(0.0, now)
        clock.ahead_s, clock.said_at = node_wall_s - now, now
        off_s = self._off(clock.ahead_s)
        own_s = wall_s - now
        stale = now - self._compared_at >= _COMPARED_EVERY_S
        undecided = self._high - self._low > _OFF_S  # As many said one time as the other.
        if stale and (
            undecided or self._own_is_off or abs(off_s) > _OFF_S or abs(self._off(own_s)) > _OFF_S
        ):
            self._compare(now, own_s)
            off_s = self._off(clock.ahead_s)
        if abs(off_s) > _OFF_S:
            if not clock.beats:
                clock.since = now
            clock.beats = min(_BEATS, clock.beats + 1)
            if not clock.blamed or abs(off_s - clock.off_s) > _OFF_S / 2:
                clock.off_s = off_s  # Else it is said as before: a new reason costs a plan.
            if clock.beats == _BEATS and now - clock.since >= _SPREAD_S:
                clock.blamed = True
        elif clock.beats and abs(off_s) < _OFF_S / 2:
            clock.beats -= 1
            clock.blamed = clock.blamed and clock.beats > 0

    def reason(self, node: str) -> str:
        """What is wrong with a node's clock; empty when nothing is."""
        clock = self._clocks.get(node)
        if clock is None or not clock.blamed:
            return ""
        way = "ahead" if clock.off_s > 0 else "behind"
        return f"its clock is {abs(clock.off_s):.0f} s {way}"

    def forget(self, node: str) -> None:
        """It was taken out of the registry."""
        self._clocks.pop(node, None)

    def _off(self, ahead_s: float) -> float:
        """How far that is from what most clocks say: ahead is positive."""
        if ahead_s > self._high:
            return ahead_s - self._high
        return min(0.0, ahead_s - self._low)

    def _compare(self, now: float, own_s: float) -> None:
        """What most say."""
        said = [one.ahead_s for one in self._clocks.values() if now - one.said_at <= _SAID_S]
        said.append(own_s)
        said.sort()
        self._low, self._high = said[(len(said) - 1) // 2], said[len(said) // 2]
        self._compared_at = now
        own_off_s = self._off(own_s)
        if (abs(own_off_s) > _OFF_S) is not self._own_is_off:
            self._own_is_off = not self._own_is_off
            if self._own_is_off:
                said_so = f"{abs(own_off_s):.0f} s {'ahead' if own_off_s > 0 else 'behind'}"
                _log.warning("this machine's clock is not that of most nodes", clock=said_so)
            else:
                _log.info("this machine's clock is that of most nodes again")
