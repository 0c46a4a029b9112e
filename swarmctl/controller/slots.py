"""Sets of slots: a bit each, so that a million completions are 125 KB and not a million rows.

A :class:`SlotSet` is a value: it is never changed, and made anew by :meth:`SlotSet.united`, which
costs as many bytes as the highest slot has bits, whatever is added.
It is stored as ranges or as bits, whichever is shorter: a job that ends in order is one range, one
that ends in any order is never more than its bits.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from swarmctl.proto.errors import ProtocolError

_BITS_IN: Final = [tuple(bit for bit in range(8) if byte >> bit & 1) for byte in range(256)]
# Two numbers of a range, as msgpack writes them; about.
_RANGE_BYTES: Final = 8


class SlotSet:
    """Slots, from 1; see the module's docstring."""

    __slots__ = ("_count", "bits")

    def __init__(self, bits: bytes = b"") -> None:
        """A set by its bits: slot n is bit n % 8 of byte n // 8."""
        self.bits = bits.rstrip(b"\0")
        self._count = int.from_bytes(self.bits, "little").bit_count()

    def __contains__(self, slot: int) -> bool:
        index = slot >> 3
        return 0 <= index < len(self.bits) and bool(self.bits[index] >> (slot & 7) & 1)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for index, byte in enumerate(self.bits):
            if byte:
                base = index << 3
                for bit in _BITS_IN[byte]:
                    yield base + bit

    def __eq__(self, other: object) -> bool:
        if isinstance(other, tuple):
            other = slot_set(other)
        return isinstance(other, SlotSet) and self.bits == other.bits

    def __hash__(self) -> int:
        return hash(self.bits)

    def __repr__(self) -> str:
        return f"SlotSet({self._count} slots, {len(self.bits)} bytes)"

    def united(self, slots: Iterable[int]) -> "SlotSet":
        """These and ``slots``."""
        added = _bits_of(slots)
        size = max(len(added), len(self.bits))
        both = int.from_bytes(self.bits, "little") | int.from_bytes(added, "little")
        return SlotSet(both.to_bytes(size, "little"))

    def without(self, slot: int) -> "SlotSet":
        """These but for ``slot``."""
        if slot not in self:
            return self
        bits = bytearray(self.bits)
        bits[slot >> 3] &= ~(1 << (slot & 7))
        return SlotSet(bytes(bits))

    def upto(self, last: int) -> "SlotSet":
        """Those of them that are at most ``last``."""
        kept = int.from_bytes(self.bits, "little") & ((1 << (last + 1)) - 1)
        return SlotSet(kept.to_bytes(len(self.bits), "little"))

    # --- the stored form ----------------------------------------------------------------------

    def packed(self) -> list[int] | bytes:
        """As (first, count) pairs in one list, or as bits, whichever is shorter."""
        ranges = self._ranges(len(self.bits) // _RANGE_BYTES + 1)
        return self.bits if ranges is None else ranges

    def _ranges(self, count_max: int) -> list[int] | None:
        """The ranges; None for more than ``count_max``."""
        ranges: list[int] = []
        for slot in self:
            if ranges and slot == ranges[-2] + ranges[-1]:
                ranges[-1] += 1
            elif len(ranges) >= 2 * count_max:
                return None
            else:
                ranges += [slot, 1]
        return ranges

    @classmethod
    def unpacked(cls, stored: Any) -> "SlotSet":
        """The inverse of :meth:`packed`.

        Raises:
            ProtocolError: it is neither of the forms.
        """
        if isinstance(stored, bytes):
            return cls(stored)
        if not isinstance(stored, list) or len(stored) % 2:
            raise ProtocolError("not a set of slots")
        bits = 0
        for first, count in zip(stored[::2], stored[1::2], strict=True):
            bits |= ((1 << count) - 1) << first
        return cls(bits.to_bytes(bits.bit_length() // 8 + 1, "little"))


def slot_set(slots: Iterable[int]) -> SlotSet:
    """A set of ``slots``, each at least 1; one that is a set already is itself."""
    return slots if isinstance(slots, SlotSet) else SlotSet(_bits_of(slots))


def _bits_of(slots: Iterable[int]) -> bytes:
    if isinstance(slots, SlotSet):
        return slots.bits
    listed = list(slots)
    bits = bytearray(max(listed, default=0) // 8 + 1)
    for slot in listed:
        bits[slot >> 3] |= 1 << (slot & 7)
    return bytes(bits)
