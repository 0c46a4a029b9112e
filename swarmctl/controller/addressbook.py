"""Who holds which address of which network, and which VLAN of which trunk.

A holder is a port, by its name, or a service, by ``service/NAME``.  Pools are made when they are
first asked, from the subnets that the network has then, and take in what is held of it; so a subnet
may be added while the network is in use.  Only the holder of an address or VLAN can free it: of two
who claim one (two sources may disagree after a takeover) the first has it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Final, TypeAlias

import structlog
from attrs import define, field, frozen

from swarmctl.controller.networks import NetworkKey, NetworkRecord
from swarmctl.net.addresses import AddressPool
from swarmctl.net.model import Subnet
from swarmctl.net.vlans import VLAN_MAX, VlanPool
from swarmctl.proto.errors import Conflict, InvalidSpec, NothingFits, UserError

# A subnet of IPv6 has more addresses than programs that read JSON can count to.
_SHOWN_MAX: Final = (1 << 53) - 1
_log = structlog.get_logger(__name__)


# An address of its own of a service: the holder, the network, and the address.
Own: TypeAlias = tuple[str, NetworkKey, str]


@frozen
class Held:
    """What a port holds: addresses of a network, and a VLAN of a trunk."""

    network: NetworkKey
    addresses: tuple[str, ...]
    parent: str = ""
    vlan: int = 0


@define(eq=False)
class AddressBook:
    """See the module's docstring."""

    _holders: dict[tuple[NetworkKey, str], str] = field(factory=dict)
    _pools: dict[NetworkKey, tuple[AddressPool, ...]] = field(factory=dict)
    _trunks: dict[str, VlanPool] = field(factory=dict)
    _tags: dict[str, dict[int, str]] = field(factory=dict)

    # --- what there is -----------------------------------------------------------------------

    def holder(self, key: NetworkKey, address: str) -> str | None:
        """Who holds the address; None when it is free."""
        return self._holders.get((key, address))

    def room(self, record: NetworkRecord) -> int:
        """How many more ports the network can have: one address of each version for each."""
        free: dict[bool, int] = {}
        for pool in self._pools_of(record):
            is_v6 = pool.subnet.is_v6
            free[is_v6] = free.get(is_v6, 0) + pool.size - pool.taken
        return min(free.values())

    def taken(self, record: NetworkRecord) -> tuple[int, int]:
        """How many addresses are taken, and of how many, of the version that has fewest."""
        by_version: dict[bool, list[AddressPool]] = {}
        for pool in self._pools_of(record):
            by_version.setdefault(pool.subnet.is_v6, []).append(pool)
        fewest = min(by_version.values(), key=lambda pools: sum(pool.size for pool in pools))
        size = sum(pool.size for pool in fewest)
        return sum(pool.taken for pool in fewest), min(size, _SHOWN_MAX)

    def vlans_free(self, port: str) -> int:
        """How many more VLANs the port can carry."""
        pool = self._trunks.get(port)
        return pool.free if pool is not None else VLAN_MAX

    def is_trunk(self, port: str) -> bool:
        """Whether VLANs of the port were given."""
        return port in self._trunks

    def _pools_of(self, record: NetworkRecord) -> tuple[AddressPool, ...]:
        pools = self._pools.get(record.key, ())
        if [pool.subnet for pool in pools] != list(record.subnets):
            pools = tuple(AddressPool(one, record.title) for one in record.subnets)
            self._pools[record.key] = pools
            for key, address in self._holders:
                if key == record.key:
                    _take(pools, address)
        return pools

    # --- giving ------------------------------------------------------------------------------

    def give(
        self, record: NetworkRecord, fixed: Iterable[str], holder: str
    ) -> list[tuple[str, Subnet]]:
        """An address of each version that the network has, with its subnet.

        Args:
            record: the network.
            fixed: addresses to take in place of any; one of a version at the most.
            holder: whose they are from now on.

        Raises:
            Conflict: a fixed one is taken.
            NothingFits: none is free; nothing was taken.
        """
        pools = self._pools_of(record)
        wanted = {":" in address: address for address in fixed}
        taken: list[tuple[str, Subnet]] = []
        try:
            for is_v6 in dict.fromkeys(pool.subnet.is_v6 for pool in pools):
                of_version = [pool for pool in pools if pool.subnet.is_v6 is is_v6]
                taken.append(
                    _reserve(of_version, wanted[is_v6], record.title)
                    if is_v6 in wanted
                    else _any(of_version)
                )
        except UserError:
            for address, _ in taken:
                _release(pools, address)
            raise
        for address, _ in taken:
            self._holders[record.key, address] = holder
        return taken

    def give_one(self, record: NetworkRecord, holder: str) -> str:
        """An address of IPv4, or of IPv6 where the network has no other.

        Raises:
            NothingFits: none is free.
        """
        pools = self._pools_of(record)
        address, _ = _any([pool for pool in pools if not pool.subnet.is_v6] or list(pools))
        self._holders[record.key, address] = holder
        return address

    def take(self, record: NetworkRecord, address: str, holder: str) -> None:
        """That address, whichever part of the network's subnets it is in.

        Raises:
            Conflict: it is taken, or in no subnet.
            InvalidSpec: nothing can have it: it is the gateway's, or names the subnet itself.
        """
        _reserve(self._pools_of(record), address, record.title)
        self._holders[record.key, address] = holder

    def give_vlan(self, parent: str, holder: Callable[[int], str]) -> int:
        """A VLAN that nothing else on the trunk has; ``holder`` is what the port with it is called.

        Raises:
            NothingFits: there is none.
        """
        vlan = self._trunks.setdefault(parent, VlanPool(parent)).give()
        self._tags.setdefault(parent, {})[vlan] = holder(vlan)
        return vlan

    def holds(self, held: Held, holder: str) -> bool:
        """Whether all of it is the holder's."""
        tags = self._tags.get(held.parent, {})
        if held.parent and held.vlan and tags.get(held.vlan) != holder:
            return False
        return all(self.holder(held.network, address) == holder for address in held.addresses)

    def hold(self, held: Held, holder: str, record: NetworkRecord | None) -> None:
        """What is observed is so, whoever may claim the same.

        Args:
            held: what is observed.
            holder: who has it.
            record: its network; None when that is not known here.
        """
        pools = self._pools_of(record) if record is not None else ()
        for address in held.addresses:
            first = self._holders.setdefault((held.network, address), holder)
            if first != holder:
                _log.error("an address has two ports", address=address, ports=[first, holder])
            else:
                _take(pools, address)
        if held.vlan and held.parent:
            trunk = self._trunks.setdefault(held.parent, VlanPool(held.parent))
            first = self._tags.setdefault(held.parent, {}).setdefault(held.vlan, holder)
            if first != holder:
                _log.error("a VLAN has two ports", vlan=held.vlan, ports=[first, holder])
            if held.vlan not in trunk:
                trunk.reserve(held.vlan)

    # --- freeing -----------------------------------------------------------------------------

    def free(self, held: Held, holder: str) -> None:
        """What the holder had is free."""
        pools = self._pools.get(held.network, ())
        for address in held.addresses:
            if self._holders.get((held.network, address)) == holder:
                del self._holders[held.network, address]
                _release(pools, address)
        tags = self._tags.get(held.parent, {})
        if held.vlan and tags.get(held.vlan) == holder:
            del tags[held.vlan]
            self._trunks[held.parent].release(held.vlan)

    def drop_trunk(self, parent: str) -> None:
        """A VM's port is gone, and its VLANs with it."""
        self._trunks.pop(parent, None)
        self._tags.pop(parent, None)

    def drop_network(self, key: NetworkKey) -> None:
        """A network was removed, with nothing on it."""
        self._pools.pop(key, None)


def _candidates(pools: Iterable[AddressPool], address: str) -> Iterator[AddressPool]:
    """The pools that the address may be of; nearly always one."""
    of_version = [pool for pool in pools if pool.subnet.is_v6 is (":" in address)]
    if len(of_version) == 1:
        yield of_version[0]
        return
    parsed = ip_address(address)
    yield from (pool for pool in of_version if parsed in pool.subnet.network)


def _any(pools: Sequence[AddressPool]) -> tuple[str, Subnet]:
    for pool in pools:
        if pool.taken < pool.size:
            return pool.give(), pool.subnet
    subnets = [pool.subnet for pool in pools]
    raise NothingFits(
        f"no address of {', '.join(one.ip_range or one.cidr for one in subnets)} is free",
        hint="scale something down, or give the network another subnet",
    )


def _reserve(pools: Sequence[AddressPool], address: str, title: str) -> tuple[str, Subnet]:
    for pool in _candidates(pools, address):
        pool.reserve(address)
        return address, pool.subnet
    raise Conflict(f"{address} is in no subnet of it", f"network {title}")


def _take(pools: Iterable[AddressPool], address: str) -> None:
    """Note that it is taken, if a port may have it at all."""
    for pool in _candidates(pools, address):
        try:
            if address not in pool:
                pool.reserve(address)
        except InvalidSpec as error:
            # Its network was made anew, with another subnet or gateway, while it was held.
            _log.error("an address that no port should have is in use", error=str(error))


def _release(pools: Iterable[AddressPool], address: str) -> None:
    for pool in _candidates(pools, address):
        if address in pool:
            pool.release(address)
