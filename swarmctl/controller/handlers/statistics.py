"""What the daemons say of themselves.

``cluster.info`` and ``cluster.statistics`` are the controller's; ``node.statistics`` is passed on
to the agent of a node. Both count the tasks that live in the daemon: nothing outside sees those.
"""

from collections.abc import Callable
from typing import Any

import trio
from attrs import asdict

from swarmctl import __version__, descriptors
from swarmctl.controller.cluster import Cluster
from swarmctl.proto.errors import PeerUnreachable
from swarmctl.proto.messages import PROTOCOL_VERSION
from swarmctl.proto.states import NodeState
from swarmctl.transport.api import ListenerStatistics
from swarmctl.transport.rpc import Call, Handler


def handlers(
    cluster: Cluster, listener_statistics: Callable[[], ListenerStatistics]
) -> dict[str, Handler]:
    """Method to handler."""

    async def info(call: Call) -> Any:
        del call
        return {
            "release": __version__,
            "protocol": PROTOCOL_VERSION,
            "cluster_id": cluster.state.cluster_id,
            "term": cluster.state.term,
            "started": cluster.started_at,
            "addresses": list(cluster.addresses),
            "settled": cluster.reconciler.settled,
            "hold": cluster.hold,
            "ovn": cluster.plane.address,
            "ovn_fault": cluster.plane.fault,
            "shortage": descriptors.shortage(),
            "nodes": len(cluster.state.nodes),
            "services": len(cluster.state.services),
            "fencing_lease_s": cluster.state.fences.lease_s,
        }

    async def statistics(call: Call) -> Any:
        del call
        ready = sum(one.state is NodeState.READY for one in cluster.state.nodes.values())
        return {
            "states": cluster.state.totals(),
            "nodes_ready": ready,
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "listener": asdict(listener_statistics()),
            "store": asdict(cluster.store.statistics()),
            **cluster.meters.view(),
        }

    async def node_statistics(call: Call) -> Any:
        node = cluster.node(call.text("name"))
        peer = node.peer
        if peer is None or node.state is NodeState.LOST:
            raise PeerUnreachable("the node is not connected", node.name, "see 'swarmctl node ls'")
        return await cluster.caller.call(
            peer, lambda message: cluster.send(peer, message), "node.statistics"
        )

    return {
        "cluster.info": info,
        "cluster.statistics": statistics,
        "node.statistics": node_statistics,
    }
