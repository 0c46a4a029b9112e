"""A store that was moved says so: no controller serves from it again by mistake.

``store migrate`` leaves in its source a record of where it went.  A controller that is started on
it (by an old unit file, or an old habit) would take a term of its own, after a few starts a higher
one than the new store's, and lead the nodes by what was true before the move.  So it refuses,
before it has taken a term.  ``store reopen`` takes the record away, for who means it; the store is
then older than what runs, so it begins on hold, as a restored one does.
"""

import getpass
import os
from datetime import UTC, datetime
from typing import Final

from attrs import frozen

from swarmctl.controller import records
from swarmctl.controller.store.api import Store
from swarmctl.proto.errors import Conflict

MOVED: Final = "moved"


@frozen
class Moved:
    """Where a store went, when (epoch seconds), and who moved it."""

    to: str
    at: float
    by: str

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"moved to {self.to} at {when}, by {self.by}"


def whoever() -> str:
    """Who runs this process, for people."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # The user has no name: in a container, for one.
        user = f"user {os.getuid()}"
    return f"{user} on {os.uname().nodename}"


async def read(store: Store) -> Moved | None:
    """Where it went; None for one that is in its place.

    Raises:
        StorageDamaged: the record cannot be read.
    """
    value = (await store.read(MOVED)).get(MOVED)
    return None if value is None else records.decode(value, Moved, MOVED)


async def check(store: Store, where: str) -> None:
    """Nobody serves from a store that was moved; ``where`` is how a command names it.

    Raises:
        Conflict: this one was.
    """
    moved = await read(store)
    if moved is not None:
        raise Conflict(
            f"this store was {moved}",
            where,
            f"start the controller with --store {moved.to}; or, to go back to this one without "
            f"what has changed since: swarmctl store reopen {where}",
        )
