"""The store in etcd: for several controllers.

A thread owns the connection (:mod:`swarmctl.controller.etcd.worker`): what waits is committed in
transactions of at most ``TRANSACTION_OPS_MAX`` operations and ``TRANSACTION_BYTES_MAX``. What a
transaction looks like, and why it may be repeated, is in :mod:`swarmctl.controller.etcd.ledger`.
"""

from collections.abc import Callable, Sequence
from typing import Self

from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.ledger import LeaseGuard, Ledger
from swarmctl.controller.etcd.worker import Worker
from swarmctl.controller.store.api import Entry, Op, Statistics
from swarmctl.controller.store.commits import validate


class EtcdStore:
    """A :class:`~swarmctl.controller.store.api.Store` in an etcd."""

    def __init__(self, ledger: Ledger) -> None:
        """Use :meth:`open`."""
        self._ledger = ledger
        self._worker: Worker[Sequence[Op]] = Worker("store in etcd", ledger.apply, ledger.close)
        self._cluster_id = ""

    @classmethod
    async def open(
        cls,
        address: EtcdAddress,
        *,
        new_cluster_id: Callable[[], str],
        guard: LeaseGuard | None = None,
    ) -> Self:
        """Open the store, or make it where there is none.

        Args:
            address: where.
            new_cluster_id: makes the identity of a new cluster.
            guard: the leader's lease, which every write then compares.

        Raises:
            StorageFault: etcd does not serve, or refuses.
        """
        store = cls(Ledger(address, guard))
        try:
            store._cluster_id = await store._worker.call(
                lambda: store._ledger.settle_cluster_id(new_cluster_id)
            )
        except BaseException:
            await store.aclose()
            raise
        return store

    @property
    def cluster_id(self) -> str:
        """See Store."""
        return self._cluster_id

    @property
    def term(self) -> int:
        """See Store."""
        return self._ledger.term

    async def take_term(self, above: int = 0) -> int:
        """See Store."""
        return await self._worker.call(lambda: self._ledger.take_term(above))

    async def read(self, prefix: str = "") -> dict[str, bytes]:
        """See Store."""
        return {key: entry.value for key, entry in (await self.read_entries(prefix)).items()}

    async def read_entries(self, prefix: str = "") -> dict[str, Entry]:
        """See Store."""
        return await self._worker.call(lambda: self._ledger.read(prefix))

    async def commit(self, ops: Sequence[Op]) -> int:
        """See Store."""
        ops = tuple(ops)
        size_bytes = validate(ops)
        return await self._worker.submit(ops, max(1, len(ops)), size_bytes)

    def statistics(self) -> Statistics:
        """See Store."""
        return self._worker.statistics()

    async def aclose(self) -> None:
        """See Store."""
        await self._worker.aclose()
