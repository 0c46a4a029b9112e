"""What the controller notes of services by itself, and writes down a moment later.

Nobody has asked for it, so nothing waits for that write, which takes many services together: what
was noted in the moment before a controller was killed, the next one does not know.  There is one
record a service of each kind, beside the service's own and deleted with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, field

from swarmctl.controller.instance import ServiceKey
from swarmctl.controller.store.api import Delete, Op, Put
from swarmctl.proto import limits

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster


@define(eq=False)
class Unwritten:
    """Services whose record of one kind in the store is not what is in memory.

    Attributes:
        where: the record's key in the store, by tenant and name.
        value_of: what it has to be; None for none.
        stored: the services that have one.
    """

    where: Callable[[str, str], str]
    value_of: Callable[[ServiceKey], bytes | None]
    stored: set[ServiceKey] = field(factory=set)
    _keys: dict[ServiceKey, None] = field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def add(self, key: ServiceKey) -> None:
        """It has changed."""
        self._keys[key] = None

    def forget(self, key: ServiceKey) -> None:
        """The service is deleted, and its record with it."""
        self._keys.pop(key, None)
        self.stored.discard(key)

    async def write(self, cluster: "Cluster") -> None:
        """Make it durable.

        Raises:
            StorageFault, Busy: the disk refuses; what is left is written another time.
        """
        keys = list(self._keys)
        for start in range(0, len(keys), limits.TRANSACTION_OPS_MAX):
            part = keys[start : start + limits.TRANSACTION_OPS_MAX]
            # Not of a service that is being deleted: its record would stay.
            async with cluster.changing(part):
                await self._write(cluster, [key for key in part if key in self._keys])

    async def _write(self, cluster: "Cluster", keys: list[ServiceKey]) -> None:
        written = {key: self.value_of(key) for key in keys}
        ops: list[Op] = []
        for key, value in written.items():
            if value is not None:
                ops.append(Put(self.where(*key), value))
            elif key in self.stored:
                ops.append(Delete(self.where(*key)))

        def follow() -> None:
            for key, value in written.items():
                self.stored.discard(key) if value is None else self.stored.add(key)
                if self.value_of(key) == value:
                    self._keys.pop(key, None)

        if ops:
            await cluster.commit(ops, follow)
        else:
            follow()
