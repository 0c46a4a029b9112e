"""Which nodes can take a copy, and what keeps the others from it.

A node is counted under the first filter that it fails, in this order:

1. schedulable: not cordoned, sick, draining or lost;
2. driver;
3. constraints, in the request's order;
4. resources, in the request's order;
5. copies per node;
6. required affinities, then required anti-affinities.

``fitting`` asks all filters at once and is what planning uses; ``examine`` asks one after the
other and counts.  A property test holds them together.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

import attrs
import numpy as np

from swarmctl.scheduler.facts import Bools, Ints
from swarmctl.scheduler.model import Request
from swarmctl.scheduler.usage import View

ReasonKind = Literal[
    "unschedulable", "driver", "constraint", "resource", "per-node", "affinity", "anti-affinity"
]

# More copies than any node can hold; what "no limit" is in arithmetic.
_NO_LIMIT: Final = 1 << 40


@attrs.frozen
class Reason:
    """One thing that keeps nodes from taking a copy.

    Attributes:
        kind: which filter.
        subject: the reason of an unschedulable node, the driver, the constraint, the resource, or
            the service.
        nodes: how many nodes fail here first.
        needed: units needed (resources), or the limit (per-node).
        best: most units free on any of these nodes; never negative.
    """

    kind: ReasonKind
    subject: str
    nodes: int
    needed: int = 0
    best: int = 0


def fitting(view: View, request: Request, copies: Ints) -> Bools:
    """Which nodes can take one more copy, by row.

    Args:
        view: the nodes.
        request: what is to be placed.
        copies: copies of the request's service by row, those placed by this plan included.
    """
    fits = view.facts.eligible(request).copy()
    for resource, amount in request.needs:
        fits &= view.free(resource) >= amount
    if request.max_per_node:
        fits &= copies < request.max_per_node
    return _keep_affine(view, request, copies, fits)


def eligible_but_for_room(view: View, request: Request) -> Bools:
    """Which nodes could take a copy if there were room, by row."""
    fits = view.facts.eligible(request).copy()
    for resource, amount in request.needs:
        if resource in view.facts.capacity:
            fits &= view.facts.capacity[resource] >= amount
        else:
            fits &= False
    copies = view.copies(request.service)
    if request.max_per_node:
        fits &= copies < request.max_per_node
    return _keep_affine(view, request, copies, fits)


def room(view: View, request: Request, copies: Ints) -> Ints:
    """How many copies each node can take, by row, as long as nothing else is placed."""
    limit = request.max_per_node or _NO_LIMIT
    limits = np.full(len(view.facts), limit, dtype=np.int64)
    if request.max_per_node:
        limits -= copies
    for resource, amount in request.needs:
        np.minimum(limits, view.free(resource) // amount, out=limits)
    if any(wish.required and wish.service == request.service for wish in request.anti_affinity):
        np.minimum(limits, 1, out=limits)
    np.maximum(limits, 0, out=limits)
    limits[~_keep_affine(view, request, copies, view.facts.eligible(request).copy())] = 0
    return limits


def row_room(view: View, request: Request, copies: int, row: int) -> int:
    """``room`` of one row that fits now, which has that many copies of the service."""
    limit = request.max_per_node - copies if request.max_per_node else _NO_LIMIT
    for resource, amount in request.needs:
        free = view.facts.capacity[resource].item(row) - view.usage.used[resource].item(row)
        limit = min(limit, free // amount)
    if any(wish.required and wish.service == request.service for wish in request.anti_affinity):
        limit = min(limit, 1)
    return limit


def _keep_affine(view: View, request: Request, copies: Ints, fits: Bools) -> Bools:
    """Narrow ``fits`` to what required affinities allow."""
    for wish in request.affinity:
        if wish.required:
            beside = copies if wish.service == request.service else view.copies(wish.service)
            if not _starts_itself(request, wish.service, beside):
                fits &= beside > 0
    for wish in request.anti_affinity:
        if wish.required:
            beside = copies if wish.service == request.service else view.copies(wish.service)
            fits &= beside == 0
    return fits


def _starts_itself(request: Request, service: str, beside: Ints) -> bool:
    """Whether this is the first copy of a service that wants to be beside itself."""
    return service == request.service and not beside.any()


def examine(view: View, request: Request) -> tuple[Bools, tuple[Reason, ...]]:
    """Which nodes fit, and under which reason each other one is counted."""
    left = np.ones(len(view.facts), dtype=np.bool_)
    reasons: list[Reason] = []
    copies = view.copies(request.service)
    for kind, subject, passes, needed in _filters(view, request, copies):
        failed = left & ~passes
        left &= passes
        if not failed.any():
            continue
        if kind == "unschedulable":
            reasons.extend(_unschedulable(view, failed))
            continue
        best = int(max(view.free(subject)[failed].max(), 0)) if kind == "resource" else 0
        reasons.append(Reason(kind, subject, int(failed.sum()), needed, best))
    return left, tuple(reasons)


def _filters(
    view: View, request: Request, copies: Ints
) -> Iterator[tuple[ReasonKind, str, Bools, int]]:
    """Every filter of the request in order: its kind, its subject, who passes, what is needed."""
    facts = view.facts
    yield "unschedulable", "", facts.schedulable, 0
    yield "driver", request.driver, facts.with_driver(request.driver), 0
    for constraint in request.constraints:
        yield "constraint", str(constraint), facts.satisfying(constraint), 0
    for resource, amount in request.needs:
        yield "resource", resource, view.free(resource) >= amount, amount
    if request.max_per_node:
        yield "per-node", request.service, copies < request.max_per_node, request.max_per_node
    for wish in request.affinity:
        beside = view.copies(wish.service)
        if wish.required and not _starts_itself(request, wish.service, beside):
            yield "affinity", wish.service, beside > 0, 0
    for wish in request.anti_affinity:
        if wish.required:
            yield "anti-affinity", wish.service, view.copies(wish.service) == 0, 0


def _unschedulable(view: View, failed: Bools) -> list[Reason]:
    """One reason for each text that the failed nodes give."""
    nodes = view.facts.nodes
    texts = Counter(nodes[row].unschedulable_reason for row in np.flatnonzero(failed).tolist())
    return [Reason("unschedulable", text, count) for text, count in sorted(texts.items())]
