"""Sizes, cpus and times as people write them, and back.

Sizes mean what they mean to docker and to the Compose Specification: every unit is a power of
1024, whatever its spelling, so ``1g``, ``1gb``, ``1GB`` and ``1GiB`` are all 1073741824 bytes,
and a bare number is bytes.
Cpus are decimal cores, kept as thousandths.
Times are written as Go and compose write them, ``1m30s``; a bare number is seconds.

The parsers raise :class:`InvalidSpec` without a place, which their caller adds, and with a hint
that says how to write what was probably meant.
"""

import re
from decimal import Decimal
from typing import Final

from swarmctl.proto.errors import InvalidSpec

# The smallest memory that docker accepts; less is a forgotten unit ("512"), not a wish.
MEMORY_MIN_BYTES: Final = 6 * 1024 * 1024
# Above any machine; keeps amounts, and their sums over a cluster, in 63 bits.
SIZE_MAX_BYTES: Final = 1 << 50
CPUS_MAX: Final = 1_000_000
# A hundred years: a longer time is a mistake, and overflows the clocks it is added to.
DURATION_MAX_S: Final = 100 * 365 * 86400

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_FACTOR: Final = {letter: 1024**power for power, letter in enumerate("bkmgtp")}
_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_CPUS: Final = re.compile(r"\d{1,9}(?:\.\d{1,9})?|\.\d{1,9}")
_SECONDS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_DURATION_PART: Final = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(d|h|ms|us|µs|m|s)")
_WORDS: Final = re.compile(r"\s*(\d+(?:[.,]\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)
_AGES: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def parse_size(text: str) -> int:
    """Bytes of ``512m``, ``2GiB``, ``1.5g`` or ``1048576``.

    Raises:
        InvalidSpec: it is not a size, or larger than anything there is.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidSpec(f'"{text}" is not a size', hint=_size_hint(text))
    number, unit = match.groups()
    size = int(Decimal(number) * _FACTOR[(unit or "b").lower()])
    if size > SIZE_MAX_BYTES:
        raise InvalidSpec(f'"{text}" is larger than any machine', hint="is the unit right?")
    return size


def parse_memory(text: str) -> int:
    """Bytes of memory; 0 is "none reserved".

    Raises:
        InvalidSpec: it is not a size, or too little for anything to run in.
    """
    size = parse_size(text)
    if 0 < size < MEMORY_MIN_BYTES:
        bare = text.strip()
        hint = f'did you mean "{bare}m"?' if bare.isdigit() else "give at least 6m"
        raise InvalidSpec(f'"{text}" is {format_bytes(size)}, too little memory', hint=hint)
    return size


def parse_cpus(text: str) -> int:
    """Thousandths of a core of ``0.5`` or ``2``.

    Raises:
        InvalidSpec: it is not a number of cores, or less than a thousandth of one.
    """
    plain = text.strip()
    if _CPUS.fullmatch(plain) is None:
        raise InvalidSpec(f'"{text}" is not a number of cpus', hint=_cpus_hint(plain))
    cores = Decimal(plain)
    if cores > CPUS_MAX:
        raise InvalidSpec(f"{text} cpus are more than any machine has")
    millis = int(cores * 1000)
    if cores and not millis:
        raise InvalidSpec(f"{text} cpus are too few", hint="give at least 0.001")
    return millis


def parse_duration(text: str) -> float:
    """Seconds of ``10s``, ``1m30s``, ``1.5h``, ``250ms``, ``2d``, or of a bare number.

    Raises:
        InvalidSpec: it is not a time, or longer than a century.
    """
    plain = text.strip()
    if _CPUS.fullmatch(plain):
        total = float(plain)
    else:
        total, end = 0.0, 0
        for part in _DURATION_PART.finditer(plain):
            if part.start() != end:
                break
            total += float(part.group(1)) * _SECONDS[part.group(2)]
            end = part.end()
        if not plain or end != len(plain):
            raise InvalidSpec(f'"{text}" is not a time', hint=_duration_hint(plain))
    if total > DURATION_MAX_S:
        raise InvalidSpec(f'"{text}" is longer than a century', hint="is the unit right?")
    return total


def format_bytes(size: int) -> str:
    """A size for a person: ``1.2 GiB``, ``512 MiB``, ``0 B``; rounded to one decimal."""
    value, power = float(size), 0
    # 1023.95 would round to "1024.0": the next unit says it better.
    while round(value, 1) >= 1024 and power < len(_UNITS) - 1:
        value /= 1024
        power += 1
    return f"{_plain(value, 1)} {_UNITS[power]}"


def format_bytes_exact(size: int) -> str:
    """Like :func:`format_bytes`, in bytes where that would round: two sizes never look alike."""
    text = format_bytes(size)
    return text if parse_size(text) == size else f"{size} B"


def format_cpus(millis: int) -> str:
    """Cores for a person: ``0.5``, ``2``."""
    return _plain(millis / 1000, 3)


def format_duration(seconds: float) -> str:
    """A time, to the millisecond, as :func:`parse_duration` reads it: ``1m30s``, ``250ms``."""
    millis = round(seconds * 1000)
    if millis < 1000:
        return f"{millis}ms" if millis else "0s"
    parts = []
    for length, unit in _AGES[:-1]:
        count, millis = divmod(millis, length * 1000)
        if count:
            parts.append(f"{count}{unit}")
    if millis:
        parts.append(f"{_plain(millis / 1000, 3)}s")
    return "".join(parts)


def format_age(seconds: float) -> str:
    """How long ago, in its largest unit: ``3m ago``; ``now`` within a second or from the future."""
    for length, unit in _AGES:
        if seconds >= length:
            return f"{int(seconds // length)}{unit} ago"
    return "now"


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def _size_hint(text: str) -> str:
    match = _WORDS.fullmatch(text)
    if match is not None and (unit := match.group(2)[0].lower()) in "kmgtp":
        return f'write "{match.group(1).replace(",", ".")}{unit}"'
    return 'give a number and a unit, such as "512m" or "2GiB"'


def _cpus_hint(text: str) -> str:
    if re.fullmatch(r"\d+m", text):
        return f'write "{format_cpus(int(text[:-1]))}"'
    if re.fullmatch(r"\d+,\d+", text):
        return f'write "{text.replace(",", ".")}"'
    return 'give a number of cores, such as "0.5" or "2"'


def _duration_hint(text: str) -> str:
    match = _WORDS.fullmatch(text)
    if match is not None and (unit := match.group(2)[0].lower()) in "dhms":
        return f'write "{match.group(1).replace(",", ".")}{unit}"'
    return 'give numbers with units, such as "10s" or "1m30s"'
