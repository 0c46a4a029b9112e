"""Output that is kept is bounded: full log files are put aside, the oldest go.

conmon appends to ``log``.  Beyond a size the agent renames it to ``log.1`` (and that to ``log.2``)
and has conmon open ``log`` anew; what is written in between still goes to the renamed file, so
nothing is lost.  Faster writers than the agent looks, or a time without an agent, meet conmon's own
bound, which begins the file anew without keeping what was in it.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from swarmctl.agent.drivers.oci.layout import Layout, Place
from swarmctl.agent.drivers.oci.monitor import reopen_log

# Kept of one container: 30 MB as with Docker, and some more for one that writes fast.
LOG_MAX_BYTES: Final = 10 * 1024 * 1024
LOG_FILES: Final = 3


def log_files(place: Place) -> list[Path]:
    """The files of a container's output that may be there, the oldest first."""
    older = [place.log.with_name(f"log.{number}") for number in range(LOG_FILES - 1, 0, -1)]
    return [*older, place.log]


def rotate_all(layout: Layout, containers: Sequence[str], max_bytes: int = LOG_MAX_BYTES) -> None:
    """Put aside what has grown too large."""
    for container in containers:
        rotate(layout.place(container), max_bytes)


def rotate(place: Place, max_bytes: int = LOG_MAX_BYTES) -> bool:
    """Put the newest file aside when it is too large; whether it was."""
    try:
        if place.log.stat().st_size < max_bytes:
            return False
        files = log_files(place)
        for older, newer in pairwise(files):
            if newer.exists():
                newer.rename(older)
    except FileNotFoundError:
        return False  # nothing was printed yet, or the container was removed
    reopen_log(place)
    return True
