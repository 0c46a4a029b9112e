"""Memory: Python's cyclic garbage collector and the C library's heap, for daemons that stay.

The collector is set for millions of long-lived objects.

Reference counts free nearly all that the daemons drop; the collector is there for the few cycles
(exceptions with their frames, cancelled tasks).  By default it looks at the youngest objects
every 700 allocations, which during a launch of a million instances is a third of all the time, to
find nothing.

The heap keeps what was freed, for the next who asks.  Connections come by thousands when a fleet
enrols or comes back, twice each, and what they needed while they shook hands lies between what
stays; :class:`Heap` has it returned to the system once such a storm is over.
"""

import ctypes
import gc
from typing import Final

from attrs import define

# Allocations between looks at the youngest objects: some 10 MB of rubbish at the worst.
_YOUNGEST: Final = 50_000
# Looks at one generation before a look at the next; the oldest is millions of objects that live.
_MIDDLE: Final = 20
_OLDEST: Final = 100

# Connections that ended since memory was given back last; they leave some KiB each.
_STORM: Final = 1_000


def tune() -> None:
    """Set the collector's thresholds; call once, when a daemon starts."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNGEST, _MIDDLE, _OLDEST)


@define
class Heap:
    """When to give memory back, by the number of connections that have ended so far."""

    _ended: int = 0
    _ended_at_last: int = 0

    def look(self, ended: int) -> bool:
        """Give back if a storm has passed: many have ended, and none since the last look.

        It takes some 10 ms for each 100 MiB.  True when it was done.
        """
        calm, self._ended = ended == self._ended, ended
        if not calm or ended - self._ended_at_last < _STORM:
            return False
        self._ended_at_last = ended
        _give_back()
        return True


def _give_back() -> None:
    # glibc's; other C libraries return memory by themselves, or never.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
