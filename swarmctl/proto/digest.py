"""Order-free digests of what a node should have and of what it has (DESIGN 1.3).

Each entry is mixed into 64 bits and the entries are added up modulo 2**64, so a change costs one
subtraction and one addition, whatever the size of the node.
The mixing is that of SplitMix64 (Steele, Lea, Flood 2014); it guards against lost messages, not
against an adversary (the session is authenticated).
"""

from collections.abc import Iterable
from typing import Final

_MASK: Final = (1 << 64) - 1


# One step of SplitMix64's sequence, and its two multipliers.
_GOLDEN: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _mix_all(values: Iterable[int]) -> list[int]:
    """As :func:`_mix`, in one go: a launch mixes two for each instance."""
    mixed = []
    for value in values:
        once = ((value ^ (value >> 30)) * _FIRST) & _MASK
        twice = ((once ^ (once >> 27)) * _SECOND) & _MASK
        mixed.append(twice ^ (twice >> 31))
    return mixed


def assignment_entry(incarnation: int, desired: int, generation: int) -> int:
    """Digest of one assigned instance."""
    return _mix((incarnation * _GOLDEN + (generation << 4 | desired) * _FIRST) & _MASK)


def inventory_entry(incarnation: int, state: int, attempt: int, restarts: int) -> int:
    """Digest of one reported instance."""
    seen = attempt << 24 ^ restarts << 5 ^ state
    return _mix((incarnation * _GOLDEN + seen * _SECOND) & _MASK)


def assignment_entries(wanted: Iterable[tuple[int, int, int]]) -> list[int]:
    """As :func:`assignment_entry`, of many."""
    return _mix_all(
        [
            (incarnation * _GOLDEN + (generation << 4 | desired) * _FIRST) & _MASK
            for incarnation, desired, generation in wanted
        ]
    )


def inventory_entries(
    incarnations: Iterable[int], state: int, attempt: int, restarts: int
) -> list[int]:
    """As :func:`inventory_entry`, of many that differ by nothing but their names."""
    seen = (attempt << 24 ^ restarts << 5 ^ state) * _SECOND
    return _mix_all([(one * _GOLDEN + seen) & _MASK for one in incarnations])


def total(entries: Iterable[int]) -> int:
    """Sum of entries, in any order; 0 for none."""
    return sum(entries) & _MASK


def replace(digest: int, old: int, new: int) -> int:
    """``digest`` after the entry ``old`` became ``new``; 0 stands for no entry."""
    return (digest - old + new) & _MASK
