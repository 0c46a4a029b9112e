"""Answers in words: why a service is nowhere, and why it is where it is."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Final

import attrs
import numpy as np

from swarmctl.scheduler import score
from swarmctl.scheduler.facts import Bools, Ints
from swarmctl.scheduler.filters import Reason, examine
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import View

# Nodes named in an explanation, best first: what a terminal shows without scrolling.
_SCORES_MAX: Final = 5

_BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_RESOURCE_NAMES: Final = {"cpu_millis": "cpu", "memory_bytes": "memory", "disk_bytes": "disk"}


@attrs.frozen
class Rejection:
    """Why nodes cannot take a copy: every node that does not fit is counted once.

    Attributes:
        nodes: how many nodes there are.
        fit: how many could take a copy.
        reasons: what keeps the others from it, the most frequent first.
    """

    nodes: int
    fit: int
    reasons: tuple[Reason, ...]

    @property
    def text(self) -> str:
        """One line: ``0 of 2 nodes fit: 2 lack memory (need 2 GiB, best has 1 GiB)``."""
        if not self.nodes:
            return "0 of 0 nodes fit: no node has joined"
        head = f"{self.fit} of {self.nodes} {'node fits' if self.nodes == 1 else 'nodes fit'}"
        if not self.reasons:
            return head
        return f"{head}: {', '.join(_words(reason) for reason in self.reasons)}"

    def __str__(self) -> str:
        return self.text


@attrs.frozen
class Explanation:
    """Where a request could go now, and why.

    Attributes:
        rejection: the nodes counted.
        scores: the nodes that fit, best first, the first few.
    """

    rejection: Rejection
    scores: tuple[score.Score, ...]

    @property
    def text(self) -> str:
        """The rejection's line."""
        return self.rejection.text

    @property
    def why(self) -> str:
        """The best node and what spoke for it; the rejection's line when there is none."""
        if not self.scores:
            return self.rejection.text
        best, *others = self.scores
        after = f"; next {'; '.join(str(other) for other in others)}" if others else ""
        return f"{best}{after}"

    def __str__(self) -> str:
        return self.text


def reject(view: View, request: Request) -> Rejection:
    """Count the nodes that fit, and the others by reason."""
    return _counted(*examine(view, request))


def explain_view(view: View, request: Request, seed: int = 0) -> Explanation:
    """Count the nodes and rank those that fit."""
    fits, reasons = examine(view, request)
    best = _best(view, request, np.flatnonzero(fits), seed)
    return Explanation(_counted(fits, reasons), best)


def _counted(fits: Bools, reasons: tuple[Reason, ...]) -> Rejection:
    by_count = sorted(reasons, key=lambda reason: -reason.nodes)
    return Rejection(len(fits), int(fits.sum()), tuple(by_count))


def _best(view: View, request: Request, rows: Ints, seed: int) -> tuple[score.Score, ...]:
    """Scores of the best of these rows, in the order in which planning would take them."""
    facts = view.facts
    copies = view.copies(request.service)
    groupings = [(label, facts.grouping(label)) for label in request.spread]
    counts = [c[rows] for c in score.spread_counts(view, request, copies)]
    keys = score.keys(view, request, copies)
    rank = (rows - score.first_row(seed, len(facts))) % max(len(facts), 1)
    order = np.lexsort((rank, keys[rows], *reversed(counts)))[:_SCORES_MAX]
    bias = score.bias(view, request, copies)
    found = []
    for index in order.tolist():
        row = int(rows[index])
        spread = tuple(
            (label, grouping.values[int(grouping.group_of[row])] or "", int(count[index]))
            for (label, grouping), count in zip(groupings, counts, strict=True)
        )
        weight = bias if isinstance(bias, int) else int(bias[row])
        share = _allocated_share(view, row)
        name = facts.nodes[row].name
        found.append(score.Score(name, share, spread, weight // score.KEY_PER_WEIGHT))
    return tuple(found)


def _allocated_share(view: View, row: int) -> float:
    """Mean share of the node's load resources that is allocated."""
    shares = [
        int(view.usage.used[resource][row]) / int(view.facts.capacity[resource][row])
        for resource in view.facts.load_per_unit
        if view.facts.capacity[resource][row] > 0
    ]
    return sum(shares) / len(shares) if shares else 0.0


def _words(reason: Reason) -> str:
    """A reason after its count, in the plural that the count asks for."""
    count, subject = reason.nodes, reason.subject
    one = count == 1
    match reason.kind:
        case "unschedulable":
            return f"{count} {subject or 'not schedulable'}"
        case "driver":
            return f"{count} {'lacks' if one else 'lack'} driver {subject}"
        case "constraint":
            return f"{count} {'fails' if one else 'fail'} {subject}"
        case "resource":
            name = _RESOURCE_NAMES.get(subject, subject)
            need = amount_text(subject, reason.needed, math.ceil)
            best = amount_text(subject, reason.best, math.floor)
            return f"{count} {'lacks' if one else 'lack'} {name} (need {need}, best has {best})"
        case "per-node":
            return f"{count} {'has' if one else 'have'} {reason.needed} of it, the most per node"
        case "affinity":
            return f"{count} {'has' if one else 'have'} no {subject}, which it must be beside"
        case "anti-affinity":
            return f"{count} {'has' if one else 'have'} {subject}, which it must not be beside"


def amount_text(resource: str, amount: int, rounded: Callable[[Fraction], int] = round) -> str:
    """An amount with its unit: ``1.2 GiB``, ``0.5`` processors, ``3``.

    Args:
        resource: its name, which tells the unit.
        amount: how many units.
        rounded: how to round: what is needed goes up and what there is goes down, so that too
            little never reads like enough.
    """
    if resource == "cpu_millis":
        return f"{amount / 1000:.3f}".rstrip("0").rstrip(".")
    if not resource.endswith("_bytes"):
        return str(amount)
    unit = 0
    while rounded(tenths := Fraction(10 * amount, 1024**unit)) >= 10 * 1024:
        if unit == len(_BYTE_UNITS) - 1:
            break
        unit += 1
    return f"{rounded(tenths) / 10:.1f}".removesuffix(".0") + f" {_BYTE_UNITS[unit]}"
