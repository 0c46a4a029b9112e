"""Spare subports: ports on a trunk that OVN knows already when a pod comes.

A pod in a VM would wait until OVN has its port; so some are kept ready for each trunk and network,
made many at once, with name, MAC, addresses and VLAN, and no instance.  A pod that comes is given
one, and its port goes back among the spares when it is gone.  A subport is therefore named after
its trunk and VLAN, not after an instance.

What goes back is *returning* at first: for OVN it still is in the security groups of the service
that had it, and answers to its names.  Once a round has told OVN otherwise, it is a spare
(:meth:`Subports.told`).
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final, TypeAlias

from attrs import define, evolve, field

from swarmctl.controller.addressbook import AddressBook, Held
from swarmctl.controller.networks import NetworkKey, NetworkRecord
from swarmctl.net.model import PortWish
from swarmctl.net.names import CLUSTER_CHARS, derived_mac, parse_port_name
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import NothingFits

# Spares of one network on one trunk: what a VM of a few cores starts in a second.
SPARES: Final = 8

# A trunk, and a network on it.
_Place: TypeAlias = tuple[str, NetworkKey]


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
    """The spares, by trunk and network, as names of wishes; and likewise what is ``returning``.

    ``wishes`` are all ports that OVN should have, to which spares belong.
    """

    cluster_id: str
    book: AddressBook
    wishes: dict[str, PortWish]
    spares: dict[_Place, list[str]] = field(factory=dict)
    returning: dict[_Place, list[str]] = field(factory=dict)

    def take(self, parent: str, key: NetworkKey) -> PortWish | None:
        """A spare to be an instance's from now on; None when there is none."""
        found = self.spares.get((parent, key))
        # The oldest, which OVN has known for longest.
        return self.wishes[found.pop(0)] if found else None

    def give_back(self, wish: PortWish) -> bool:
        """A subport's instance is gone: keep it for the next, while its trunk is there.

        False when it is to go: there are enough, or another has its address or VLAN.
        """
        place = _place(wish)
        if (
            wish.parent not in self.wishes
            or self._kept(place) >= SPARES
            or not is_subport(self.cluster_id, wish.name)
            or not self.book.holds(held(wish), wish.name)
        ):
            return False
        self.returning.setdefault(place, []).append(wish.name)
        self.wishes[wish.name] = evolve(wish, service="", slot=0, labels=(), aliases=())
        return True

    def untold(self) -> list[str]:
        """What was given back, and OVN was not told yet."""
        return [name for names in self.returning.values() for name in names]

    def told(self, names: Iterable[str]) -> bool:
        """OVN knows of these, which were :meth:`untold`, that they are nobody's; whether any are.

        They are spares now, but for those that were dropped since.
        """
        found = False
        for name in names:
            wish = self.wishes.get(name)
            place = _place(wish) if wish is not None else ("", ("", ""))
            if name in self.returning.get(place, ()):
                self.returning[place].remove(name)
                self.spares.setdefault(place, []).append(name)
                found = True
        return found

    def _kept(self, place: _Place) -> int:
        return len(self.spares.get(place, ())) + len(self.returning.get(place, ()))

    def top_up(self, parent: str, record: NetworkRecord) -> int:
        """Make as many spares as are missing, while the network has room; how many."""
        kept = self.spares.setdefault((parent, record.key), [])
        missing, made = SPARES - self._kept((parent, record.key)), 0
        # Spares must not take the last addresses from those that come.
        while made < missing and self.book.room(record) > 2 * SPARES:
            try:
                vlan = self.book.give_vlan(parent, partial(subport_name, self.cluster_id, parent))
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
        for kept in (self.spares, self.returning):
            for place, names in list(kept.items()):
                if (parent and place[0] == parent) or (key is not None and place[1] == key):
                    del kept[place]
                    for name in names:
                        yield self.wishes[name]

    def any_on(self, parent: str) -> bool:
        """Whether a trunk has spares, of whichever network."""
        return any(names and place[0] == parent for place, names in self.spares.items())

    def count(self, key: NetworkKey) -> int:
        """How many spares a network has."""
        return sum(len(names) for place, names in self.spares.items() if place[1] == key)


def _place(wish: PortWish) -> _Place:
    return wish.parent, (wish.tenant, wish.network)


def held(wish: PortWish) -> Held:
    """What a port holds."""
    return Held((wish.tenant, wish.network), wish.addresses, wish.parent, wish.vlan)
