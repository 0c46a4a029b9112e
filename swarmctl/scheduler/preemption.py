"""Who has to go so that something more important fits: ``choose_victims``.

Asked only when a copy fits nowhere.  Looked at are nodes that satisfy its every condition but
resources; on each, instances of lower priority are taken, the lowest first, until there is
room, and then each that turns out not to be needed is spared, the highest first.  So

- no victim has the copy's own priority or more,
- no victim is superfluous: without any one of them there is no room,
- no other set on that node gets by with lower priorities.

Of the nodes the one is chosen whose highest victim is the lowest; then the one with the fewest
victims; then the first in the order of rows.  What is on its way out already costs nothing.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Final

import attrs
import numpy as np

from swarmctl.scheduler.filters import eligible_but_for_room
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.snapshot import Snapshot
from swarmctl.scheduler.usage import View

# Nodes that are looked at for one copy: where there are more, others have their turn next time.
NODES_MAX: Final = 256
# What is on its way out: below every priority, and no victim.
_LEAVING: Final = -(1 << 40)


@attrs.frozen
class Occupant:
    """An instance that takes something from a node and might have to go.

    Attributes:
        key: who it is, for the caller.
        service: its service's key.
        resources: what it takes.
        priority: its service's.
        leaving: it was told to go, for another reason.
    """

    key: Hashable
    service: str
    resources: Mapping[str, int]
    priority: int
    leaving: bool = False

    @property
    def rank(self) -> int:
        """What it costs to have it go."""
        return _LEAVING if self.leaving else self.priority


@attrs.frozen
class Eviction:
    """Room for one copy.

    Attributes:
        node: where.
        victims: who has to go for it, the lowest priority first.
        awaited: who is on the way out already and has to be waited for.
    """

    node: str
    victims: tuple[Occupant, ...]
    awaited: tuple[Occupant, ...] = ()


def choose_victims(
    snapshot: Snapshot,
    request: Request,
    occupants: Callable[[str], Iterable[Occupant]],
    *,
    nodes_max: int = NODES_MAX,
    turn: int = 0,
) -> Eviction | None:
    """Where one copy of ``request`` would fit, and who has to go for it; None when nowhere.

    Args:
        snapshot: nodes and what is allocated on them; it stays as it is.
        request: what is to be placed; its priority decides.
        occupants: what is on a node and may be asked to go; equal and higher priorities are
            passed over.
        nodes_max: look at no more nodes than that.
        turn: where there are more, the number of the look.
    """
    view = snapshot.fork()
    rows = np.flatnonzero(eligible_but_for_room(view, request))
    if len(rows) > nodes_max:
        rows = np.roll(rows, -turn * nodes_max)[:nodes_max]
    best: tuple[tuple[int, int], Eviction] | None = None
    for row in rows.tolist():
        name = view.facts.nodes[row].name
        chosen = _on_node(view, request, row, occupants(name))
        if chosen is None:
            continue
        victims = tuple(one for one in chosen if not one.leaving)
        highest = max((one.priority for one in victims), default=_LEAVING)
        cost = (highest, len(victims))
        if best is None or cost < best[0]:
            awaited = tuple(one for one in chosen if one.leaving)
            best = (cost, Eviction(name, victims, awaited))
    return best[1] if best else None


def _on_node(
    view: View, request: Request, row: int, occupants: Iterable[Occupant]
) -> list[Occupant] | None:
    """Who has to go on one node; None when that would not do."""
    short = {resource: amount - int(view.free(resource)[row]) for resource, amount in request.needs}
    short = {resource: lack for resource, lack in short.items() if lack > 0}
    beside = {wish.service for wish in request.affinity if wish.required}
    may_go = [
        one
        for one in occupants
        if one.rank < request.priority
        and one.service not in beside
        and any(one.resources.get(resource) for resource in short)
    ]
    may_go.sort(key=lambda one: (one.rank, -_share(one, short)))
    chosen: list[Occupant] = []
    left = dict(short)
    for one in may_go:
        if not any(lack > 0 for lack in left.values()):
            break
        chosen.append(one)
        for resource in left:
            left[resource] -= one.resources.get(resource, 0)
    if any(lack > 0 for lack in left.values()):
        return None
    return _spared(chosen, left)


def _spared(chosen: list[Occupant], left: dict[str, int]) -> list[Occupant]:
    """Without those that are not needed, the highest asked first; ``left`` is what is lacking."""
    for one in reversed(chosen.copy()):
        if all(lack + one.resources.get(resource, 0) <= 0 for resource, lack in left.items()):
            chosen.remove(one)
            for resource in left:
                left[resource] += one.resources.get(resource, 0)
    return chosen


def _share(one: Occupant, short: dict[str, int]) -> float:
    """How much of what is lacking it has: large ones first, so that few have to go."""
    return sum(min(1.0, one.resources.get(resource, 0) / lack) for resource, lack in short.items())
