"""From wishes to the rows of OVN's northbound database. Pure: the same wishes, the same rows.

One logical switch a network; a logical switch port for each port of an instance, with its address
and, by port security, no other; DHCP options a subnet; a ``localnet`` port where the network is on
a provider's; a ``localport`` where trunks need the relay. Names are in ``net/hostnames``, what may
reach what in ``net/security``, routers, NAT and load balancers in ``net/routing``.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Final

from swarmctl.net import hostnames, routing, security
from swarmctl.net.draft import Draft, port_key, switch_key
from swarmctl.net.model import Network, PortWish, Relay, Subnet, Wishes
from swarmctl.net.schema import Row

# An address is an instance's for as long as it lives: a day keeps renewals rare.
LEASE_S: Final = 86_400
# The host's relay has an address of these (RFC 3927), which no router is asked for.
LINK_LOCAL: Final = "169.254.0.0/16"


def desired_rows(cluster_id: str, wishes: Wishes) -> dict[str, Row]:
    """Every row that the cluster should have, by key.

    A port is left out when its network is not among the wishes: it was deleted before it.
    """
    draft = Draft(cluster_id, wishes)
    relayed = {(relay.tenant, relay.network) for relay in wishes.relays}
    for network in wishes.networks:
        _switch(draft, network, relayed=(network.tenant, network.name) in relayed)
    for relay in wishes.relays:
        _relay(draft, relay)
    hostnames.draw(draft)
    routing.draw(draft)
    security.draw(draft)
    return draft.rows


def _switch(draft: Draft, network: Network, *, relayed: bool) -> None:
    tenant, name = network.tenant, network.name
    key = switch_key(tenant, name)
    names = hostnames.rows_of(draft, network)
    balancers = routing.balancers_of(draft, network)
    draft.add(
        "Logical_Switch",
        key,
        notes={"network": network.title},
        name=draft.named("net", tenant, name),
        load_balancer=frozenset(balancers),
        dns_records=frozenset(names),
    )
    options = {
        subnet: dhcp_options(draft, network, subnet, relayed=relayed) for subnet in network.subnets
    }
    if network.provider is not None:
        draft.localnet(key, draft.named("localnet", tenant, name), network.provider)
    for port in draft.ports[tenant, name]:
        _port(draft, network, port, options)


def _port(draft: Draft, network: Network, port: PortWish, options: Mapping[Subnet, str]) -> None:
    own = " ".join((port.mac, *port.addresses))
    secured = port.port_security and network.port_security
    draft.add(
        "Logical_Switch_Port",
        port_key(port.name),
        parent=switch_key(port.tenant, port.network),
        notes={"instance": port.instance, "tenant": port.tenant},
        name=port.name,
        addresses=frozenset((own,) if secured else (own, "unknown")),
        port_security=frozenset((own,) if secured else ()),
        parent_name=port.parent or None,
        tag_request=port.vlan if port.parent else None,
        dhcpv4_options=_options_of(port, options, is_v6=False),
        dhcpv6_options=_options_of(port, options, is_v6=True),
    )


def _options_of(port: PortWish, options: Mapping[Subnet, str], *, is_v6: bool) -> str | None:
    """Those of the subnet that the port's own address is in; None when it has no such address."""
    address = next((one for one in port.addresses if (":" in one) == is_v6), None)
    subnets = [subnet for subnet in options if subnet.is_v6 == is_v6]
    if address is None or not subnets:
        return None
    if len(subnets) == 1:  # Nearly always; to reckon with addresses costs more than all else here.
        return options[subnets[0]]
    parsed = ip_address(address)
    return next((options[one] for one in subnets if parsed in one.network), None)


def dhcp_options(draft: Draft, network: Network, subnet: Subnet, *, relayed: bool) -> str:
    """The row of a subnet's DHCP options; its key."""
    resolvers = [
        address
        for address in network.resolvers or (subnet.gateway,)
        if (":" in address) == subnet.is_v6
    ]
    server_mac = routing.gateway_mac(draft, network)
    options: dict[str, str] = {}
    if resolvers:
        options["dns_server"] = braced(resolvers)
    if subnet.is_v6:
        options["server_id"] = server_mac
        options["domain_search"] = f'"{network.tenant}"'
    else:
        options |= {
            "server_id": subnet.gateway,
            "server_mac": server_mac,
            "lease_time": str(LEASE_S),
            "mtu": str(network.mtu),
            "domain_name": f'"{network.tenant}"',
        }
        if not network.internal:
            options["router"] = subnet.gateway
        if relayed:
            # Whoever takes these routes passes over `router` (RFC 3442): the default is among them.
            way_out = "" if network.internal else f", 0.0.0.0/0,{subnet.gateway}"
            options["classless_static_route"] = f"{{{LINK_LOCAL},0.0.0.0{way_out}}}"
    return draft.add(
        "DHCP_Options",
        f"dhcp/{network.title}/{subnet.cidr}",
        notes={"network": network.title},
        cidr=subnet.cidr,
        options=options,
    )


def _relay(draft: Draft, relay: Relay) -> None:
    if (relay.tenant, relay.network) in draft.networks:
        draft.add(
            "Logical_Switch_Port",
            f"relay/{relay.tenant}/{relay.network}",
            parent=switch_key(relay.tenant, relay.network),
            name=relay.port,
            type="localport",
            addresses=frozenset((f"{relay.mac} {relay.address}",)),
        )


def braced(texts: Iterable[str]) -> str:
    """A set as OVN's expressions and options write it; one of a kind stands alone."""
    every = list(texts)
    return every[0] if len(every) == 1 else "{" + ", ".join(every) + "}"
