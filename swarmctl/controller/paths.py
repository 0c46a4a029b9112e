"""The path of an instance's packets, hop by hop, from its interface to the hosts' network. Pure.

On a tenant network it is computed from what OVN's rows are computed from (the instance's
attachments, the networks' records), with what the agents see: the device that a port is plugged in
by, whether OVN has installed it, and the address that its host encapsulates from.  Those of a pod
are its VM's host's to say.  On a network of the node's own it is what the driver says.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from swarmctl.controller.instance import Instance
from swarmctl.controller.nesting import is_nested, vm_of
from swarmctl.controller.networks import NetworkRecord
from swarmctl.controller.state import ClusterState
from swarmctl.controller.timelines import Told
from swarmctl.net.mtu import GENEVE_V4_BYTES, GENEVE_V6_BYTES
from swarmctl.proto.messages import Attachment

_NOT_SEEN: Final = "not seen: the agent of {} does not say"
_STANDINGS: Final = {
    True: "installed",
    False: "OVN has not installed it",
    None: "not known whether OVN has installed it",
}

View = dict[str, Any]


@frozen
class Place:
    """Where an instance's ports are: on ``host``, for a pod in ``vm``, whose port is ``trunk``.

    ``node`` is the one that the instance was given to: of a pod the one in the VM.
    """

    node: str
    host: str
    vm: Instance | None = None
    trunk: str = ""


def place_of(state: ClusterState, instance: Instance) -> Place:
    """Where it is, as far as that is known."""
    node = state.nodes[instance.node]
    if not is_nested(node):
        return Place(instance.node, instance.node)
    vm = vm_of(state, node)
    if vm is None:
        return Place(instance.node, "")
    ports = state.ports.attachments.get(vm.incarnation, ())
    return Place(instance.node, vm.node, vm, ports[0].port if ports else "")


@frozen
class Seen:
    """What the host's agent says: its switch, and the ports that are plugged in there."""

    switch: Mapping[str, Any] | None = None
    ports: Mapping[str, Mapping[str, Any]] = field(factory=dict)


def seen_by(told: Told | None) -> Seen:
    """The part of an agent's answer that is about its switch."""
    if told is None:
        return Seen()
    return Seen(told.answer.get("switch"), told.answer.get("ports") or {})


def tenant_paths(state: ClusterState, instance: Instance, place: Place, seen: Seen) -> list[View]:
    """Its path on each of its tenant networks, in the order of its interfaces."""
    found: list[View] = []
    for index, one in enumerate(state.ports.attachments.get(instance.incarnation, ())):
        tenant, _, name = one.network.partition("/")
        record = state.ports.table.records.get((tenant, name))
        wish = state.ports.wishes.get(one.port)
        groups = list(wish.security_groups) if wish is not None else []
        interface = "" if instance.driver == "libvirt" else f"eth{index}"
        view = _port_view(one, interface, place, seen)
        if view["installed"] is False and state.ports.book.is_trunk(view["trunk"] or one.port):
            view["installed"] = None  # OVN takes it back with any pod's port that goes.
        wrapping = _wrapping(record, one, state.ports.table.underlay_mtu, seen)
        hops = [_at_instance(instance, view), *_at_host(view, place, seen, groups)]
        hops.append(_to_others(view, wrapping))
        found.append(view | {"security_groups": groups, **wrapping, "hops": hops})
    return found


def _port_view(one: Attachment, interface: str, place: Place, seen: Seen) -> View:
    # A pod's port is a subport: what is plugged in on the host is its VM's.
    plug = seen.ports.get(place.trunk if one.vlan else one.port)
    return {
        "network": one.network.partition("/")[2],
        "kind": "tenant",
        "interface": interface,
        "mac": one.mac,
        "addresses": list(one.addresses),
        "mtu": one.mtu,
        "port": one.port,
        "vlan": one.vlan,
        "trunk": place.trunk if one.vlan else "",
        "vm": place.vm.name if one.vlan and place.vm is not None else "",
        "node": place.node,
        "host": place.host,
        "bridge": str(seen.switch.get("bridge", "")) if seen.switch else "",
        "device": str(plug.get("device", "")) if plug else "",
        "installed": bool(plug.get("installed")) if plug else None,
    }


def _wrapping(record: NetworkRecord | None, one: Attachment, underlay_mtu: int, seen: Seen) -> View:
    """How packets go to other hosts: what is around them, and what is left for them."""
    provider = record.definition.provider if record is not None else None
    if provider is not None:
        vlan = f", VLAN {provider.vlan}" if provider.vlan else ""
        return {
            "encapsulation": "",
            "provider": f"{provider.physical_network}{vlan}",
            "underlay_address": "",
            "underlay_mtu": underlay_mtu,
            "encapsulation_bytes": 0,
            "mtu_left": min(one.mtu or underlay_mtu, underlay_mtu),
        }
    address = str(seen.switch.get("address", "")) if seen.switch else ""
    around = GENEVE_V6_BYTES if ":" in address else GENEVE_V4_BYTES
    return {
        "encapsulation": "geneve",
        "provider": "",
        "underlay_address": address,
        "underlay_mtu": underlay_mtu,
        "encapsulation_bytes": around,
        "mtu_left": underlay_mtu - around,
    }


def hop(kind: str, where: str, what: str) -> View:
    """One hop, as ``trace`` shows it."""
    return {"hop": kind, "where": where, "what": what}


def _at_instance(instance: Instance, view: View) -> View:
    parts = [view["interface"], view["mac"], *view["addresses"], f"MTU {view['mtu']}"]
    return hop("interface", instance.name, ", ".join(part for part in parts if part))


def _at_host(view: View, place: Place, seen: Seen, groups: list[str]) -> list[View]:
    hops: list[View] = []
    if view["vlan"]:
        vm = f"{view['vm']} ({place.node})" if view["vm"] else place.node
        hops.append(hop("trunk", vm, f"VLAN {view['vlan']} on the VM's port {view['trunk']}"))
    if seen.switch is None:
        plugged = _NOT_SEEN.format(place.host or "its host")
    elif not view["device"]:
        plugged = "not plugged in"
    else:
        plugged = f"{view['device']} on {view['bridge']}, {_STANDINGS[view['installed']]}"
    hops.append(hop("port", place.host, f"{view['port']}: {plugged}"))
    if groups:
        hops.append(hop("security", place.host, f"groups {', '.join(groups)}"))
    return hops


def _to_others(view: View, wrapping: View) -> View:
    host = view["host"]
    if wrapping["provider"]:
        return hop("provider", host, f"as it is onto {wrapping['provider']}: nothing around it")
    source = f"from {wrapping['underlay_address']}, " if wrapping["underlay_address"] else ""
    return hop(
        "geneve",
        host,
        f"{source}{wrapping['encapsulation_bytes']} bytes around it, "
        f"{wrapping['mtu_left']} of {wrapping['underlay_mtu']} left",
    )


# --- networks of the node's own ---------------------------------------------------------------


def node_paths(instance: Instance, told: Told | None) -> list[View]:
    """Its path on networks of its node's own (Docker's, libvirt's), as the driver says."""
    links = told.answer.get("links") or [] if told is not None else []
    return [_node_path(instance, link) for link in links]


def _node_path(instance: Instance, link: Mapping[str, Any]) -> View:
    # What a VM was leased, its driver says elsewhere.
    addresses = list(link.get("addresses") or instance.addresses)
    view: View = {"network": str(link.get("network", "")), "kind": "node"}
    view |= {key: str(link.get(key, "")) for key in ("mac", "gateway", "bridge", "device")}
    view |= {
        "addresses": addresses,
        "nat": bool(link.get("nat")),
        "published": list(instance.ports),
        "node": instance.node,
        "host": instance.node,
    }
    parts = [view["network"], view["mac"], *addresses]
    hops = [hop("interface", instance.name, ", ".join(part for part in parts if part))]
    if view["bridge"]:
        parts = [view["device"], view["bridge"], view["gateway"] and f"gateway {view['gateway']}"]
        hops.append(hop("bridge", instance.node, ", ".join(part for part in parts if part)))
    if view["nat"]:
        hops.append(hop("NAT", instance.node, "out: behind the node's address"))
    hops += [hop("published", instance.node, port) for port in instance.ports]
    return view | {"hops": hops}
