"""Whether this process runs out of file descriptors: its connections need them, and do not say so.

The socket library leaves a connection waiting for which there is no descriptor; whoever knocks sees
a handshake that does not end.  So both daemons look themselves, and name it.
"""

import errno
import os
import resource
from typing import Final

# What the system answers when there is none left, for this process or for all.
EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE)
# So many are needed at once by a peer that comes, a disk that is written and a look around.
SPARE_MIN: Final = 8


def shortage(spare_min: int = SPARE_MIN) -> str:
    """What is wrong, in words; empty while ``spare_min`` descriptors can be had."""
    taken: list[int] = []
    try:
        # Taken and given back: to count those that are open costs as much as there are.
        taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(spare_min - 1):
            taken.append(os.dup(taken[0]))
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"file descriptors: fewer than {spare_min} of {soft} are left, and who connects waits "
            "outside; raise the limit (ulimit -n, LimitNOFILE=)"
        )
    finally:
        for descriptor in taken:
            os.close(descriptor)
    return ""
