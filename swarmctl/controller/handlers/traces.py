"""``instance.trace``: the launch of one instance as a timeline, and the paths of its packets.

The instance's agent is asked for its side (:func:`swarmctl.controller.timelines.told_of`), and of
a pod the agent of its VM's host, too.  What they do not answer is left out, and ``notes`` say so:
nothing of this is an error, for a trace is asked for when something is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
import trio

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers.targets import holders, sole, tenant_of
from swarmctl.controller.instance import Instance
from swarmctl.controller.outside import is_outside, way_out
from swarmctl.controller.paths import node_paths, place_of, seen_by, tenant_paths
from swarmctl.controller.reach import End, reach
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
    InvalidSpec,
    NotFound,
    PeerUnreachable,
    ProtocolError,
    SwarmError,
)
from swarmctl.proto.states import InstanceState, NodeState
from swarmctl.spec.attachments import parse_address
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
        """``name``; with ``to`` (an instance, or an address) the whole way there, too."""
        target = sole(cluster, call.text("name"), tenant_of(call))
        to, address = _other_end(cluster, call)
        service = cluster.state.services.get(target.key)
        if service is not None and target.slot not in service.holders:
            for view in pending_views(service):
                if view["instance"] == target.name:
                    return _nowhere(cluster, view)
        found = holders(cluster, [target])
        if not found:
            raise NotFound(f"no instance of {target.name} is on any node now")
        if to is found[0]:
            raise InvalidSpec("it is the instance itself", "--to")
        return await _trace(cluster, found[0], to, address)

    return {"instance.trace": trace}


def _other_end(cluster: Cluster, call: Call) -> tuple[Instance | None, str]:
    """The instance that ``to`` means, and the address where it is one; of one outside only that.

    Raises:
        NotFound: no instance is called so, is on a node, or has the address of a tenant network.
        InvalidSpec: it is a service's own address, on a network or floating.
    """
    named, tenant = call.text("to", ""), tenant_of(call)
    if not named:
        return None, ""
    try:
        address = parse_address(named)
    except InvalidSpec:
        found = holders(cluster, [sole(cluster, named, tenant)])
        if not found:
            raise NotFound(f"no instance of {named} is on any node now", "--to") from None
        return found[0], ""
    for service in cluster.state.services.values():
        own = {*service.record.addresses.values(), service.record.floating}
        if service.key[0] == tenant and address in own:
            raise InvalidSpec(
                f"{address} is service {service.key[1]}'s own, led by OVN to its instances",
                "--to",
                f"name one of them, such as {service.key[1]}.1",
            )
    for node in cluster.state.nodes.values():
        for instance in node.instances.values():
            if instance.key[0] == tenant and address in cluster.state.ports.addresses_of(
                instance.incarnation
            ):
                return instance, address
    if is_outside(cluster.state, tenant, address):
        return None, address
    raise NotFound(
        f"no instance has the address {address} on a tenant network",
        "--to",
        "'swarmctl ps' lists the addresses there are",
    )


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
        "to": None,
        "notes": [],
    }


async def _trace(cluster: Cluster, instance: Instance, to: Instance | None, address: str) -> View:
    state, notes = cluster.state, list[str]()
    told = await _ask_all(cluster, [one for one in (instance, to) if one is not None], notes)
    own = told.get(instance.incarnation)
    moments = _own_moments(cluster, instance)
    moments += own.moments if own is not None else _reported(cluster, instance)
    if instance.state is InstanceState.LOST:
        moments.append(Moment("lost", CONTROLLER, instance.since, instance.reason))
    clocks = own.clocks if own is not None else None
    end = _end(cluster, instance, told)
    paths = tenant_paths(state, instance, end.place, end.seen) or node_paths(instance, own)
    way: View | None = None
    if to is not None:
        way = reach(state, end, _end(cluster, to, told), address)
    elif address:
        way = way_out(state, end, address)
    on = [(instance.key[0], one["network"]) for one in paths if one["kind"] == "tenant"]
    uplink = state.ports.table.uplink
    if way is not None and way["uplink"] and uplink is not None:
        on.append(uplink.key)
    for key in on:
        standing, why, _ = cluster.plane.standing(key)
        if standing in ("absent", "faulty", "pending"):
            notes.append(f"network {key[1]} is {standing}: {why}")
    if own is not None and not paths:
        notes.append("it has no network that its agent knows of")
    view = {key: value for key, value in instance_view(state, instance).items() if key in _SHOWN}
    return view | {
        "steps": joined(moments, clocks),
        "clocks": clocks_view(moments, clocks),
        "networks": paths,
        "to": way,
        "notes": notes,
    }


def _end(cluster: Cluster, instance: Instance, told: Mapping[int, Told]) -> End:
    """Where an instance's packets begin, or end; a pod's host is seen by that host's agent."""
    place = place_of(cluster.state, instance)
    teller = instance if place.vm is None else place.vm
    return End(instance, place, seen_by(told.get(teller.incarnation)))


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
    """What the node reported last, by its own clock."""
    if not instance.reported:
        return []
    state, since = instance.state, instance.since
    if state is InstanceState.LOST:
        before = cluster.state.nodes[instance.node].lost.get(instance.incarnation)
        if before is None:
            return []
        state, since, _ = before
    return [Moment(state.label, AGENT, since, "as its node reported last")]


# --- asking agents ----------------------------------------------------------------------------


async def _ask_all(
    cluster: Cluster, instances: Sequence[Instance], notes: list[str]
) -> dict[int, Told]:
    """The answers of their agents, and for pods those of their VMs' hosts, by incarnation.

    Why one does not answer is noted.
    """
    told: dict[int, Told] = {}

    async def ask(one: Instance, whose: str, rest: str) -> None:
        node = cluster.state.nodes[one.node]
        try:
            told[one.incarnation] = await _ask(cluster, node, one)
        except SwarmError as error:
            notes.append(f"{whose} {_why(node, error)}: {rest}")
        else:
            problems = told[one.incarnation].answer.get("problems") or []
            notes.extend(f"{node.name}: {problem}" for problem in problems)

    asked: set[int] = set()
    async with trio.open_nursery() as nursery:
        for position, one in enumerate(instances):
            whose = "its node" if not position else f"the node of {one.name}"
            rest = "what the controller knows is shown"
            vm = place_of(cluster.state, one).vm
            carried = vm is not None and cluster.state.ports.attachments.get(one.incarnation)
            wanted = [(one, whose, rest)]
            wanted += (
                [(vm, f"the host of {vm.name}", "its part is left out")] if vm and carried else []
            )
            for each in wanted:
                if each[0].incarnation not in asked:
                    asked.add(each[0].incarnation)
                    nursery.start_soon(ask, *each)
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
