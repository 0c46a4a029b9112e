"""Addresses and VLANs: each given once, none that nobody may have, and plain words at the end."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.net.addresses import AddressPool, check_overlaps, choose_subnet
from swarmctl.net.model import Network, subnet
from swarmctl.net.numbers import NumberPool
from swarmctl.net.vlans import VlanPool
from swarmctl.proto.errors import Conflict, InvalidSpec, NothingFits

steps = st.lists(
    st.one_of(
        st.just(("give", 0)),
        st.tuples(st.sampled_from(["reserve", "release"]), st.integers(1, 12)),
    ),
    max_size=60,
)


@given(steps=steps, never=st.sets(st.integers(0, 14), max_size=3))
def test_a_pool_agrees_with_a_set(steps, never):
    """Nothing twice, nothing forbidden, and at the end all of it."""
    pool = NumberPool(1, 12, never)
    allowed = set(range(1, 13)) - never
    taken = set()
    for step, number in steps:
        if step == "give":
            given_one = pool.give()
            assert given_one in allowed - taken if allowed - taken else given_one is None
            taken |= {given_one} - {None}
        elif step == "release":
            assert pool.release(number) == (number in taken)
            taken.discard(number)
        elif number in allowed:
            assert pool.reserve(number) == (number not in taken)
            taken.add(number)
        assert pool.taken == len(taken)

    rest = [pool.give() for _ in allowed - taken]

    assert sorted(rest) == sorted(allowed - taken)
    assert pool.give() is None


def test_what_was_released_rests_longest():
    """An address is used again only after all others of the range, the oldest first."""
    pool = NumberPool(1, 5)
    for _ in range(3):
        pool.give()
    pool.release(2)
    pool.release(1)

    assert [pool.give() for _ in range(4)] == [4, 5, 2, 1]


@given(prefix=st.integers(24, 30), network=st.integers(0, 255), gateway=st.integers(1, 2))
def test_a_subnet_gives_every_address_that_a_port_may_have(prefix, network, gateway):
    """All but network, broadcast and gateway; then it says that the network is full."""
    cidr = ipaddress.ip_network((f"10.20.{network}.0", prefix))
    pool = AddressPool(subnet(str(cidr), str(cidr[gateway])), "acme/front")
    given_ones = {pool.give() for _ in range(pool.size)}

    assert given_ones == {str(one) for one in cidr.hosts()} - {str(cidr[gateway])}
    assert pool.taken == pool.size
    with pytest.raises(NothingFits, match=f"acme/front: no address of {cidr} is free"):
        pool.give()


@pytest.mark.parametrize("cidr", ["10.0.0.0/8", "fd00:1::/64"])
def test_large_subnets_cost_what_is_taken(cidr):
    """Nothing is made for each address that there might be."""
    pool = AddressPool(subnet(cidr), "acme/front")
    given_ones = [pool.give() for _ in range(20_000)]

    assert len(set(given_ones)) == 20_000
    assert all(one in pool for one in given_ones[::1000])
    assert pool.subnet.gateway not in given_ones


def test_an_address_is_reserved_once():
    """A second holder is refused, and so is what no port may have."""
    pool = AddressPool(subnet("10.20.0.0/24"), "acme/front")
    pool.reserve("10.20.0.2")

    assert pool.give() == "10.20.0.3"
    with pytest.raises(Conflict, match=r"10\.20\.0\.2 is taken"):
        pool.reserve("10.20.0.2")
    for address in ("10.20.0.0", "10.20.0.1", "10.20.0.255", "10.21.0.7", "fd00::7", "x"):
        with pytest.raises(InvalidSpec):
            pool.reserve(address)
    assert pool.release("10.20.0.2")
    assert not pool.release("10.20.0.2")


@pytest.mark.parametrize(
    ("cidr", "gateway"),
    [
        ("10.20.0.1/24", ""),
        ("front", ""),
        ("10.20.0.0/31", ""),
        ("fd00::/127", ""),
        ("10.20.0.0/24", "10.20.0.0"),
        ("10.20.0.0/24", "10.20.0.255"),
        ("10.20.0.0/24", "10.21.0.1"),
        ("10.20.0.0/24", "fd00::1"),
        ("10.20.0.0/24", "router"),
        ("0.0.0.0/0", ""),
        ("127.1.0.0/24", ""),
        ("169.254.70.0/24", ""),
        ("168.0.0.0/6", ""),
        ("224.0.1.0/24", ""),
        ("255.255.255.0/24", ""),
        ("fe80::/64", ""),
        ("ff02::/64", ""),
        ("::/0", ""),
    ],
)
def test_bad_subnets_are_refused(cidr, gateway):
    """Host bits, too small, a gateway that cannot be one, addresses that are for something else."""
    with pytest.raises(InvalidSpec):
        subnet(cidr, gateway)


def test_subnets_are_written_one_way():
    """The same subnet compares equal however it was written."""
    assert subnet("fd00:0::/64") == subnet("fd00::/64", "fd00:0:0::1")
    assert subnet("10.20.0.0/255.255.255.0").cidr == "10.20.0.0/24"


def network(tenant, name, *cidrs):
    return Network(tenant, name, tuple(subnet(cidr) for cidr in cidrs), mtu=1442)


def test_overlaps_are_refused_within_a_tenant():
    """Both networks are named; another tenant may use the same addresses."""
    front = network("acme", "front", "10.20.0.0/16", "fd00::/64")
    back = network("acme", "back", "10.20.7.0/24")
    check_overlaps([front, network("zeta", "back", "10.20.7.0/24")])
    check_overlaps([front, network("acme", "back", "10.21.0.0/16", "fd00:0:0:1::/64")])

    with pytest.raises(Conflict) as caught:
        check_overlaps([back, front])

    assert str(caught.value).startswith(
        "network acme/back: its subnet 10.20.7.0/24 overlaps 10.20.0.0/16 of network acme/front"
    )


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        (
            [network("acme", "back", "10.20.0.0/16"), network("acme", "front", "10.20.0.0/16")],
            "network acme/front: its subnet 10.20.0.0/16 is that of network acme/back",
        ),
        (
            [network("acme", "back", "10.20.0.0/24", "10.20.0.0/25")],
            "network acme/back: its subnets 10.20.0.0/25 and 10.20.0.0/24 overlap",
        ),
    ],
)
def test_an_overlap_names_nothing_twice(networks, said):
    """Where it is the same subnet or the same network."""
    with pytest.raises(Conflict) as caught:
        check_overlaps(networks)

    assert str(caught.value).startswith(f"{said} (")


@pytest.mark.parametrize(
    ("cidr", "said"),
    [
        ("127.0.0.0/8", "no port can have an address of 127.0.0.0/8 (loopback) ("),
        (
            "127.1.0.0/16",
            "no port can have an address of 127.0.0.0/8 (loopback), which 127.1.0.0/16 overlaps (",
        ),
        ("10.20.0.7/24", '"10.20.0.7/24" is not a subnet, but an address in one (write 10.20.0.0'),
        ("ten", '"ten" is not a subnet (write one such as'),
    ],
)
def test_a_refused_subnet_is_named_once(cidr, said):
    """By what was written, and what is wrong with it."""
    with pytest.raises(InvalidSpec) as caught:
        subnet(cidr)

    assert str(caught.value).startswith(said)


cidrs = st.builds(
    lambda first, prefix: str(ipaddress.ip_network((first, prefix), strict=False)),
    st.integers(0x0A000000, 0x0A00FFFF).map(ipaddress.IPv4Address).map(str),
    st.integers(18, 30),
)


@given(st.lists(cidrs, max_size=6))
def test_overlaps_are_found_as_by_comparing_each_with_each(texts):
    """Looking at neighbours in order is enough."""
    subnets = [ipaddress.ip_network(text) for text in texts]
    overlap = any(a.overlaps(b) for i, a in enumerate(subnets) for b in subnets[:i])
    networks = [network("acme", f"n{number}", text) for number, text in enumerate(texts)]

    if overlap:
        with pytest.raises(Conflict):
            check_overlaps(networks)
    else:
        check_overlaps(networks)


near_choice = st.builds(
    lambda first, prefix: str(ipaddress.ip_network((first, prefix), strict=False)),
    st.integers(0x0A3FF000, 0x0A400FFF).map(ipaddress.IPv4Address).map(str),
    st.integers(20, 30),
)


@given(st.lists(near_choice, max_size=8))
def test_a_chosen_subnet_overlaps_none(texts):
    """It is free, of the right range, and has its first address as gateway."""
    taken = [subnet(text) for text in texts]
    chosen = choose_subnet([*taken, subnet("fd00::/64")])

    assert not any(chosen.network.overlaps(one.network) for one in taken)
    assert ipaddress.ip_network("10.64.0.0/10").supernet_of(chosen.network)
    assert chosen == subnet(chosen.cidr)


def test_no_subnet_is_left_to_choose():
    """It says so, and what to do."""
    with pytest.raises(NothingFits, match="give its subnet"):
        choose_subnet([subnet("10.0.0.0/8")])


def test_a_trunk_carries_4094_pods():
    """Tags from 1 to 4094, and plain words when they are used up."""
    pool = VlanPool("vm.1")
    pool.reserve(7)
    given_ones = {pool.give() for _ in range(4093)}

    assert given_ones == set(range(1, 4095)) - {7}
    assert pool.free == 0
    with pytest.raises(NothingFits, match=r"trunk vm\.1: all 4094 VLANs of the trunk are taken"):
        pool.give()
    assert pool.release(100)
    assert pool.give() == 100


def test_bad_vlans_are_refused():
    """Taken, and not a VLAN."""
    pool = VlanPool("vm.1")
    pool.reserve(1)
    with pytest.raises(Conflict, match="VLAN 1 is taken"):
        pool.reserve(1)
    for vlan in (0, 4095, -1):
        with pytest.raises(InvalidSpec, match="1 to 4094"):
            pool.reserve(vlan)
