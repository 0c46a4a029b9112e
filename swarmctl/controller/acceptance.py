"""Which hellos open a session: the conditions, and what is said to those who do not meet them.

A node has one live session.  Another process with its key is a twin (a copied data folder), or the
node itself after a fast reboot, whose connection from before nobody has ended.  The two are told
apart by what comes next: of a twin the first is heard again.  Until then it is refused for now, and
comes again; it is let in when the first has been silent for so long that it would be lost.
"""

from swarmctl.controller.state import ClusterState, Node
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, Conflict, ProtocolError, VersionMismatch
from swarmctl.proto.messages import PROTOCOL_OLDEST, PROTOCOL_VERSION, Hello, Refuse


def refusal(
    state: ClusterState, peer: bytes, node: Node, hello: Hello, now: float
) -> Refuse | None:
    """Why ``hello`` of ``peer`` may not open a session for ``node``; None when it may.

    Args:
        state: the cluster's.
        peer: who says it.
        node: the registered node that it is for.
        hello: what is said.
        now: seconds in which silence is measured.

    Raises:
        ProtocolError: its term is none that a controller had.
    """
    if not PROTOCOL_OLDEST <= hello.protocol <= PROTOCOL_VERSION + 1:
        return Refuse(
            VersionMismatch.code,
            f"the agent speaks protocol {hello.protocol} (release {hello.release}), "
            f"this controller {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}",
            hint="upgrade the older of the two",
            final=True,
        )
    if hello.cluster_id and hello.cluster_id != state.cluster_id:
        return Refuse(
            Conflict.code,
            f"the node belongs to cluster {hello.cluster_id[:8]}, this is {state.cluster_id[:8]}",
            hint="use another data folder for another cluster",
            final=True,
        )
    if hello.term > state.term + limits.TERM_JUMP_MAX:
        raise ProtocolError(
            f"node {node.name} has seen term {hello.term}, ours is {state.term}: "
            "its journal is damaged",
            node.name,
        )
    if _is_from_elsewhere(state, node, hello):
        return Refuse(Busy.code, f"term {hello.term} was seen, raising ours")
    return _twin(peer, node, hello, now)


def _is_from_elsewhere(state: ClusterState, node: Node, hello: Hello) -> bool:
    """Whether the node has a term from another controller, so that ours has to be higher.

    Ours was told to nobody before a node's first hello: who knows it had it from a controller whose
    store is not ours, and incarnations of one term would be made twice.
    """
    return hello.term > state.term or (hello.term == state.term and not node.reported)


def _twin(peer: bytes, node: Node, hello: Hello, now: float) -> Refuse | None:
    """What to say to another process with the node's key while its session seems to live."""
    alive = node.peer is not None and now - node.heard_at < limits.NODE_LOST_S
    if not alive or node.boot == hello.boot or node.peer == peer:
        return None
    there = node.facts.facts.get("process", "another process")
    here = hello.facts.facts.get("process", "this process")
    if node.rival != hello.boot:
        node.rival, node.rival_at = hello.boot, now
    return Refuse(
        Conflict.code,
        f"node {node.name} has a live session from {there}; refused {here}",
        hint="stop one of them, or give this one its own --name and --data",
        final=node.heard_at > node.rival_at,
    )
