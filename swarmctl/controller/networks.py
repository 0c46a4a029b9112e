"""Tenant networks and security groups in memory, and what may be made, changed and removed.

The store has the records; :class:`NetworkTable` is all of them by key, and the judgement on
changes: every fault that can be known is known before anything is written.  What is being written
is remembered too, so that a network cannot be removed between the check of a service that uses it
and that service's commit: :meth:`NetworkTable.using` and :meth:`NetworkTable.removing`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Final

import attrs
from attrs import define, evolve, field, frozen

from swarmctl.net.addresses import check_overlaps, choose_subnet
from swarmctl.net.model import Network, SecurityGroup, Subnet, is_host
from swarmctl.net.mtu import check_mtu, payload_mtu
from swarmctl.proto.errors import Conflict, NotFound
from swarmctl.spec.attachments import check_uses
from swarmctl.spec.floating import AUTO
from swarmctl.spec.models import ServiceSpec
from swarmctl.spec.names import did_you_mean
from swarmctl.spec.networks import NetworkDefinition, check_definition

# A network or a group is known by its tenant and its name, in that order.
NetworkKey = tuple[str, str]

# What Ethernet carries, unless the hosts' network is known to carry more.
UNDERLAY_MTU: Final = 1500


@frozen
class NetworkRecord:
    """A tenant network: what was asked for, and what was chosen for it.

    ``subnets`` and ``mtu`` are those of the definition, or what the controller chose in their
    place; they stay, whatever is chosen for others later.  ``routers`` are the addresses that the
    tenants' routers have on it, by tenant, if it is the uplink.
    """

    definition: NetworkDefinition
    subnets: tuple[Subnet, ...]
    mtu: int
    created_at: float
    updated_at: float
    routers: dict[str, str] = field(factory=dict)

    @property
    def key(self) -> NetworkKey:
        """(tenant, name)."""
        return self.definition.key

    @property
    def title(self) -> str:
        """As people call it: ``default/front``."""
        return "/".join(self.key)

    @property
    def network(self) -> Network:
        """As OVN is to have it."""
        asked = self.definition
        return Network(
            asked.tenant,
            asked.name,
            self.subnets,
            self.mtu,
            port_security=asked.port_security,
            routed=asked.routed,
            provider=asked.provider,
            resolvers=asked.resolvers,
            internal=asked.internal,
        )


@frozen
class GroupRecord:
    """A security group, and the stack that it came with."""

    group: SecurityGroup
    stack: str = ""

    @property
    def key(self) -> NetworkKey:
        """(tenant, name)."""
        return (self.group.tenant, self.group.name)


@define(eq=False)
class NetworkTable:
    """See the module's docstring.

    ``underlay_mtu`` is that of the network between the hosts, ``underlay_is_v6`` its version of IP.
    """

    records: dict[NetworkKey, NetworkRecord] = field(factory=dict)
    groups: dict[NetworkKey, GroupRecord] = field(factory=dict)
    underlay_mtu: int = UNDERLAY_MTU
    underlay_is_v6: bool = False
    _used: Counter[NetworkKey] = field(factory=Counter)
    _removed: set[NetworkKey] = field(factory=set)

    def get(self, key: NetworkKey) -> NetworkRecord:
        """The network ``key``.

        Raises:
            NotFound: there is none of that name.
        """
        found = self.records.get(key)
        if found is None or key in self._removed:
            raise self._unknown(key, f"no network {key[1]!r}", "")
        return found

    @property
    def uplink(self) -> NetworkRecord | None:
        """The network that all others have their way out by; None without one."""
        return next((one for one in self.records.values() if one.definition.uplink), None)

    def _unknown(self, key: NetworkKey, what: str, where: str) -> NotFound:
        known = [name for tenant, name in self.records if tenant == key[0]]
        otherwise = "'swarmctl network ls' lists the networks there are"
        return NotFound(what, where, did_you_mean(key[1], known, otherwise))

    # --- what services ask of them -----------------------------------------------------------

    def check_service(
        self, spec: ServiceSpec, coming: Mapping[NetworkKey, NetworkRecord] | None = None
    ) -> None:
        """Refuse a service whose networks are not there, or do not have its addresses.

        Args:
            spec: the service.
            coming: networks that are written with it.

        Raises:
            InvalidSpec: what it asks for makes no sense by itself.
            NotFound: there is no such network.
            Conflict: a fixed address is in none of its subnets, or none that a port can have; or a
                trunk's network has no IPv4.
        """
        check_uses(spec)
        for use in spec.template.networks:
            key = (spec.tenant, use.network)
            record = (coming or {}).get(key) or self.records.get(key)
            if record is None or key in self._removed:
                raise self._unknown(key, f"there is no network {use.network!r}", spec.name)
            for address in use.addresses:
                _check_fixed(record, address)
            if use is spec.template.networks[0]:
                check_trunk(spec, record)
            if spec.floating and use is spec.template.networks[0]:
                every = {**self.records, **(coming or {})}
                uplink = next((one for one in every.values() if one.definition.uplink), None)
                check_floating_place(spec, record, uplink)

    @contextmanager
    def using(self, spec: ServiceSpec) -> Iterator[None]:
        """While a service is being written, its networks are not removed; it is checked first.

        Raises:
            NotFound, Conflict: as :meth:`check_service` has it.
        """
        self.check_service(spec)
        keys = [(spec.tenant, use.network) for use in spec.template.networks]
        if spec.floating and self.uplink is not None:
            keys.append(self.uplink.key)
        self._used.update(keys)
        try:
            yield
        finally:
            self._used.subtract(keys)

    @contextmanager
    def removing(self, key: NetworkKey, users: Iterable[str]) -> Iterator[None]:
        """While a network is being removed no service begins to use it.

        Raises:
            Conflict: it is in use, by ``users`` or by what is being written.
        """
        names = sorted(set(users))
        if self._used[key]:
            names.append("a service that is being made")
        if names:
            others = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise Conflict(
                f"the network is in use by {', '.join(names[:3])}{others}",
                f"network {'/'.join(key)}",
                "remove them first; addresses are free once the nodes have confirmed it",
            )
        self._removed.add(key)
        try:
            yield
        finally:
            self._removed.discard(key)

    # --- changes -----------------------------------------------------------------------------

    def settle(
        self,
        definitions: Iterable[NetworkDefinition],
        now: float,
        *,
        groups: Iterable[SecurityGroup] = (),
        in_use: Iterable[NetworkKey] = (),
    ) -> list[NetworkRecord]:
        """The records after ``definitions`` are made true, one for each, in order.

        Args:
            definitions: all that is asked for at once.
            now: for the records.
            groups: security groups that are written with them.
            in_use: networks that have ports, whose addresses cannot change.

        Raises:
            InvalidSpec, Conflict, NotFound, NothingFits: one of them cannot be; nothing is made.
        """
        after = dict(self.records)
        known = {*self.groups, *((one.tenant, one.name) for one in groups)}
        used = set(in_use)
        settled: list[NetworkRecord] = []
        moved: list[NetworkRecord] = []
        for asked in definitions:
            check_definition(asked)
            for name in asked.security_groups:
                if (asked.tenant, name) not in known:
                    raise NotFound(f"there is no security group {name!r}", f"network {asked.name}")
            record = self._settle_one(asked, after, now)
            before = after.get(asked.key)
            if before is not None and (asked.key in used or before.routers):
                check_change(before, record)
            if before is None or before.definition.provider != asked.provider:
                moved.append(record)
            after[asked.key] = record
            settled.append(record)
        check_overlaps(record.network for record in after.values())
        _check_one_uplink(after.values())
        for record in moved:
            _check_segment(record, after.values())
        return settled

    def _settle_one(
        self, asked: NetworkDefinition, after: dict[NetworkKey, NetworkRecord], now: float
    ) -> NetworkRecord:
        before = after.get(asked.key)
        if before is not None and before.definition == asked:
            return before
        chosen = before is not None and not before.definition.subnets
        if asked.subnets:
            subnets = asked.subnets
        elif before is not None and chosen:
            subnets = before.subnets
        else:
            others = [one for key, one in after.items() if key != asked.key]
            subnets = (choose_subnet([each for one in others for each in one.subnets]),)
        with_v6 = any(one.is_v6 for one in subnets)
        if asked.provider is not None:
            # Its frames are on the physical network as they are.
            payload = self.underlay_mtu
        else:
            payload = payload_mtu(
                self.underlay_mtu, underlay_is_v6=self.underlay_is_v6, with_v6=with_v6
            )
        mtu = check_mtu(asked.mtu, payload, f"network {asked.name}", with_v6=with_v6)
        if before is None:
            return NetworkRecord(asked, subnets, mtu, now, now)
        return evolve(before, definition=asked, subnets=subnets, mtu=mtu, updated_at=now)


def _check_one_uplink(records: Iterable[NetworkRecord]) -> None:
    found = [one for one in records if one.definition.uplink]
    if len(found) > 1:
        raise Conflict(
            f"network {found[0].title} is the uplink already, and there is one in a cluster",
            f"network {found[1].title}",
            "leave uplink out, or remove the other first",
        )


def _check_segment(record: NetworkRecord, others: Iterable[NetworkRecord]) -> None:
    """One network a segment: two would each take the other's addresses for free."""
    provider = record.definition.provider
    for other in others:
        same = other.definition.provider == provider
        if provider is not None and same and other.key != record.key:
            vlan = f"VLAN {provider.vlan} of " if provider.vlan else ""
            raise Conflict(
                f"network {other.title} is on {vlan}{provider.physical_network} already",
                f"network {record.title}",
                "use that one, with a further subnet if need be, or another VLAN",
            )


def check_change(before: NetworkRecord, after: NetworkRecord) -> None:
    """Refuse what the ports of a network that is in use would not survive.

    Raises:
        Conflict: saying which field it is.
    """
    places = {(one.cidr, one.gateway) for one in after.subnets}
    kept = all((one.cidr, one.gateway) in places for one in before.subnets)
    provider = before.definition.provider == after.definition.provider
    for field_, unchanged in (
        ("subnet", kept),
        ("mtu", before.mtu == after.mtu),
        ("provider", provider),
        ("uplink", before.definition.uplink == after.definition.uplink),
    ):
        if not unchanged:
            raise Conflict(
                f"its {field_} cannot change while something is on it",
                f"network {before.title}",
                "remove what is on it first, or make another network",
            )


def subnet_of(record: NetworkRecord, address: str) -> Subnet:
    """The subnet that a fixed address is in.

    Raises:
        Conflict: it is in none of them.
    """
    parsed = ip_address(address)
    for one in record.subnets:
        if parsed in one.network:
            return one
    listed = ", ".join(one.cidr for one in record.subnets)
    raise Conflict(
        f"{address} is in no subnet of the network", f"network {record.title}", f"it has {listed}"
    )


def _check_fixed(record: NetworkRecord, address: str) -> None:
    subnet, parsed = subnet_of(record, address), ip_address(address)
    if parsed == ip_address(subnet.gateway):
        why = "is the network's gateway"
    elif not is_host(subnet.network, parsed):
        why = f"is no address of a port: it stands for {subnet.cidr} as a whole"
    else:
        return
    raise Conflict(f"{address} {why}", f"network {record.title}", "choose another, or none")


def check_trunk(spec: ServiceSpec, first: NetworkRecord) -> None:
    """Refuse a trunk whose VM would reach no controller: the relay (net/relays) is of IPv4.

    Raises:
        Conflict: its first network has no IPv4.
    """
    vm = spec.template.vm
    if vm is not None and vm.trunk and all(one.is_v6 for one in first.subnets):
        raise Conflict(
            f"the agent in a VM with trunk: true reaches the controllers by IPv4, of which network"
            f" {first.definition.name} has no subnet",
            spec.name,
            "give the network a subnet of IPv4, too, or put another network first",
        )


def check_floating_place(
    spec: ServiceSpec, first: NetworkRecord, uplink: NetworkRecord | None
) -> None:
    """Refuse a floating address that cannot be.

    Args:
        spec: the service.
        first: the network of its default route.
        uplink: of the cluster; None without one.

    Raises:
        Conflict: there is no uplink, the address is not of it, or the network has no way out.
    """
    if uplink is None:
        raise Conflict(
            "a floating address is one of the uplink's, and there is no uplink",
            spec.name,
            "make it: swarmctl network create outside --uplink --provider PHYS --subnet CIDR",
        )
    asked = first.definition
    if asked.internal or asked.provider is not None:
        why = "internal" if asked.internal else "on a provider, with no router of ours"
        raise Conflict(
            f"no floating address leads to network {asked.name}, which is {why}",
            spec.name,
            "put a network before it that has its way out by the uplink",
        )
    if spec.floating != AUTO:
        subnet_of(uplink, spec.floating)


def changes(before: NetworkRecord, after: NetworkRecord) -> list[list[object]]:
    """What differs, as ``diff`` shows it: path, before, after, whether instances are made anew."""
    found: list[list[object]] = []
    for attribute in attrs.fields(NetworkDefinition):
        old, new = (getattr(one.definition, attribute.name) for one in (before, after))
        if old != new:
            found.append([attribute.name, _shown(old), _shown(new), False])
    return found


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "(none)"
    if isinstance(value, Subnet):
        within = f", of them {value.ip_range}" if value.ip_range else ""
        return f"{value.cidr} via {value.gateway}{within}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
