"""Folders of guards that are dead: an agent that starts takes them away.

An agent that ends in order dissolves its guard and the folder that both share; one that is killed
leaves it, for the next one of the same data folder.  Where none comes it would stay until the
machine is started again.

A folder is dead when nobody holds its page (agents and guards of this release lock it for as long
as they live, which counts across process namespaces, and while they are stopped), when neither the
guard nor the agent that its page names is there (those of the release before hold no lock), when it
has been quiet for a while, and when nothing that its list names is alive: an agent that comes back
is to find the list of what it has to guard.  It is moved aside before it is removed, so that who
begins with it at the same moment sees that it is gone, and makes it anew (:class:`guard.Page`).
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time as wall_clock
from typing import Final

import structlog

from swarmctl.agent import guard

_log = structlog.get_logger(__name__)

_NAME: Final = re.compile(r"guard-[0-9a-f]{16}")
# What is being removed; one that is left was removed by somebody who was killed.
_DEAD: Final = ".dead-"
# A guard shows itself four times a second. It may be starved, and an agent may take its time
# between making the folder and its first guard: folders that change within a minute are left.
QUIET_S: Final = 60.0
# At one start: each is a few files. The next start takes away the next ones.
SWEPT_MAX: Final = 1_000


def sweep(run: Path, quiet_s: float = QUIET_S) -> int:
    """Remove the dead folders in ``run``; how many. Blocking: may look through /proc."""
    removed = 0
    try:
        places = sorted(run.iterdir())
    except OSError:
        return 0
    for place in places:
        if removed >= SWEPT_MAX:
            break
        if place.name.startswith(_DEAD):
            shutil.rmtree(place, ignore_errors=True)
        elif _NAME.fullmatch(place.name) and _remove(place, quiet_s):
            removed += 1
    if removed:
        _log.info("folders of dead guards removed", count=removed, folder=str(run))
    return removed


def _remove(place: Path, quiet_s: float) -> bool:
    """Remove it if it is dead; whether it was."""
    aside = place.with_name(f"{_DEAD}{place.name}-{os.getpid()}")
    with suppress(OSError):
        changed = place.stat().st_ctime  # Before a page is made there.
        if wall_clock() - changed < quiet_s:
            return False
        with _held_alone(place / guard.PAGE) as words:
            if words is None or _is_alive(place, words, quiet_s):
                return False
            place.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return True
    return False


@contextmanager
def _held_alone(page: Path) -> Iterator[memoryview | None]:
    """The page's words while nobody else can hold it, and it is there; else None.

    Where there is none it is made, so that an agent that makes it now waits for us, or we for it.
    """
    descriptor = os.open(page, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield _locked(descriptor, page)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, page: Path) -> memoryview | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    if page.stat().st_ino != os.fstat(descriptor).st_ino:
        return None  # Somebody else has just moved it aside, and another is in its place.
    content = os.pread(descriptor, guard.PAGE_BYTES, 0)
    return memoryview(content.ljust(guard.PAGE_BYTES, b"\0")).cast("Q")


def _is_alive(place: Path, words: memoryview, quiet_s: float) -> bool:
    quiet_ns = guard.boottime_ns() - words[guard.BEAT_NS]
    # A beat of an earlier boot may lie ahead of the clock.
    if words[guard.BEAT_NS] and 0 <= quiet_ns < quiet_s * guard.NS:
        return True
    if guard.began(words[guard.AGENT_PID]) == words[guard.AGENT_BEGAN] != 0:
        return True
    return _is_guard(words[guard.GUARD_PID], place) or _guards_something(place)


def _is_guard(pid: int, place: Path) -> bool:
    """Whether this process is the folder's guard; one that cannot be looked at may be."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except PermissionError:
        return True
    except OSError:
        return False
    return pid != 0 and os.fsencode(place) in words


def _guards_something(place: Path) -> bool:
    names = guard.FencedList(str(place)).read()
    return bool(names) and bool(guard.find(names))
