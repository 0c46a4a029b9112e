"""Nodes whose silence proves nothing: written down, so that the next controller knows of them.

A node that has something fenced and no live guard may run it for ever once it is not heard any more
(:mod:`swarmctl.controller.fencing`).  Nothing but its own word tells of that, and a controller that
starts while the node is silent never hears it: so it is in the node's record, from a moment after
it was heard until a guard lives there again, or an operator says that the node is off.

The same of a node that was taken out of the registry is kept with its revoked key.  If it had a
guard it may run until its lease ends, and nobody will ever hear of it; so a controller that starts
soon after waits for that lease, although all nodes that it knows have reported.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from attrs import evolve

from swarmctl.controller import records
from swarmctl.controller.records import RevokedKey
from swarmctl.controller.state import ClusterState, Node
from swarmctl.controller.store.api import Op, Put
from swarmctl.proto import limits

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster

# A node that was removed within this time is waited for, as long as a lease and no longer: no lease
# holds for a day, but the clock by which the time is known may have been set.
_REMOVED_LATELY_S: Final = 86_400.0


def is_unproven(state: ClusterState, node: Node) -> bool:
    """Whether a node, as it was heard last, has something fenced that nobody would end.

    One that does not know all that it has (:mod:`swarmctl.controller.forgetful`) has something.
    """
    if node.guarded:
        return False
    if node.reported and not node.told_all:
        return True
    if not state.fences.templates:
        return False
    return any(one.template in state.fences.templates for one in node.instances.values())


def is_unproven_gone(state: ClusterState, node: Node) -> bool:
    """As :func:`is_unproven`, of a node that leaves the registry and may not have reported."""
    if state.fences.is_off(node.name):
        return False
    return is_unproven(state, node) if node.reported else node.record.unguarded


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


def know_removed(cluster: "Cluster", gone: RevokedKey) -> None:
    """Take in that an earlier controller removed a node, if that still matters."""
    if gone.unguarded or cluster.wall() - gone.revoked_at < _REMOVED_LATELY_S:
        cluster.state.fences.know_removed(gone.node, guarded=not gone.unguarded)


async def forget_removed(cluster: "Cluster", names: Collection[str]) -> None:
    """An operator says that nodes ``names``, which were removed, are off.

    Raises:
        StorageFault, Busy, StaleTerm: the disk refuses.
    """
    found = (await cluster.store.read(records.REVOKED)).items()
    keys = {key: records.decode(value, RevokedKey, key) for key, value in found}
    ops: list[Op] = [
        Put(key, records.encode(evolve(gone, unguarded=False)))
        for key, gone in keys.items()
        if gone.unguarded and gone.node in names
    ]
    for start in range(0, len(ops), limits.TRANSACTION_OPS_MAX):
        await cluster.commit(ops[start : start + limits.TRANSACTION_OPS_MAX], lambda: None)
