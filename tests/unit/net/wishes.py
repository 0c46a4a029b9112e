"""Worlds of tenant networks, small ones by hypothesis and large ones by number."""

from hypothesis import strategies as st

from swarmctl.net.model import (
    Direction,
    FloatingAddress,
    Network,
    PortWish,
    Protocol,
    Provider,
    PublishedPort,
    Relay,
    Remote,
    RemoteKind,
    RouterAddress,
    Rule,
    SecurityGroup,
    ServiceAddress,
    Uplink,
    Wishes,
    subnet,
)
from swarmctl.net.names import mac_address, port_name
from swarmctl.proto import incarnation as incarnations

CLUSTER = "c0ffee00" * 4
TENANTS = ("acme", "zeta")
SERVICES = ("web", "db")
NETWORKS = ("front", "back")
GROUPS = ("open", "shut")


def port(number, tenant="acme", network="front", service="web", slot=0, **more):
    """The port with that number; its addresses are its own."""
    incarnation = incarnations.make(7, number)
    return PortWish(
        name=port_name(CLUSTER, incarnation, 0),
        tenant=tenant,
        network=network,
        service=service,
        slot=slot or number,
        mac=mac_address(CLUSTER, incarnation, 0),
        addresses=more.pop("addresses", (f"10.20.{number // 250}.{number % 250 + 2}",)),
        **more,
    )


def network(tenant="acme", name="front", *cidrs, **more):
    """A network, by default one subnet of IPv4."""
    return Network(
        tenant, name, tuple(subnet(cidr) for cidr in cidrs or ("10.20.0.0/16",)), 1442, **more
    )


remotes = st.one_of(
    st.just(Remote()),
    st.sampled_from(["10.0.0.0/8", "fd00::/8"]).map(lambda cidr: Remote(RemoteKind.CIDR, cidr)),
    st.sampled_from(SERVICES).map(lambda name: Remote(RemoteKind.SERVICE, name)),
    st.sampled_from(["tier=front", "tier=back"]).map(lambda one: Remote(RemoteKind.LABEL, one)),
    st.sampled_from((*GROUPS, "unknown")).map(lambda name: Remote(RemoteKind.GROUP, name)),
)
rules = st.builds(
    Rule,
    st.sampled_from(Direction),
    st.sampled_from(Protocol),
    st.sampled_from([(0, 0), (80, 80), (8000, 8999)]),
    remotes,
)
groups = st.builds(
    SecurityGroup,
    st.sampled_from(TENANTS),
    st.sampled_from(GROUPS),
    st.lists(rules, max_size=3).map(tuple),
)
networks = st.builds(
    network,
    st.sampled_from(TENANTS),
    st.sampled_from(NETWORKS),
    st.just("10.20.0.0/16"),
    st.just("fd00::/64"),
    routed=st.booleans(),
    port_security=st.booleans(),
    provider=st.sampled_from([None, None, Provider("physical", 7)]),
)
ports = st.builds(
    port,
    st.integers(1, 12),
    st.sampled_from(TENANTS),
    st.sampled_from(NETWORKS),
    st.sampled_from(SERVICES),
    labels=st.sampled_from([(), (("tier", "front"),), (("tier", "back"), ("x", "y"))]),
    security_groups=st.lists(st.sampled_from((*GROUPS, "unknown")), max_size=2, unique=True).map(
        tuple
    ),
    port_security=st.booleans(),
    addresses=st.sampled_from([("10.20.0.7",), ("10.20.0.8", "fd00::8"), ()]),
)
services = st.builds(
    ServiceAddress,
    st.sampled_from(TENANTS),
    st.sampled_from(SERVICES),
    st.sampled_from(NETWORKS),
    st.just("10.20.9.9"),
    st.sampled_from(
        [(), (PublishedPort(80, 8080), PublishedPort(53, 5353, Protocol.UDP))],
    ),
    st.booleans(),
)
OUTSIDE = network("acme", "outside", "192.0.2.0/24", provider=Provider("physical"))
uplink = Uplink(OUTSIDE, ("gw1", "gw2"))


def unique(elements, key, most):
    """Lists of up to so many, no two alike in what they are known by."""
    return st.lists(elements, max_size=most, unique_by=key).map(tuple)


worlds = st.builds(
    Wishes,
    networks=unique(networks, lambda one: (one.tenant, one.name), 4).flatmap(
        lambda some: st.sampled_from([some, (*some, OUTSIDE)])
    ),
    groups=unique(groups, lambda one: (one.tenant, one.name), 4),
    ports=unique(ports, lambda one: one.name, 8),
    services=unique(services, lambda one: (one.tenant, one.network, one.service), 3).map(
        lambda some: tuple(
            ServiceAddress(
                one.tenant, one.service, one.network, f"10.20.9.{n}", one.ports, one.external
            )
            for n, one in enumerate(some)
        )
    ),
    floating=st.lists(st.integers(1, 12), max_size=2, unique=True).map(
        lambda numbers: tuple(
            FloatingAddress("acme", f"192.0.2.{100 + n}", port(n).name) for n in numbers
        )
    ),
    uplink=st.sampled_from([None, uplink]),
    routers=st.sampled_from([(), (RouterAddress("acme", "192.0.2.10"),)]),
    relays=st.sampled_from(
        [(), (Relay("acme", "front", "relay-1", "02:00:00:00:00:01", "169.254.0.1"),)]
    ),
)
