"""Nodes that are heard no more: when they are called lost, and what that means for what they had.

Silence is measured by :mod:`swarmctl.controller.listening`, and losses of many at once are
waited out by :mod:`swarmctl.controller.storm`.  What a lost node had is marked lost, and the
reconciler places it elsewhere; once the node returns it is told what was replaced.

A node that was only late (starved, paused, behind a full link) is heard again on the connection
that it had.  Nothing was lost on that, so the loss is taken back as it was made, without a hello
and all that follows one: in an overload which makes many nodes late, their return must not cost
more than their silence did.

After a takeover all nodes come at once, and one waits for the handshakes of thousands of others
without a word that could be heard.  So a registered node's silence is counted from the last
arrival of any of them: while nodes keep arriving, none is given up (DESIGN 8.4).
"""

from collections.abc import Callable
from typing import Final

import structlog

from swarmctl.controller.availability import is_to_begin, uses_its_node
from swarmctl.controller.placing import Fleet
from swarmctl.controller.state import ClusterState, Node
from swarmctl.controller.storm import SUSPECT_S, StormBrake
from swarmctl.proto import limits
from swarmctl.proto.states import InstanceState, NodeState

_log = structlog.get_logger(__name__)
# Nodes that a line of the log names; `node ls` has the others.
_NAMED: Final = 20
# While the storm brake holds, a node may be silent for so many times longer: nothing is placed
# elsewhere then, and calling thousands lost that are heard a moment later costs the time that their
# messages need.
_BRAKED_PATIENCE: Final = 3
# Nodes and their instances that are called lost at a time: some 100 ms of work.
_LOST_A_TURN: Final = 50_000


class Losses:
    """The nodes that fell silent.

    Args:
        state: whose nodes these are.
        fleet: the scheduler's index over it.
        refresh: works out anew what a node's state is.
        wake: called when there may be something to reconcile.
        now: seconds in which silence is measured.
        wall: epoch seconds, for people.
    """

    def __init__(
        self,
        state: ClusterState,
        fleet: Fleet,
        refresh: Callable[[Node], None],
        *,
        wake: Callable[[], None],
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.brake = StormBrake()
        self._state = state
        self._fleet = fleet
        self._refresh = refresh
        self._wake = wake
        self._now = now
        self._wall = wall
        self._took_over_at = self._arrived_at = now()

    def check_lost(self, lost_after_s: float) -> None:
        """Call nodes lost that have been silent for too long, and free their slots.

        As many as are a moment's work; the others when we look again, and by then it may be a
        storm, in which they get more time.
        """
        now = self._now()
        released = self._state.fences.tick(now)
        if released:
            self._state.dirty_services.update(released)
            self._wake()
        patience_s = lost_after_s * (_BRAKED_PATIENCE if self.brake.holds else 1)
        silent: list[Node] = []
        alive = suspects = missing = 0
        left = _LOST_A_TURN
        for node in self._state.nodes.values():
            silent_s = now - node.heard_at
            if node.state is NodeState.LOST or not node.reported:
                missing += 1
            elif silent_s >= patience_s and left > 0:
                missing += 1
                left -= 1 + len(node.instances)
                silent.append(node)
            else:
                alive += 1
                suspects += silent_s >= SUSPECT_S
        for node in silent:
            self.brake.lost(node.name, now)
            self._lose_node(node, f"has been silent for {now - node.heard_at:.0f} s")
        if silent:
            names = [node.name for node in silent]
            _log.warning("nodes lost", count=len(names), nodes=names[:_NAMED])
            self._wake()
        if self.brake.judge(now, alive=alive, suspects=suspects, missing=missing):
            self._brake_changed(missing)

    def _lose_node(self, node: Node, why: str) -> None:
        node.state = NodeState.LOST
        self._state.fences.silent(node.name)
        self._fleet.node_changed(node)
        reason = f"node {node.name} {why}"
        gone = [
            one
            for one in node.instances.values()
            # What has ended for good has nothing to run elsewhere, unless it was asked to.
            if not one.quarantined and not one.removing and (uses_its_node(one) or is_to_begin(one))
        ]
        self._state.lose(node, gone, self._wall(), reason)
        if not self._state.braked:  # Else they are looked at when the brake is released.
            self._state.dirty_services.update([one.key for one in gone])

    def take_back(self, node: Node) -> None:
        """A node that was called lost is heard, on its old connection: it was only late."""
        now = self._now()
        _log.info("node heard again", node=node.name, silent_s=round(now - node.heard_at, 1))
        node.state = NodeState.JOINING
        self.brake.returned(node.name, now)
        self._state.fences.heard(node.name, now, guarded=node.guarded)
        self._refresh(node)
        found = self._state.find_again(node)
        # To look at a service costs as much as it has copies; most have nothing to do.
        for key in {one.key for one in found}:
            service = self._state.services.get(key)
            if service is not None and (service.unplaced or service.rolling):
                self._state.dirty_services.add(key)
        if node.leaving:
            # What was replaced it has to know before it gets a lease; also what it was told to take
            # away just before it fell silent, and may not have heard.
            self._state.resend(node)
        elif node.dirty:
            self._state.dirty_nodes.add(node.name)
        self._wake()

    def stopped(self, node: Node, vm: str) -> None:
        """A node does not run now, for sure: it is a VM. It may come back with what it had."""
        if node.state is not NodeState.LOST:
            _log.warning("node lost with its VM", node=node.name, vm=vm)
            self._lose_node(node, f"is in the VM {vm}, which does not run")
            self._wake()

    def ended(self, node: Node, vm: str) -> None:
        """A node is no more, for sure: it was a VM, and that is gone; so is what it had."""
        self.stopped(node, vm)
        self._state.guests.ended(node)
        for instance in list(node.instances.values()):
            self._fleet.free(self._state, instance)
            self._state.forget(instance)
        self._state.capacity_changed = True

    # --- the takeover ------------------------------------------------------------------------

    def take_over(self, at: float) -> None:
        """Nodes that have not reported yet are silent since ``at``."""
        self._took_over_at = self._arrived_at = at

    def arrived(self, node: Node) -> None:
        """A node reports; the first time since the takeover shows that others may still come."""
        if not node.reported and node.heard_at <= self._took_over_at:
            self._arrived_at = max(self._arrived_at, self._now())

    def settle(self, lost_after_s: float) -> bool:
        """The takeover rule: whether what silent nodes had may be placed elsewhere.

        When it may, they are given up.
        """
        nodes = self._state.nodes.values()
        if self._still_arriving(lost_after_s) and any(not node.reported for node in nodes):
            return False
        silent = [node for node in nodes if not node.reported]
        if self._awaits(len(silent)):
            return False
        if silent:
            names = [node.name for node in silent]
            _log.warning("taking over without", count=len(names), nodes=names[:_NAMED])
        for node in silent:
            self._give_up(node)
        return True

    def _still_arriving(self, lost_after_s: float) -> bool:
        now = self._now()
        # Some that come one by one for ever must not hold up what others had.
        longest_s = max(limits.STORM_BRAKE_S, lost_after_s)
        return now - self._arrived_at < lost_after_s and now - self._took_over_at < longest_s

    # --- the storm brake ---------------------------------------------------------------------

    def _awaits(self, silent: int) -> bool:
        """Whether a takeover waits on for nodes that have not reported: too many are silent."""
        before = self.brake.holds
        waits = self.brake.takeover(self._now(), silent, len(self._state.nodes))
        if self.brake.holds is not before:
            self._brake_changed(silent)
        return waits

    def release_brake(self) -> bool:
        """An operator ends the storm brake; whether there was one."""
        held = self.brake.holds
        if held:
            self.brake.release()
            self._brake_changed(0)
        return held

    @property
    def brake_ends_at(self) -> float:
        """When the storm brake ends by itself, in epoch seconds; 0 when it does not hold."""
        if not self.brake.holds:
            return 0.0
        return self._wall() + self.brake.until - self._now()

    def _brake_changed(self, missing: int) -> None:
        if self.brake.holds:
            _log.error(
                "many nodes vanished at once: what they had is not placed elsewhere",
                missing=missing,
                brake_s=limits.STORM_BRAKE_S,
                hint="'swarmctl node release' ends the wait",
            )
        else:
            _log.warning("the storm brake is released", missing=missing)
        self._state.braked = self.brake.holds
        if not self.brake.holds:
            self._state.dirty_services.update(
                key
                for key, service in self._state.services.items()
                if service.tally[InstanceState.LOST]
            )
        self._wake()

    def _give_up(self, node: Node) -> None:
        """A registered node has not reported since the controller started, for too long."""
        node.state = NodeState.LOST
        self._state.fences.silent(node.name)
        self._fleet.node_changed(node)
