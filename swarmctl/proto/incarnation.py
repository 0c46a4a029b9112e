"""Incarnations: unique, ordered names of placements, made without a durable write (DESIGN 8.2).

An incarnation is (term, sequence) in one integer, the term in the upper bits: a controller's
term is committed before it serves, so two controllers never make the same one, and of two
holders of a slot the larger integer is the newer.
"""

from typing import Final

SEQUENCE_BITS: Final = 40
SEQUENCE_MAX: Final = (1 << SEQUENCE_BITS) - 1
# 63 bits in all, so that it is a signed 64-bit integer everywhere (msgpack, SQLite).
TERM_MAX: Final = (1 << 23) - 1


def make(term: int, sequence: int) -> int:
    """The incarnation of ``sequence`` within ``term``."""
    assert 0 < term <= TERM_MAX, f"term {term} out of range"
    assert 0 <= sequence <= SEQUENCE_MAX, f"sequence {sequence} out of range"
    return (term << SEQUENCE_BITS) | sequence


def make_many(term: int, first: int, count: int) -> range:
    """The incarnations of ``count`` sequences from ``first`` on."""
    start = make(term, first)
    assert first + count - 1 <= SEQUENCE_MAX, f"sequence {first + count} out of range"
    return range(start, start + count)


def term_of(incarnation: int) -> int:
    """The term in which it was made."""
    return incarnation >> SEQUENCE_BITS


def label(incarnation: int) -> str:
    """Readable and unique: ``7-42``; used in the names of containers and domains."""
    return f"{incarnation >> SEQUENCE_BITS}-{incarnation & SEQUENCE_MAX}"


def parse(text: str) -> int:
    """The inverse of :func:`label`.

    Raises:
        ValueError: ``text`` is not of that form.
    """
    term, _, sequence = text.partition("-")
    if not (term.isdecimal() and sequence.isdecimal() and text.isascii()):
        raise ValueError(f"{text!r} is not an incarnation")
    if not (0 < int(term) <= TERM_MAX and int(sequence) <= SEQUENCE_MAX):
        raise ValueError(f"incarnation {text} is out of range")
    return make(int(term), int(sequence))
