"""Which instances would better be elsewhere: ``plan_moves(snapshot, residents) -> moves``.

The most loaded node gives, the least loaded one that takes the instance gets, one move after the
other on a fork of the snapshot.  A move is made only if

- the getting node ends up no more loaded than the giving one: so the loads, sorted from the top,
  go down with every move, which is why moves come to an end, and no move is ever undone;
- the two differed by more than ``margin`` before: what is nearly even is left alone;
- every condition of the instance holds there, and no wish (spread, affinity, being apart from
  other copies) is met worse than where it is.

Load is that of :mod:`swarmctl.scheduler.score`.  Who packs (``binpack``) is never moved.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final

import attrs
import numpy as np

from swarmctl.scheduler import score
from swarmctl.scheduler.facts import LOAD_SCALE, Ints
from swarmctl.scheduler.filters import fitting
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.snapshot import Snapshot
from swarmctl.scheduler.usage import View

# Shares of a node's load (its processors and memory together) by which two have to differ.
MARGIN: Final = 0.1
# Instances of a node that are tried: the first few of a service that cannot move say it of all.
_TRIED_MAX: Final = 64
# Nodes that have nothing to give before no more are asked: the most loaded ones were.
_BARREN_MAX: Final = 64


@attrs.frozen
class Resident:
    """An instance that may be moved.

    Attributes:
        key: who it is, for the caller.
        request: its service's, for one copy.
    """

    key: Hashable
    request: Request


@attrs.frozen
class Move:
    """One instance, from where to where."""

    key: Hashable
    source: str
    target: str


def plan_moves(
    snapshot: Snapshot,
    residents: Callable[[str], Iterable[Resident]],
    *,
    moves_max: int,
    margin: float = MARGIN,
) -> tuple[Move, ...]:
    """The moves that make loads more even, best first; the snapshot stays as it is.

    Args:
        snapshot: nodes and what is allocated on them.
        residents: what may be moved from a node; asked once for each node that gives.
        moves_max: no more than so many.
        margin: nodes that differ by less than this share of a node's load are even.
    """
    return _Balancer(snapshot.fork(), residents, margin).moves(moves_max)


class _Balancer:
    def __init__(
        self, view: View, residents: Callable[[str], Iterable[Resident]], margin: float
    ) -> None:
        self._view = view
        self._residents = residents
        self._margin = int(margin * 2 * LOAD_SCALE)
        self._left: dict[int, list[Resident]] = {}

    def moves(self, moves_max: int) -> tuple[Move, ...]:
        view = self._view
        giving = view.facts.schedulable.copy()
        if not giving.any():
            return ()
        made: list[Move] = []
        barren = 0
        while len(made) < moves_max and barren < _BARREN_MAX and giving.any():
            load = view.usage.load
            source = int(np.flatnonzero(giving)[load[giving].argmax()])
            least = load[view.facts.schedulable].min()
            if load.item(source) - int(least) <= self._margin:
                break
            move = self._from(source)
            if move is None:
                giving[source] = False  # What is on it cannot go, or is too large to.
                barren += 1
            else:
                made.append(move)
        return tuple(made)

    def _from(self, source: int) -> Move | None:
        """Move one instance away from a node."""
        nodes = self._view.facts.nodes
        if source not in self._left:
            self._left[source] = list(self._residents(nodes[source].name))
        left = self._left[source]
        refused: set[str] = set()
        for number, resident in enumerate(left[:_TRIED_MAX]):
            request = resident.request
            if request.service in refused:
                continue
            target = self._target(source, request)
            if target is None:
                refused.add(request.service)
                continue
            del left[number]
            self._carry_out(source, target, request)
            return Move(resident.key, nodes[source].name, nodes[target].name)
        return None

    def _target(self, source: int, request: Request) -> int | None:
        """The least loaded node that takes the instance, if that is an improvement."""
        if request.strategy != "spread":
            return None
        view = self._view
        copies = view.copies(request.service)
        copies[source] -= 1
        takes = fitting(view, request, copies)
        takes[source] = False
        for column in self._wishes(request, copies):
            takes &= column <= column[source]
        rows = np.flatnonzero(takes)
        if not len(rows):
            return None
        added = view.facts.load_of(request.needs)
        after = view.usage.load[rows] + added[rows]
        best = int(after.argmin())
        target = int(rows[best])
        before = view.usage.load.item(source)
        differ = before - view.usage.load.item(target)
        if differ <= self._margin or after.item(best) > before - added.item(source):
            return None
        return target

    def _wishes(self, request: Request, copies: Ints) -> Sequence[Ints]:
        """What must not become worse, by row: smaller is better; without the instance itself."""
        columns = [copies, *score.spread_counts(self._view, request, copies)]
        bias = score.bias(self._view, request, copies)
        if not isinstance(bias, int):
            columns.append(bias)
        return columns

    def _carry_out(self, source: int, target: int, request: Request) -> None:
        view = self._view
        view.usage.add(view.facts, source, request.needs, -1)
        view.usage.add(view.facts, target, request.needs, 1)
        view.note_copies(request.service, (source, target), (-1, 1))
