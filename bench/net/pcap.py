"""The file that tcpdump writes: pure.

A header, then records of (seconds, fraction, captured bytes, length on the wire) and a frame's
first bytes each; of either byte order, and in microseconds or nanoseconds.
"""

import struct
from collections.abc import Iterator
from typing import Final

from bench.net.frames import Frame, read_frame

_HEADER_BYTES: Final = 24
_RECORD_BYTES: Final = 16
_ETHERNET: Final = 1
# The first four bytes, to the byte order; the second pair is of files that have nanoseconds.
_ORDERS: Final = {
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xd4\xc3\xb2\xa1": "<",
    b"\xa1\xb2\x3c\x4d": ">",
    b"\x4d\x3c\xb2\xa1": "<",
}


def frames_of(content: bytes) -> Iterator[Frame]:
    """The frames in a file, in order; a record at the end that is cut off is left out.

    Raises:
        ValueError: it is no such file, or not of Ethernet.
    """
    order = _ORDERS.get(content[:4])
    if order is None or len(content) < _HEADER_BYTES:
        raise ValueError(f"not what tcpdump writes: it begins with {content[:4].hex()}")
    (kind,) = struct.unpack_from(f"{order}I", content, 20)
    if kind & 0xFFFF != _ETHERNET:
        raise ValueError(f"frames of kind {kind}, not Ethernet")
    at = _HEADER_BYTES
    while at + _RECORD_BYTES <= len(content):
        _, _, captured, length = struct.unpack_from(f"{order}IIII", content, at)
        at += _RECORD_BYTES
        if at + captured > len(content):
            return
        yield read_frame(content[at : at + captured], length)
        at += captured
