"""Sets of nodes as bits of whole numbers: "which nodes have at least this much", in one look-up.

A few *cuts* through the range of a column; for each cut the set of rows whose value reaches it.
The sets of several columns are intersected with ``&``, thousands of nodes in a microsecond or
less.  A question between two cuts gets the lower cut's set: a superset, to be checked row by row.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from swarmctl.scheduler.facts import Bools, Ints

# From this many rows on it is faster to unpack a whole set than to take out row after row.
_UNPACK_MIN = 48


class Levels:
    """One column's rows by cut.

    Attributes:
        cuts: growing values.
        at_least: for each cut, the set of rows whose value is that much or more.
    """

    __slots__ = ("_level", "at_least", "cuts")

    def __init__(self, cuts: list[int], values: Ints) -> None:
        self.cuts = cuts
        self.at_least = [to_set(values >= cut) for cut in cuts]
        self._level: list[int] = np.searchsorted(cuts, values, side="right").tolist()

    def move(self, row: int, value: int) -> None:
        """A row has a new value."""
        new, old = bisect_right(self.cuts, value), self._level[row]
        if new != old:
            self._level[row] = new
            bit = 1 << row
            for level in range(min(new, old), max(new, old)):
                self.at_least[level] ^= bit

    def reaching(self, amount: int) -> int:
        """The rows that may have at least this much; -1, which is all, below the first cut."""
        level = bisect_right(self.cuts, amount)
        return self.at_least[level - 1] if level else -1

    def top(self, rows: int) -> int:
        """Those of the given rows that are in the highest level any of them reaches.

        Returns:
            The subset; all of ``rows`` when none of them reaches the first cut.
        """
        at_least = self.at_least
        found, low, high = rows, 0, len(at_least)
        while low < high:
            middle = (low + high) // 2
            reached = rows & at_least[middle]
            if reached:
                found, low = reached, middle + 1
            else:
                high = middle
        return found


def to_set(mask: Bools) -> int:
    """The rows where the mask is true."""
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")


def members(rows: int) -> Sequence[int]:
    """The rows of a set, lowest first."""
    if rows.bit_count() < _UNPACK_MIN:
        return list(lowest(rows))
    packed = np.frombuffer(rows.to_bytes((rows.bit_length() + 7) // 8, "little"), dtype=np.uint8)
    unpacked: list[int] = np.flatnonzero(np.unpackbits(packed, bitorder="little")).tolist()
    return unpacked


def lowest(rows: int) -> Iterator[int]:
    """The same, for a reader who stops after a few."""
    while rows:
        bit = rows & -rows
        yield bit.bit_length() - 1
        rows ^= bit


def members_from(rows: int, start: int) -> Sequence[int]:
    """The rows of a set, from ``start`` upwards and then from 0."""
    return list(_from(members, rows, start)) if start else members(rows)


def lowest_from(rows: int, start: int) -> Iterable[int]:
    """The same, for a reader who stops after a few."""
    return _from(lowest, rows, start) if start else lowest(rows)


def _from(listing: Callable[[int], Iterable[int]], rows: int, start: int) -> Iterator[int]:
    upper = rows >> start
    return chain((row + start for row in listing(upper)), listing(rows ^ (upper << start)))
