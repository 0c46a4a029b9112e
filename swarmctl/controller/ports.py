"""The instances' ports on tenant networks: who has which addresses, until when.

An instance of a service with networks is given a port on each when it has been placed: name and MAC
by its incarnation, addresses from the networks' pools, a VLAN where its node is a VM.  It keeps
them as long as its incarnation lives, and what was given is in two other places: the node's
inventory and OVN's northbound database.  After a takeover either brings it back, by :meth:`adopt`
and :meth:`find`.  An address is free again once the node has confirmed that the instance is gone
(:meth:`leave`) and OVN that the port is (:meth:`told`).

What is not on tenant networks is in none of these tables, and costs nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import structlog
from attrs import Factory, define, evolve, field

from swarmctl.controller.addressbook import AddressBook, Held, Own
from swarmctl.controller.networks import NetworkKey, NetworkRecord, NetworkTable, subnet_of
from swarmctl.controller.subports import SPARES, Subports, held
from swarmctl.net.model import PortWish, Subnet
from swarmctl.net.names import mac_address, parse_port_name, port_name
from swarmctl.proto.errors import NothingFits, UserError
from swarmctl.proto.messages import Attachment
from swarmctl.spec.models import NetworkUse

if TYPE_CHECKING:
    from swarmctl.controller.instance import Instance
    from swarmctl.controller.state import Service

_log = structlog.get_logger(__name__)
_ANYWHERE: Final = {False: "0.0.0.0/0", True: "::/0"}


@define(eq=False)
class Ports:
    """See the module's docstring.

    ``active`` says that there is an OVN to plug into; ``known`` that its rows were read since the
    takeover.  ``attachments`` are by incarnation; ``wishes`` and ``leaving`` by the port's name:
    the ports that should be, and those whose rows are still to go.  ``unclaimed`` are names of
    ports that only OVN knows of, ``condemned`` those that did not come up;
    ``templates`` those of which instances have attachments;
    ``vms`` are the instances that nested nodes are in, by node; ``services`` the addresses of
    services, ``giving`` those of them that are being written.
    ``changed`` is called when OVN is to be told something.
    """

    cluster_id: str
    table: NetworkTable
    active: bool = False
    known: bool = False
    attachments: dict[int, tuple[Attachment, ...]] = field(factory=dict)
    wishes: dict[str, PortWish] = field(factory=dict)
    leaving: dict[str, Held] = field(factory=dict)
    unclaimed: set[str] = field(factory=set)
    condemned: set[str] = field(factory=set)
    vms: "dict[str, Instance]" = field(factory=dict)
    changed: Callable[[], None] = lambda: None
    services: set[Own] = field(factory=set)
    giving: set[Own] = field(factory=set)
    templates: set[bytes] = field(factory=set)
    book: AddressBook = field(factory=AddressBook)
    subports: Subports = Factory(
        lambda it: Subports(it.cluster_id, it.book, it.wishes), takes_self=True
    )
    _late: dict[int, Callable[[], None]] = field(factory=dict)
    _promised: Counter[NetworkKey] = field(factory=Counter)

    # --- before placing ----------------------------------------------------------------------

    def begin_cycle(self) -> None:
        """What was promised to slots that found no node is free again; VMs may be known now."""
        self._promised.clear()
        self.adopt_late()  # Before VLANs of their trunks are given.

    def admit(self, service: "Service", slots: Sequence[int], *, settled: bool) -> list[int]:
        """Those of ``slots`` for which there are addresses; the others are noted with the reason.

        Args:
            service: whose slots they are; its ``unplaced`` takes the reasons.
            slots: in order.
            settled: every node has reported, or was given up, since the takeover.
        """
        if not self.active:
            return list(slots)
        if not (self.known or settled):
            why = "waits for OVN's northbound database, to know which addresses are taken"
            service.unplaced |= dict.fromkeys(slots, why)
            return []
        count, why = len(slots), ""
        keys: list[NetworkKey] = []
        short: list[NetworkKey] = []
        for use in service.record.spec.template.networks:
            key = (service.key[0], use.network)
            keys.append(key)
            room, reason = self._room(key, use)
            if room < count:
                count, why = room, reason
            if self._lacks(key, use, len(slots) - room):
                short.append(key)
        if count < len(slots):
            service.unplaced |= dict.fromkeys(slots[count:], why)
        for key in short:
            self.drop_spares(key=key)  # Their addresses are needed more.
        self._promised.update(dict.fromkeys(keys, count))
        return list(slots[:count])

    def _lacks(self, key: NetworkKey, use: NetworkUse, beyond: int) -> bool:
        """Whether spares of the network have what is asked for: a fixed address, or ``beyond``."""
        if not use.addresses:
            return beyond > 0
        holders = (self.book.holder(key, address) for address in use.addresses)
        wishes = (self.wishes.get(holder) for holder in holders if holder is not None)
        return any(wish is not None and not wish.service for wish in wishes)

    def _room(self, key: NetworkKey, use: NetworkUse) -> tuple[int, str]:
        """How many more instances the network can take, and what it is short of."""
        record = self.table.records.get(key)
        if record is None:
            return 0, f"there is no network {use.network}: 'swarmctl network ls'"
        for address in use.addresses:
            holder = self.book.holder(key, address)
            if holder is not None:
                return 0, f"its address {address} is still held by {self._whose(holder)}"
        if use.addresses:
            return 1, "a fixed address is for one instance"
        room = max(0, self.book.room(record) - self._promised[key])
        ranges = ", ".join(one.cidr for one in record.subnets)
        held = sum(one.network == key for one in self.leaving.values())
        waits = f" ({held} of them until OVN has removed their ports)" if held else ""
        return room, f"network {use.network} has no free address: all of {ranges} are taken{waits}"

    def _whose(self, port: str) -> str:
        wish = self.wishes.get(port)
        if wish is None:
            return "a port that OVN has not removed yet"
        return wish.instance if wish.service else f"the spare port {port}"

    # --- placed ------------------------------------------------------------------------------

    def attach(
        self, service: "Service", instance: "Instance", parent: str = ""
    ) -> tuple[Attachment, ...]:
        """Give a placed instance its ports; ``parent`` is the trunk of the VM that its node is.

        Raises:
            UserError: there is no address or no VLAN; it has nothing then.
        """
        made: list[Attachment] = []
        try:
            for index, use in enumerate(service.record.spec.template.networks):
                record = self.table.get((service.key[0], use.network))
                made.append(self._plug(record, use, instance, index, parent))
        except UserError:
            for one in made:
                self._undo(one, parent)
            raise
        self.attachments[instance.incarnation] = tuple(made)
        self.templates.add(instance.template)
        self._wish(service, instance, made, parent)
        if parent:
            self.warm(parent, [_network_of(one) for one in made])
        return tuple(made)

    def _plug(
        self, record: NetworkRecord, use: NetworkUse, instance: "Instance", index: int, parent: str
    ) -> Attachment:
        if why := self.too_wide(record, parent):
            raise NothingFits(why, hint="make the VM's network wider, or this one with that --mtu")
        spare = self.subports.take(parent, record.key) if parent and not use.addresses else None
        if spare is not None:
            given = [(address, subnet_of(record, address)) for address in spare.addresses]
            return _attachment(record, spare.name, spare.mac, given, spare.vlan, first=index == 0)
        port = port_name(self.cluster_id, instance.incarnation, index)
        given = self.book.give(record, use.addresses, port)
        try:
            vlan = self.book.give_vlan(parent, lambda _: port) if parent else 0
        except NothingFits:
            self.book.free(Held(record.key, tuple(address for address, _ in given)), port)
            self.drop_spares(parent=parent)  # Of other networks: their VLANs are needed more.
            raise
        mac = mac_address(self.cluster_id, instance.incarnation, index)
        return _attachment(record, port, mac, given, vlan, first=index == 0)

    def too_wide(self, record: NetworkRecord, parent: str) -> str:
        """Why nothing of the network can be plugged into a trunk; empty when it can, or on a host.

        Its peers and its router send packets of its MTU, which the trunk would lose.
        """
        found = parse_port_name(self.cluster_id, parent)
        own = self.attachments.get(found[0], ()) if found is not None else ()
        trunk = next((one for one in own if one.port == parent), None)
        if trunk is None or not 0 < trunk.mtu < record.mtu:
            return ""
        return (
            f"network {record.title} has an MTU of {record.mtu}, and the VM's own network"
            f" {trunk.network} carries {trunk.mtu}"
        )

    def _undo(self, one: Attachment, parent: str) -> None:
        """What was plugged a moment ago is not needed."""
        spare = self.wishes.get(one.port)
        if spare is None:
            self.book.free(_held(one, parent), one.port)
        elif not self.subports.give_back(spare):
            self._to_go(spare)

    def warm(self, parent: str, keys: Iterable[NetworkKey]) -> None:
        """Have spares of networks on a trunk, once it is known which VLANs are taken there."""
        if not self.active or self.is_late:
            return
        made = 0
        for key in keys:
            record = self.table.records.get(key)
            if record is not None and not self.too_wide(record, parent):
                made += self.subports.top_up(parent, record)
        if made:
            self.changed()

    def drop_spares(self, *, parent: str = "", key: NetworkKey | None = None) -> None:
        """Keep no spares of a trunk, or of a network."""
        for wish in list(self.subports.drop(parent=parent, key=key)):
            self._to_go(wish)

    def _wish(
        self,
        service: "Service | None",
        instance: "Instance",
        attachments: Iterable[Attachment],
        parent: str,
    ) -> None:
        for one in attachments:
            wish = PortWish(
                one.port,
                *_network_of(one),
                service=instance.key[1],
                slot=instance.slot,
                mac=one.mac,
                addresses=_plain(one.addresses),
                parent=parent if one.vlan else "",
                vlan=one.vlan,
            )
            self.wishes[one.port] = self.completed(wish, service)
        self.changed()

    def completed(self, wish: PortWish, service: "Service | None") -> PortWish:
        """With what is not a port's own, but its service's and its network's."""
        record = self.table.records.get((wish.tenant, wish.network))
        template = service.record.spec.template if service is not None else None
        labels = template.labels if template is not None else {}
        uses = template.networks if template is not None else ()
        return evolve(
            wish,
            labels=tuple(sorted(labels.items())),
            security_groups=record.definition.security_groups if record is not None else (),
            aliases=next((use.aliases for use in uses if use.network == wish.network), ()),
        )

    # --- taken over --------------------------------------------------------------------------

    def adopt(
        self,
        service: "Service | None",
        instance: "Instance",
        attachments: tuple[Attachment, ...],
        trunk: Callable[[], str],
    ) -> None:
        """A node reports an instance with these, and what it says is true.

        ``trunk`` finds the port of the VM that the node is, or raises NothingFits as long as that
        VM is not known: nothing is told to OVN then, and :meth:`adopt_late` tries again.
        """
        self.attachments[instance.incarnation] = attachments
        self.templates.add(instance.template)
        for one in attachments:
            self.leaving.pop(one.port, None)  # See find: it is not to go after all.
        parent = ""
        try:
            parent = trunk() if any(one.vlan for one in attachments) else ""
        except NothingFits:
            self._late[instance.incarnation] = lambda: self.adopt(
                service, instance, attachments, trunk
            )
        for one in attachments:
            record = self.table.records.get(_network_of(one))
            self.book.hold(_held(one, parent), one.port, record)
        if instance.incarnation not in self._late:
            self.unclaimed.difference_update([one.port for one in attachments])
            self._wish(service, instance, attachments, parent)

    @property
    def is_late(self) -> bool:
        """Whether something waits to be known."""
        return bool(self._late)

    def adopt_late(self) -> None:
        """Try again what was adopted before the VM was known that it is in."""
        late, self._late = self._late, {}
        for incarnation, again in late.items():
            if incarnation in self.attachments:
                again()

    def find(self, wish: PortWish) -> None:
        """OVN has a port of an instance of which no node has told yet.

        If something was given before its rows could be read, and that port has it too, the port is
        to go: there would be two with one address.
        """
        if wish.name in self.wishes or wish.name in self.leaving:
            return
        key, what = (wish.tenant, wish.network), held(wish)
        self.book.hold(what, wish.name, self.table.records.get(key))
        if self.book.holds(what, wish.name):
            self.unclaimed.add(wish.name)
            self.wishes[wish.name] = wish
        else:
            self.leaving[wish.name] = what

    def claim(self, instance: "Instance") -> None:
        """A node has the instance and does not know its ports any more: OVN does.

        So it is after a journal was lost; what runs keeps the addresses that it uses.
        """
        if instance.incarnation in self.attachments:
            return
        own = [self.wishes[port] for port in sorted(self.unclaimed) if self._is_of(port, instance)]
        made: list[Attachment] = []
        for wish in own:
            record = self.table.records.get((wish.tenant, wish.network))
            if record is not None:
                given = [(address, subnet_of(record, address)) for address in wish.addresses]
                made.append(
                    _attachment(record, wish.name, wish.mac, given, wish.vlan, first=not made)
                )
        if made:
            self.attachments[instance.incarnation] = tuple(made)
            self.templates.add(instance.template)
            self.unclaimed.difference_update([one.port for one in made])

    def _is_of(self, port: str, instance: "Instance") -> bool:
        found = parse_port_name(self.cluster_id, port)
        if found is not None:
            return found[0] == instance.incarnation
        # A subport is named after its trunk: it is the instance's that OVN says it is.
        wish = self.wishes[port]
        return (wish.tenant, wish.service, wish.slot) == (*instance.key, instance.slot)

    def drop_unclaimed(self) -> None:
        """Every node has told what it has: ports of which none has told are nobody's."""
        for port in self.unclaimed:
            self._leave(port)
        self.unclaimed.clear()

    def regroup(self, record: NetworkRecord) -> None:
        """The security groups of a network have changed."""
        groups = record.definition.security_groups
        here = [one for one in self.wishes.values() if (one.tenant, one.network) == record.key]
        for one in here:
            self.wishes[one.name] = evolve(one, security_groups=groups)

    # --- gone --------------------------------------------------------------------------------

    def leave(self, incarnation: int) -> None:
        """The node has confirmed that the instance is gone."""
        for one in self.attachments.pop(incarnation, ()):
            if self.book.is_trunk(one.port):
                self.drop_spares(parent=one.port)
            self._leave(one.port)

    def condemn(self, incarnation: int, port: str) -> bool:
        """A subport of the instance did not come up: it goes with it; False leaves it as it is.

        While OVN does not confirm that those before it are gone, another one would fare no better,
        and would take one more address.
        """
        wish = self.wishes.get(port)
        own = any(one.port == port for one in self.attachments.get(incarnation, ()))
        if wish is None or not wish.parent or not own or not self.active:
            return False
        going = sum(one.parent == wish.parent for one in self.leaving.values())
        going += sum(self.wishes[one].parent == wish.parent for one in self.condemned)
        if going >= SPARES:
            return False
        self.condemned.add(port)
        return True

    def _leave(self, port: str) -> None:
        wish = self.wishes.get(port)
        if wish is None:
            return  # Its network is not known here: nothing was given.
        spare = self.active and wish.parent and port not in self.condemned
        if spare and self.subports.give_back(wish):
            self.changed()
        else:
            self._to_go(wish)

    def _to_go(self, wish: PortWish) -> None:
        del self.wishes[wish.name]
        self.condemned.discard(wish.name)
        if self.active:
            self.leaving[wish.name] = held(wish)
            self.changed()
        else:
            self.book.free(held(wish), wish.name)

    def untold(self) -> tuple[list[str], list[str]]:
        """What a round that begins now is to tell OVN, for :meth:`told`."""
        return list(self.leaving), self.subports.untold()

    def told(self, leaving: Iterable[str], returning: Iterable[str]) -> bool:
        """OVN has ``leaving`` no more: their addresses are free. Whether there were any.

        And ``returning`` are spares there, without name or group, for whoever comes; likewise.
        """
        freed = self.subports.told(returning)
        for port in leaving:
            held = self.leaving.pop(port, None)
            if held is not None:
                self.book.free(held, port)
                self.book.drop_trunk(port)
                freed = True
        return freed

    def carries(self, incarnation: int) -> bool:
        """Whether the instance is a VM whose port has, or had, others on it."""
        found = self.attachments.get(incarnation, ())
        return bool(found) and self.book.is_trunk(found[0].port)

    # --- views -------------------------------------------------------------------------------

    def addresses_of(self, incarnation: int) -> list[str]:
        """The addresses of an instance, without prefix."""
        found = self.attachments.get(incarnation, ())
        return [address for one in found for address in _plain(one.addresses)]

    def on_network(self, key: NetworkKey) -> list[PortWish]:
        """The instances' ports that should be on a network."""
        return [
            one for one in self.wishes.values() if (one.tenant, one.network) == key and one.service
        ]

    def in_use(self) -> set[NetworkKey]:
        """The networks that something is on, or was on until OVN confirms that it is gone.

        Services are on them, too, with their addresses, whether or not they have copies.
        """
        found = {(one.tenant, one.network) for one in self.wishes.values() if one.service}
        found |= {key for _, key, _ in self.services}
        return found | {one.network for one in self.leaving.values()}


def _attachment(
    record: NetworkRecord,
    port: str,
    mac: str,
    given: Sequence[tuple[str, Subnet]],
    vlan: int,
    *,
    first: bool,
) -> Attachment:
    """A port as its node is told of it; the ``first`` has the default route.

    The gateway is OVN's own, and answers, but on a provider's network: there it is somebody else's,
    or nobody's.
    """
    gateways = tuple(subnet.gateway for _, subnet in given)
    leads_out = first and not record.definition.internal
    return Attachment(
        port=port,
        network=record.title,
        mac=mac,
        addresses=tuple(f"{address}/{subnet.prefix}" for address, subnet in given),
        mtu=record.mtu,
        routes=tuple((_ANYWHERE[":" in one], one) for one in gateways) if leads_out else (),
        dns=record.definition.resolvers or gateways,
        search=(record.key[0],),
        vlan=vlan,
        gateway=gateways[0] if record.definition.provider is None else "",
    )


def _held(one: Attachment, parent: str) -> Held:
    return Held(_network_of(one), _plain(one.addresses), parent if one.vlan else "", one.vlan)


def _network_of(one: Attachment) -> NetworkKey:
    tenant, _, name = one.network.partition("/")
    return tenant, name


def _plain(addresses: Iterable[str]) -> tuple[str, ...]:
    """Addresses without their prefix."""
    return tuple(address.partition("/")[0] for address in addresses)
