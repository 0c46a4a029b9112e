"""``node.rebalance``: make loads even again, or say what that would move."""

from typing import Any, Final

import trio

from swarmctl.controller.cluster import Cluster
from swarmctl.proto.errors import Conflict
from swarmctl.transport.rpc import Call, Handler

# Moves that are shown: more than a person reads, and a bound on the time that the plan takes.
_SHOWN_MAX: Final = 500


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def rebalance(call: Call) -> Any:
        return _rebalance(cluster, dry_run=call.flag("dry_run"))

    return {"node.rebalance": rebalance}


def _rebalance(cluster: Cluster, *, dry_run: bool) -> Any:
    """What is moved from where to where, the first of it.

    Parameters: ``dry_run`` only answers.

    Raises:
        Conflict: not all nodes have reported since the controller started.
    """
    if not cluster.reconciler.settled:
        raise Conflict(
            "the controller started a moment ago, and waits for nodes to report",
            hint="try again in a few seconds",
        )
    planned = cluster.rebalancing.preview(_SHOWN_MAX)
    if planned and not dry_run:
        cluster.rebalancing.begin(trio.current_time())
        cluster.wake()
    return {
        "moves": [
            {"instance": instance.name, "from": move.source, "to": move.target}
            for instance, move in planned
        ],
        "more": len(planned) == _SHOWN_MAX,
    }
