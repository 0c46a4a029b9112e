"""Nested nodes: a node that is a VM of ours, and the trunk that its pods are plugged into.

A node that enrolled with a VM's token is in that VM (:mod:`swarmctl.controller.guests`).  Another
says in its facts which VM it is: the VM's port, its incarnation (``7-42``), or its name (``db.1``),
whichever it was told.  The VM's first port carries the pods' VLANs.

Which VM that is, is found once a session and remembered (``Ports.vms``): a name may mean another
incarnation later, and then the node in the one before is still in that.

What a trunk cannot take is found out when something is to be plugged into it; it is an *obstacle*
from then on, by which the scheduler passes the node over, until it is none any more.
"""

from collections.abc import Iterable
from typing import Final

from swarmctl.controller.guests import vm_of_token
from swarmctl.controller.instance import Instance
from swarmctl.controller.networks import NetworkKey
from swarmctl.controller.state import ClusterState, Node
from swarmctl.net.names import parse_port_name
from swarmctl.net.vlans import VLAN_MAX
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import NothingFits

# Networks of which a VM has spares before the first pod of them comes.
WARM_NETWORKS_MAX: Final = 8


def is_nested(node: Node) -> bool:
    """Whether the node is a VM."""
    return bool(node.facts.parent or vm_of_token(node.record.token_id))


def vm_of(state: ClusterState, node: Node) -> Instance | None:
    """The VM that ``node`` is; None when it is a machine, or the VM is not known."""
    own = vm_of_token(node.record.token_id)
    if not own and not node.facts.parent:
        return None
    known = state.ports.vms.get(node.name)
    if known is not None:
        host = state.nodes.get(known.node)
        return known if host is not None and known.incarnation in host.instances else None
    found = _by_incarnation(state, own) if own else _find(state, node.facts.parent)
    if found is not None:
        state.ports.vms[node.name] = found
    return found


def _find(state: ClusterState, told: str) -> Instance | None:
    found = parse_port_name(state.cluster_id, told)
    if found is not None:
        return _by_incarnation(state, found[0])
    service, dot, slot = told.rpartition(".")
    if dot and slot.isdigit():
        for (_, name), one in state.services.items():
            if name == service and int(slot) in one.holders:
                return one.holders[int(slot)]
        return None
    try:
        return _by_incarnation(state, incarnations.parse(told))
    except ValueError:
        return None


def _by_incarnation(state: ClusterState, incarnation: int) -> Instance | None:
    for node in state.nodes.values():
        if incarnation in node.instances:
            return node.instances[incarnation]
    return None


def trunk_of(state: ClusterState, node: Node) -> str:
    """The port of the VM that ``node`` is; empty when it is a machine.

    Raises:
        NothingFits: it is a VM, and no port of it is known.
    """
    if not is_nested(node):
        return ""
    vm = vm_of(state, node)
    ports = state.ports.attachments.get(vm.incarnation, ()) if vm is not None else ()
    if not ports:
        raise NothingFits(
            f"{node.name} is in the VM {node.facts.parent}, of which no port is known",
            hint="plug the VM's service into a tenant network, with trunk: true",
        )
    return ports[0].port


def obstacle(state: ClusterState, node: Node, key: NetworkKey | None) -> str:
    """Why nothing can be plugged into a network on ``node``, or into any (None); or nothing."""
    try:
        parent = trunk_of(state, node)
    except NothingFits as error:
        return error.what if key is None else ""
    if not parent:
        return ""
    if key is None:
        free = state.ports.book.vlans_free(parent) or state.ports.subports.any_on(parent)
        return "" if free else f"all {VLAN_MAX} VLANs of the trunk are taken on {node.name}"
    record = state.ports.table.records.get(key)
    return state.ports.too_wide(record, parent) if record is not None else ""


def look_at(state: ClusterState, node: Node, keys: Iterable[NetworkKey | None]) -> bool:
    """Note which of these are obstacles on ``node``; whether that is news."""
    found = {key: why for key in keys if (why := obstacle(state, node, key))}
    changed = found != node.obstacles
    node.obstacles = found
    return changed


def nodes_in(state: ClusterState, vm: Instance) -> list[Node]:
    """The nodes that the VM is; nearly always one, or none."""
    if not (vm.incarnation in state.guests.vms or state.ports.carries(vm.incarnation)):
        return []  # Most are no trunks, and to look at every node takes time.
    return [node for node in state.nodes.values() if is_nested(node) and vm_of(state, node) is vm]


def warm(state: ClusterState, node: Node) -> None:
    """A node in a VM has come: have spare subports there of the networks that are in use."""
    keys = {
        (service.key[0], use.network): None
        for service in state.services.values()
        if service.record.spec.template.container is not None
        for use in service.record.spec.template.networks
    }
    try:
        parent = trunk_of(state, node)
    except NothingFits:
        return  # Its VM is not known yet: the first pod warms its own network.
    if parent:
        state.ports.warm(parent, list(keys)[:WARM_NETWORKS_MAX])


def replace_port(state: ClusterState, instance: Instance, port: str, now: float) -> None:
    """A port of an instance did not come up, for which its launch failed at ``now``.

    One on a trunk is not tried for ever: it goes with this incarnation, and the next one of that
    slot gets another.
    """
    service = state.services.get(instance.key)
    if service is None or service.holders.get(instance.slot) is not instance:
        return
    if state.ports.condemn(instance.incarnation, port):
        instance.departure = f"its port {port} did not come up, and is replaced"
        service.history.append((now, f"{instance.name}: {instance.departure}"))
        state.remove(instance)
