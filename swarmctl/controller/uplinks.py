"""The way out of tenant networks, and in: one uplink, a router a tenant on it, its gateway nodes.

The uplink is a network on a provider that was made with ``uplink``.  Each tenant that has networks
of its own gets an address there for its router, behind which all that it sends is seen; it is kept
in the uplink's record, so that whoever lets it through elsewhere can rely on it.  Gateways are the
nodes whose Open vSwitch maps the uplink's physical network to a bridge, as their agents report;
those of nodes that have not reported since a takeover are taken from OVN's rows, so that no gateway
is given up for a controller that has just begun.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve

from swarmctl.controller.addressbook import Held
from swarmctl.controller.networks import NetworkRecord
from swarmctl.controller.state import ClusterState, Node
from swarmctl.net.model import RouterAddress, Uplink
from swarmctl.net.schema import Row
from swarmctl.proto.errors import Busy
from swarmctl.proto.states import NodeState

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster

# An agent's facts: its node's name in OVN, and the physical networks that are mapped there.
CHASSIS: Final = "chassis"
PHYSICAL: Final = "physical_networks"
# Each watches all others of a router, and the first that lives is used: more help nobody.
GATEWAYS_MAX: Final = 5


# --- routers' addresses ----------------------------------------------------------------------


@contextmanager
def joining(
    cluster: "Cluster", changed: Sequence[NetworkRecord]
) -> Iterator[Sequence[NetworkRecord]]:
    """``changed``, and the uplink's record with an address for each tenant that has none there.

    What was given is free again when the record was not written.

    Raises:
        NothingFits: the uplink has no address left.
        Busy: it is not known yet which are taken.
    """
    ports = cluster.state.ports
    after = ports.table.records | {one.key: one for one in changed}
    uplink = next((one for one in after.values() if one.definition.uplink), None)
    tenants = {one.key[0] for one in after.values() if one.definition.provider is None}
    missing = sorted(tenants - uplink.routers.keys()) if uplink is not None else []
    if uplink is None or not missing:
        yield changed
        return
    if not (ports.known or cluster.reconciler.settled):
        raise Busy("the controller has just started: which addresses are taken is not known yet")
    given: dict[str, str] = {}
    try:
        for tenant in missing:
            given[tenant] = ports.book.give_one(uplink, _holder(tenant))
        others = [one for one in changed if one.key != uplink.key]
        yield (*others, evolve(uplink, routers=uplink.routers | given))
    finally:
        written = ports.table.records.get(uplink.key)
        if written is None or not given.keys() <= written.routers.keys():
            _free(cluster.state, uplink, given)


def hold(state: ClusterState) -> None:
    """After a start: the routers' addresses are taken."""
    uplink = state.ports.table.uplink
    if uplink is not None:
        for tenant, address in uplink.routers.items():
            state.ports.book.hold(Held(uplink.key, (address,)), _holder(tenant), uplink)


def leave(state: ClusterState, uplink: NetworkRecord) -> None:
    """The uplink was removed, and the routers' addresses with it."""
    _free(state, uplink, uplink.routers)


def _free(state: ClusterState, uplink: NetworkRecord, routers: Mapping[str, str]) -> None:
    for tenant, address in routers.items():
        state.ports.book.free(Held(uplink.key, (address,)), _holder(tenant))


def _holder(tenant: str) -> str:
    return f"router/{tenant}"


# --- what OVN is told ------------------------------------------------------------------------


def wish(state: ClusterState, seen: Iterable[str]) -> Uplink | None:
    """The uplink with its gateways; None without any, for then nothing would pass.

    Args:
        state: of the cluster.
        seen: the gateways that OVN has.
    """
    record = state.ports.table.uplink
    if record is None:
        return None
    chassis = _gateways(state, record, seen)
    return Uplink(record.network, chassis) if chassis else None


def routers(state: ClusterState) -> Iterator[RouterAddress]:
    """The tenants' routers on the uplink."""
    record = state.ports.table.uplink
    if record is not None:
        yield from (RouterAddress(*one) for one in sorted(record.routers.items()))


def chassis_of(rows: Iterable[Row]) -> set[str]:
    """The gateways among the rows of OVN."""
    return {str(one.columns["chassis_name"]) for one in rows if one.table == "Gateway_Chassis"}


def _gateways(state: ClusterState, record: NetworkRecord, seen: Iterable[str]) -> tuple[str, ...]:
    nodes = sorted(state.nodes.values(), key=lambda one: one.name)
    mapping = [one for one in nodes if maps(one, _physical(record)) and _chassis(one)]
    # A node that is lost to us may be a good gateway still, which OVN sees; but not one of many.
    chosen = sorted(mapping, key=lambda one: one.state is NodeState.LOST)[:GATEWAYS_MAX]
    # Two agents on one machine share its switch.
    found = list(dict.fromkeys(_chassis(one) for one in mapping if one in chosen))
    if not all(one.reported for one in nodes):
        known = {_chassis(one) for one in nodes}
        found += sorted(one for one in seen if one not in known)
    return tuple(found[:GATEWAYS_MAX])


def maps(node: Node, physical_network: str) -> bool:
    """Whether the node has said that it maps a physical network to a bridge."""
    return physical_network in node.facts.facts.get(PHYSICAL, "").split(",")


def _chassis(node: Node) -> str:
    return node.facts.facts.get(CHASSIS, "")


def _physical(record: NetworkRecord) -> str:
    provider = record.definition.provider
    assert provider is not None, "an uplink is on a provider"
    return provider.physical_network


# --- views -----------------------------------------------------------------------------------


def why_unmapped(state: ClusterState, record: NetworkRecord) -> str:
    """Why a network on a provider leads nowhere: no node has its physical network; or nothing."""
    provider = record.definition.provider
    nodes = state.nodes.values()
    if provider is None or any(
        not one.reported or PHYSICAL not in one.facts.facts or maps(one, provider.physical_network)
        for one in nodes
    ):
        return ""
    name = provider.physical_network
    return f"no node maps {name} to a bridge: swarmctl agent --bridge {name}=BRIDGE"


def gateway_nodes(state: ClusterState, record: NetworkRecord) -> list[str]:
    """The nodes that are the uplink's gateways: OVN uses the first of them that lives."""
    nodes = {_chassis(one): one.name for one in state.nodes.values()}
    return [nodes.get(one, one) for one in _gateways(state, record, ())]


def view(state: ClusterState, record: NetworkRecord) -> dict[str, Any]:
    """The routers on the uplink, its gateway nodes, and the services that it leads to."""
    if not record.definition.uplink:
        return {}
    return {
        "routers": dict(record.routers),
        "gateway_nodes": gateway_nodes(state, record),
        "floating": {
            one.record.floating: one.record.spec.name
            for one in state.services.values()
            if one.record.floating
        },
    }
