"""The store: where intent is durable. One contract, kept by SQLite, by etcd and by memory.

A store maps keys (paths of names: ``service/default/web``, ``node/n1``, ``tombstone/...``) to
values. Only the controller that holds the highest *term* may write: every commit compares the
term within its transaction, so a stalled old controller can do nothing (DESIGN 8.1).

The bounds are those that every backend can keep (DESIGN 8.8): ``VALUE_MAX_BYTES`` a value,
``TRANSACTION_OPS_MAX`` operations and ``TRANSACTION_BYTES_MAX`` a commit, ``KEY_MAX_BYTES`` a key.
Records may be larger: :mod:`swarmctl.controller.store.chunks` keeps those over any backend.
"""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs

from swarmctl.groupcommit import Statistics

__all__ = ["Delete", "Entry", "Op", "Put", "Statistics", "Store"]


@attrs.frozen
class Put:
    """Set ``key`` to ``value``.

    With ``expect`` the commit is refused unless the key's revision is that one; 0 means that the
    key does not exist.
    """

    key: str
    value: bytes = attrs.field(repr=lambda value: f"<{len(value)} bytes>")  # may be a secret
    expect: int | None = None


@attrs.frozen
class Delete:
    """Remove ``key``; removing what is not there is no error. ``expect`` as in :class:`Put`."""

    key: str
    expect: int | None = None


Op: TypeAlias = Put | Delete


@attrs.frozen
class Entry:
    """A value, and the revision of the commit that set it."""

    value: bytes = attrs.field(repr=lambda value: f"<{len(value)} bytes>")
    revision: int


class Store(Protocol):
    """What the controller needs of a store; ``contextlib.aclosing`` closes it."""

    @property
    def cluster_id(self) -> str:
        """The cluster's identity: made when the store was, kept for ever."""
        ...

    @property
    def term(self) -> int:
        """The owner's term; 0 before the first :meth:`take_term`."""
        ...

    async def take_term(self, above: int = 0) -> int:
        """Become the only one who may write: raise the term durably, and return it.

        The first time it goes above every term before.  Later, with ``above``, it is for a
        controller whose agents have seen a higher term than its (restored) store: it compares
        like a commit, so a controller that was deposed does not come back this way.

        Args:
            above: the new term is higher than this, too.

        Raises:
            StaleTerm: another controller has taken a higher term since ours.
            StorageFault: the disk refuses; the term is as it was.
        """
        ...

    async def read(self, prefix: str = "") -> dict[str, bytes]:
        """All values whose keys begin with ``prefix``, by key in order; for the start.

        It shows everything that was acknowledged before the call.

        Raises:
            StorageFault: the disk refuses.
        """
        ...

    async def read_entries(self, prefix: str = "") -> dict[str, Entry]:
        """As :meth:`read`, with revisions for ``expect``."""
        ...

    async def commit(self, ops: Sequence[Op]) -> int:
        """Apply ``ops`` as one: all of them, on the disk, before this returns; or none.

        Commits of one task, and of tasks that called one after the other, are applied in that
        order. A task that is cancelled while it waits does not know which it was: all or none.
        No operations at all are a question whether the term is still the highest.

        Args:
            ops: at most ``TRANSACTION_OPS_MAX``, each of another key.

        Returns:
            The revision that the keys now have, for ``expect``; never lower than one returned
            earlier.

        Raises:
            StaleTerm: another controller has taken a higher term: stop.
            Conflict: an ``expect`` did not hold; the state is as it was.
            InvalidSpec: a value is too large.
            Busy: too many commits wait; nothing was done.
            StorageFault: the disk refuses; nothing of it was done.
            InternalError: the caller's mistake: no term taken, a bad key, too many operations.
        """
        ...

    def statistics(self) -> Statistics:
        """Counters of commits since the store was opened."""
        ...

    async def aclose(self) -> None:
        """Commit what waits, and give the store back. A second call does nothing.

        Raises:
            StorageFault: the disk does not answer in time.
        """
        ...
