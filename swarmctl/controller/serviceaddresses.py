"""The services' own addresses: where the published ports of a service are reached on its networks.

A service that publishes ports has one address on each of its tenant networks, kept in its record
for as long as it is there; OVN shares the load among the instances.  Like those of ports, such an
address is free again once OVN no longer answers there: :func:`free_unused`.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import evolve

from swarmctl.controller.addressbook import Held, Own
from swarmctl.controller.floating import floated, owned
from swarmctl.controller.ports import Ports
from swarmctl.controller.records import ServiceRecord
from swarmctl.controller.state import ClusterState
from swarmctl.net.model import ServiceAddress, Wishes
from swarmctl.proto.errors import Busy
from swarmctl.spec.floating import published
from swarmctl.spec.models import ServiceSpec

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster


def addressed(cluster: "Cluster", record: ServiceRecord) -> ServiceRecord:
    """The record with an address on each of its networks, where it needs one, and on no others.

    Raises:
        NothingFits: a network has no address left.
        Busy: it is not known yet which are taken.
    """
    ports = cluster.state.ports
    used = {use.network for use in record.spec.template.networks}
    if not used.issuperset(record.addresses):
        kept = {name: address for name, address in record.addresses.items() if name in used}
        record = evolve(record, addresses=kept)
    if not (ports.active and published(record.spec)):
        return record
    if not (ports.known or cluster.reconciler.settled):
        raise Busy("the controller has just started: which addresses are taken is not known yet")
    addresses = dict(record.addresses)
    for use in record.spec.template.networks:
        if use.network not in addresses:
            key = (record.spec.tenant, use.network)
            holder = _holder(record.spec)
            address = ports.book.give_one(ports.table.get(key), holder)
            addresses[use.network] = address
            ports.services.add((holder, key, address))
            ports.giving.add((holder, key, address))
    return evolve(record, addresses=addresses)


@contextmanager
def giving(cluster: "Cluster") -> Iterator[Callable[[ServiceRecord], ServiceRecord]]:
    """While records are being written, what addresses they were given is kept; see the yielded."""
    ports = cluster.state.ports
    given: set[Own] = set()
    taken_back = False

    def give(record: ServiceRecord) -> ServiceRecord:
        nonlocal taken_back
        before = set(ports.giving)
        try:
            found = floated(cluster, addressed(cluster, record))
        finally:
            given.update(ports.giving - before)
        left = record.addresses.keys() - found.addresses.keys()
        taken_back = taken_back or bool(left) or found.floating != record.floating
        return found

    try:
        yield give
    finally:
        if given or taken_back:
            ports.giving -= given
            ports.changed()


def hold(cluster: "Cluster") -> None:
    """After a start: what the records say is taken."""
    ports = cluster.state.ports
    for service in cluster.state.services.values():
        for network, address in service.record.addresses.items():
            key = (service.key[0], network)
            _hold(ports, (_holder(service.record.spec), key, address))
    for own in owned(cluster.state):
        _hold(ports, own)


def _hold(ports: Ports, own: Own) -> None:
    holder, key, address = own
    ports.services.add(own)
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


def free_unused(state: ClusterState, told: Set[Own]) -> bool:
    """OVN answers for ``told`` only: what is of no record, nor being written, is free.

    Returns:
        Whether there was any.
    """
    ports = state.ports
    kept = {
        (_holder(one.record.spec), (one.key[0], network), address)
        for one in state.services.values()
        for network, address in one.record.addresses.items()
    }
    unused = ports.services - kept - told - ports.giving - set(owned(state))
    ports.services -= unused
    for holder, key, address in unused:
        ports.book.free(Held(key, (address,)), holder)
    return bool(unused)


def told_of(wishes: Wishes) -> set[Own]:
    """The services' addresses on their own networks that OVN answers for."""
    return {
        (f"service/{one.tenant}/{one.service}", (one.tenant, one.network), one.address)
        for one in wishes.services
        if not one.external
    }
