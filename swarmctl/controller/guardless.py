"""Nodes whose silence proves nothing: written down, so that the next controller knows of them.

A node that has something fenced and no live guard may run it for ever once it is not heard any more
(:mod:`swarmctl.controller.fencing`).  Nothing but its own word tells of that, and a controller that
starts while the node is silent never hears it: so it is in the node's record, from a moment after
it was heard until a guard lives there again, or an operator says that the node is off.
"""

from typing import TYPE_CHECKING

from attrs import evolve

from swarmctl.controller import records
from swarmctl.controller.state import ClusterState, Node
from swarmctl.proto import limits

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster


def is_unproven(state: ClusterState, node: Node) -> bool:
    """Whether a node, as it was heard last, has something fenced that nobody would end."""
    if node.guarded or not state.fences.templates:
        return False
    return any(one.template in state.fences.templates for one in node.instances.values())


def note(state: ClusterState, node: Node) -> None:
    """A node says how it is with its guard: if its record says otherwise that is to be written."""
    if is_unproven(state, node) is node.record.unguarded:
        state.fences.unwritten.discard(node.name)
    else:
        state.fences.unwritten.add(node.name)


async def write(cluster: "Cluster") -> None:
    """Make true what the records say.

    Raises:
        StorageFault, Busy: the disk refuses; what is left is written another time.
    """
    names = sorted(cluster.state.fences.unwritten)
    for start in range(0, len(names), limits.TRANSACTION_OPS_MAX):
        part = names[start : start + limits.TRANSACTION_OPS_MAX]
        async with cluster.holding(records.NODE + name for name in part):
            nodes = [cluster.state.nodes[name] for name in part if name in cluster.state.nodes]
            changed = [
                evolve(node.record, unguarded=not node.record.unguarded)
                for node in nodes
                if node.name in cluster.state.fences.unwritten
            ]
            if changed:
                await cluster.save_nodes(changed)
        for node in nodes:
            note(cluster.state, node)
        cluster.state.fences.unwritten.difference_update(set(part) - cluster.state.nodes.keys())
