"""Nodes that may run what nobody knows of: the agent has forgotten, and a driver has not told yet.

An agent whose journal was lost knows what runs from its drivers alone.  While one of them does not
answer, what the agent does not name may run all the same.  A controller that has heard of it before
keeps its own picture (``Sessions``); one that has begun since has none.  So until the node has told
all, it counts as one that has not reported, where something fenced is to be placed; and its lease
is not renewed, so that after a lease nothing of before can run there, and it need not be waited for
any longer.

An agent that has a journal has a term in it, and names what it has made, whatever its drivers say.
"""

from swarmctl.controller.state import Node
from swarmctl.proto.messages import Hello


def hear(node: Node, hello: Hello, now: float) -> None:
    """A session begins; ``node`` has the hello's facts."""
    if hello.term > 0 or lists_all(node):
        node.told_all = True
    elif node.doubtful_since is None:
        node.doubtful_since = now


def lists_all(node: Node) -> bool:
    """Whether all drivers of the node have told its agent what they have."""
    return all(driver.listed for driver in node.facts.drivers)


def is_known(node: Node, now: float, wait_s: float) -> bool:
    """Whether nothing fenced can run there that the controller does not know of.

    Args:
        node: which.
        now: seconds, on the clock of :func:`hear`.
        wait_s: after so long without a lease nothing fenced runs.
    """
    if node.told_all:
        return True
    return node.doubtful_since is not None and now - node.doubtful_since >= wait_s
