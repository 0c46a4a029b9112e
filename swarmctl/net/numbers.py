"""Numbers of a range, each given once: what addresses and VLANs are allocated from.

Theory of operation. A cursor goes through the range once, passing over what is taken; behind it,
what was released waits in a queue. So a give is O(1) however large the range is (a /8, a /64), and
memory is what is taken and what was released. A number that was released rests for as long as any
other is free: what still has it in an ARP cache has time to forget.

Every number is in one of four places: taken, behind the cursor and released, ahead of the cursor,
or outside of the range.
"""

from collections import OrderedDict
from collections.abc import Iterable


class NumberPool:
    """The numbers from ``first`` to ``last``, both given, but for those in ``never``.

    Only those in ``chosen`` (first and last) are given unasked; the others can be reserved.
    """

    __slots__ = (
        "_chosen",
        "_cursor",
        "_first",
        "_last",
        "_never",
        "_outside",
        "_released",
        "_taken",
    )

    def __init__(
        self,
        first: int,
        last: int,
        never: Iterable[int] = (),
        chosen: tuple[int, int] | None = None,
    ) -> None:
        self._first = first
        self._last = last
        self._chosen = (max(first, chosen[0]), min(last, chosen[1])) if chosen else (first, last)
        self._never = frozenset(number for number in never if first <= number <= last)
        self._cursor = self._chosen[0]
        # How many are taken that are never chosen.
        self._outside = 0
        self._taken: set[int] = set()
        self._released: OrderedDict[int, None] = OrderedDict()

    @property
    def size(self) -> int:
        """How many there are to give, taken or not."""
        never = sum(self._is_chosen(number) for number in self._never)
        return max(0, self._chosen[1] - self._chosen[0] + 1 - never)

    @property
    def taken(self) -> int:
        """How many of those are given or reserved."""
        return len(self._taken) - self._outside

    def _is_chosen(self, number: int) -> bool:
        return self._chosen[0] <= number <= self._chosen[1]

    def __contains__(self, number: int) -> bool:
        """Whether it is taken."""
        return number in self._taken

    def covers(self, number: int) -> bool:
        """Whether it is one of those that may be given."""
        return self._first <= number <= self._last and number not in self._never

    def give(self) -> int | None:
        """Take any that is free; None when none is."""
        while self._cursor <= self._chosen[1]:
            number = self._cursor
            self._cursor += 1
            if number not in self._taken and number not in self._never:
                self._taken.add(number)
                return number
        if not self._released:
            return None
        number, _ = self._released.popitem(last=False)
        self._taken.add(number)
        return number

    def reserve(self, number: int) -> bool:
        """Take that one; False when it is taken already."""
        assert self.covers(number), f"{number} is not in the pool"
        if number in self._taken:
            return False
        self._released.pop(number, None)
        self._taken.add(number)
        self._outside += not self._is_chosen(number)
        return True

    def release(self, number: int) -> bool:
        """Give it back; False when it was not taken."""
        if number not in self._taken:
            return False
        self._taken.remove(number)
        if not self._is_chosen(number):
            self._outside -= 1
        elif number < self._cursor:
            self._released[number] = None
        return True
