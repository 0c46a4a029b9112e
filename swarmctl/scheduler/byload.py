"""The nodes in the order of their load, kept sorted while loads change.

A node is one whole number, its load followed by its rank (its turn among equals), so that the order
of the numbers is the order of the nodes.  They stand in sorted blocks of some hundred: to move one
is to find it in a block, take it out and put it into another, each a short shift of memory.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Final

# Nodes a block when it is new: moving a node shifts half a block, and looks for it among blocks.
_BLOCK: Final = 256


class ByLoad:
    """See the module's docstring.

    Attributes:
        blocks: the nodes' numbers; growing within a block, and from block to block.
        rank_mask: what of a number is the rank.
        start: the row whose rank is 0.
    """

    __slots__ = ("_bits", "_bounds", "_numbers", "blocks", "rank_mask", "start")

    def __init__(self, load: Sequence[int], start: int) -> None:
        self.start = start
        self._bits = len(load).bit_length()
        self.rank_mask = (1 << self._bits) - 1
        # By row.
        self._numbers = [self._number(row, load[row], len(load)) for row in range(len(load))]
        ordered = sorted(self._numbers)
        self.blocks = [ordered[i : i + _BLOCK] for i in range(0, len(ordered), _BLOCK)] or [[]]
        # A block has the numbers from its bound to the next one's.
        self._bounds = [0, *(block[0] for block in self.blocks[1:])]

    def _number(self, row: int, load: int, nodes: int) -> int:
        return load << self._bits | (row - self.start) % nodes

    def move(self, rows: Sequence[int], load: Sequence[int]) -> None:
        """Rows (some of them more than once, perhaps) have the loads that the column has."""
        numbers, blocks, bounds, bits = self._numbers, self.blocks, self._bounds, self._bits
        for row in rows:
            old = numbers[row]
            new = load[row] << bits | (old & self.rank_mask)
            if new == old:
                continue
            numbers[row] = new
            at = bisect_right(bounds, old) - 1
            block = blocks[at]
            del block[bisect_left(block, old)]
            if not block and len(blocks) > 1:
                del blocks[at], bounds[at]
                bounds[0] = 0
            at = bisect_right(bounds, new) - 1
            block = blocks[at]
            insort(block, new)
            if len(block) > 2 * _BLOCK:
                blocks.insert(at + 1, block[_BLOCK:])
                bounds.insert(at + 1, block[_BLOCK])
                del block[_BLOCK:]
