"""Names that OVN answers for: ``web.acme`` is a service, ``web.3.acme`` one instance of it.

A service's name stands for its service address where it has one, else for the addresses of its
instances. A row of records is one service's on one network, so that a change is small; a network
has the rows of its own services, and of those that it reaches on others of the tenant.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from swarmctl.net.draft import Draft
from swarmctl.net.model import Network, PortWish
from swarmctl.net.names import alias_host_names, host_names, service_host_name

# Answers have to fit a DNS packet without extensions: 512 bytes less header and a long name leave
# room for 14 addresses of IPv6.
ANSWERS_MAX: Final = 14


def draw(draft: Draft) -> None:
    """Add the rows of records."""
    shared: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in draft.wishes.services:
        if not one.external:
            shared[one.tenant, one.network, one.service].append(one.address)
    for network in draft.wishes.networks:
        for service, ports in draft.services[network.tenant, network.name].items():
            addresses = shared.get((network.tenant, network.name, service))
            draft.add(
                "DNS",
                _key(network, service),
                notes={"network": network.title},
                records=_records(network.tenant, service, ports, addresses),
            )


def rows_of(draft: Draft, network: Network) -> Iterable[str]:
    """The keys of the rows whose names are known on ``network``; of a name, the nearest."""
    found: dict[str, str] = {}
    for other in draft.reaching(network):
        for service in draft.services[other.tenant, other.name]:
            found.setdefault(service, _key(other, service))
    return found.values()


def _records(
    tenant: str, service: str, ports: list[PortWish], shared: list[str] | None
) -> dict[str, str]:
    by_slot = sorted(ports, key=lambda port: port.slot)
    # Of the copies, as many addresses as an answer takes; a service that is larger than that has
    # a service address.
    every = shared or [address for port in by_slot for address in port.addresses]
    answer = " ".join(every[:ANSWERS_MAX])
    aliases = dict.fromkeys(alias for port in by_slot for alias in port.aliases)
    records = {name: answer for alias in aliases for name in alias_host_names(alias, tenant)}
    records[service_host_name(service, tenant)] = answer
    for port in by_slot:
        for name in host_names(port):
            records[name] = " ".join(port.addresses)
    return {name: addresses for name, addresses in records.items() if addresses}


def _key(network: Network, service: str) -> str:
    return f"dns/{network.title}/{service}"
