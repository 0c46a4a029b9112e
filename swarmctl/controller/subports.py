"""Spare subports: ports on a trunk that OVN knows already when a pod comes.

A pod in a VM would wait until OVN has its port; so some are kept ready for each trunk and network,
made many at once, with name, MAC, addresses and VLAN, and no instance.  A pod that comes is given
one, and its port goes back among the spares when it is gone.  A subport is therefore named after
its trunk and VLAN, not after an instance.
"""

from collections.abc import Iterator
from typing import Final

from attrs import define, evolve, field

from swarmctl.controller.addressbook import AddressBook, Held
from swarmctl.controller.networks import NetworkKey, NetworkRecord
from swarmctl.net.model import PortWish
from swarmctl.net.names import CLUSTER_CHARS, derived_mac, parse_port_name
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import NothingFits

# Spares of one network on one trunk: what a VM of a few cores starts in a second.
SPARES: Final = 8


def subport_name(cluster_id: str, parent: str, vlan: int) -> str:
    """The port with that VLAN on the port of a VM: ``c0c0c0c0-7-42-v5``."""
    found = parse_port_name(cluster_id, parent)
    assert found is not None, f"{parent} is no port of an instance"
    return f"{cluster_id[:CLUSTER_CHARS]}-{incarnations.label(found[0])}-v{vlan}"


def is_subport(cluster_id: str, name: str) -> bool:
    """Whether the name is one of :func:`subport_name`'s."""
    head, _, rest = name.partition("-")
    label, _, vlan = rest.rpartition("-")
    if head != cluster_id[:CLUSTER_CHARS] or not (vlan[:1] == "v" and vlan[1:].isdecimal()):
        return False
    try:
        incarnations.parse(label)
    except ValueError:
        return False
    return True


@define(eq=False)
class Subports:
    """The spares, by trunk and network, as names of wishes.

    ``wishes`` are all ports that OVN should have, to which spares belong.
    """

    cluster_id: str
    book: AddressBook
    wishes: dict[str, PortWish]
    spares: dict[tuple[str, NetworkKey], list[str]] = field(factory=dict)

    def take(self, parent: str, key: NetworkKey) -> PortWish | None:
        """A spare to be an instance's from now on; None when there is none."""
        found = self.spares.get((parent, key))
        # The oldest, which OVN has known for longest.
        return self.wishes[found.pop(0)] if found else None

    def give_back(self, wish: PortWish) -> bool:
        """A subport's instance is gone: keep it for the next, while its trunk is there."""
        key = (wish.tenant, wish.network)
        kept = self.spares.get((wish.parent, key), [])
        if (
            wish.parent not in self.wishes
            or len(kept) >= SPARES
            or not is_subport(self.cluster_id, wish.name)
        ):
            return False
        self.spares.setdefault((wish.parent, key), kept).append(wish.name)
        self.wishes[wish.name] = evolve(wish, service="", slot=0, labels=(), aliases=())
        return True

    def top_up(self, parent: str, record: NetworkRecord) -> int:
        """Make as many spares as are missing, while the network has room; how many."""
        kept = self.spares.setdefault((parent, record.key), [])
        made = 0
        # Spares must not take the last addresses from those that come.
        while len(kept) < SPARES and self.book.room(record) > 2 * SPARES:
            try:
                vlan = self.book.give_vlan(parent)
            except NothingFits:
                break
            name = subport_name(self.cluster_id, parent, vlan)
            given = self.book.give(record, (), name)
            self.wishes[name] = PortWish(
                name,
                *record.key,
                service="",
                slot=0,
                mac=derived_mac(f"{self.cluster_id}/{name}"),
                addresses=tuple(address for address, _ in given),
                security_groups=record.definition.security_groups,
                parent=parent,
                vlan=vlan,
            )
            kept.append(name)
            made += 1
        return made

    def drop(self, *, parent: str = "", key: NetworkKey | None = None) -> Iterator[PortWish]:
        """Keep no spares of a trunk, or of a network; yields the ports that are to go."""
        for of, names in list(self.spares.items()):
            if (parent and of[0] == parent) or (key is not None and of[1] == key):
                del self.spares[of]
                for name in names:
                    yield self.wishes[name]

    def count(self, key: NetworkKey) -> int:
        """How many spares a network has."""
        return sum(len(names) for of, names in self.spares.items() if of[1] == key)


def held(wish: PortWish) -> Held:
    """What a port holds."""
    return Held((wish.tenant, wish.network), wish.addresses, wish.parent, wish.vlan)
