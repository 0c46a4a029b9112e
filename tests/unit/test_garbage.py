"""Memory goes back to the system after a storm of connections, and only then."""

from pathlib import Path

from swarmctl.garbage import Heap


def test_memory_is_given_back_once_a_storm_is_over():
    """Not in its midst, once for each, and not for the few that come and go all the time."""
    heap = Heap()

    assert [heap.look(ended) for ended in (400, 5_000, 9_000, 9_000, 9_000)] == [
        False,
        False,
        False,
        True,
        False,
    ]
    assert not any(heap.look(ended) for ended in (9_300, 9_300, 9_900, 9_900))
    assert [heap.look(ended) for ended in (10_100, 10_100)] == [False, True]


def test_what_is_free_between_what_stays_is_given_back():
    """All but every twentieth piece was freed; without it they would stay with the process."""
    pieces = [bytes(1_000 + number % 3_000) for number in range(60_000)]
    stay = pieces[::20]
    del pieces
    before = _resident_kib()
    heap = Heap()
    heap.look(2_000)

    assert heap.look(2_000)
    assert before - _resident_kib() > 50_000
    assert len(stay) == 3_000


def _resident_kib():
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")
