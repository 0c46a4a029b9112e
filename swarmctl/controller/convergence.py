"""From what is dirty to what the nodes are told, in turns that leave the other tasks theirs.

Planning a million copies and telling five thousand nodes takes many seconds; heartbeats that were
not answered meanwhile would make every agent begin anew.  So the work is cut in parts, and between
two of them all that has arrived is taken in; what changes in between makes something dirty again.

The hot path of a launch is here and in what this calls.  It takes, an instance, on one core and
alone (``bench.controller_path``): plan and assign 4 us, dispatch 5 us, take in the report 6 us;
beside busy agents on the same two cores two to three times as much.
"""

from typing import Final, Protocol

import trio

from swarmctl.controller.cluster import Cluster

# How long what is committed may wait for its plan while more requests are under way, unless there
# is this much for each node already: to tell a node costs as much as ten instances.
_GATHER_S: Final = 1.0
_GATHER_A_NODE: Final = 20
_GATHER_LOOK_S: Final = 0.05
# Slots looked at, and nodes told, before other tasks get their turn: some 50 ms of work.
_SLOTS_A_TURN: Final = 10_000
_NODES_A_TURN: Final = 500
# What has arrived is taken in first: agents that are not answered in time begin anew, and that
# costs more than what they are told here. A flood must not keep the nodes from being told at all.
_GIVE_WAY_S: Final = 0.1
# While there is more to place, nodes are told when each has so many new instances on average, and
# each further time when there are as many again as they were told of so far: a message costs as
# much as ten instances, so the first is to be soon, and the later ones few and large.
_DISPATCH_A_NODE: Final = 50


class Requests(Protocol):
    """Simple requests, that wait or are being served, or not: those of a ``BulkServer``."""

    @property
    def is_idle(self) -> bool:
        """Whether there are none."""

    async def wait_idle(self) -> None:
        """Wait until there are none; at once when that is so."""


async def gather(cluster: Cluster, requests: Requests) -> None:
    """While requests stream in, wait for more of them: cycles are to be few and large.

    One plan takes all that has gathered, and a node is told once of several instances. So those
    under way are acknowledged sooner (in half the time, when all of it is on one small machine),
    and all of them run sooner too. A request that comes alone waits for nothing.

    Args:
        cluster: whose dirty services count.
        requests: what streams in.
    """
    enough = _GATHER_A_NODE * len(cluster.state.nodes)
    if requests.is_idle:  # Most of the time: two scopes cost more than all else here.
        await trio.lowlevel.checkpoint()
        return
    with trio.move_on_after(_GATHER_S):
        while len(cluster.state.dirty_services) < enough:
            with trio.move_on_after(_GATHER_LOOK_S):
                await requests.wait_idle()
                return


async def converge(cluster: Cluster) -> None:
    """Place what wants a node, and tell the nodes, until nothing is dirty."""
    began = told = cluster.reconciler.assigned
    more = True
    while more:
        more = cluster.reconciler.cycle(_SLOTS_A_TURN)
        waiting = cluster.reconciler.assigned - told
        enough = max(_DISPATCH_A_NODE * len(cluster.state.nodes), told - began)
        if more and waiting < enough:
            await cluster.listening.catch_up(_GIVE_WAY_S)
            continue
        told = cluster.reconciler.assigned
        names = cluster.state.take_dirty_nodes()
        for start in range(0, len(names), _NODES_A_TURN):
            if start:
                await cluster.listening.catch_up(_GIVE_WAY_S)
            with cluster.meters.stage("dispatch"):
                cluster.sessions.dispatch(names[start : start + _NODES_A_TURN])
