"""The services' own addresses: where the published ports of a service are reached on its networks.

A service that publishes ports has one address on each of its tenant networks, kept in its record
for as long as it is there; OVN shares the load among the instances.  Like those of ports, such an
address is free again once OVN no longer answers there: :func:`free_unused`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import evolve

from swarmctl.controller.addressbook import Held
from swarmctl.controller.networks import NetworkKey
from swarmctl.controller.ports import Ports
from swarmctl.controller.records import ServiceRecord
from swarmctl.controller.state import ClusterState
from swarmctl.net.model import Protocol, PublishedPort, ServiceAddress
from swarmctl.proto.errors import Busy
from swarmctl.spec.models import ServiceSpec

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster


def published(spec: ServiceSpec) -> tuple[PublishedPort, ...]:
    """The ports that the service's addresses answer on; those of SCTP are not among them."""
    container = spec.template.container
    if container is None or not spec.template.networks:
        return ()
    found = {
        (one.host_port or one.container_port, one.protocol): PublishedPort(
            one.host_port or one.container_port, one.container_port, Protocol(one.protocol)
        )
        for one in container.ports
        if one.protocol in (Protocol.TCP, Protocol.UDP)
    }
    return tuple(found.values())


def addressed(cluster: "Cluster", record: ServiceRecord) -> ServiceRecord:
    """The record with an address on each of its networks, where it needs one.

    Raises:
        NothingFits: a network has no address left.
        Busy: it is not known yet which are taken.
    """
    ports = cluster.state.ports
    if not (ports.active and published(record.spec)):
        return record
    if not (ports.known or cluster.reconciler.settled):
        raise Busy("the controller has just started: which addresses are taken is not known yet")
    addresses = dict(record.addresses)
    for use in record.spec.template.networks:
        if use.network not in addresses:
            key = (record.spec.tenant, use.network)
            holder = _holder(record.spec)
            addresses[use.network] = ports.book.give_one(ports.table.get(key), holder)
            ports.services[holder, key] = addresses[use.network]
            ports.giving.add((holder, key))
    return evolve(record, addresses=addresses)


@contextmanager
def giving(cluster: "Cluster") -> Iterator[Callable[[ServiceRecord], ServiceRecord]]:
    """While records are being written, the addresses that :func:`addressed` gave them are kept."""
    ports = cluster.state.ports
    given: set[tuple[str, NetworkKey]] = set()

    def give(record: ServiceRecord) -> ServiceRecord:
        before = set(ports.giving)
        try:
            return addressed(cluster, record)
        finally:
            given.update(ports.giving - before)

    try:
        yield give
    finally:
        if given:
            ports.giving -= given
            ports.changed()


def hold(cluster: "Cluster") -> None:
    """After a start: what the records say is taken."""
    ports = cluster.state.ports
    for service in cluster.state.services.values():
        for network, address in service.record.addresses.items():
            key = (service.key[0], network)
            _hold(ports, _holder(service.record.spec), key, address)


def _hold(ports: Ports, holder: str, key: NetworkKey, address: str) -> None:
    ports.services[holder, key] = address
    ports.book.hold(Held(key, (address,)), holder, ports.table.records.get(key))


def _holder(spec: ServiceSpec) -> str:
    return f"service/{spec.tenant}/{spec.name}"


def wishes(state: ClusterState) -> Iterator[ServiceAddress]:
    """What OVN is to answer for."""
    for service in state.services.values():
        if not service.record.addresses:
            continue
        spec = service.record.spec
        for use in spec.template.networks:
            address = service.record.addresses.get(use.network)
            if address is not None and (answered := published(spec)):
                yield ServiceAddress(spec.tenant, spec.name, use.network, address, answered)


def free_unused(state: ClusterState, told: frozenset[tuple[str, NetworkKey]]) -> bool:
    """OVN answers for ``told`` only: what is of no record, nor being written, is free.

    Returns:
        Whether there was any.
    """
    ports = state.ports
    kept = {
        (_holder(one.record.spec), (one.key[0], network))
        for one in state.services.values()
        for network in one.record.addresses
    }
    unused = ports.services.keys() - kept - told - ports.giving
    for holder, key in unused:
        address = ports.services.pop((holder, key))
        ports.book.free(Held(key, (address,)), holder)
    return bool(unused)


def told_of(one: ServiceAddress) -> tuple[str, NetworkKey]:
    """By what :func:`free_unused` knows it."""
    return f"service/{one.tenant}/{one.service}", (one.tenant, one.network)
