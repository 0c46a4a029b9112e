"""The tenant networks of a stack file: ``networks:`` at its top level, and ``network create``.

A network's own name is ``STACK_NAME``, as with volumes, unless ``name:`` says another.  What is
left out is chosen by the controller: a subnet that overlaps no other of the tenant, and the
largest MTU that fits into one encapsulation.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

from attrs import field, frozen

from swarmctl.net.model import Provider, SecurityGroup, Subnet, subnet
from swarmctl.net.vlans import VLAN_MAX
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.attachments import NetworkName, parse_address
from swarmctl.spec.names import (
    check_network_name,
    check_tenant_name,
    check_tenant_network,
    did_you_mean,
)
from swarmctl.spec.reading import Field
from swarmctl.spec.unsupported import NETWORK

# Beyond jumbo frames: a typing error.
MTU_MAX: Final = 65_535
# A subnet of IPv4 and one of IPv6 are two; a network that is grown a few times has some more.
SUBNETS_MAX: Final = 16
# Name servers that an instance asks: more than its resolver takes.
RESOLVERS_MAX: Final = 3

_KNOWN: Final = (
    "name",
    "external",
    "ipam",
    "driver_opts",
    "internal",
    "mtu",
    "provider",
    "port_security",
    "routed",
    "uplink",
    "resolvers",
    "security_group",
    "security_groups",
)
# How Docker's drivers call the MTU in "driver_opts".
_MTU_OPTIONS: Final = ("mtu", "com.docker.network.driver.mtu")
_IPAM: Final = {
    "driver": "has no effect, addresses are the controller's to give",
    "options": "has no effect",
}
_IPAM_CONFIG: Final = {"aux_addresses": "not supported yet, ignored"}


@frozen
class NetworkDefinition:
    """A tenant network as it was asked for.

    Without ``subnets`` one is chosen; an ``mtu`` of 0 is all that fits.  ``routed`` networks of a
    tenant reach each other; an ``internal`` one has no way out.  Through the ``uplink``, a network
    on a provider, all others have theirs.  ``security_groups`` are those of all its ports, by name.
    """

    name: str
    tenant: str = "default"
    stack: str = ""
    subnets: tuple[Subnet, ...] = ()
    mtu: int = 0
    provider: Provider | None = None
    port_security: bool = True
    routed: bool = False
    internal: bool = False
    resolvers: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    uplink: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """(tenant, name)."""
        return (self.tenant, self.name)


@frozen
class Declared:
    """Something of the file that is made for the tenant, and the place to name in errors."""

    definition: NetworkDefinition
    where: str


@frozen
class FileNetworks:
    """``networks:`` of a stack: what services may name, and what is made.

    ``externals`` are names that may be a tenant's or the nodes' own.
    """

    names: dict[str, NetworkName] = field(factory=dict)
    declared: tuple[Declared, ...] = ()
    externals: tuple[str, ...] = ()


def read_networks(
    listed: Field | None,
    stack: str,
    groups: Mapping[str, SecurityGroup],
    tenant_networks: frozenset[str],
) -> FileNetworks:
    """The networks of a file.

    Args:
        listed: the field ``networks``.
        stack: the stack's name.
        groups: the file's security groups, by their names in it.
        tenant_networks: names of the tenant networks that there are already.

    Raises:
        InvalidSpec: a part of it is not valid.
    """
    names = {"default": NetworkName("")}
    declared: list[Declared] = []
    externals: list[str] = []
    for name, entry in (listed.entries() if listed else {}).items():
        fields = entry.fields(_KNOWN, NETWORK)
        outer = _read_external(name, fields)
        if outer is not None:
            externals.append(outer)
            names[name] = NetworkName(outer, tenant=outer in tenant_networks)
        elif name == "default" and not fields:
            continue
        else:
            made = _read_definition(name, entry, fields, stack, groups)
            names[name] = NetworkName(made.name, tenant=True)
            declared.append(Declared(made, entry.where))
    return FileNetworks(names, tuple(declared), tuple(externals))


def _read_external(name: str, fields: dict[str, Field]) -> str | None:
    """The name of a network made outside (``external: {name: …}`` is old); None for our own."""
    if "external" not in fields:
        return None
    external, place = fields["external"], fields.get("name")
    if external.is_map:
        inner = external.fields(("name",))
        place = place or inner.get("name")
    elif not external.boolean():
        return None
    return place.parse(check_network_name) if place else name


def _read_definition(
    name: str,
    entry: Field,
    fields: dict[str, Field],
    stack: str,
    groups: Mapping[str, SecurityGroup],
) -> NetworkDefinition:
    def flag(key: str, *, otherwise: bool) -> bool:
        return fields[key].boolean() if key in fields else otherwise

    definition = NetworkDefinition(
        name=fields["name"].parse(check_tenant_network) if "name" in fields else f"{stack}_{name}",
        stack=stack,
        subnets=_read_ipam(fields["ipam"]) if "ipam" in fields else (),
        mtu=_read_mtu(fields),
        provider=_read_provider(fields["provider"]) if "provider" in fields else None,
        port_security=flag("port_security", otherwise=True),
        routed=flag("routed", otherwise=False),
        internal=flag("internal", otherwise=False),
        resolvers=_read_resolvers(fields["resolvers"]) if "resolvers" in fields else (),
        security_groups=_read_groups(fields, groups),
        uplink=flag("uplink", otherwise=False),
    )
    try:
        check_definition(definition)
    except InvalidSpec as error:
        raise entry.fail(error.what, error.hint) from error
    return definition


def check_definition(definition: NetworkDefinition) -> None:
    """Refuse what makes no sense by itself, whatever else there is.

    Raises:
        InvalidSpec: saying what.
    """
    check_tenant_network(definition.name)
    check_tenant_name(definition.tenant)
    if len(definition.subnets) > SUBNETS_MAX:
        raise InvalidSpec(f"{len(definition.subnets)} subnets are too many")
    if not 0 <= definition.mtu <= MTU_MAX:
        raise InvalidSpec(f"an MTU of {definition.mtu} is not between 0 and {MTU_MAX}")
    for one in definition.subnets:
        subnet(one.cidr, one.gateway, one.ip_range)
    for resolver in definition.resolvers:
        parse_address(resolver)
    if definition.provider is not None:
        _check_provider(definition, definition.provider)
    elif definition.uplink:
        raise InvalidSpec(
            "an uplink is a network on a provider: the one that leads outside",
            hint="say which: provider: {network: NAME, vlan: N}",
        )
    if definition.security_groups and not definition.port_security:
        raise InvalidSpec(
            "port_security: false leaves the security group without a hold",
            hint="a port that may send from any address cannot be told apart; leave one out",
        )


def _check_provider(definition: NetworkDefinition, provider: Provider) -> None:
    check_network_name(provider.physical_network)
    if not 0 <= provider.vlan <= VLAN_MAX:
        raise InvalidSpec(f"VLAN {provider.vlan} is not between 0 and {VLAN_MAX}")
    if not definition.subnets:
        raise InvalidSpec(
            "a network on a provider needs its subnet",
            hint="it is what the physical network has; with the gateway there",
        )
    if definition.routed or definition.internal:
        word = "routed" if definition.routed else "internal"
        raise InvalidSpec(
            f"a network on a provider is not {word}: its gateway is there",
            hint=f"leave out {word} or provider",
        )


def _read_ipam(field: Field) -> tuple[Subnet, ...]:
    fields = field.fields(("config",), _IPAM)
    found: list[Subnet] = []
    for item in fields["config"].elements() if "config" in fields else []:
        options = item.fields(("subnet", "gateway", "ip_range"), _IPAM_CONFIG)
        if "subnet" not in options:
            raise item.fail("a subnet is missing", 'such as "subnet: 10.20.0.0/24"')
        text = options["subnet"].text()
        gateway = options["gateway"].text() if "gateway" in options else ""
        place = options.get("gateway", options["subnet"])
        options["subnet"].parse(subnet)
        made = place.parse(lambda _, text=text, gateway=gateway: subnet(text, gateway))  # type: ignore[misc]  # bound by the loop's values
        if "ip_range" in options:
            made = options["ip_range"].parse(partial(subnet, made.cidr, made.gateway))
        found.append(made)
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.network.version == other.network.version and one.network.overlaps(other.network):
                raise field.fail(f"the subnets {other.cidr} and {one.cidr} overlap", "leave one")
    return tuple(found)


def _read_mtu(fields: dict[str, Field]) -> int:
    if "mtu" in fields:
        return fields["mtu"].integer(0, MTU_MAX)
    mtu = 0
    for key, option in (fields["driver_opts"].entries() if "driver_opts" in fields else {}).items():
        if key in _MTU_OPTIONS:
            mtu = option.integer(0, MTU_MAX)
        else:
            option.warn("has no effect: it is for a driver of Docker's", "mtu is understood")
    return mtu


def _read_provider(field: Field) -> Provider:
    fields = field.fields(("network", "vlan"))
    if "network" not in fields:
        raise field.fail("a provider needs a network", "the name that nodes map to a bridge")
    name = fields["network"].parse(check_network_name)
    return Provider(name, fields["vlan"].integer(0, VLAN_MAX) if "vlan" in fields else 0)


def _read_resolvers(field: Field) -> tuple[str, ...]:
    items = [field] if field.is_scalar else field.elements()
    if len(items) > RESOLVERS_MAX:
        raise field.fail(f"{len(items)} resolvers are too many", f"at most {RESOLVERS_MAX}")
    return tuple(item.parse(parse_address) for item in items)


def _read_groups(fields: dict[str, Field], groups: Mapping[str, SecurityGroup]) -> tuple[str, ...]:
    items: list[Field] = []
    for key in ("security_group", "security_groups"):
        if key in fields:
            items += [fields[key]] if fields[key].is_scalar else fields[key].elements()
    for item in items:
        if item.text() not in groups:
            raise item.fail(
                f'the security group "{item.text()}" is not declared',
                did_you_mean(
                    item.text(), groups, 'add it under "security_groups:" at the top level'
                ),
            )
    return tuple(dict.fromkeys(groups[item.text()].name for item in items))
