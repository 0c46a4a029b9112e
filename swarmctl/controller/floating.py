"""Floating addresses: where a service is reached at the uplink, for as long as it asks for it.

The address is in the service's record (DESIGN 9: durable intent), given when that is written, and
of the uplink's subnets; like all others it is free again once OVN no longer answers there.  A
service that publishes ports is behind a load balancer of the tenant's router, at those ports; of
another the first slot's port has the whole address, in both directions, on whatever node it is.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from attrs import evolve

from swarmctl.controller.addressbook import Own
from swarmctl.controller.records import ServiceRecord
from swarmctl.controller.state import ClusterState
from swarmctl.net.model import FloatingAddress, ServiceAddress, Wishes
from swarmctl.proto.errors import Busy, Conflict
from swarmctl.spec.floating import AUTO, published
from swarmctl.spec.models import ServiceSpec

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster

_PREFIX: Final = "floating/"


def floated(cluster: "Cluster", record: ServiceRecord) -> ServiceRecord:
    """The record with the floating address that its spec asks for, or without one.

    Raises:
        NothingFits: the uplink has no address left.
        Conflict: the address is another's, or there is no OVN.
        Busy: it is not known yet which are taken.
    """
    asked = record.spec.floating
    if not asked:
        return evolve(record, floating="") if record.floating else record
    ports = cluster.state.ports
    uplink = ports.table.uplink
    if uplink is None or not ports.active:
        raise Conflict(
            "a floating address needs OVN and an uplink",
            record.spec.name,
            "start the controller with --ovn, and see 'swarmctl network create --help'",
        )
    if record.floating and asked in (AUTO, record.floating):
        return record
    if not (ports.known or cluster.reconciler.settled):
        raise Busy("the controller has just started: which addresses are taken is not known yet")
    holder = _holder(record.spec)
    if asked == AUTO:
        address = ports.book.give_one(uplink, holder)
    else:
        address = asked
        other = ports.book.holder(uplink.key, address)
        # What is its own, and was to be freed, it may have again.
        if other is not None and other != holder:
            raise Conflict(
                f"the address {address} has been given to {_whose(cluster.state, other)}",
                record.spec.name,
                f'choose another, or "{AUTO}"; swarmctl network inspect {uplink.key[1]} lists them',
            )
        if other is None:
            ports.book.take(uplink, address, holder)
    own = (holder, uplink.key, address)
    ports.services.add(own)
    ports.giving.add(own)
    return evolve(record, floating=address)


def owned(state: ClusterState) -> Iterator[Own]:
    """The floating addresses of the records."""
    uplink = state.ports.table.uplink
    if uplink is not None:
        for service in state.services.values():
            if service.record.floating:
                yield _holder(service.record.spec), uplink.key, service.record.floating


# --- what OVN is told ------------------------------------------------------------------------


def balanced(state: ClusterState) -> Iterator[ServiceAddress]:
    """The floating addresses of services that publish ports."""
    for spec, address in _led_to(state):
        if ports := published(spec):
            network = spec.template.networks[0].network
            yield ServiceAddress(spec.tenant, spec.name, network, address, ports, external=True)


def translated(state: ClusterState) -> Iterator[FloatingAddress]:
    """Those of the others, as long as there is an instance."""
    for spec, address in _led_to(state):
        holder = state.services[spec.tenant, spec.name].holders.get(1)
        given = state.ports.attachments.get(holder.incarnation, ()) if holder is not None else ()
        if given and not published(spec):
            yield FloatingAddress(spec.tenant, address, given[0].port)


def _led_to(state: ClusterState) -> Iterator[tuple[ServiceSpec, str]]:
    for service in state.services.values():
        if service.record.floating and service.record.spec.template.networks:
            yield service.record.spec, service.record.floating


def told_of(state: ClusterState, wishes: Wishes) -> set[Own]:
    """Those of the services' addresses that are floating, and that OVN answers for."""
    addresses = {one.address for one in wishes.services if one.external}
    addresses |= {one.address for one in wishes.floating}
    return {
        own for own in state.ports.services if own[0].startswith(_PREFIX) and own[2] in addresses
    }


# --- whose -----------------------------------------------------------------------------------


def _holder(spec: ServiceSpec) -> str:
    return f"{_PREFIX}{spec.tenant}/{spec.name}"


def _whose(state: ClusterState, holder: str) -> str:
    kind, _, name = holder.partition("/")
    if kind == "router":
        return f"the router of tenant {name}"
    if kind in ("floating", "service"):
        return f"the service {name.partition('/')[2]}"
    port = state.ports.wishes.get(holder)
    return port.instance if port is not None else "a port that OVN has not removed yet"
