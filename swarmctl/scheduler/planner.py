"""``plan(snapshot, requests) -> Plan``: who goes where, and who nowhere and why.

Planning reads a snapshot and leaves it as it is: it works on a fork of what is allocated.
``Snapshot.commit(plan)`` makes the plan true; until then it is an opinion.

Requests are planned by falling priority, those of one priority in the order given, each by the
fastest way that takes it; all ways give the same nodes (see ``score``).
A request that must be beside another service is tried once more at the end, because the other one
may come after it in the same plan.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Final

import attrs
import numpy as np

from swarmctl.scheduler import score
from swarmctl.scheduler.explanation import Rejection, reject
from swarmctl.scheduler.facts import Facts, Ints
from swarmctl.scheduler.identical import is_batchable, place_many
from swarmctl.scheduler.mixed import place_run
from swarmctl.scheduler.model import Placement, Request
from swarmctl.scheduler.onebyone import place_each
from swarmctl.scheduler.usage import View

# More copies than there are: a way that is not taken.
_NEVER: Final = 1 << 40


@attrs.frozen
class Ways:
    """When which way of placing is taken; for tests, that all of them give the same.

    Attributes:
        batch_min: copies of one request from which placing them at once costs less.
        batch_min_spread: the same for requests that are spread over labels.
        index_max: copies of one plain request from which an index is not asked for each of them.
        index_min: copies in a run of plain requests from which an index costs less than scans.
    """

    batch_min: int = 48
    batch_min_spread: int = 160
    index_max: int = 64
    index_min: int = 32


@attrs.frozen
class Batch:
    """Copies of one request that have a node each.

    Attributes:
        service: its key.
        slots: the slots, in the order of placing.
        nodes: the name of each slot's node.
    """

    service: str
    slots: Sequence[int]
    nodes: Sequence[str]


class Placements:
    """Every copy that a plan places; as compact as the requests, and written out when read."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.requests: list[Request] = []
        # By request: the row of each placed copy; a plain int stands for one copy.
        self.rows: list[int | list[int] | Ints] = []
        self._total = 0

    def add(self, request: Request, rows: list[int] | Ints) -> None:
        """Note the rows of a request's first ``len(rows)`` slots."""
        self.requests.append(request)
        self.rows.append(rows)
        self._total += len(rows)

    def add_all(
        self, requests: Sequence[Request], rows: Sequence[int | list[int]], total: int
    ) -> None:
        """Note requests that are placed whole, ``total`` copies."""
        self.requests.extend(requests)
        self.rows.extend(rows)
        self._total += total

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Placement]:
        for batch in self.batches():
            for slot, node in zip(batch.slots, batch.nodes, strict=True):
                yield Placement(batch.service, slot, node)

    def batches(self) -> Iterator[Batch]:
        """The placed copies, one batch a request."""
        names = self.facts.names
        for request, rows in zip(self.requests, self.rows, strict=True):
            chosen = rows_list(rows)
            slots = request.slots[: len(chosen)]
            yield Batch(request.service, slots, [names[row] for row in chosen])

    def by_node(self) -> dict[str, list[tuple[str, int]]]:
        """For each node that gets something: (service, slot) of its new copies."""
        found: dict[str, list[tuple[str, int]]] = {}
        for batch in self.batches():
            for slot, node in zip(batch.slots, batch.nodes, strict=True):
                found.setdefault(node, []).append((batch.service, slot))
        return found


def rows_list(rows: int | list[int] | Ints) -> list[int]:
    """The rows of one request as a list."""
    if isinstance(rows, int):
        return [rows]
    return rows if isinstance(rows, list) else rows.tolist()


@attrs.frozen(eq=False)
class Unplaced:
    """Copies that fit nowhere.

    Attributes:
        request: of which these are copies.
        slots: the copies without a node.
    """

    request: Request
    slots: Sequence[int]
    _view: View = attrs.field(repr=False)

    @property
    def service(self) -> str:
        """The request's service."""
        return self.request.service

    @cached_property
    def rejection(self) -> Rejection:
        """What keeps every node from taking one, once all of the plan is placed."""
        return reject(self._view, self.request)


@attrs.frozen(eq=False)
class Plan:
    """An answer of the scheduler.

    Attributes:
        placements: the copies that have a node.
        unplaced: the requests with copies that have none.
        base_version: the snapshot's version that it was planned on.
        after: what would be allocated with all of it placed.
    """

    placements: Placements
    unplaced: tuple[Unplaced, ...]
    base_version: int
    after: View = attrs.field(repr=False)


def plan_view(view: View, requests: Sequence[Request], seed: int, version: int, ways: Ways) -> Plan:
    """Plan on a view of one's own, which is changed."""
    planner = _Planner(view, requests, seed, ways)
    planner.place(sorted(requests, key=lambda request: -request.priority))
    planner.retry_affine()
    return planner.result(version)


class _Planner:
    """One plan in the making."""

    def __init__(self, view: View, requests: Sequence[Request], seed: int, ways: Ways) -> None:
        self.view = view
        self.ways = ways
        self.start = score.first_row(seed, len(view.facts))
        self.placements = Placements(view.facts)
        self.failed: list[tuple[Request, Sequence[int]]] = []
        self.watched = _watched(requests)

    def place(self, requests: Sequence[Request]) -> None:
        """Place requests in this order, runs of plain small ones by an index."""
        for by_index, group in groupby(requests, self._suits_index):
            run = list(group)
            if by_index and self._pays_index(sum([len(one.slots) for one in run])):
                self._place_run(run)
            else:
                for request in run:
                    self._place(request)

    def _pays_index(self, copies: int) -> bool:
        """Whether to ask the index; one that is there already is faster even for one copy."""
        if self.view.index is not None and self.ways.index_min < _NEVER:
            return True
        return copies >= self.ways.index_min

    def _place_run(self, run: list[Request]) -> None:
        chosen, placed = place_run(self.view, run, self.start)
        if placed == sum([len(one.slots) for one in run]) and not self.watched:
            self.placements.add_all(run, chosen, placed)
            return
        for request, rows in zip(run, chosen, strict=True):
            self._note(request, rows_list(rows))

    def _suits_index(self, request: Request) -> bool:
        return request.plain and len(request.slots) < self.ways.index_max

    def _place(self, request: Request) -> None:
        view, wanted = self.view, len(request.slots)
        if request.plain:
            copies = np.zeros(len(view.facts), dtype=np.int64)
        else:
            copies = view.copies(request.service)
        rows: list[int] | Ints
        batch_min = self.ways.batch_min_spread if request.spread else self.ways.batch_min
        if wanted >= batch_min and is_batchable(request):
            rows = place_many(view, request, copies, wanted, self.start)
        else:
            rows = place_each(view, request, copies, wanted, self.start)
        self._note(request, rows)

    def _note(self, request: Request, rows: list[int] | Ints) -> None:
        """Keep what has been placed of a request, and what has not."""
        failed = len(rows) < len(request.slots)
        if len(rows):
            self.placements.add(request, rows)
            # It may be tried again, and is explained, beside the copies that it has now.
            if request.service in self.watched or (failed and not request.plain):
                distinct, counts = np.unique(np.asarray(rows), return_counts=True)
                self.view.note_copies(request.service, distinct.tolist(), counts.tolist())
        if failed:
            self.failed.append((request, request.slots[len(rows) :]))

    def retry_affine(self) -> None:
        """Try those again that wait for another service, as long as that helps."""
        before = -1
        while before != len(self.placements):
            before = len(self.placements)
            failed, self.failed = self.failed, []
            for request, slots in failed:
                if any(wish.required for wish in request.affinity):
                    self._place(attrs.evolve(request, slots=slots))
                else:
                    self.failed.append((request, slots))

    def result(self, version: int) -> Plan:
        unplaced = [Unplaced(request, slots, self.view) for request, slots in self.failed]
        for one in unplaced:
            if not one.request.plain:
                # It depends on where copies are, which a commit changes: work it out now.
                _ = one.rejection
        return Plan(self.placements, tuple(unplaced), version, self.view)


def _watched(requests: Sequence[Request]) -> set[str]:
    """The services whose copies of this plan decide where requests after them may go.

    A request knows the copies that it places itself; see ``_note`` for those that fail.
    """
    of_service = Counter(request.service for request in requests)
    watched: set[str] = set()
    for request in requests:
        if request.plain:
            continue
        wishes = (*request.affinity, *request.anti_affinity)
        watched.update(wish.service for wish in wishes if wish.service != request.service)
        if of_service[request.service] > 1:
            watched.add(request.service)
    return watched
