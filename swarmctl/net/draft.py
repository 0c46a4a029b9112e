"""The rows being drawn up, and the wishes by what they are looked up by; for ``net/rows``."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from swarmctl.net import schema
from swarmctl.net.model import Network, PortWish, Provider, Wishes
from swarmctl.net.names import scoped

NetworkId: TypeAlias = tuple[str, str]


class Draft:
    """Rows so far, by key.

    Attributes:
        cluster_id: whose.
        wishes: what they are made from.
        rows: by key.
        networks: by tenant and name.
        ports: by network, in the order of the wishes.
        services: the same ports, by network and service.
        tenants: the networks that a router of ours serves, by tenant; not those of a provider.
        ports_by_name: the same ports.
    """

    def __init__(self, cluster_id: str, wishes: Wishes) -> None:
        self.cluster_id = cluster_id
        self.wishes = wishes
        self.rows: dict[str, schema.Row] = {}
        self.networks: dict[NetworkId, Network] = {
            (each.tenant, each.name): each for each in wishes.networks
        }
        self.ports: dict[NetworkId, list[PortWish]] = defaultdict(list)
        self.ports_by_name: dict[str, PortWish] = {port.name: port for port in wishes.ports}
        for port in wishes.ports:
            self.ports[port.tenant, port.network].append(port)
        self.services: dict[NetworkId, dict[str, list[PortWish]]] = {
            network: _by_service(self.ports[network]) for network in self.networks
        }
        self.tenants: dict[str, list[Network]] = defaultdict(list)
        for each in wishes.networks:
            if each.provider is None:
                self.tenants[each.tenant].append(each)

    def add(
        self,
        table: str,
        key: str,
        *,
        parent: str = "",
        notes: Mapping[str, str] | None = None,
        **columns: schema.Value,
    ) -> str:
        """Add a row; its key."""
        assert key not in self.rows, f"two rows of one key: {key}"
        self.rows[key] = schema.row(
            self.cluster_id, table, key, parent=parent, notes=notes, **columns
        )
        return key

    def named(self, kind: str, *names: str) -> str:
        """The name of a thing of ours in the database."""
        return scoped(self.cluster_id, kind, *names)

    def reaching(self, network: Network) -> Iterator[Network]:
        """The networks whose ports may speak to those of ``network``; itself first."""
        yield network
        if network.routed and network.provider is None:
            for other in self.tenants[network.tenant]:
                if other.routed and other.name != network.name:
                    yield other

    def localnet(self, switch: str, name: str, provider: Provider) -> None:
        """Add the port by which a switch is on a physical network."""
        self.add(
            "Logical_Switch_Port",
            f"localnet/{switch}",
            parent=switch,
            name=name,
            type="localnet",
            addresses=frozenset(("unknown",)),
            options={"network_name": provider.physical_network},
            tag_request=provider.vlan or None,
        )


def _by_service(ports: list[PortWish]) -> dict[str, list[PortWish]]:
    found: dict[str, list[PortWish]] = defaultdict(list)
    for port in ports:
        if port.service:  # A spare subport is no instance's yet, and has no name.
            found[port.service].append(port)
    return dict(found)


def switch_key(tenant: str, network: str) -> str:
    """The key of a network's logical switch."""
    return f"switch/{tenant}/{network}"


def router_key(tenant: str) -> str:
    """The key of a tenant's logical router."""
    return f"router/{tenant}"


def port_key(name: str) -> str:
    """The key of a logical switch port of an instance."""
    return f"port/{name}"
