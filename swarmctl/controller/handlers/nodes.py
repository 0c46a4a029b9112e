"""Requests about nodes and join tokens, and enrolment."""

import math
from typing import Any

from attrs import evolve

from swarmctl.controller import identity, records
from swarmctl.controller.access import TOKEN, name_of, role_of
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.guests import vm_of_token
from swarmctl.controller.nesting import is_nested, vm_of
from swarmctl.controller.records import NodeRecord, TokenRecord
from swarmctl.controller.state import Node
from swarmctl.controller.store.api import Delete, Op
from swarmctl.controller.views import instance_view, node_view
from swarmctl.proto import limits
from swarmctl.proto.errors import Conflict, NotFound, ProtocolError, Refused, VersionMismatch
from swarmctl.proto.messages import PROTOCOL_OLDEST, PROTOCOL_VERSION, Enrol, Enrolled
from swarmctl.proto.states import InstanceState
from swarmctl.spec.names import check_node_name
from swarmctl.transport.keys import is_z85_key
from swarmctl.transport.rpc import Call, Handler


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def node_list(call: Call) -> Any:
        del call
        return [_view(cluster, name, node) for name, node in sorted(cluster.state.nodes.items())]

    async def node_inspect(call: Call) -> Any:
        return _inspect(cluster, call.text("name"))

    async def node_change(call: Call) -> Any:
        return await _change(cluster, call)

    async def node_release(call: Call) -> Any:
        del call
        return _release(cluster)

    async def node_remove(call: Call) -> Any:
        return await _remove(cluster, call)

    async def token_create(call: Call) -> Any:
        return await _create_token(cluster, one_time=not call.flag("reusable"))

    async def token_list(call: Call) -> Any:
        del call
        return [_token_view(token) for token in cluster.tokens.values()]

    async def token_revoke(call: Call) -> Any:
        return await _revoke_token(cluster, call.text("id"))

    return {
        "node.list": node_list,
        "node.inspect": node_inspect,
        "node.change": node_change,
        "node.release": node_release,
        "node.remove": node_remove,
        "token.create": token_create,
        "token.list": token_list,
        "token.revoke": token_revoke,
    }


# --- nodes -----------------------------------------------------------------------------------


def _allocated(cluster: Cluster, name: str) -> dict[str, int]:
    return {k: int(v) for k, v in cluster.fleet.snapshot.allocated(name).items() if v}


def _view(cluster: Cluster, name: str, node: Node) -> Any:
    vm = vm_of(cluster.state, node) if is_nested(node) else None
    parent = vm.name if vm is not None else node.facts.parent
    ends_at = cluster.sessions.losses.brake_ends_at
    return node_view(node, _allocated(cluster, name), ends_at) | {
        "parent": parent,
        "host": vm.node if vm is not None else "",
    }


def _inspect(cluster: Cluster, name: str) -> Any:
    node = cluster.node(name)
    return _view(cluster, name, node) | {
        "driver_details": [
            {
                "driver": driver.name,
                "available": driver.available,
                "version": driver.version,
                "reason": driver.reason,
                "facts": driver.facts,
            }
            for driver in node.facts.drivers
        ],
        "facts": node.facts.facts,
        "operator_labels": node.record.labels,
        "enrolled": node.record.enrolled_at,
        "token": node.record.token_id,
        "hosts": [instance_view(cluster.state, one) for one in node.instances.values()],
    }


def _release(cluster: Cluster) -> Any:
    """End the storm brake: what lost nodes had is placed elsewhere now."""
    waiting = cluster.state.tally[InstanceState.LOST]
    released = cluster.sessions.losses.release_brake()
    return {"released": released, "instances": waiting if released else 0}


async def _change(cluster: Cluster, call: Call) -> Any:
    """Cordon, drain, uncordon or label nodes.

    Parameters: ``names``, ``cordoned`` and ``draining`` (optional; either said of a node ends the
    other), ``deadline_s`` (of a drain: from then on all that is left is taken away), ``labels``
    (name to value; "" takes it away).
    """
    names = call.texts("names")
    labels = _labels(call)
    modes = [mode for mode in ("cordoned", "draining") if call.params.get(mode) is not None]
    cordoned, draining = call.flag("cordoned"), call.flag("draining")
    deadline = _deadline(cluster, call) if draining else 0.0
    async with cluster.holding(records.NODE + name for name in names):
        changed: list[NodeRecord] = []
        for record in [cluster.node(name).record for name in dict.fromkeys(names)]:
            merged = {k: v for k, v in (record.labels | labels).items() if v}
            after = evolve(record, labels=merged)
            if modes:
                after = evolve(after, cordoned=cordoned, draining=draining, drain_deadline=deadline)
            changed.append(after)
        for start in range(0, len(changed), limits.TRANSACTION_OPS_MAX):
            await cluster.save_nodes(changed[start : start + limits.TRANSACTION_OPS_MAX])
    return {"nodes": list(names)}


def _deadline(cluster: Cluster, call: Call) -> float:
    """Of a drain, in epoch seconds; 0 when it has none."""
    seconds = call.params.get("deadline_s")
    if seconds is None:
        return 0.0
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ProtocolError("deadline_s is not a number of seconds", call.method)
    return cluster.wall() + float(seconds)


def _labels(call: Call) -> dict[str, str]:
    labels = call.params.get("labels") or {}
    if not isinstance(labels, dict) or not all(
        isinstance(one, str) for pair in labels.items() for one in pair
    ):
        raise ProtocolError("labels is not a map of texts", call.method)
    return labels


async def _remove(cluster: Cluster, call: Call) -> Any:
    """Take a node out of the registry; with ``force`` also one that is connected."""
    name, force = call.text("name"), call.flag("force")
    async with cluster.holding([records.NODE + name]):
        node = cluster.node(name)
        if node.connected and not force:
            raise Conflict(
                f"node {node.name} is connected, with {len(node.instances)} instances",
                hint="stop its agent first, or use --force: what runs there is left running, "
                "unmanaged, and is placed elsewhere",
            )
        await cluster.delete_node(node)
    return {"node": name}


# --- tokens ----------------------------------------------------------------------------------


def _token_view(token: TokenRecord) -> dict[str, Any]:
    return {
        "id": token.id,
        "one_time": token.one_time,
        "used_by": token.used_by,
        "created": token.created_at,
    }


async def _create_token(cluster: Cluster, *, one_time: bool) -> Any:
    token = identity.make_token(cluster.identity, cluster.addresses)
    record = TokenRecord(token.id, token.public_key, cluster.wall(), one_time)
    await cluster.save_token(record)
    return _token_view(record) | {"token": token.to_text()}


async def _revoke_token(cluster: Cluster, token_id: str) -> Any:
    async with cluster.holding([records.TOKEN + token_id]):
        token = cluster.tokens.get(token_id)
        if token is None:
            raise NotFound(f"no token {token_id!r}", hint="'swarmctl token ls' lists them")
        await cluster.delete_token(token)
    standing = identity.read_join_token(cluster.folder)
    if standing is not None and standing.id == token_id:
        identity.remove_join_token(cluster.folder)
    return {"id": token_id}


# --- enrolment -------------------------------------------------------------------------------


async def enrol(cluster: Cluster, user: str, request: Enrol) -> Enrolled:
    """Pin the key of a node that holds a join token.

    The same key under the same name may enrol again: its answer was lost.

    Raises:
        Refused: not over a token's connection, the token has been used, or the key revoked.
        Conflict: another key has the name, or another user the key.
        InvalidSpec: not a name for a node.
        ProtocolError: not a key, or not a version that we speak.
    """
    if role_of(user) != TOKEN:
        raise Refused("enrolment needs a join token", hint="make one with: swarmctl token create")
    if not PROTOCOL_OLDEST <= request.protocol <= PROTOCOL_VERSION + 1:
        raise VersionMismatch(
            f"the agent speaks protocol {request.protocol} (release {request.release}), "
            f"this controller {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}",
            hint="upgrade the older of the two",
        )
    check_node_name(request.node)
    if not is_z85_key(request.public_key):
        raise ProtocolError("what should be the node's public key is none", request.node)
    token_id = name_of(user)
    token = cluster.tokens.get(token_id)
    # The name and the key, each for one node alone; and a token that only one may use. Who uses
    # any other does not wait for the others' disk writes: they are committed together.
    locks = [records.NODE + request.node, records.REVOKED + request.public_key]
    if vm_of_token(token_id) or (token is not None and token.one_time):
        locks.append(records.TOKEN + token_id)
    async with cluster.holding(locks):
        await _pin(cluster, token_id, request)
    return Enrolled(request.node, cluster.state.cluster_id)


def _token(cluster: Cluster, token_id: str) -> TokenRecord:
    """The token that an enrolment came with.

    Raises:
        Refused: it was revoked, or its VM is gone.
    """
    vm = cluster.state.guests.issued(token_id)
    if vm is not None:
        # Who used it is in the registry, and in what was taken out of it.
        nodes = cluster.state.nodes.values()
        used = [node.name for node in nodes if node.record.token_id == token_id]
        removed = token_id in cluster.revoked.values()
        by = used[0] if used else "a node that was removed" if removed else ""
        return TokenRecord(token_id, vm.public_key, 0.0, one_time=True, used_by=by)
    if vm_of_token(token_id):
        raise Refused("this token is for a VM that is gone, or was replaced", token_id)
    token = cluster.tokens.get(token_id)
    if token is None:
        raise Refused("this token was revoked", hint="make another with: swarmctl token create")
    return token


async def _pin(cluster: Cluster, token_id: str, request: Enrol) -> None:
    """Pin the key, unless it is already, or may not be; the locks are held."""
    token = _token(cluster, token_id)
    if request.public_key in cluster.revoked:
        raise Refused(
            f"node {request.node} was removed (node rm), and its key revoked",
            hint="enrol it again with an empty data folder",
        )
    node = cluster.state.nodes.get(request.node)
    if node is not None and node.record.public_key != request.public_key:
        raise Conflict(
            f"a node {request.node!r} exists already, with another key",
            hint=f"choose another --name, or first: swarmctl node rm {request.node}",
        )
    if node is not None and token.used_by in ("", request.node):
        return  # Its answer was lost.
    if token.one_time and token.used_by:
        raise Refused(
            f"this token was used by {token.used_by}",
            hint="make another with: swarmctl token create",
        )
    owner = cluster.access.authorise(request.public_key)
    if owner is not None:
        raise Conflict(
            f"the key of {request.node!r} is that of {owner}",
            hint="enrol it again with an empty data folder",
        )
    kept = token.id in cluster.tokens  # A VM's is nowhere but in the registry, once it is used.
    extra: list[Op] = [Delete(records.TOKEN + token.id)] if kept and token.one_time else []
    record = NodeRecord(request.node, request.public_key, cluster.wall(), token.id)
    await cluster.save_nodes([record], *extra)
    if extra:
        # Its key stays in for this run, so that a lost answer can be asked for again.
        cluster.tokens[token.id] = evolve(token, used_by=request.node)
