"""Placing runs of different plain requests, each by a question to the index."""

from collections.abc import Sequence

import numpy as np

from swarmctl.scheduler.index import NOWHERE, Index
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import View

# The rows of a request's copies; a single copy's row alone (a list each would cost more to keep
# than the row takes to find).
Rows = int | list[int]


def place_run(view: View, requests: Sequence[Request], start: int) -> tuple[list[Rows], int]:
    """Choose nodes for plain requests, one after the other, and allocate them.

    Args:
        view: changed: what is placed is allocated in it.
        requests: plain ones.
        start: the row from which ties are counted.

    Returns:
        For each request the rows of its copies; fewer than slots when no more fit. A single copy
        has its row alone. And how many copies that is in all.
    """
    index = view.index
    if not isinstance(index, Index) or not index.suits(view.facts):
        index = view.index = Index(view.facts, view.usage)
    index.begin(view.usage, requests, start)
    chosen: list[Rows] = []
    placed: list[int] = []
    for request in requests:
        row = index.place(request) if request.slots else NOWHERE
        if row == NOWHERE:
            chosen.append([])
            continue
        placed.append(row)
        if len(request.slots) == 1:
            chosen.append(row)
            continue
        rows = [row]
        for _ in request.slots[1:]:
            row = index.place(request)
            if row == NOWHERE:
                break
            rows.append(row)
        placed.extend(rows[1:])
        chosen.append(rows)
    index.end(view.usage, np.array(placed, dtype=np.int64))
    return chosen, len(placed)
