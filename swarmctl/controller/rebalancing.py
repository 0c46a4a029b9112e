"""Making loads even again: when somebody asks for it, and gently when nodes have joined.

What to move is :func:`swarmctl.scheduler.plan_moves`'s answer.  Here is when, and how fast: a
few instances are taken away, the reconciler places them anew (on the least loaded node, which is
where the plan wants them), and nothing more is planned before those are gone from where they were.
So at no time more is moving than one step's worth, what is planned is planned on what is, and since
every move makes loads more even the moves come to an end.  So does the wait for a service that lets
nothing go: after a while without a move the rest stays where it is.


Only what runs well is moved, as its service allows (:mod:`swarmctl.controller.availability`);
never jobs, whose work would be lost, fenced instances, or what keeps data on its node.

After a node has joined nothing happens for a while (others may follow), then a little at a time,
and only while nodes differ by twice of what suffices on request.  One that comes back is not new.
While much is being launched it waits: loads are uneven then, and everybody is busy.
"""

from collections.abc import Iterator
from typing import Final

from attrs import define

from swarmctl.controller.availability import may_leave, serves
from swarmctl.controller.instance import Instance, ServiceKey
from swarmctl.controller.placing import Fleet, request_for
from swarmctl.controller.state import ClusterState, Service
from swarmctl.proto.states import InstanceState
from swarmctl.scheduler import Move, Request, Resident, plan_moves
from swarmctl.scheduler.rebalance import MARGIN
from swarmctl.spec.models import ServiceSpec

# Instances under way at a time, when asked and when a node has joined, and how often to look.
_AT_ONCE: Final = 20
_AT_ONCE_GENTLY: Final = 4
_STEP_EVERY_S: Final = 0.5
_STEP_EVERY_GENTLY_S: Final = 5.0
# Nodes join in groups, and are found wanting in their first minute if ever.
_QUIET_S: Final = 60.0
_MARGIN_GENTLE: Final = 2 * MARGIN
# When more than this share of all instances is under way to run, much is being launched.
_LAUNCHING_SHARE_MAX: Final = 0.01
_LAUNCHING: Final = (InstanceState.ASSIGNED, InstanceState.PREPARING, InstanceState.STARTING)
# Steps without a move, for what would move belongs to services that are not well: who waits longer
# moves things when nobody thinks of it any more. On request a minute, gently ten.
_FRUITLESS_MAX: Final = 120
# What has not left its node by then does not hold up the others.
_PATIENCE_S: Final = 120.0


@define
class _Errand:
    """What is going on: not before ``due``, and ``gently`` or as was asked for.

    ``fruitless`` counts the steps since the last that moved anything.
    """

    due: float
    gently: bool
    moved: int = 0
    fruitless: int = 0


class Rebalancing:
    """See the module's docstring.

    Args:
        state: what it reads and changes.
        fleet: the scheduler's index over it.
    """

    def __init__(self, state: ClusterState, fleet: Fleet) -> None:
        self._state = state
        self._fleet = fleet
        self._errand: _Errand | None = None
        self._under_way: list[Instance] = []
        self._since = 0.0

    @property
    def active(self) -> bool:
        """Whether there may be something to move."""
        return self._errand is not None

    def begin(self, now: float) -> None:
        """Somebody asks for it."""
        self._errand = _Errand(now, gently=False)

    def node_joined(self, now: float) -> None:
        """A node is new to the cluster."""
        if self._errand is None or self._errand.gently:
            self._errand = _Errand(now + _QUIET_S, gently=True)

    def preview(self, moves_max: int) -> tuple[tuple[Instance, Move], ...]:
        """What would be moved now, all of it, if services let go of as many as they have."""
        return self._planned(moves_max, MARGIN, patient=True)

    def step(self, now: float) -> int:
        """Take away what is to be moved next, if it is time; how many were."""
        errand = self._errand
        if errand is None or now < errand.due or self._waits(now):
            return 0
        errand.due = now + (_STEP_EVERY_GENTLY_S if errand.gently else _STEP_EVERY_S)
        if errand.gently and self._much_is_launched():
            return 0
        at_once, margin = (_AT_ONCE_GENTLY, _MARGIN_GENTLE) if errand.gently else (_AT_ONCE, MARGIN)
        moves = self._planned(at_once, margin, patient=False)
        for instance, move in moves:
            instance.departure = f"moved from {move.source} towards {move.target}, to even loads"
            self._state.remove(instance)
            self._under_way.append(instance)
        self._since = now
        errand.moved += len(moves)
        errand.fruitless = 0 if moves else errand.fruitless + 1
        given_up = errand.fruitless >= _FRUITLESS_MAX
        if not moves and (given_up or not self._planned(1, margin, patient=True)):
            self._errand = None
        return len(moves)

    def _much_is_launched(self) -> bool:
        tally = self._state.tally
        return sum(tally[one] for one in _LAUNCHING) > _LAUNCHING_SHARE_MAX * sum(tally)

    def _waits(self, now: float) -> bool:
        """Whether what was moved last is still where it was."""
        nodes = self._state.nodes
        self._under_way = [
            one
            for one in self._under_way
            if one.node in nodes and one.incarnation in nodes[one.node].instances
        ]
        if now - self._since > _PATIENCE_S:
            self._under_way.clear()
        return bool(self._under_way)

    def _planned(
        self, moves_max: int, margin: float, *, patient: bool
    ) -> tuple[tuple[Instance, Move], ...]:
        """Moves, of what its service lets go now, or ``patient`` of all that may ever go."""
        found: dict[int, Instance] = {}
        budgets: dict[ServiceKey, int] = {}
        requests: dict[ServiceKey, Request] = {}

        def residents(name: str) -> Iterator[Resident]:
            for instance in self._state.nodes[name].instances.values():
                service = self._state.services.get(instance.key)
                if service is None or not _may_move(service, instance):
                    continue
                if not patient:
                    if service.key not in budgets:
                        budgets[service.key] = may_leave(service)
                    if budgets[service.key] <= 0:
                        continue
                    # Spent when it is offered: the next step offers the others.
                    budgets[service.key] -= 1
                if service.key not in requests:
                    requests[service.key] = request_for(service, [1])
                found[instance.incarnation] = instance
                yield Resident(instance.incarnation, requests[service.key])

        moves = plan_moves(self._fleet.snapshot, residents, moves_max=moves_max, margin=margin)
        by_key = [(found[move.key], move) for move in moves if isinstance(move.key, int)]
        return tuple(by_key)


def _may_move(service: Service, instance: Instance) -> bool:
    return (
        service.holders.get(instance.slot) is instance
        and serves(instance)
        and instance.template == service.template
        and not keeps_to_its_node(service.record.spec)
    )


def keeps_to_its_node(spec: ServiceSpec) -> bool:
    """Whether moving a copy loses something: its work, its data, or the time that a fence takes."""
    template = spec.template
    if template.job or spec.fencing != "none":
        return True
    if template.vm is not None:
        return template.vm.disk is not None and template.vm.disk.persistent
    assert template.container is not None, "a container or a VM"
    return any(mount.kind == "volume" for mount in template.container.mounts)
