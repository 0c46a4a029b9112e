"""What has to be done to rows: all that is wanted, nothing twice, nothing of others."""

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.net.diff import Change, Delete, Insert, Update, difference, transactions
from swarmctl.net.memory import applied
from swarmctl.net.rows import desired_rows
from tests.unit.net import wishes
from tests.unit.net.wishes import CLUSTER, network, port

# Two worlds each: drawing them takes longer than what is tested.
some = settings(max_examples=60, deadline=None)


def rows_of(world):
    return desired_rows(CLUSTER, world)


@some
@given(wishes.worlds, wishes.worlds)
def test_after_the_difference_there_is_none(before, after):
    """From any rows to any others in one transaction, and then nothing is left to do."""
    found, wanted = rows_of(before), rows_of(after)
    done = applied(found, difference(found, wanted))

    assert done == wanted
    assert difference(done, wanted) == []


@some
@given(wishes.worlds, wishes.worlds, st.integers(1, 7))
def test_pieces_come_to_the_same(before, after, limit):
    """However it is cut, each piece can be done, and together they do all."""
    found, wanted = rows_of(before), rows_of(after)
    rows = found
    for piece in transactions(difference(found, wanted), limit):
        rows = applied(rows, piece)

    assert rows == wanted


@some
@given(wishes.worlds, wishes.worlds, st.integers(1, 7))
def test_a_port_is_never_there_without_what_closes_it(before, after, limit):
    """In the transaction that makes a port it joins its groups, and their rules are there."""
    found, wanted = rows_of(before), rows_of(after)
    groups = [row for row in wanted.values() if row.table == "Port_Group"]
    ports = {key for key in wanted if key.startswith("port/")}
    rules = {row.key for row in wanted.values() if row.table == "ACL"}
    rows = found
    for piece in transactions(difference(found, wanted), limit):
        rows = applied(rows, piece)
        made = {each.key for each in piece if isinstance(each, Insert)} & ports
        if made:
            assert rules <= rows.keys()
        for group in groups:
            joined = group.columns["ports"] & made
            assert not joined or joined <= rows[group.key].columns["ports"]


def test_one_more_port_among_many_is_little():
    """It costs a row and its memberships, not the lists of all others."""
    many = tuple(port(number, security_groups=("web",)) for number in range(1, 200))
    group = wishes.SecurityGroup("acme", "web")
    world = wishes.Wishes(networks=(network(),), groups=(group,), ports=many)
    more = evolve(world, ports=(*many, port(200, security_groups=("web",))))
    operations = difference(rows_of(world), rows_of(more))
    new = f"port/{port(200).name}"

    assert [each.key for each in operations if isinstance(each, Insert)] == [new]
    changes = [each for each in operations if isinstance(each, Change)]
    assert {each.key: each.put for each in changes if each.column == "ports"} == {
        "group/group/acme/web": {new},
        "group/closed/acme/ingress": {new},
    }
    assert len(operations) == 1 + len(changes) == 4


def test_a_change_touches_what_changed():
    """Whole columns are set where they differ, maps entry by entry."""
    one = port(1)
    before = rows_of(wishes.Wishes(networks=(network(),), ports=(one,)))
    after = rows_of(
        wishes.Wishes(networks=(evolve(network(), mtu=1400),), ports=(evolve(one, mac="02::"),))
    )
    operations = difference(before, after)

    assert {(each.key, type(each)) for each in operations} == {
        ("dhcp/acme/front/10.20.0.0/16", Change),
        (f"port/{one.name}", Update),
    }
    [dhcp] = [each for each in operations if isinstance(each, Change)]
    assert (dhcp.put, dhcp.drop) == ({"mtu": "1400"}, frozenset())


def test_a_port_that_changes_its_network_is_made_anew():
    """A row cannot move to another parent: it is deleted and inserted in one transaction."""
    both = (network(), network("acme", "back", "10.30.0.0/16"))
    one = port(1)
    before = rows_of(wishes.Wishes(networks=both, ports=(one,)))
    after = rows_of(wishes.Wishes(networks=both, ports=(evolve(one, network="back"),)))
    operations = difference(before, after)
    key = f"port/{one.name}"

    assert [type(each) for each in operations if each.key == key] == [Delete, Insert]
