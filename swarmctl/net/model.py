"""What tenant networks should be: the wishes from which OVN's rows are computed.

Everything here is intent or derived from it, as plain data: texts for addresses, so that it goes
into records and over the wire as it is. A :class:`Subnet` is made by :func:`subnet`, which checks
it; nothing below checks again.

Names: a network, a security group and a service belong to a tenant, and are known by
``tenant/name`` to people. A port is one interface of one incarnation (``net/names``).
"""

import ipaddress
from enum import StrEnum
from typing import Final, TypeAlias

from attrs import field, frozen

from swarmctl.proto.errors import InvalidSpec

IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# A network address, a broadcast address (IPv4), a gateway, and one for a port.
PREFIX_MAX_V4: Final = 30
PREFIX_MAX_V6: Final = 126

# Addresses that no port can have, and what for they are (RFC 6890).  In the link-local ones of IPv4
# is the relay's (net/relays).
_NEVER: Final = {
    ipaddress.ip_network(cidr): what
    for cidr, what in (
        ("0.0.0.0/8", "this host"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/127", "this host and loopback"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
}


@frozen
class Subnet:
    """A range of addresses of one network: ``10.20.0.0/24``, gateway ``10.20.0.1``.

    Of an ``ip_range`` within it are the addresses that are chosen; without one, all are.
    """

    cidr: str
    gateway: str
    ip_range: str = ""

    @property
    def network(self) -> IpNetwork:
        """The range, to reckon with."""
        return ipaddress.ip_network(self.cidr)

    @property
    def is_v6(self) -> bool:
        """Whether it is of IPv6."""
        return ":" in self.cidr

    @property
    def prefix(self) -> str:
        """The part after the slash."""
        return self.cidr.rpartition("/")[2]


def subnet(cidr: str, gateway: str = "", ip_range: str = "") -> Subnet:
    """A checked subnet; without a gateway its first address becomes that.

    Raises:
        InvalidSpec: it is not a range, too small, for something else than ports' addresses, or
            gateway or range are not in it.
    """
    made = _with_gateway(cidr, gateway)
    if not ip_range:
        return made
    within = _range(ip_range, "a range of addresses")
    if within.version != made.network.version or not within.subnet_of(made.network):  # type: ignore[arg-type]  # of one version by now
        raise InvalidSpec(f"the range {ip_range} is not in the subnet {made.cidr}")
    return Subnet(made.cidr, made.gateway, str(within))


def _with_gateway(cidr: str, gateway: str) -> Subnet:
    network = _range(cidr, "a subnet")
    prefix_max = PREFIX_MAX_V4 if network.version == 4 else PREFIX_MAX_V6
    if network.prefixlen > prefix_max:
        raise InvalidSpec(
            f"the subnet {cidr} has no room for a gateway and a port",
            hint=f"use a prefix of /{prefix_max} or shorter",
        )
    for never, what in _NEVER.items():
        if never.version == network.version and never.overlaps(network):
            overlaps = f", which {network} overlaps" if network != never else ""
            raise InvalidSpec(
                f"no port can have an address of {never} ({what}){overlaps}",
                hint="such as 10.20.0.0/24 or fd00:20::/64 can be had",
            )
    if not gateway:
        return Subnet(str(network), str(network.network_address + 1))
    try:
        address = ipaddress.ip_address(gateway)
    except ValueError as error:
        raise InvalidSpec(f'the gateway "{gateway}" is not an address') from error
    if not is_host(network, address):
        raise InvalidSpec(
            f"the gateway {gateway} is not an address that a machine can have in {cidr}",
            hint=f"the first is {network.network_address + 1}",
        )
    return Subnet(str(network), str(address))


def _range(cidr: str, called: str) -> IpNetwork:
    """What a CIDR stands for; ``called`` says in an error what it was to be."""
    try:
        interface = ipaddress.ip_interface(cidr)
    except ValueError as error:
        raise InvalidSpec(
            f'"{cidr}" is not {called}', hint='write one such as "10.20.0.0/24"'
        ) from error
    if interface.ip != interface.network.network_address:
        raise InvalidSpec(
            f'"{cidr}" is not {called}, but an address in one', hint=f"write {interface.network}"
        )
    return interface.network


def is_host(network: IpNetwork, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether a machine may have ``address`` in ``network``: neither first nor broadcast."""
    return (
        address in network
        and address != network.network_address
        and (network.version == 6 or address != network.broadcast_address)
    )


@frozen
class Provider:
    """A physical network that a network is put on; ``vlan`` 0 is untagged."""

    physical_network: str
    vlan: int = 0


@frozen
class Network:
    """A tenant network: one segment, with its subnets.

    ``routed`` networks of a tenant reach each other through its router; others reach nothing but
    themselves and, by NAT, the world, which an ``internal`` one does not.  One on a ``provider``
    has its gateway there, and no router of ours.  ``resolvers`` are asked what OVN's DNS does not
    know.
    """

    tenant: str
    name: str
    subnets: tuple[Subnet, ...]
    mtu: int
    port_security: bool = True
    routed: bool = False
    provider: Provider | None = None
    resolvers: tuple[str, ...] = ()
    internal: bool = False

    @property
    def title(self) -> str:
        """As people call it."""
        return f"{self.tenant}/{self.name}"


class Direction(StrEnum):
    """Seen from the port."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Protocol(StrEnum):
    """What a rule lets through."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"  # of either version


class RemoteKind(StrEnum):
    """How the other end of a rule is told."""

    ANY = "any"
    CIDR = "cidr"
    SERVICE = "service"
    LABEL = "label"
    GROUP = "group"


@frozen
class Remote:
    """The other end: a ``cidr``, a service, a label ``key=value``, or a security group.

    The last three are of the same tenant, and stand for the ports of those instances, now and
    later.
    """

    kind: RemoteKind = RemoteKind.ANY
    value: str = ""


@frozen
class Rule:
    """Something that a security group lets through; ``ports`` are first and last, 0 for all."""

    direction: Direction
    protocol: Protocol = Protocol.ANY
    ports: tuple[int, int] = (0, 0)
    remote: Remote = Remote()


@frozen
class SecurityGroup:
    """What may reach a port, and be reached from it.

    A port with groups is closed for what comes in, but for the rules of all its groups.  It is
    closed for what goes out as soon as one of its groups has a rule for that.
    """

    tenant: str
    name: str
    rules: tuple[Rule, ...] = ()

    @property
    def title(self) -> str:
        """As people call it."""
        return f"{self.tenant}/{self.name}"


@frozen
class PortWish:
    """A port as it should be.

    ``addresses`` are without prefix.  ``parent`` is the port of the VM that carries it, with
    ``vlan`` as its tag there; without a parent it is a port of its own.  ``aliases`` are further
    names of its service on the network.  One without a service is spare: it has no names.
    """

    name: str
    tenant: str
    network: str
    service: str
    slot: int
    mac: str
    addresses: tuple[str, ...]
    labels: tuple[tuple[str, str], ...] = ()
    security_groups: tuple[str, ...] = ()
    port_security: bool = True
    parent: str = ""
    vlan: int = 0
    aliases: tuple[str, ...] = ()

    @property
    def instance(self) -> str:
        """``web.3``."""
        return f"{self.service}.{self.slot}"


@frozen
class PublishedPort:
    """A port of a service address, and the port of the instances behind it."""

    port: int
    target: int
    protocol: Protocol = Protocol.TCP


@frozen
class ServiceAddress:
    """An address behind which the ports of a service on ``network`` share the load.

    Without ``ports`` every protocol and port is shared.  One of the network's subnets is for that
    network and those that it is routed to; an ``external`` one is of the uplink, and answered there
    by the tenant's router.  A network on a provider has no router, and no service addresses.
    """

    tenant: str
    service: str
    network: str
    address: str
    ports: tuple[PublishedPort, ...] = ()
    external: bool = False


@frozen
class FloatingAddress:
    """An address of the uplink that is one port's own, both ways."""

    tenant: str
    address: str
    port: str


@frozen
class Uplink:
    """The network that tenants' routers reach the world by: one of a provider, among the networks.

    ``chassis`` are the gateway nodes (their names in OVN), the first that lives is used.
    """

    network: Network
    chassis: tuple[str, ...]

    def subnet_of(self, address: str) -> Subnet:
        """The one that an address of it is in."""
        parsed = ipaddress.ip_address(address)
        return next(one for one in self.network.subnets if parsed in one.network)


@frozen
class RouterAddress:
    """A tenant's router on the uplink: its own address, behind which the tenant's ports are."""

    tenant: str
    address: str


@frozen
class Relay:
    """The host's own place on a network that trunks are on: there on every host at once.

    ``address`` is link-local and ``port`` the name of the interface on each host.
    """

    tenant: str
    network: str
    port: str
    mac: str
    address: str


@frozen
class Wishes:
    """All that a cluster wants of OVN."""

    networks: tuple[Network, ...] = ()
    groups: tuple[SecurityGroup, ...] = ()
    ports: tuple[PortWish, ...] = field(default=(), repr=lambda ports: f"<{len(ports)} ports>")
    services: tuple[ServiceAddress, ...] = ()
    floating: tuple[FloatingAddress, ...] = ()
    uplink: Uplink | None = None
    routers: tuple[RouterAddress, ...] = ()
    relays: tuple[Relay, ...] = ()
