"""Waiting for nodes to be drained: ``node.drained``."""

from typing import Any, Final

import trio

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.drains import DrainStatus
from swarmctl.proto.errors import Conflict, NothingFits, ProtocolError, WaitExpired
from swarmctl.proto.states import NodeState
from swarmctl.transport.rpc import Call, Handler

# How often a watcher is told at the most.
_PROGRESS_S: Final = 0.2
# A watcher looks again after this long even when nothing was announced.
_LOOK_AGAIN_S: Final = 1.0
# Nothing moves and nothing fits: said after so long, since room that is just being freed counts.
_STUCK_S: Final = 3.0
# Instances that are named in an answer with their reasons: a terminal screen.
_NAMED_MAX: Final = 20


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def drained(call: Call) -> Any:
        return await _drained(cluster, call)

    return {"node.drained": drained}


async def _drained(cluster: Cluster, call: Call) -> Any:
    """Stream how far the drains of ``names`` are until nothing is left.

    Parameters: ``names``, ``timeout_s`` (optional).
    Streams on ``progress``: {node: {"left": n, "leaving": n, "staying": {instance: why}}}.

    Raises:
        Conflict: one of the nodes is not drained, or is not any more.
        NothingFits: what is left fits nowhere else.
        WaitExpired: it took longer than ``timeout_s``.
    """
    names = call.texts("names")
    timeout_s = call.params.get("timeout_s")
    if timeout_s is not None and type(timeout_s) not in (int, float):
        raise ProtocolError("timeout_s is not a number of seconds", call.method)
    began = trio.current_time()
    deadline = began + float(timeout_s) if timeout_s else float("inf")
    stuck_since: float | None = None
    shown: Any = None
    while True:
        change, now = cluster.next_change(), trio.current_time()
        found = {name: _status(cluster, name) for name in names}
        views = {name: _view(status) for name, status in found.items()}
        if views != shown:
            shown = views
            await call.send("progress", views)
        open_ = {name: status for name, status in found.items() if status.left}
        if not open_:
            return views
        if not all(_is_stuck(cluster, name, status) for name, status in open_.items()):
            stuck_since = None
        elif stuck_since is None:
            stuck_since = now
        elif now - stuck_since >= _STUCK_S:
            raise NothingFits(
                f"{_left(open_)} cannot go elsewhere: {_reasons(open_)}",
                ", ".join(open_),
                "the drain goes on: each moves when something fits; "
                f"'swarmctl node uncordon {' '.join(open_)}' ends it",
            )
        if now >= deadline:
            waited = f"{round(now - began, 1):g} s"
            raise WaitExpired(
                f"{_left(open_)} still there after {waited}: {_reasons(open_)}",
                ", ".join(open_),
                f"the drain goes on; 'swarmctl node uncordon {' '.join(open_)}' ends it",
            )
        with trio.move_on_after(min(_LOOK_AGAIN_S, max(0.0, deadline - now))):
            await change.wait()
            await trio.sleep(min(_PROGRESS_S, max(0.0, deadline - now)))


def _status(cluster: Cluster, name: str) -> DrainStatus:
    node = cluster.node(name)
    if not node.record.draining:
        raise Conflict(
            f"node {name} is not being drained",
            hint=f"'swarmctl node drain {name}' begins, and uncordon or cordon end a drain",
        )
    if not node.reported and node.state is not NodeState.LOST:
        return DrainStatus(1, 0, {name: "what it has is not known before it reports"}, frozenset())
    return cluster.drains.status(node)


def _is_stuck(cluster: Cluster, name: str, status: DrainStatus) -> bool:
    """Whether it would stay as it is: at a deadline all that is left goes."""
    return status.stuck and not cluster.node(name).record.drain_deadline


def _view(status: DrainStatus) -> dict[str, Any]:
    named = dict(list(status.staying.items())[:_NAMED_MAX])
    return {"left": status.left, "leaving": status.leaving, "staying": named}


def _left(open_: dict[str, DrainStatus]) -> str:
    left = sum(status.left for status in open_.values())
    return f"{left} instance{'' if left == 1 else 's'}"


def _reasons(open_: dict[str, DrainStatus]) -> str:
    reasons = [f"{name}: {why}" for one in open_.values() for name, why in one.staying.items()]
    leaving = sum(status.leaving for status in open_.values())
    more = len(reasons) - _NAMED_MAX
    parts = reasons[:_NAMED_MAX]
    if more > 0:
        parts.append(f"and {more} more")
    if leaving:
        parts.append(f"{leaving} on the way out")
    return "; ".join(parts)
