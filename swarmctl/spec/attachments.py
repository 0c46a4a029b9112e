"""Where a service of a stack file is plugged in: its ``network_mode`` and ``networks``.

It is on the node's own network (one of the container daemon's or of libvirt's, by name or by
default), or on tenant networks, one or several.  Which of the two an external network is, the
cluster knows: what the file declares ``external`` is a tenant network where there is one of that
name, and otherwise one that is made on the nodes.
"""

import ipaddress
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import NetworkUse, ServiceSpec
from swarmctl.spec.names import check_alias, did_you_mean
from swarmctl.spec.reading import Field
from swarmctl.spec.unsupported import NETWORK_OF_SERVICE, NOT_YET

MODES: Final = ("host", "none", "bridge")
# Interfaces of one instance; a VM has a slot of its PCI bus for each, and Linux names sort by one.
NETWORKS_MAX: Final = 8
# Names of one service on one network; each is a record of the network's DNS.
ALIASES_MAX: Final = 32

_OF_TENANT: Final = ("aliases", "ipv4_address", "ipv6_address", "gw_priority")


@frozen
class NetworkName:
    """What a network of the file is called outside: a tenant's, or one of the node's own."""

    name: str
    tenant: bool = False


@frozen
class Plugging:
    """Where a service is plugged in; ``own`` is the node's own network when there are no uses."""

    own: str = ""
    uses: tuple[NetworkUse, ...] = ()


@frozen
class _Use:
    use: NetworkUse
    priority: int
    place: Field = field(eq=False)


def read_plugging(fields: dict[str, Field], networks: Mapping[str, NetworkName]) -> Plugging:
    """What ``network_mode`` and ``networks`` of a service say.

    Args:
        fields: those of the service.
        networks: name in the file to name outside.

    Raises:
        InvalidSpec: they exclude each other, or name what is not declared.
    """
    if "network_mode" in fields:
        return Plugging(_read_mode(fields["network_mode"], with_networks="networks" in fields))
    if "networks" not in fields:
        return _by_default(networks.get("default", NetworkName("")))
    listed = fields["networks"]
    named = (
        {item.text(): item for item in listed.elements()} if listed.is_list else listed.entries()
    )
    for name, item in named.items():
        _check_declared(name, item, networks)
    tenants = [
        _read_use(networks[name].name, item)
        for name, item in named.items()
        if networks[name].tenant
    ]
    own = [name for name in named if not networks[name].tenant]
    for name in own:
        if named[name].is_map:
            named[name].fields((), NETWORK_OF_SERVICE)
    if not tenants:
        return Plugging(_first(own, listed, networks))
    for name in own:
        raise named[name].fail(
            f"{name} is the node's own network, and cannot be beside a tenant network",
            "make it a tenant network (swarmctl network create), or use the node's alone",
        )
    if len(tenants) > NETWORKS_MAX:
        raise listed.fail(f"{len(tenants)} networks are too many", f"at most {NETWORKS_MAX}")
    # The highest has the default route; those that say nothing keep their order.
    tenants.sort(key=lambda one: -one.priority)
    _check_once(tenants)
    return Plugging(uses=tuple(one.use for one in tenants))


def check_uses(spec: ServiceSpec) -> None:
    """Refuse what no stack file can ask for: other clients may.

    Raises:
        InvalidSpec: a name or an address is none, or there are too many.
    """
    uses, template = spec.template.networks, spec.template
    own = template.container.network if template.container is not None else ""
    own = own or (template.vm.network if template.vm is not None else "")
    if own and uses:
        raise InvalidSpec(f"{own} is the node's own network, beside tenant networks", spec.name)
    if len(uses) > NETWORKS_MAX or len({use.network for use in uses}) != len(uses):
        raise InvalidSpec("its networks are too many, or one is given twice", spec.name)
    for use in uses:
        if len({":" in parse_address(one) for one in use.addresses}) != len(use.addresses):
            raise InvalidSpec(f"several addresses of a version on {use.network}", spec.name)
        if len(use.aliases) > ALIASES_MAX:
            raise InvalidSpec(f"{len(use.aliases)} aliases on {use.network}", spec.name)
        for alias in use.aliases:
            check_alias(alias)
    if spec.replicas > 1 and any(use.addresses for use in uses):
        raise InvalidSpec(
            f"a fixed address for {spec.replicas} copies: only one can have it", spec.name
        )


def check_copies(fields: dict[str, Field], plugging: Plugging, copies: int) -> None:
    """Refuse a fixed address for several copies.

    Raises:
        InvalidSpec: there are several.
    """
    if copies > 1 and any(use.addresses for use in plugging.uses):
        raise fields["networks"].fail(
            f"a fixed address for {copies} copies: only one can have it",
            "leave ipv4_address and ipv6_address out, or have one replica",
        )


def _read_mode(mode: Field, *, with_networks: bool) -> str:
    if with_networks:
        raise mode.fail("network_mode and networks exclude each other", "remove one")
    if mode.text().startswith(("service:", "container:")):
        raise mode.fail("sharing another's network is not supported", "use networks")
    return mode.choice(MODES)


def _by_default(network: NetworkName) -> Plugging:
    if network.tenant:
        return Plugging(uses=(NetworkUse(network.name),))
    return Plugging(network.name)


def _check_declared(name: str, item: Field, networks: Mapping[str, NetworkName]) -> None:
    if name not in networks:
        raise item.fail(
            f'the network "{name}" is not declared',
            did_you_mean(name, networks, 'add it under "networks:" at the top level'),
        )


def _first(own: list[str], listed: Field, networks: Mapping[str, NetworkName]) -> str:
    if len(own) > 1:
        first, *others = own
        listed.warn(
            f"only the first network, {first}, is used; not {', '.join(others)}",
            "an instance is on one of the node's own networks, or on several tenant networks",
        )
    return networks[own[0]].name if own else ""


def _read_use(network: str, item: Field) -> _Use:
    if not item.is_map:
        return _Use(NetworkUse(network), 0, item)
    unsupported = {key: NOT_YET for key in NETWORK_OF_SERVICE if key not in _OF_TENANT}
    fields = item.fields(_OF_TENANT, unsupported)
    addresses = tuple(
        fields[key].parse(lambda text, version=version: parse_address(text, version))  # type: ignore[misc]  # bound by the loop's value
        for key, version in (("ipv4_address", 4), ("ipv6_address", 6))
        if key in fields
    )
    aliases: tuple[str, ...] = ()
    if "aliases" in fields:
        listed = fields["aliases"].elements()
        if len(listed) > ALIASES_MAX:
            raise fields["aliases"].fail(f"{len(listed)} aliases are too many")
        aliases = tuple(dict.fromkeys(one.parse(check_alias) for one in listed))
    priority = fields["gw_priority"].integer(-(2**31), 2**31) if "gw_priority" in fields else 0
    return _Use(NetworkUse(network, addresses, aliases), priority, item)


def _check_once(uses: list[_Use]) -> None:
    """Two names in the file may mean one network."""
    seen: set[str] = set()
    for one in uses:
        if one.use.network in seen:
            raise one.place.fail(f"{one.use.network} is given twice", "remove one")
        seen.add(one.use.network)


def parse_address(text: str, version: int = 0) -> str:
    """An IP address in its usual form; ``version`` 4 or 6 allows only those.

    Raises:
        InvalidSpec: it is none.
    """
    kind = f"an IPv{version} address" if version else "an IP address"
    try:
        found = ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidSpec(f'"{text}" is not {kind}', hint="such as 10.20.0.5") from error
    if version and found.version != version:
        raise InvalidSpec(f'"{text}" is not {kind}')
    return str(found)
