"""Nodes that may run what nobody knows of: the agent has forgotten, and a driver has not told yet.

An agent whose journal was lost knows what runs from its drivers alone.  While one of them does not
answer, what the agent does not name may run all the same.  What is fenced is on the guard's list as
well, which outlives the journal: a hello names what is on that list and the agent does not have.

While there is such a thing the node counts as one that has not reported, where something fenced is
to be placed; and its lease is not renewed, so that after a lease with a live guard nothing of
before can run there, and it need not be waited for any longer.
"""

import math

from swarmctl.controller.state import Node
from swarmctl.proto.messages import Hello


def hear(node: Node, hello: Hello, now: float) -> None:
    """A session begins."""
    node.told_all = not hello.forgotten
    if node.told_all:
        node.doubtful_since = None
    elif node.doubtful_since is None:
        node.doubtful_since = now


def look_at_guard(node: Node, now: float) -> None:
    """A heartbeat has told whether a guard lives there: only such time counts."""
    if not node.guarded and not node.told_all:
        node.doubtful_since = now


def is_known(node: Node, now: float, wait_s: float) -> bool:
    """Whether nothing fenced can run there that the controller does not know of; see below."""
    known_at = known_from(node, wait_s)
    return known_at is not None and known_at <= now


def known_from(node: Node, wait_s: float) -> float | None:
    """From when on nothing fenced can run there that the controller does not know of.

    Args:
        node: which.
        wait_s: after so long without a lease nothing fenced runs where a guard lives.

    Returns:
        Seconds, on the clock of :func:`hear`; infinite where no guard lives; None for a node that
        has said nothing since the controller began.
    """
    if node.told_all:
        return -math.inf
    if node.doubtful_since is None:
        return None
    return node.doubtful_since + wait_s if node.guarded else math.inf
