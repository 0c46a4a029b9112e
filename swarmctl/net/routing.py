"""Routers, NAT and load balancers: one router a tenant, present on every host at once.

A network's gateway is a port of its tenant's router. Networks that are not ``routed`` are kept
apart there by policies, so that their ports reach the world (by NAT, when there is an uplink) and
nothing else of the tenant's. What leaves an ``internal`` one for the world is dropped.

The uplink is a network of a provider, on which each router has a port at its gateway nodes.

Service addresses are load balancers on the switches of those who may use them: the choice is made
on the client's own host. They are on the router as well, which answers ARP and ND for them: so a
client's frame goes to the router and on to the instance that was chosen, also within one network.
An external one is on the router alone, and answered at the gateway.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from swarmctl.net.draft import Draft, router_key, switch_key
from swarmctl.net.model import FloatingAddress, Network, ServiceAddress, Uplink
from swarmctl.net.names import derived_mac

PRIORITY_APART: Final = 100
# Below the other, so that what is the tenant's own is told first.
PRIORITY_INTERNAL: Final = 90
# Gateways in the order they were given; OVN takes the highest that lives.
PRIORITY_GATEWAY_MAX: Final = 100


def draw(draft: Draft) -> None:
    """Add routers with their ports, policies and NAT, and load balancers."""
    for tenant, networks in draft.tenants.items():
        balancers = [
            _balancer_key(one, protocol)
            for one in draft.wishes.services
            if one.tenant == tenant and _is_served(draft, one)
            for protocol in _protocols(one)
        ]
        key = draft.add(
            "Logical_Router",
            router_key(tenant),
            notes={"tenant": tenant},
            name=draft.named("router", tenant),
            load_balancer=frozenset(balancers),
        )
        for network in networks:
            _gateway(draft, key, network)
            _keep_apart(draft, key, network, networks)
            if network.internal:
                _keep_inside(draft, key, network, networks)
    for one in draft.wishes.services:
        if _is_served(draft, one):
            _balancer(draft, one)
    uplink = draft.wishes.uplink
    if uplink is not None and (uplink.network.tenant, uplink.network.name) in draft.networks:
        _uplink(draft, uplink)


def gateway_mac(draft: Draft, network: Network) -> str:
    """The MAC address of a network's gateway."""
    return derived_mac(f"{draft.cluster_id}/gateway/{network.title}")


def _gateway(draft: Draft, router: str, network: Network) -> None:
    name = draft.named("gw", network.tenant, network.name)
    # A router is known for 18 hours, and a guest asks once: it is told again by and by.
    ra = {"address_mode": "dhcpv6_stateful", "mtu": str(network.mtu), "send_periodic": "true"}
    has_v6 = any(subnet.is_v6 for subnet in network.subnets)
    draft.add(
        "Logical_Router_Port",
        f"gateway/{network.title}",
        parent=router,
        name=name,
        mac=gateway_mac(draft, network),
        networks=frozenset(f"{one.gateway}/{one.prefix}" for one in network.subnets),
        ipv6_ra_configs=ra if has_v6 else {},
    )
    _router_port_of_switch(draft, switch_key(network.tenant, network.name), name)


def _router_port_of_switch(draft: Draft, switch: str, router_port: str, **options: str) -> None:
    """The other end of a router's port."""
    draft.add(
        "Logical_Switch_Port",
        f"to-router/{router_port}",
        parent=switch,
        name=f"{router_port}-sw",
        type="router",
        addresses=frozenset(("router",)),
        options={"router-port": router_port, **options},
    )


def _keep_apart(draft: Draft, router: str, network: Network, networks: list[Network]) -> None:
    """Drop what goes from one network to others that it must not reach."""
    closed: dict[int, list[str]] = defaultdict(list)
    for other in networks:
        if other.name != network.name and not (network.routed and other.routed):
            for subnet in other.subnets:
                closed[6 if subnet.is_v6 else 4].append(subnet.cidr)
    inport = draft.named("gw", network.tenant, network.name)
    for version, cidrs in closed.items():
        draft.add(
            "Logical_Router_Policy",
            f"apart/{network.title}/{version}",
            parent=router,
            priority=PRIORITY_APART,
            match=f'inport == "{inport}" && ip{version}.dst == {{{", ".join(cidrs)}}}',
            action="drop",
        )


def _keep_inside(draft: Draft, router: str, network: Network, networks: list[Network]) -> None:
    """Drop what goes from a network to anything that is not the tenant's."""
    inport = draft.named("gw", network.tenant, network.name)
    for version, is_v6 in ((4, False), (6, True)):
        own = [one.cidr for each in networks for one in each.subnets if one.is_v6 is is_v6]
        if any(one.is_v6 is is_v6 for one in network.subnets):
            draft.add(
                "Logical_Router_Policy",
                f"inside/{network.title}/{version}",
                parent=router,
                priority=PRIORITY_INTERNAL,
                match=f'inport == "{inport}" && ip{version}.dst != {{{", ".join(own)}}}',
                action="drop",
            )


# --- service addresses ----------------------------------------------------------------------------


def balancers_of(draft: Draft, network: Network) -> Iterable[str]:
    """The keys of the load balancers that clients on ``network`` use."""
    near = {(other.tenant, other.name) for other in draft.reaching(network)}
    for one in draft.wishes.services:
        if not one.external and (one.tenant, one.network) in near and _is_served(draft, one):
            yield from (_balancer_key(one, protocol) for protocol in _protocols(one))


def _is_served(draft: Draft, one: ServiceAddress) -> bool:
    """Whether its network is there and has a router, which one on a provider's network has not."""
    network = draft.networks.get((one.tenant, one.network))
    return network is not None and network.provider is None


def _protocols(one: ServiceAddress) -> list[str]:
    """A load balancer has one protocol; an empty one is all of them."""
    return sorted({port.protocol.value for port in one.ports}) or [""]


def _balancer_key(one: ServiceAddress, protocol: str) -> str:
    return f"balancer/{one.tenant}/{one.network}/{one.service}/{one.address}/{protocol}"


def _balancer(draft: Draft, one: ServiceAddress) -> None:
    is_v6 = ":" in one.address
    behind = [
        address
        for port in draft.services[one.tenant, one.network].get(one.service, ())
        for address in port.addresses
        if (":" in address) == is_v6
    ]
    for protocol in _protocols(one):
        vips = {
            _endpoint(one.address, port.port): ",".join(
                _endpoint(address, port.target) for address in behind
            )
            for port in one.ports
            if port.protocol.value == protocol
        }
        draft.add(
            "Load_Balancer",
            _balancer_key(one, protocol),
            notes={"service": f"{one.tenant}/{one.service}"},
            name=draft.named("lb", one.tenant, one.service, *filter(None, [protocol])),
            vips=vips if one.ports else {one.address: ",".join(behind)},
            protocol=protocol or None,
        )


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# --- the world outside ----------------------------------------------------------------------------


def _uplink(draft: Draft, uplink: Uplink) -> None:
    served = draft.tenants
    for router in draft.wishes.routers:
        if router.tenant in served:
            _join_uplink(draft, uplink, router.tenant, router.address)
            _masquerade(draft, router.tenant, router.address, served[router.tenant])
    joined = {router.tenant for router in draft.wishes.routers}
    for floating in draft.wishes.floating:
        port = draft.ports_by_name.get(floating.port)
        if port is None or floating.tenant not in joined or port.tenant != floating.tenant:
            continue
        network = draft.networks.get((port.tenant, port.network))
        if network is not None and network.provider is None:
            _float(draft, floating, port.addresses)


def _join_uplink(draft: Draft, uplink: Uplink, tenant: str, address: str) -> None:
    router, name = router_key(tenant), draft.named("up", tenant)
    subnet = uplink.subnet_of(address)
    port = draft.add(
        "Logical_Router_Port",
        f"uplink/{tenant}",
        parent=router,
        name=name,
        mac=derived_mac(f"{draft.cluster_id}/uplink/{tenant}"),
        networks=frozenset((f"{address}/{subnet.prefix}",)),
    )
    switch = switch_key(uplink.network.tenant, uplink.network.name)
    _router_port_of_switch(draft, switch, name, **{"nat-addresses": "router"})
    for place, chassis in enumerate(uplink.chassis):
        draft.add(
            "Gateway_Chassis",
            f"gateway-chassis/{tenant}/{chassis}",
            parent=port,
            name=f"{name}-{chassis}",
            chassis_name=chassis,
            priority=max(0, PRIORITY_GATEWAY_MAX - place),
        )
    draft.add(
        "Logical_Router_Static_Route",
        f"default/{tenant}",
        parent=router,
        ip_prefix="::/0" if subnet.is_v6 else "0.0.0.0/0",
        nexthop=subnet.gateway,
    )


def _masquerade(draft: Draft, tenant: str, address: str, networks: list[Network]) -> None:
    """The tenant's ports have the router's address outside; of the same version only."""
    for network in networks:
        for subnet in network.subnets:
            if subnet.is_v6 == (":" in address) and not network.internal:
                draft.add(
                    "NAT",
                    f"nat/{network.title}/{subnet.cidr}",
                    parent=router_key(tenant),
                    type="snat",
                    external_ip=address,
                    logical_ip=subnet.cidr,
                )


def _float(draft: Draft, floating: FloatingAddress, addresses: tuple[str, ...]) -> None:
    own = [one for one in addresses if (":" in one) == (":" in floating.address)]
    if own:
        draft.add(
            "NAT",
            f"floating/{floating.tenant}/{floating.address}",
            parent=router_key(floating.tenant),
            notes={"port": floating.port},
            type="dnat_and_snat",
            external_ip=floating.address,
            logical_ip=own[0],
        )
