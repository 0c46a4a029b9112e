"""Joining peers and descriptors, in the orders that the kernel and libzmq can produce."""

from swarmctl.transport.api import PeerId
from swarmctl.transport.bounds import DEPARTED_MAX
from swarmctl.transport.connections import Connections, Peer

ONE, TWO = PeerId(b"\0\0\0\0\1"), PeerId(b"\0\0\0\0\2")


def peer(descriptor):
    return Peer("key", "user", descriptor)


def test_a_peer_departs_with_its_connection():
    """Once, and then it is forgotten."""
    table = Connections()
    table.opened(7)
    table.claim(ONE, peer(7))
    assert table.holds(ONE)
    table.closed(7)

    assert table.take_departed() == [ONE]
    assert not table.holds(ONE)
    assert not table.any_departed()


def test_a_connection_that_never_spoke_departs_silently():
    """There is no peer to tell of."""
    table = Connections()
    table.opened(7)
    table.closed(7)

    assert table.take_departed() == []
    assert len(table) == 0


def test_a_message_read_after_its_connection_ended_departs_at_once():
    """The listener must not keep what nothing will ever clean up."""
    table = Connections()
    table.opened(7)
    table.closed(7)
    table.claim(ONE, peer(7))

    assert table.peers == {}
    assert table.take_departed() == [ONE]


def test_a_reused_descriptor_belongs_to_who_speaks_last():
    """A late message of a dead connection claims its successor's descriptor only for a while."""
    table = Connections()
    table.opened(7)
    table.closed(7)
    table.opened(7)
    table.claim(ONE, peer(7))
    table.claim(TWO, peer(7))

    assert table.take_departed() == [ONE]
    assert table.holds(TWO)
    assert not table.holds(ONE)


def test_an_open_without_a_close_ends_the_earlier_connection():
    """A descriptor cannot be accepted twice while it is open."""
    table = Connections()
    table.opened(7)
    table.claim(ONE, peer(7))
    table.opened(7)

    assert table.take_departed() == [ONE]


def test_departed_peers_that_nobody_takes_are_bounded():
    """The oldest go first."""
    table = Connections()
    for number in range(DEPARTED_MAX + 3):
        table.opened(7)
        table.claim(PeerId(b"%d" % number), peer(7))
        table.closed(7)
    departed = table.take_departed()

    assert len(departed) == DEPARTED_MAX
    assert departed[0] == b"3"
