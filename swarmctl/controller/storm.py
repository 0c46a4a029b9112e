"""The storm brake: when many nodes vanish at once, the fault is likelier here than there.

A switch that fails, or a controller that was starved, makes half of the nodes silent; placing all
they had on the other half would turn a hiccup into an avalanche.  So when more than a fifth of
the nodes, and at least five, vanish within ten seconds, what they had stays theirs for five
minutes, or until an operator releases the brake, or until they are all back (DESIGN 7).

Nodes that vanish together are not *called* lost together: their last heartbeats were spread over
an interval.  When the first is called lost, the others have missed a heartbeat, as no living node
has; these *suspects* count with the lost ones.  A brake that rests on suspects ends when they are
heard again; but no brake ends while nodes still return, because the last of them wait for the
handshakes of the first, and who returned to an overload is soon late again.

Pure: the time comes in as an argument.
"""

import math
from typing import Final

from attrs import define, field

from swarmctl.proto import limits

# A living node says something once in an interval, with its jitter; the rest is the way.
SUSPECT_S: Final = limits.HEARTBEAT_S * (1 + limits.HEARTBEAT_JITTER) + 0.1


def is_storm(vanished: int, nodes: int) -> bool:
    """Whether ``vanished`` out of ``nodes`` are too many to be a fault of theirs."""
    return vanished >= limits.STORM_NODES_MIN and vanished > nodes * limits.STORM_SHARE


@define
class StormBrake:
    """Who vanished lately, and whether rescheduling brakes.

    ``until`` is when it ends by itself, on the clock of the arguments; 0 when it does not brake.
    """

    until: float = 0.0
    _lost_at: dict[str, float] = field(factory=dict)
    _certain: bool = False
    _returned_at: float = -math.inf
    _took_over: bool = False

    @property
    def holds(self) -> bool:
        """Whether what lost nodes had stays theirs."""
        return self.until > 0.0

    def lost(self, node: str, now: float) -> None:
        """A node was called lost."""
        self._lost_at[node] = now

    def returned(self, node: str, now: float) -> None:
        """It is back."""
        self._returned_at = now
        self.forget(node)

    def forget(self, node: str) -> None:
        """It was taken out of the registry."""
        self._lost_at.pop(node, None)

    def judge(self, now: float, *, alive: int, suspects: int, missing: int) -> bool:
        """Brake, or end the brake, as the numbers say; whether that has changed.

        Args:
            now: the time.
            alive: nodes that are not lost, suspects among them.
            suspects: those of them that have missed a heartbeat.
            missing: nodes that are lost, whenever that was, or have not reported yet.
        """
        before = self.holds
        self._forget_before(now - limits.STORM_WINDOW_S)
        recent = len(self._lost_at)
        nodes = alive + recent
        certain = is_storm(recent, nodes)
        if before:
            self._certain = self._certain or certain
            calm = now - self._returned_at >= limits.NODE_LOST_S
            doubtful = not self._certain and not is_storm(recent + suspects, nodes)
            back = not missing and not is_storm(suspects, nodes)
            if (calm and (doubtful or back)) or now >= self.until:
                self.release()
        elif recent and is_storm(recent + suspects, nodes):
            self._certain = certain
            self.until = now + limits.STORM_BRAKE_S
        return before is not self.holds

    def takeover(self, now: float, silent: int, nodes: int) -> bool:
        """Whether a controller that took over waits on for ``silent`` of all its ``nodes``."""
        if not is_storm(silent, nodes):
            if self._took_over:
                self.release()
            return False
        if not self._took_over:
            self._took_over = self._certain = True
            self.until = now + limits.STORM_BRAKE_S
        return self.holds

    def release(self) -> None:
        """Brake no more; the losses so far are accepted as such."""
        self.until = 0.0
        self._certain = False
        self._lost_at.clear()

    def _forget_before(self, time: float) -> None:
        for node in [node for node, at in self._lost_at.items() if at < time]:
            del self._lost_at[node]
