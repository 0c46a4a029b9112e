"""VLANs on a trunk: one for each pod in a VM, unique on that VM's port (DESIGN 9)."""

from typing import Final

from swarmctl.net.numbers import NumberPool
from swarmctl.proto.errors import Conflict, InvalidSpec, NothingFits

# 12 bits of a tag; 0 means "no VLAN" and 4095 is reserved (IEEE 802.1Q).
VLAN_MIN: Final = 1
VLAN_MAX: Final = 4094


class VlanPool:
    """The VLANs of one trunk.

    Args:
        trunk: whose, for errors: the nested node or the VM.
    """

    __slots__ = ("_numbers", "_trunk")

    def __init__(self, trunk: str) -> None:
        self._trunk = trunk
        self._numbers = NumberPool(VLAN_MIN, VLAN_MAX)

    @property
    def free(self) -> int:
        """How many more pods the trunk can carry."""
        return self._numbers.size - self._numbers.taken

    def __contains__(self, vlan: int) -> bool:
        """Whether it is taken."""
        return vlan in self._numbers

    def give(self) -> int:
        """Take a free VLAN.

        Raises:
            NothingFits: there is none.
        """
        vlan = self._numbers.give()
        if vlan is None:
            raise NothingFits(
                f"all {self._numbers.size} VLANs of the trunk are taken",
                f"trunk {self._trunk}",
                "pods need another VM with `trunk: true`",
            )
        return vlan

    def reserve(self, vlan: int) -> None:
        """Take that VLAN.

        Raises:
            InvalidSpec: it is none.
            Conflict: it is taken.
        """
        if not self._numbers.covers(vlan):
            raise InvalidSpec(f"{vlan} is not a VLAN", hint=f"they are {VLAN_MIN} to {VLAN_MAX}")
        if not self._numbers.reserve(vlan):
            raise Conflict(f"VLAN {vlan} is taken", f"trunk {self._trunk}")

    def release(self, vlan: int) -> bool:
        """Give it back; False when it was not taken."""
        return self._numbers.release(vlan)
