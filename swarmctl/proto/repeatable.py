"""Which requests a client may repeat when it cannot know whether they were done.

A connection that is lost takes the answer with it: the request may have been done, or not.
Reads are repeated.  So are writes that say what *should be*, whatever was before (apply a whole
spec, scale to a number, stop, label a node): done twice they leave what done once leaves, and the
second answer at the most says "unchanged".  What says what to *change* (restart once more, create a
token, roll back) is not repeated: the user is told that it may have been done.

Both ends have this table: the client acts by it, and a test holds that every method of the
controller is in it.  A method that is not (a newer release's) is not repeated.

A repeated write may come after another user's, as if it had been asked then: it was not
acknowledged before, so nothing is lost that anybody was told of.
"""

from collections.abc import Mapping
from typing import Any, Final

READS: Final = frozenset(
    {
        "cluster.info",
        "cluster.statistics",
        "instance.explain",
        "instance.export",
        "instance.inspect",
        "instance.list",
        "instance.logs",
        "instance.trace",
        "network.inspect",
        "network.list",
        "node.drained",
        "node.inspect",
        "node.list",
        "node.statistics",
        "service.inspect",
        "service.list",
        "service.wait",
        "token.list",
    }
)
# Writes that leave the same when they are done twice.
SETTING: Final = frozenset(
    {"node.change", "service.apply", "service.scale", "service.start", "service.stop"}
)
# A second one does more than the first, or finds its work done and calls that an error.
CHANGING: Final = frozenset(
    {
        "instance.console",
        "instance.exec",
        "network.create",
        "network.remove",
        "node.fenced",
        "node.rebalance",
        "node.release",
        "node.remove",
        "service.adopt",
        "service.remove",
        "service.restart",
        "service.rollback",
        "store.release",
        "token.create",
        "token.revoke",
    }
)


def is_repeatable(method: str, params: Mapping[str, Any]) -> bool:
    """Whether a request that may have been done can be sent again without looking."""
    if method == "service.apply" and params.get("create_only"):
        return False  # The second would find the first one's service, and call it a conflict.
    return method in READS or method in SETTING
