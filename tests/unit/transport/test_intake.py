"""Simple requests are let in by time and served by turns."""

from swarmctl.proto import limits
from swarmctl.transport.intake import Intake


def at_pace(pace_s):
    """An intake that has learnt how long a request takes."""
    intake = Intake()
    now = 0.0
    for _ in range(50):
        for _ in range(100):
            intake.add(b"p", None, 1, now)
        now += 100 * pace_s
        intake.finished(len(intake.take(100)), now)
    return intake, now


def fill(intake, peer, now):
    """As many as are let in; how many that is."""
    count = 0
    while not intake.refusal_ms(peer, now):
        intake.add(peer, (peer, count), 100, now)
        count += 1
    return count


def test_peers_have_turns():
    """Who sent one request is served next, whatever another has sent before."""
    intake = Intake()
    for number in range(10):
        intake.add(b"a", ("a", number), 1, 0.0)
    intake.add(b"b", ("b", 0), 1, 0.0)

    assert intake.take(4) == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]
    assert (intake.waiting, intake.under_way) == (7, 4)


def test_what_is_let_in_is_what_can_be_done_in_time():
    """Ten times slower, a tenth of it."""
    fast, now = at_pace(50e-6)
    slow, later = at_pace(500e-6)
    many, few = fill(fast, b"a", now), fill(slow, b"a", later)

    assert 0.9 < many * 50e-6 / limits.BULK_WAIT_S < 1.1
    assert 0.9 < few * 500e-6 / limits.BULK_WAIT_S < 1.1


def test_the_refusal_says_when_the_queue_will_be_done():
    """At least the least, at most the most."""
    intake, now = at_pace(50e-6)
    fill(intake, b"a", now)

    assert limits.BULK_WAIT_S * 1000 <= intake.refusal_ms(b"a", now) < limits.BULK_WAIT_S * 1200


def test_who_floods_keeps_nobody_else_out():
    """A second peer is let in, with as much as its share."""
    intake, now = at_pace(50e-6)
    flood = fill(intake, b"a", now)

    assert intake.refusal_ms(b"b", now) == 0
    assert 0.4 * flood < fill(intake, b"b", now) < 1.1 * flood
    assert intake.waiting <= 2 * limits.BULK_WAIT_S / 50e-6


def test_a_disk_that_hangs_refuses_all():
    """Nothing is finished: that is known before anything could show the pace of it."""
    intake, now = at_pace(50e-6)
    intake.add(b"a", None, 1, now)
    intake.take(1)

    assert intake.refusal_ms(b"b", now + 0.9 * limits.BULK_WAIT_S) == 0
    assert intake.refusal_ms(b"b", now + 1.1 * limits.BULK_WAIT_S) > 0


def test_what_waits_is_bounded_by_count_and_bytes():
    """However fast, memory has an end."""
    many, now = at_pace(1e-7)
    assert fill(many, b"a", now) == limits.RPC_TOTAL
    large, now = at_pace(1e-7)
    large.add(b"a", None, limits.BULK_BYTES, now)
    assert large.refusal_ms(b"b", now) > 0


def test_what_a_departed_peer_asked_is_forgotten():
    """Its bytes too; the turns of the others go on."""
    intake = Intake()
    for peer in (b"a", b"b", b"a"):
        intake.add(peer, peer, 10, 0.0)
    intake.drop(b"a")
    intake.drop(b"c")

    assert (intake.waiting, intake.waiting_bytes) == (1, 10)
    assert intake.take(9) == [b"b"]
    intake.finished(1, 1.0)
    assert intake.is_idle
