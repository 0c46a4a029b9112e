"""Sets of nodes as bits of whole numbers: "which nodes have at least this much", in one look-up.

A few *cuts* through the range of a column; for each cut the set of rows whose value reaches it.
The sets of several columns are intersected with ``&``: 10,000 nodes in 50 ns.  A question between
two cuts gets the lower cut's set: a superset, to be checked row by row.

Row 0 is the *highest* bit.  The first row of a set is then ``bit_length``, which costs nothing;
the lowest bit would take ``rows & -rows``, which costs as much as eight intersections.
"""

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from swarmctl.scheduler.facts import Bools, Ints

# From this many rows on it is faster to unpack a whole set than to take out row after row.
_UNPACK_MIN = 48


class Levels:
    """One column's rows by cut.

    Attributes:
        cuts: growing values.
        at_least: by level, the set of rows that reach it; -1, which is all, for level 0.
        level: by row, how many cuts its value reaches.

    The rows that may have at least some amount are ``at_least[bisect_right(cuts, amount)]``.
    """

    __slots__ = ("at_least", "cuts", "level")

    def __init__(self, cuts: list[int], values: Ints) -> None:
        self.cuts = cuts
        self.at_least = [-1, *(to_set(values >= cut) for cut in cuts)]
        self.level: list[int] = np.searchsorted(cuts, values, side="right").tolist()

    def move(self, row: int, level: int) -> None:
        """A row has a value that reaches so many cuts, ``bisect_right(cuts, value)``."""
        old = self.level[row]
        low, high = (old, level) if old < level else (level, old)
        self.level[row] = level
        bit = 1 << (len(self.level) - 1 - row)
        for crossed in range(low + 1, high + 1):
            self.at_least[crossed] ^= bit

    def top(self, rows: int) -> tuple[int, int]:
        """Those of the given rows that are in the highest level any of them reaches.

        Returns:
            The subset, and its level; all of ``rows`` and 0 when none reaches the first cut.
        """
        at_least = self.at_least
        found, low, high = rows, 0, len(at_least)
        while high - low > 1:
            middle = (low + high) // 2
            reached = rows & at_least[middle]
            if reached:
                found, low = reached, middle
            else:
                high = middle
        return found, low


def to_set(mask: Bools) -> int:
    """The rows where the mask is true."""
    return int.from_bytes(np.packbits(mask).tobytes(), "big") >> (-len(mask) % 8)


def members(rows: int, count: int, start: int = 0) -> list[int]:
    """The rows of a set among ``count`` rows, from ``start`` upwards and then from 0."""
    found: list[int] = []
    last = count - 1
    while rows:
        top = rows.bit_length() - 1
        if len(found) == _UNPACK_MIN:
            packed = np.frombuffer((rows << (-count % 8)).to_bytes((count + 7) // 8, "big"), "u1")
            found.extend(np.flatnonzero(np.unpackbits(packed)).tolist())
            break
        found.append(last - top)
        rows ^= 1 << top
    if start:
        turn = bisect_left(found, start)
        return found[turn:] + found[:turn]
    return found


def each_member(rows: int, count: int, start: int = 0) -> Iterator[int]:
    """The same, for a reader who stops after a few."""
    last = count - 1
    after = rows & ((1 << (count - start)) - 1) if start else rows
    for part in (after, rows ^ after):
        while part:
            top = part.bit_length() - 1
            yield last - top
            part ^= 1 << top
