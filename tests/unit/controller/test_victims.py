"""The book of what was preempted: bounded, and the same after it was written and read."""

from swarmctl.controller import records
from swarmctl.controller.victims import VICTIMS_MAX, Preempted, PreemptedRecord, Victims
from swarmctl.proto import limits

KEY = ("default", "web")


def a_book(slots):
    """One in which so many slots were sent away, one a second."""
    book = Victims()
    for slot in range(1, slots + 1):
        book.add(KEY, Preempted(slot, float(slot), f"preempted by vip.{slot}"))
    return book


def test_the_last_preemption_of_a_slot_counts():
    """The one before it is replaced, and it is the newest of all."""
    book = a_book(3)
    book.add(KEY, Preempted(1, 9.0, "preempted again"))
    assert book.get(KEY, 1).why == "preempted again"
    assert [one.slot for one in book.of(KEY)] == [2, 3, 1]


def test_those_that_found_a_place_are_remembered_for_a_while():
    """The last few; those that are nowhere stay."""
    book = a_book(limits.HISTORY_MAX + 10)
    for slot in range(1, limits.HISTORY_MAX + 9):
        book.found_place(KEY, slot)
    remembered = [one.slot for one in book.of(KEY)]
    assert remembered == list(range(9, limits.HISTORY_MAX + 11))
    assert book.nowhere == [(KEY, limits.HISTORY_MAX + 9), (KEY, limits.HISTORY_MAX + 10)]


def test_of_one_service_no_more_than_the_bound():
    """The oldest go, whatever became of them; and the record fits into the store."""
    book = a_book(VICTIMS_MAX + 5)
    assert [one.slot for one in book.of(KEY)] == list(range(6, VICTIMS_MAX + 6))
    assert len(book.nowhere) == VICTIMS_MAX
    long = "preempted by " + "v" * 63 + ".1000000 (priority 1000000) on " + "n" * 63
    full = tuple(Preempted(5_000_000 + slot, 1e10 / 3, long) for slot in range(VICTIMS_MAX))
    record = PreemptedRecord("t" * 63, "s" * 63, full)
    assert len(records.encode(record)) < limits.VALUE_MAX_BYTES


def test_it_is_the_same_after_it_was_written_and_read():
    """Who is nowhere is so still."""
    book = a_book(4)
    book.found_place(KEY, 2)
    encoded = records.encode(PreemptedRecord(*KEY, tuple(book.of(KEY))))
    again = Victims()
    again.know(records.decode(encoded, PreemptedRecord, "preempted/default/web"))
    assert list(again.of(KEY)) == list(book.of(KEY))
    assert again.nowhere == [(KEY, 1), (KEY, 3), (KEY, 4)]
    assert not again.unwritten


def test_a_deleted_service_is_forgotten():
    """All of it, and nothing is left to write."""
    book = a_book(4)
    assert book.forget(KEY)
    assert not book.any_nowhere
    assert not book.unwritten
    assert not book.forget(KEY)
