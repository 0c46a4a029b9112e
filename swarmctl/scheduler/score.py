"""Which of the nodes that fit is best: the smallest key, then the lowest row.

One definition for every path through the scheduler:

* *load* of a node: the share of its processors allocated, plus that of its memory, plus a little
  for each instance (``facts.LOAD_PER_INSTANCE``).  It counts what is there now, without the copy
  that is to be placed.
* the *key* is the load for ``spread`` and minus the load for ``binpack``, and an affinity of
  weight w makes it smaller by w hundredths of two fully loaded nodes where such an instance is;
  an anti-affinity makes it larger.
* with ``spread`` over labels the number of the service's copies at the node's value comes before
  the key, one number for each label, in the request's order.
* ties go to the lowest row, counted from a row that the plan's seed chooses.

All numbers are whole, so any way of computing them gives the same order.
"""

from typing import Final

import attrs
import numpy as np

from swarmctl.scheduler.facts import LOAD_SCALE, Ints
from swarmctl.scheduler.model import WEIGHT_MAX, Request
from swarmctl.scheduler.usage import View

# Weight 100 is worth two nodes' full processors and memory: no difference in load outweighs it.
KEY_PER_WEIGHT: Final = 4 * LOAD_SCALE // WEIGHT_MAX


def first_row(seed: int, nodes: int) -> int:
    """The row from which ties are counted; row 0 for seed 0."""
    if not nodes:
        return 0
    mixed = (seed * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) % nodes


def bias(view: View, request: Request, copies: Ints) -> Ints | int:
    """What wishes about instances add to the key, by row (0 where there are none).

    ``copies`` are those of the request's own service, by row.
    """
    total: Ints | int = 0
    for sign, wishes in ((-1, request.affinity), (1, request.anti_affinity)):
        for wish in wishes:
            if not wish.required:
                own = wish.service == request.service
                beside = (copies if own else view.copies(wish.service)) > 0
                total = total + beside * np.int64(sign * wish.weight * KEY_PER_WEIGHT)
    return total


def own_step(request: Request) -> int:
    """What the first copy on a node adds to the key of the next one, by wishes about itself."""
    step = 0
    for sign, wishes in ((-1, request.affinity), (1, request.anti_affinity)):
        for wish in wishes:
            if wish.service == request.service and not wish.required:
                step += sign * wish.weight * KEY_PER_WEIGHT
    return step


def keys(view: View, request: Request, copies: Ints) -> Ints:
    """The key of every node for the next copy, by row; ``copies`` as for ``bias``."""
    load = view.usage.load if request.strategy == "spread" else -view.usage.load
    return load + bias(view, request, copies)


def spread_counts(view: View, request: Request, copies: Ints) -> list[Ints]:
    """For each label of the request's spread, the service's copies at each node's value, by row.

    With several labels a value counts within the values before it (``Facts.nested_groups``).
    """
    counts: list[Ints] = []
    for group_of, groups in view.facts.nested_groups(request.spread):
        per_group = np.bincount(group_of, weights=copies, minlength=groups)
        counts.append(per_group.astype(np.int64)[group_of])
    return counts


@attrs.frozen
class Score:
    """Why a node ranks where it does.

    Attributes:
        node: its name.
        allocated_share: mean share of its processors and memory that is allocated, 0 to 1.
        copies_by_spread: for each label of the request's spread, its value on the node and the
            service's copies there.
        bias_weight: sum of the weights of affinities (negative: attracts) and anti-affinities.
    """

    node: str
    allocated_share: float
    copies_by_spread: tuple[tuple[str, str, int], ...]
    bias_weight: int

    def __str__(self) -> str:
        parts = [
            f"{copies} of its copies at {label} {value or '(none)'}"
            for label, value, copies in self.copies_by_spread
        ]
        parts.append(f"{self.allocated_share:.0%} allocated")
        if self.bias_weight:
            wish = "attracted" if self.bias_weight < 0 else "repelled"
            parts.append(f"{wish} with weight {abs(self.bias_weight)}")
        return f"{self.node}: {', '.join(parts)}"
