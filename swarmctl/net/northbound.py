"""OVN's northbound database as we use it: one contract, kept by ``net/ovn`` and ``net/memory``.

A northbound belongs to one cluster, and shows and touches rows of that cluster only. Only the
controller that holds the highest *term* may write: the term is kept in the database, and every
transaction compares it there, so that a stalled old controller can do nothing (DESIGN 8.1).

Nothing is queued here. When the database is away a call fails, at the latest at its deadline; the
caller reads anew and compares anew, which is also what it does after every new connection, since
then it may be another database.
"""

from collections.abc import Sequence
from typing import Protocol

from swarmctl.net.diff import Operation
from swarmctl.net.schema import Row


class Northbound(Protocol):
    """What the controller needs of the database."""

    async def take_term(self, term: int) -> None:
        """Become the only one who may write, with a term that the store has given us.

        Raises:
            StaleTerm: the database has seen a higher one.
            EnvironmentFault: it does not answer.
        """
        ...

    async def read(self) -> dict[str, Row]:
        """Every row of the cluster, by key, as they are now.

        Where two rows have one key, the second is shown by another key, so that it is not wanted.

        Raises:
            EnvironmentFault: the database does not answer.
        """
        ...

    async def apply(self, operations: Sequence[Operation]) -> None:
        """Do all of it in one transaction, or nothing.

        A caller that is cancelled, or whose deadline has passed, does not know which it was.

        Raises:
            StaleTerm: another controller has taken a higher term: stop.
            Conflict: the rows are not as they were read (one to be made is there, one to be changed
                is not), or a name is somebody else's; nothing was done. Read anew.
            EnvironmentFault: the database does not answer.
            InternalError: no term was taken.
        """
        ...

    async def wait_connected(self, seen: int) -> int:
        """Wait until more than ``seen`` connections have been made in all; how many there were.

        What was read before the last of them may be of another database: read anew.
        """
        ...
