"""Names, MAC addresses and MTUs, which are computed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.net.mtu import check_mtu, payload_mtu
from swarmctl.net.names import mac_address, match_name, parse_port_name, port_name
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import InvalidSpec
from tests.strategies import names

CLUSTER = "c0ffee00" * 4
some_incarnations = st.builds(
    incarnations.make,
    st.integers(1, incarnations.TERM_MAX),
    st.integers(0, incarnations.SEQUENCE_MAX),
)


@given(some_incarnations, st.integers(0, 20))
def test_a_ports_name_tells_whose_it_is(incarnation, index):
    """It can be read back, by the cluster that it is of."""
    name = port_name(CLUSTER, incarnation, index)

    assert parse_port_name(CLUSTER, name) == (incarnation, index)
    assert parse_port_name("deadbeef" * 4, name) is None


@pytest.mark.parametrize(
    "name", ["", "c0ffee00", "c0ffee00-7-42", "c0ffee00-7-x-0", "c0ffee00-0-1-0"]
)
def test_other_names_are_not_ports(name):
    """Somebody else's name is told apart."""
    assert parse_port_name(CLUSTER, name) is None


def test_a_mac_address_is_local_and_of_one_port():
    """The same for the same port; no multicast, none of a vendor's."""
    macs = {mac_address(CLUSTER, incarnations.make(7, n), i) for n in range(500) for i in range(4)}

    assert len(macs) == 2000
    assert all(re.fullmatch(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}", mac) for mac in macs)


@given(names, names)
def test_a_name_for_matches_is_an_identifier(tenant, group):
    """OVN takes it after ``@`` and ``$``."""
    name = match_name(CLUSTER, "sg", tenant, group)

    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name)
    assert name != match_name("other", "sg", tenant, group)


def test_names_for_matches_stay_apart():
    """Where the readable parts are alike, the digest differs."""
    assert match_name(CLUSTER, "sg", "a-b", "c") != match_name(CLUSTER, "sg", "a", "b-c")


def test_one_encapsulation_leaves_this_much():
    """58 bytes are Geneve's on IPv4, 78 on IPv6."""
    assert payload_mtu(1500) == 1442
    assert payload_mtu(1500, underlay_is_v6=True) == 1422
    assert payload_mtu(9000) == 8942


def test_too_small_an_mtu_is_refused():
    """Between the hosts, and of a network."""
    with pytest.raises(InvalidSpec, match="raise the MTU of the hosts' network to 634"):
        payload_mtu(600)
    with pytest.raises(InvalidSpec, match="to 1338"):
        payload_mtu(1300, with_v6=True)
    with pytest.raises(InvalidSpec, match="1442 is what one encapsulation leaves"):
        check_mtu(1500, 1442, "network acme/front")
    with pytest.raises(InvalidSpec, match="1280 is the least"):
        check_mtu(1000, 1442, "network acme/front", with_v6=True)
    assert check_mtu(0, 1442, "") == 1442
    assert check_mtu(1400, 1442, "") == 1400
