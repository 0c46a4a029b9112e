"""Draining nodes: what runs there goes elsewhere, a few copies of a service at a time.

That a node is drained is durable, in its record; what is left to do is read from the instances
that it has, so a controller that starts goes on where the one before ended.  A *step* looks at
the nodes that are drained, and takes away what may go now: the reconciler finds the slots vacant
and places them, on another node since nothing new comes here.  An instance stays while

- its service has as many copies away as it may (:mod:`swarmctl.controller.availability`),
- or no other node has room for it.

A drain may have a deadline.  From then on all that is left is taken away at once, and runs again
where and when there is room.

Steps are taken while there is a node to drain, when something has changed; a cluster without one
pays nothing.
"""

from collections.abc import Iterator
from typing import Final

from attrs import frozen

from swarmctl.controller.availability import away, max_unavailable, may_leave, serves, uses_its_node
from swarmctl.controller.instance import Instance, ServiceKey, scheduler_key
from swarmctl.controller.placing import Fleet, request_for
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.proto.states import Desired, InstanceState, NodeState
from swarmctl.scheduler import Request, plan

# Steps are at least so far apart: reports of a launch come in bursts, and one look suffices.
_STEP_EVERY_S: Final = 0.1
# Instances taken away in one step, so that a node of thousands does not hold up the others.
_MOVES_A_STEP: Final = 500


@frozen
class DrainStatus:
    """How far the drain of one node is.

    ``left`` counts what still uses the node, ``leaving`` those of them that were told to go,
    ``staying`` says why the others are still there, by instance; ``no_room`` are those of them
    that fit nowhere else.
    """

    left: int
    leaving: int
    staying: dict[str, str]
    no_room: frozenset[str]

    @property
    def stuck(self) -> bool:
        """Whether nothing moves, and what is left has no room elsewhere."""
        return bool(self.staying) and not self.leaving and len(self.no_room) == len(self.staying)


class Drains:
    """The nodes that are being drained.

    Args:
        state: what it reads and changes.
        fleet: the scheduler's index over it.
    """

    def __init__(self, state: ClusterState, fleet: Fleet) -> None:
        self._state = state
        self._fleet = fleet
        self._nodes: dict[str, Node] = {}
        self._stepped_at = -_STEP_EVERY_S
        # Why what could not go yet is still there, by incarnation; and those without room.
        self._staying: dict[int, str] = {}
        self._no_room: set[int] = set()
        self._overdue: set[str] = set()

    @property
    def active(self) -> bool:
        """Whether a node is being drained."""
        return bool(self._nodes)

    def follow(self, node: Node) -> None:
        """The node's record is new or different."""
        if node.record.draining:
            self._nodes[node.name] = node
        else:
            self.forget(node.name)

    def forget(self, name: str) -> None:
        """The node is drained no more, or is gone."""
        if self._nodes.pop(name, None) is not None and not self._nodes:
            self._staying.clear()
            self._no_room.clear()

    def why_it_stays(self, instance: Instance) -> str:
        """Why an instance on a node that is drained is still there; empty for no reason."""
        return self._staying.get(instance.incarnation, "")

    def status(self, node: Node) -> DrainStatus:
        """How far the drain of ``node`` is."""
        if node.state is NodeState.LOST:
            return self._status_of_lost(node)
        left = leaving = 0
        staying: dict[str, str] = {}
        no_room: set[str] = set()
        for instance in node.instances.values():
            if instance.quarantined:
                left += 1
                staying[instance.name] = "its service is not known here, so it is left alone"
                no_room.add(instance.name)
            elif instance.removing:
                left += 1
                leaving += 1
            elif _is_to_move(instance):
                left += 1
                staying[instance.name] = self.why_it_stays(instance) or "about to be moved"
                if instance.incarnation in self._no_room:
                    no_room.add(instance.name)
        return DrainStatus(left, leaving, staying, frozenset(no_room))

    def _status_of_lost(self, node: Node) -> DrainStatus:
        """What it had is placed elsewhere, but for what is to run and is nowhere yet.

        What else it still has is taken away when it returns.
        """
        staying: dict[str, str] = {}
        no_room: set[str] = set()
        for instance in node.instances.values():
            service = self._state.services.get(instance.key)
            if service is None or service.holders.get(instance.slot) is not instance:
                continue
            wanted = instance.desired is Desired.RUNNING
            if instance.state is not InstanceState.LOST or not wanted:
                continue
            why = service.unplaced.get(instance.slot, "")
            if self._state.braked:
                why = "many nodes vanished at once; 'swarmctl node release' ends the wait"
            elif why and not self._state.fences.waits(service.key):
                no_room.add(instance.name)
            staying[instance.name] = f"lost with its node: {why or 'about to be placed'}"
        return DrainStatus(len(staying), 0, staying, frozenset(no_room))

    def step(self, now: float, wall: float) -> int:
        """Take away what may go now, at most every tenth of a second.

        Args:
            now: seconds, monotonic.
            wall: seconds since the epoch, for deadlines.

        Returns:
            How many were taken away.
        """
        if not self._nodes or now - self._stepped_at < _STEP_EVERY_S:
            return 0
        self._stepped_at = now
        self._staying.clear()
        self._no_room.clear()
        self._overdue = {
            name for name, one in self._nodes.items() if 0 < one.record.drain_deadline <= wall
        }
        going, waiting = self._going()
        no_room = self._no_room_for(going) if going else {}
        moved = 0
        for key, instances in going.items():
            slots = no_room.get(scheduler_key(key), {})
            for instance in instances:
                why_not = slots.get(instance.slot)
                if why_not and instance.node not in self._overdue:
                    self._has_no_room(instance, why_not)
                    continue
                self._move(instance)
                moved += 1
        for service, instance in waiting:
            # Its turn would change nothing where another copy of the same found no room.
            slots = no_room.get(scheduler_key(service.key), {})
            if slots:
                self._has_no_room(instance, next(iter(slots.values())))
            else:
                self._staying[instance.incarnation] = _too_many_away(service)
        return moved

    def _has_no_room(self, instance: Instance, why: str) -> None:
        self._staying[instance.incarnation] = why
        self._no_room.add(instance.incarnation)

    def _candidates(self) -> Iterator[tuple[Service, Instance]]:
        services = self._state.services
        for node in self._nodes.values():
            for instance in node.instances.values():
                service = services.get(instance.key)
                if service is None or instance.quarantined or not _is_to_move(instance):
                    continue
                if service.holders.get(instance.slot) is instance:
                    yield service, instance

    def _going(self) -> tuple[dict[ServiceKey, list[Instance]], list[tuple[Service, Instance]]]:
        """What its service lets go now, if there is room; and what has to wait for other copies."""
        budgets: dict[ServiceKey, int] = {}
        going: dict[ServiceKey, list[Instance]] = {}
        waiting: list[tuple[Service, Instance]] = []
        total = 0
        for service, instance in self._candidates():
            if total >= _MOVES_A_STEP:
                break
            if serves(instance) and instance.node not in self._overdue:
                if service.key not in budgets:
                    budgets[service.key] = may_leave(service)
                if budgets[service.key] <= 0:
                    waiting.append((service, instance))
                    continue
                budgets[service.key] -= 1
            # One that does not serve anybody goes whatever else is away.
            going.setdefault(service.key, []).append(instance)
            total += 1
        return going, waiting

    def _no_room_for(self, going: dict[ServiceKey, list[Instance]]) -> dict[str, dict[int, str]]:
        """For what fits nowhere: the service's name for the scheduler, slot and why."""
        requests: list[Request] = [
            request_for(self._state.services[key], sorted(one.slot for one in instances))
            for key, instances in going.items()
        ]
        made = plan(self._fleet.snapshot, requests)
        return {
            one.service: dict.fromkeys(one.slots, f"no other node takes it: {one.rejection}")
            for one in made.unplaced
        }

    def _move(self, instance: Instance) -> None:
        late = ", and its deadline has passed" if instance.node in self._overdue else ""
        instance.departure = f"{instance.node} is being drained{late}"
        self._state.remove(instance)


def _is_to_move(instance: Instance) -> bool:
    """Whether it uses its node, or will again."""
    if instance.removing or instance.desired is Desired.STOPPED:
        return False
    if instance.state is InstanceState.LOST:  # The reconciler's, once it may.
        return False
    return uses_its_node(instance)


def _too_many_away(service: Service) -> str:
    allowed, missing = max_unavailable(service), away(service)
    are = "copy is" if missing == 1 else "copies are"
    return f"{missing} other {are} away, and {service.key[1]} allows {allowed} at a time"
