"""An operator's word on silent nodes: ``node.fenced``."""

from typing import Any

from attrs import evolve

from swarmctl.controller import guardless, records
from swarmctl.controller.cluster import Cluster
from swarmctl.proto.errors import Conflict
from swarmctl.transport.rpc import Call, Handler


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def fenced(call: Call) -> Any:
        return await _fenced(cluster, call.texts("names"))

    return {"node.fenced": fenced}


async def _fenced(cluster: Cluster, names: tuple[str, ...]) -> Any:
    """The nodes ``names`` are off for sure: what is fenced need not wait for them.

    Raises:
        Conflict: one of them is connected, or was never heard of.
    """
    for name in names:
        node = cluster.state.nodes.get(name)
        if node is not None and node.connected:
            raise Conflict(
                f"node {name} is connected", hint="only a node that is lost can be off for sure"
            )
    for name in names:
        if not cluster.state.fences.awaits(name):
            raise Conflict(
                f"no node {name} is waited for", hint="'swarmctl node ls' shows which are lost"
            )
    async with cluster.holding(records.NODE + name for name in names):
        nodes = [cluster.state.nodes[name] for name in names if name in cluster.state.nodes]
        doubted = [evolve(node.record, unguarded=False) for node in nodes if node.record.unguarded]
        if doubted:
            await cluster.save_nodes(doubted)
        await guardless.forget_removed(cluster, names)
    for name in names:
        cluster.state.fences.release(name)
    cluster.wake()
    return {"nodes": list(names)}
