"""What happened, in order: a hash over every event, and the last of them as text."""

import hashlib
from collections import Counter, deque

import trio

# A run with fewer proves little.
EVENTS_MIN = 1_000
# Enough to see what led to a violation.
_TAIL = 400


class Trace:
    """The events of one run. With ``keep`` all of them stay as text, else the last few hundred."""

    def __init__(self, *, keep=False):
        self._hash = hashlib.blake2b(digest_size=16)
        self.kinds = Counter()
        self.lines = deque(maxlen=None if keep else _TAIL)

    def note(self, kind, *details):
        """One event, at the present virtual time."""
        line = f"{trio.current_time():.6f} {kind} {' '.join(map(str, details))}"
        self._hash.update(f"{line}\n".encode())
        self.kinds[kind] += 1
        self.lines.append(line)

    @property
    def events(self):
        """How many there were."""
        return self.kinds.total()

    @property
    def digest(self):
        """Two runs with the same digest were the same."""
        return self._hash.hexdigest()
