"""Placing copy by copy: the definition of what the scheduler does, with one scan a copy.

It takes any request.  The other ways (``identical`` for many copies, ``mixed`` for many different
requests) are faster where they apply and give the same nodes in the same order; property tests
compare them with a heap written independently.
"""

import numpy as np

from swarmctl.scheduler import score
from swarmctl.scheduler.facts import Bools, Ints
from swarmctl.scheduler.filters import fitting
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import View


def place_each(view: View, request: Request, copies: Ints, wanted: int, start: int) -> list[int]:
    """Choose nodes for up to ``wanted`` copies, one after the other, and allocate them.

    Args:
        view: changed: what is placed is allocated in it.
        request: what is to be placed.
        copies: copies of its service by row; changed likewise.
        wanted: how many copies.
        start: the row from which ties are counted.

    Returns:
        The row of each copy in the order of placing; shorter than ``wanted`` when no more fit.
    """
    fits = fitting(view, request, copies)
    keys = score.keys(view, request)
    counts = score.spread_counts(view, request, copies)
    groups = [group_of for group_of, _ in view.facts.nested_groups(request.spread)]
    load = view.facts.load_of(request.needs)
    sign = 1 if request.strategy == "spread" else -1
    step = score.own_step(request)
    rows: list[int] = []
    while len(rows) < wanted:
        row = best_row(fits, counts, keys, start)
        if row is None:
            break
        rows.append(row)
        keys[row] += sign * load[row] + (step if copies[row] == 0 else 0)
        first_anywhere = not request.plain and not copies.any()
        copies[row] += 1
        view.allocate_one(row, request.needs)
        for count, group_of in zip(counts, groups, strict=True):
            count[group_of == group_of[row]] += 1
        if first_anywhere:
            # A service that must be beside itself is bound to this node from now on.
            fits = fitting(view, request, copies)
        else:
            fits[row] = _still_fits(view, request, copies, row)
    return rows


def best_row(fits: Bools, counts: list[Ints], keys: Ints, start: int) -> int | None:
    """The row that fits with the fewest copies around, then the smallest key, then first."""
    rows = np.flatnonzero(fits)
    if not len(rows):
        return None
    for column in (*counts, keys):
        values = column[rows]
        rows = rows[values == values.min()]
    after_start = int(np.searchsorted(rows, start))
    return int(rows[after_start if after_start < len(rows) else 0])


def _still_fits(view: View, request: Request, copies: Ints, row: int) -> bool:
    """Whether one more copy fits on a node that has just taken one."""
    if request.max_per_node and copies[row] >= request.max_per_node:
        return False
    if any(wish.required and wish.service == request.service for wish in request.anti_affinity):
        return False
    capacity, used = view.facts.capacity, view.usage.used
    return all(
        used[resource][row] + amount <= capacity[resource][row]
        for resource, amount in request.needs
    )
