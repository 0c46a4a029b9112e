"""When heartbeats show that a node and we do not agree, and when they only seem to.

A digest that differs in one heartbeat may only have crossed a message under way; in two it is a
divergence.  A node that works through much is behind for longer: as long as it has not taken in
the assignment that it was sent last, and that was not long ago, its digest says nothing.  To send
all of it again then would add to what it has to work through, and never end.  Nor does it say
anything while the node is yet to be told of what was placed there.
"""

from typing import Final

from attrs import define

from swarmctl.controller.state import Node
from swarmctl.proto.messages import Heartbeat

_DIVERGED_AFTER: Final = 2
# So long an assignment may wait at a node that is busy. One that was lost is sent again after it;
# connections keep what they carry in order, so that is rare.
_UNDER_WAY_S: Final = 30.0


@define
class Divergence:
    """Heartbeats of one node in a row whose digests were not ours."""

    _assignments: int = 0
    _inventories: int = 0

    def assignment(self, node: Node, beat: Heartbeat, now: float) -> bool:
        """Whether the node has to be sent all that it should have."""
        if beat.assignment_digest == node.assignment_digest:
            self._assignments = 0
        elif node.dirty or node.needs_full:
            pass  # Our digest has what the node has not been told of yet.
        elif beat.version == node.assignment_version or now - node.told_at >= _UNDER_WAY_S:
            self._assignments += 1
        if self._assignments < _DIVERGED_AFTER:
            return False
        self._assignments = 0
        return True

    def inventory(self, node: Node, beat: Heartbeat) -> bool:
        """Whether the node has to send all that it has; its reports keep their order."""
        self._inventories = (
            0 if beat.inventory_digest == node.inventory_digest else self._inventories + 1
        )
        if self._inventories < _DIVERGED_AFTER:
            return False
        self._inventories = 0
        return True
