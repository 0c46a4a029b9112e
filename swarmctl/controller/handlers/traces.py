"""``instance.trace``: the launch of one instance as a timeline, and the path of its packets.

The instance's agent is asked for its side (:func:`swarmctl.controller.timelines.told_of`), and of
a pod the agent of its VM's host, too.  What they do not answer is left out, and ``notes`` say so:
nothing of this is an error, for a trace is asked for when something is wrong.
"""

from typing import Any, Final

import structlog
import trio

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers.targets import holders, sole, tenant_of
from swarmctl.controller.instance import Instance
from swarmctl.controller.paths import node_paths, place_of, seen_by, tenant_paths
from swarmctl.controller.state import Node
from swarmctl.controller.timelines import (
    AGENT,
    CONTROLLER,
    Moment,
    Told,
    View,
    clocks_view,
    controllers_moments,
    joined,
    told_of,
)
from swarmctl.controller.views import instance_view, pending_views
from swarmctl.proto.errors import (
    DeadlineExceeded,
    NotFound,
    PeerUnreachable,
    ProtocolError,
    SwarmError,
)
from swarmctl.proto.states import InstanceState, NodeState
from swarmctl.transport.rpc import Call, Handler, UnknownMethod

_log = structlog.get_logger(__name__)

# Both agents are asked at once, within what a client waits for an answer; each has 3 s to look.
ASK_S: Final = 6.0
# Of the instance's own view: who it is, and how it is.
_SHOWN: Final = (
    "instance",
    "service",
    "kind",
    "driver",
    "node",
    "vm",
    "host",
    "state",
    "health",
    "since",
    "incarnation",
    "attempt",
    "restarts",
    "reason",
)


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def trace(call: Call) -> Any:
        target = sole(cluster, call.text("name"), tenant_of(call))
        service = cluster.state.services.get(target.key)
        if service is not None and target.slot not in service.holders:
            for view in pending_views(service):
                if view["instance"] == target.name:
                    return _nowhere(cluster, view)
        found = holders(cluster, [target])
        if not found:
            raise NotFound(f"no instance of {target.name} is on any node now")
        return await _trace(cluster, found[0])

    return {"instance.trace": trace}


def _nowhere(cluster: Cluster, view: View) -> View:
    """Of a slot that nobody has: since when it is wanted."""
    accepted_at = view["since"]
    known = accepted_at >= cluster.started_at
    why = "the service's last change" if known else "not known: an earlier controller took it in"
    own = [
        Moment("accepted", CONTROLLER, accepted_at if known else 0.0, why),
        Moment("placed", CONTROLLER, 0.0, f"not yet: {view['reason']}"),
    ]
    return {key: view[key] for key in _SHOWN} | {
        "steps": joined(own, None),
        "clocks": None,
        "networks": [],
        "notes": [],
    }


async def _trace(cluster: Cluster, instance: Instance) -> View:
    state, notes = cluster.state, list[str]()
    place = place_of(state, instance)
    asked: dict[str, tuple[Node, Instance]] = {"own": (state.nodes[instance.node], instance)}
    attached = bool(state.ports.attachments.get(instance.incarnation))
    if attached and place.vm is not None:
        asked["host"] = (state.nodes[place.vm.node], place.vm)
    told = await _ask_all(cluster, asked, notes)
    own = told.get("own")
    moments = _own_moments(cluster, instance)
    if own is None:
        moments = [*moments, *_reported(cluster, instance)]
    elif instance.state is InstanceState.LOST:
        moments.append(Moment("lost", CONTROLLER, instance.since, instance.reason))
    seen = seen_by(told.get("host") if place.vm is not None else own)
    view = {key: value for key, value in instance_view(state, instance).items() if key in _SHOWN}
    paths = tenant_paths(state, instance, place, seen) or node_paths(instance, own)
    if own is not None and not paths:
        notes.append("it has no network that its agent knows of")
    return view | {
        "steps": joined(moments, own),
        "clocks": clocks_view(moments, own),
        "networks": paths,
        "notes": notes,
    }


def _own_moments(cluster: Cluster, instance: Instance) -> list[Moment]:
    service = cluster.state.services.get(instance.key)
    placing = instance.placing
    return controllers_moments(
        accepted_at=service.record.updated_at if service is not None else 0.0,
        began_at=cluster.started_at,
        placed_at=instance.placed_at,
        sent_at=placing.sent_at if placing is not None else 0.0,
        node=instance.node,
        joined_at=cluster.state.nodes[instance.node].joined_at,
    )


def _reported(cluster: Cluster, instance: Instance) -> list[Moment]:
    """What the node reported last, by its own clock; and the loss, by ours."""
    node = cluster.state.nodes[instance.node]
    if not instance.reported:
        return []
    before = node.lost.get(instance.incarnation)
    if instance.state is not InstanceState.LOST or before is None:
        return [Moment(instance.state.label, AGENT, instance.since, "as its node reported last")]
    seen, since, _ = before
    return [
        Moment(seen.label, AGENT, since, "as its node reported last"),
        Moment("lost", CONTROLLER, instance.since, instance.reason),
    ]


# --- asking agents ----------------------------------------------------------------------------


async def _ask_all(
    cluster: Cluster, asked: dict[str, tuple[Node, Instance]], notes: list[str]
) -> dict[str, Told]:
    """The answers of those that answer; why the others do not is noted."""
    told: dict[str, Told] = {}

    async def ask(role: str, node: Node, instance: Instance) -> None:
        try:
            told[role] = await _ask(cluster, node, instance)
        except SwarmError as error:
            whose = "its node" if role == "own" else "its VM's host"
            rest = "what the controller knows is shown" if role == "own" else "its part is left out"
            notes.append(f"{whose} {_why(node, error)}: {rest}")
        else:
            notes.extend(str(one) for one in told[role].answer.get("problems") or [])

    async with trio.open_nursery() as nursery:
        for role, (node, instance) in asked.items():
            nursery.start_soon(ask, role, node, instance)
    return told


async def _ask(cluster: Cluster, node: Node, instance: Instance) -> Told:
    """What the agent of ``node`` says.

    Raises:
        SwarmError: it does not, or not in words that are understood here.
    """
    peer = node.peer
    if peer is None or node.state is NodeState.LOST:
        raise PeerUnreachable(f"node {node.name} is not connected")
    sent_at = cluster.wall()
    answer = await cluster.caller.call(
        peer,
        lambda message: cluster.send(peer, message),
        "instance.trace",
        {"incarnation": instance.incarnation},
        timeout_s=ASK_S,
    )
    return told_of(answer, sent_at, cluster.wall())


def _why(node: Node, error: SwarmError) -> str:
    """Why a node's agent has said nothing, to follow its title."""
    match error:
        case UnknownMethod():
            return f"{node.name} runs release {node.facts.release}, which keeps no timeline"
        case NotFound():
            return f"{node.name} does not have it, or not yet"
        case PeerUnreachable() | DeadlineExceeded():
            return f"{node.name} does not answer"
        case ProtocolError():
            _log.warning("not understood", node=node.name, error=str(error))
            return f"{node.name} is not understood ({error.what})"
        case _:
            return f"{node.name} could not say ({error.what})"
