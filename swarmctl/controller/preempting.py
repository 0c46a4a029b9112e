"""Making room for what matters more: instances of lower priority go when nothing else helps.

Whom it hits is :func:`swarmctl.scheduler.preemption.choose_victims`'s answer.  Here is what
follows: the victims are told to go, and until they have gone the room is *kept*: the copy that it
is for is counted there already, so that nobody who comes in between takes it, and asks for no node
meanwhile.  Then it is placed before anything else.  Which room is
kept is only in memory: after a takeover the victims are gone or gone soon, and it is decided anew.

A victim says by whom it was sent away and from where, as long as it has no other place; its
service's history says so for good, in this controller and the next ones
(:mod:`swarmctl.controller.victims`).  It is placed elsewhere if it fits there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import structlog
from attrs import define

from swarmctl.controller.availability import uses_its_node
from swarmctl.controller.instance import Instance, ServiceKey, scheduler_key
from swarmctl.controller.placing import Fleet, amounts_of, request_for
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.controller.victims import Preempted
from swarmctl.proto.states import NodeState
from swarmctl.scheduler import Unplaced
from swarmctl.scheduler.preemption import NODES_MAX, Occupant, choose_victims

_log = structlog.get_logger(__name__)

# Copies that room is kept for at a time: each is looked at in every cycle until it is placed.
_KEPT_MAX: Final = 1_000
# Looks in one cycle: one at as many nodes as are looked at once, full of small instances, takes
# some 50 ms. The rest have their turn in the cycles after it.
_LOOKS_MAX: Final = 4
_Slot = tuple[ServiceKey, int]


@define(eq=False)
class _Kept:
    """Room on ``node`` for one copy, when those in ``awaited`` have gone."""

    node: Node
    amounts: Mapping[str, int]
    awaited: tuple[int, ...]
    reason: str


class Preempting:
    """See the module's docstring.

    Args:
        state: what it reads and changes.
        fleet: the scheduler's index over it.
    """

    def __init__(self, state: ClusterState, fleet: Fleet) -> None:
        self._state = state
        self._fleet = fleet
        self._kept: dict[_Slot, _Kept] = {}
        # Services that have not looked at all nodes yet, and which part of them is next.
        self._unfinished: set[ServiceKey] = set()
        self._turns: dict[ServiceKey, int] = {}

    @property
    def active(self) -> bool:
        """Whether room is kept, a victim has no place, or there is more to look at."""
        return bool(self._kept or self._state.victims.any_nowhere or self._unfinished)

    @property
    def unfinished(self) -> bool:
        """Whether there is more to look at, in another cycle."""
        return bool(self._unfinished)

    # --- the reconciler's questions ----------------------------------------------------------

    def settle(self) -> list[ServiceKey]:
        """Give back the room whose time has come; the services that are to be placed first."""
        due = list(self._unfinished)
        self._unfinished.clear()
        for slot, kept in list(self._kept.items()):
            if any(one in kept.node.instances for one in kept.awaited) and self._holds(slot, kept):
                continue
            self._give_back(slot, kept)
            due.append(slot[0])
        victims = self._state.victims
        for victim in [one for one in victims.nowhere if not self._is_nowhere(one)]:
            victims.found_place(*victim)
        return due

    def asking(self, service: Service, slots: list[int]) -> list[int]:
        """Those of ``slots`` for which no room is kept; the others wait for it."""
        if not self._kept:
            return slots
        asking: list[int] = []
        for slot in slots:
            kept = self._kept.get((service.key, slot))
            if kept is None:
                asking.append(slot)
            else:
                service.unplaced[slot] = kept.reason
        return asking

    def unplaced(
        self, unplaced: Sequence[Unplaced], wanting: Mapping[str, Service], now: float
    ) -> None:
        """Find room for what fits nowhere, and say of victims among it why they are there.

        ``now`` is the wall clock, for people.
        """
        victims = self._state.victims
        if victims.any_nowhere:
            for one in unplaced:
                service = wanting[one.service]
                for slot in one.slots:
                    victim = victims.get(service.key, slot)
                    if victim is not None and victim.nowhere:
                        service.unplaced[slot] = f"{victim.why}; {one.rejection}"
        lowest = min(
            (service.record.spec.priority for service in self._state.services.values()), default=0
        )
        looks = _LOOKS_MAX
        for one in sorted(unplaced, key=lambda each: -each.request.priority):
            if one.request.priority <= lowest:
                return
            looks = self._make_room(wanting[one.service], one.slots, now, looks)

    # --- making room -------------------------------------------------------------------------

    def _make_room(self, service: Service, slots: Iterable[int], now: float, looks: int) -> int:
        """Room for as many of ``slots`` as there are victims for; the looks that are left."""
        request, key = request_for(service, [1]), service.key
        for slot in slots:
            if not looks or len(self._kept) >= _KEPT_MAX:
                self._unfinished.add(key)
                break
            looks -= 1
            turn = self._turns.pop(key, 0)
            chosen = choose_victims(self._fleet.snapshot, request, self._occupants, turn=turn)
            if chosen is None:
                if (turn + 1) * NODES_MAX < len(self._state.nodes):
                    self._turns[key] = turn + 1
                    self._unfinished.add(key)
                break
            node = self._state.nodes[chosen.node]
            victims = [node.instances[_number(one)] for one in chosen.victims]
            awaited = [node.instances[_number(one)] for one in chosen.awaited]
            self._keep(service, slot, node, [*victims, *awaited])
            for victim in victims:
                self._send_away(victim, service, slot, now)
        return looks

    def _occupants(self, name: str) -> Iterator[Occupant]:
        """What is on a node and may go; nothing fenced, and nothing that nobody here knows."""
        state = self._state
        for one in state.nodes[name].instances.values():
            if not one.counted or one.quarantined:
                continue
            service = state.services.get(one.key)
            leaving = one.removing
            if not leaving:
                if service is None or service.holders.get(one.slot) is not one:
                    continue
                if service.record.spec.fencing != "none" or not uses_its_node(one):
                    continue
            yield Occupant(
                one.incarnation,
                scheduler_key(one.key),
                amounts_of(state.templates[one.template]),
                service.record.spec.priority if service is not None else 0,
                leaving,
            )

    def _keep(self, service: Service, slot: int, node: Node, awaited: Sequence[Instance]) -> None:
        amounts = amounts_of(service.encoded_template)
        names = ", ".join(one.name for one in awaited)
        reason = f"waits on {node.name} for {names} to go"
        numbers = tuple(one.incarnation for one in awaited)
        self._kept[service.key, slot] = _Kept(node, amounts, numbers, reason)
        self._fleet.snapshot.allocate(node.name, scheduler_key(service.key), amounts)
        service.unplaced[slot] = reason

    def _give_back(self, slot: _Slot, kept: _Kept) -> None:
        del self._kept[slot]
        if self._state.nodes.get(kept.node.name) is kept.node:
            self._fleet.snapshot.free(kept.node.name, scheduler_key(slot[0]), kept.amounts)

    def _send_away(self, victim: Instance, service: Service, slot: int, now: float) -> None:
        spec = service.record.spec
        why = f"preempted by {spec.name}.{slot} (priority {spec.priority}) on {victim.node}"
        _log.info("preempted", instance=victim.name, why=why)
        victim.departure = why
        self._state.victims.add(victim.key, Preempted(victim.slot, now, why))
        its = self._state.services[victim.key]
        its.history.append((now, f"{victim.name} {why}"))
        self._state.remove(victim)

    # --- what still holds ---------------------------------------------------------------------

    def _holds(self, slot: _Slot, kept: _Kept) -> bool:
        """Whether the room is still wanted, and would still do."""
        key, number = slot
        service = self._state.services.get(key)
        return (
            service is not None
            and number <= service.record.spec.replicas
            and number not in service.holders
            and amounts_of(service.encoded_template) == kept.amounts
            and self._state.nodes.get(kept.node.name) is kept.node
            and kept.node.state is NodeState.READY
        )

    def _is_nowhere(self, victim: _Slot) -> bool:
        service = self._state.services.get(victim[0])
        if service is None or victim[1] > service.record.spec.replicas:
            return False
        return victim[1] not in service.holders


def _number(occupant: Occupant) -> int:
    assert isinstance(occupant.key, int), "keys are incarnations"
    return occupant.key
