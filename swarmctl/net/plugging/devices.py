"""The names of plugs' devices: whose a device is, and which port's, is in its name alone.

A network device's name has 15 characters.  Ours are ``s``, five characters that stand for the
cluster and the node, and nine that stand for the port.  So a node finds what it made by a prefix,
also where a crash came before anything else was written about it, and two agents on one machine
never take each other's for their own.
"""

import base64
import hashlib
from typing import Final

from attrs import field, frozen

# Of 5 bits each. Two agents on one machine share a prefix once in 33 million; of 10,000 ports on
# a node two have one name once in a million nodes (and are then plugged one after the other).
_OWNER_CHARS: Final = 5
_PORT_CHARS: Final = 9
# Linux's IFNAMSIZ, less the final zero.
DEVICE_MAX_CHARS: Final = 15


@frozen
class Devices:
    """The names on one node of one cluster."""

    cluster_id: str
    node: str
    prefix: str = field(init=False)

    @prefix.default
    def _prefix(self) -> str:
        return "s" + _letters(f"{self.cluster_id}/{self.node}", _OWNER_CHARS)

    def name(self, port: str) -> str:
        """The device of the port of that name."""
        return self.prefix + _letters(port, _PORT_CHARS)

    def owns(self, device: str) -> bool:
        """Whether a device of that name is one of this node's plugs."""
        return device.startswith(self.prefix) and len(device) == DEVICE_MAX_CHARS


def _letters(text: str, count: int) -> str:
    """``count`` lower-case letters and digits that depend on ``text``, 5 bits each."""
    digest = hashlib.blake2b(text.encode(), digest_size=10).digest()
    return base64.b32encode(digest).decode().lower()[:count]
