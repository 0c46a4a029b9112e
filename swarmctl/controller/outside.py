"""The way of a packet from an instance to an address outside, or why there is none. Pure.

It leaves by the default route: over the tenant's router, which is on the sender's host, to the node
that is the uplink's gateway, where the sender's address becomes the router's (SNAT) or its own
floating one, and from there onto the physical network.  On a provider's network it is on the
physical network at once.  What lies beyond is not known, nor whether the address is anybody's.

Which of several gateways OVN has chosen is not asked: it is the first of them that lives.
"""

from ipaddress import ip_address

from swarmctl.controller import floating, uplinks
from swarmctl.controller.networks import NetworkRecord
from swarmctl.controller.paths import View, hop, tenant_paths
from swarmctl.controller.reach import End, no_way, plain, record_of
from swarmctl.controller.state import ClusterState
from swarmctl.net.reach import judge_out
from swarmctl.proto.messages import Attachment


def is_outside(state: ClusterState, tenant: str, address: str) -> bool:
    """Whether an address is in no subnet of the tenant's own networks."""
    records = [one for key, one in state.ports.table.records.items() if key[0] == tenant]
    return not any(one.definition.provider is None and _has(one, address) for one in records)


def way_out(state: ClusterState, source: End, address: str) -> View:
    """The way from ``source`` to ``address``, which is outside (:func:`is_outside`)."""
    found = no_way(address=address)
    given = state.ports.attachments.get(source.instance.incarnation, ())
    leaving = _leaving(state, given, address)
    if isinstance(leaving, str):
        return found | {
            "why": leaving or f"no path: {source.instance.name} is on no tenant network"
        }
    index, record = leaving
    own = tenant_paths(state, source.instance, source.place, source.seen)[index]
    if record.definition.provider is not None:
        hops = [*own["hops"], _beyond(record, own["provider"], address)]
    else:
        uplinked = _by_uplink(state, given[index], own, record, address)
        if isinstance(uplinked, str):
            return found | {"why": f"no path: {uplinked}"}
        hops = [*own["hops"][:-1], *uplinked.pop("hops")]
        found |= uplinked
    port = state.ports.wishes.get(given[index].port)
    if port is None:
        return found | {"why": "its port is not among those that OVN is told of"}
    groups = {key: one.group for key, one in state.ports.table.groups.items()}
    verdict = judge_out(port, address, groups)
    return found | {
        "reached": bool(verdict.passages),
        "why": verdict.stopped_by,
        "passes": [str(one) for one in verdict.passages],
        "hops": hops,
    }


def _leaving(
    state: ClusterState, given: tuple[Attachment, ...], address: str
) -> tuple[int, NetworkRecord] | str:
    """By which of its ports it leaves; or why by none, in words (empty: it has no ports)."""
    records = [record_of(state, one) for one in given]
    for index, record in enumerate(records):
        if record is not None and _has(record, address):
            return index, record  # A provider's, and the address is on its segment.
    why = ""
    for index, (one, record) in enumerate(zip(given, records, strict=True)):
        if record is not None and any(
            (":" in gateway) is (":" in address) for _, gateway in one.routes
        ):
            return index, record
        internal = record is not None and record.definition.internal
        reason = "is internal" if internal else f"has no way out of {_version(address)}"
        why = why or f"no path: network {one.network.partition('/')[2]} {reason}"
    return why


def _by_uplink(
    state: ClusterState, one: Attachment, own: View, record: NetworkRecord, address: str
) -> View | str:
    """What is known of a way by the uplink; or why there is none, in words."""
    tenant, uplink = record.key[0], state.ports.table.uplink
    if uplink is None:
        return "there is no uplink, by which tenants' networks have their way out"
    router, nodes = uplink.routers.get(tenant, ""), uplinks.gateway_nodes(state, uplink)
    if not router or not nodes:
        return f"the uplink {uplink.key[1]} has no {'gateway node' if router else 'router yet'}"
    if (":" in router) is not (":" in address):
        return f"the uplink {uplink.key[1]} has no {_version(address)}"
    lead = f"tenant {tenant}'s own, from {record.key[1]} to the uplink {uplink.key[1]}"
    hops = [hop("router", own["host"], lead)]
    if nodes[0] != own["host"]:
        source = f"from {own['underlay_address']}, " if own["underlay_address"] else ""
        around = f"{source}one header of {own['encapsulation_bytes']} bytes around it"
        hops.append(hop("geneve", f"{own['host']} to {nodes[0]}", around))
    floats = [each.address for each in floating.translated(state) if each.port == one.port]
    seen_as = next((each for each in floats if (":" in each) is (":" in address)), router)
    inside = next(each for each in plain(one) if (":" in each) is (":" in address))
    whose = "the router's address" if seen_as == router else "its own floating address"
    rest = f"; at {' or '.join(nodes[1:])} should {nodes[0]} fail" if nodes[1:] else ""
    kind = "snat" if seen_as == router else "floating"
    hops.append(hop(kind, nodes[0], f"{inside} becomes {seen_as}, {whose}{rest}"))
    provider = uplink.definition.provider
    vlan = f", VLAN {provider.vlan}" if provider is not None and provider.vlan else ""
    physical = f"{provider.physical_network}{vlan}" if provider is not None else ""
    hops.append(hop("provider", nodes[0], f"as it is onto {physical}: nothing around it"))
    hops.append(_beyond(uplink, physical, address))
    return {"hops": hops, "router": True, "uplink": uplink.key[1], "seen_as": seen_as}


def _beyond(record: NetworkRecord, physical: str, address: str) -> View:
    """The first that is not ours: the address itself, or the gateway on the physical network."""
    if _has(record, address):
        return hop("beyond", physical, f"{address}, if anybody there has it")
    gateways = [one.gateway for one in record.subnets if one.is_v6 is (":" in address)]
    return hop("beyond", physical, f"by the gateway {gateways[0]} there, which is none of ours")


def _has(record: NetworkRecord, address: str) -> bool:
    parsed = ip_address(address)
    return any(parsed in one.network for one in record.subnets)


def _version(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"
