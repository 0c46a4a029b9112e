"""Addresses of a network's subnets: giving them out, and choosing subnets that do not overlap.

An :class:`AddressPool` is one subnet's. It is rebuilt from what is observed (the rows in OVN, the
nodes' reports) by :meth:`AddressPool.reserve`, and forgets nothing but by :meth:`release`.
"""

import ipaddress
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from swarmctl.net.model import IpNetwork, Network, Subnet
from swarmctl.net.numbers import NumberPool
from swarmctl.proto.errors import Conflict, InvalidSpec, NothingFits

# Where subnets come from that nobody chose: 16,384 of a /24. Apart from what Docker (172.17.0.0/12)
# and libvirt (192.168.122.0/24) take for themselves.
CHOSEN_FROM: Final = ipaddress.IPv4Network("10.64.0.0/10")
CHOSEN_PREFIX: Final = 24


class AddressPool:
    """The addresses of one subnet; never its network, broadcast or gateway address.

    Args:
        subnet: whose.
        owner: the network, for errors: ``acme/front``.
    """

    __slots__ = ("_numbers", "_owner", "subnet")

    def __init__(self, subnet: Subnet, owner: str) -> None:
        network = subnet.network
        self.subnet = subnet
        self._owner = owner
        last = int(network.broadcast_address)
        self._numbers = NumberPool(
            int(network.network_address) + 1,
            last if subnet.is_v6 else last - 1,
            never=[int(ipaddress.ip_address(subnet.gateway))],
            chosen=_bounds(ipaddress.ip_network(subnet.ip_range)) if subnet.ip_range else None,
        )

    @property
    def size(self) -> int:
        """How many addresses ports may have, taken or not."""
        return self._numbers.size

    @property
    def taken(self) -> int:
        """How many have one."""
        return self._numbers.taken

    def __contains__(self, address: str) -> bool:
        """Whether it is taken."""
        parsed = ipaddress.ip_address(address)
        return (parsed.version == 6) == self.subnet.is_v6 and int(parsed) in self._numbers

    def give(self) -> str:
        """Take a free address.

        Raises:
            NothingFits: there is none.
        """
        number = self._numbers.give()
        if number is None:
            raise NothingFits(
                f"no address of {self.subnet.ip_range or self.subnet.cidr} is free: "
                f"all {self.size} are taken",
                f"network {self._owner}",
                "scale something down, or give the network another subnet",
            )
        return self._text(number)

    def reserve(self, address: str) -> None:
        """Take that address.

        Raises:
            InvalidSpec: it is none that a port may have.
            Conflict: it is taken.
        """
        number = self._number(address)
        if not self._numbers.reserve(number):
            raise Conflict(f"the address {address} is taken", f"network {self._owner}")

    def release(self, address: str) -> bool:
        """Give it back; False when it was not taken."""
        return self._numbers.release(self._number(address))

    def _number(self, address: str) -> int:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError as error:
            raise InvalidSpec(f'"{address}" is not an address', f"network {self._owner}") from error
        same_version = (parsed.version == 6) == self.subnet.is_v6
        if not same_version or not self._numbers.covers(int(parsed)):
            raise InvalidSpec(
                f"{address} is not an address that a port can have in {self.subnet.cidr}",
                f"network {self._owner}",
                f"the gateway is {self.subnet.gateway}",
            )
        return int(parsed)

    def _text(self, number: int) -> str:
        if self.subnet.is_v6:
            return str(ipaddress.IPv6Address(number))
        return str(ipaddress.IPv4Address(number))


def check_overlaps(networks: Iterable[Network]) -> None:
    """Refuse subnets that overlap within a tenant, whose router could not tell them apart.

    Raises:
        Conflict: two do; both are named.
    """
    claims = [(each.tenant, one.network, each) for each in networks for one in each.subnets]
    claims.sort(key=lambda claim: (claim[0], claim[1].version, _bounds(claim[1])))
    for (tenant, earlier, holder), (owner, later, asker) in itertools.pairwise(claims):
        # In order of their first addresses, what overlaps anything overlaps its neighbour:
        # ranges of CIDRs are nested or apart.
        same = tenant == owner and earlier.version == later.version
        if same and _bounds(later)[0] <= _bounds(earlier)[1]:
            raise Conflict(
                _clash(earlier, holder, later, asker),
                f"network {asker.title}",
                "choose another subnet, or leave it out and one will be chosen",
            )


def _clash(earlier: IpNetwork, holder: Network, later: IpNetwork, asker: Network) -> str:
    """How two subnets overlap, with nothing named twice."""
    if holder is asker:
        return f"its subnets {earlier} and {later} overlap"
    if earlier == later:
        return f"its subnet {later} is that of network {holder.title}"
    return f"its subnet {later} overlaps {earlier} of network {holder.title}"


def choose_subnet(taken: Sequence[Subnet]) -> Subnet:
    """A subnet that overlaps none of those: the first that is free.

    Raises:
        NothingFits: there is none.
    """
    step = 1 << (32 - CHOSEN_PREFIX)
    candidate, last = _bounds(CHOSEN_FROM)
    for first, end in sorted(_bounds(one.network) for one in taken if not one.is_v6):
        if candidate + step <= first:
            break
        if end >= candidate:
            candidate = (end // step + 1) * step
    if candidate + step - 1 > last:
        raise NothingFits(
            f"no /{CHOSEN_PREFIX} of {CHOSEN_FROM} is free for a network",
            hint="give its subnet in the network's `ipam`",
        )
    network = ipaddress.IPv4Network((candidate, CHOSEN_PREFIX))
    return Subnet(str(network), str(network.network_address + 1))


def _bounds(network: IpNetwork) -> tuple[int, int]:
    """The first and the last address, as numbers."""
    return int(network.network_address), int(network.broadcast_address)
