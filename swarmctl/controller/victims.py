"""Who was preempted by whom: for people, also after a new start or a change of leader.

Why an instance was sent away can be observed nowhere once it has gone, so it is written down, a
moment later (:mod:`swarmctl.controller.unwritten`): one record a service
(``preempted/TENANT/NAME``) with the last preemption of each of its slots.
A slot that has found another place stays in the record among the last few of those; a slot that is
still nowhere stays, up to a bound.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, evolve, field, frozen

from swarmctl.controller import records
from swarmctl.controller.instance import ServiceKey
from swarmctl.controller.unwritten import Unwritten
from swarmctl.proto import limits

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster

# Slots of one service that are remembered: some 100 bytes each, in a value that is written whole.
VICTIMS_MAX: Final = 1_000


@frozen
class Preempted:
    """One slot was sent away, at ``at`` (epoch seconds); ``nowhere``: it has no other place yet."""

    slot: int
    at: float
    why: str
    nowhere: bool = True


@frozen
class PreemptedRecord:
    """The slots of one service that were sent away, in the order in which they were."""

    tenant: str
    service: str
    victims: tuple[Preempted, ...]


@define(eq=False)
class Victims:
    """The book of them; see the module's docstring."""

    _by_service: dict[ServiceKey, dict[int, Preempted]] = field(factory=dict)
    # Those without a place, in the order of their preemption.
    _nowhere: dict[tuple[ServiceKey, int], None] = field(factory=dict)
    unwritten: Unwritten = Factory(
        lambda it: Unwritten(records.preempted_key, it.encoded), takes_self=True
    )

    @property
    def nowhere(self) -> list[tuple[ServiceKey, int]]:
        """The slots that have no other place yet."""
        return list(self._nowhere)

    @property
    def any_nowhere(self) -> bool:
        """Whether there is such a slot."""
        return bool(self._nowhere)

    def get(self, key: ServiceKey, slot: int) -> Preempted | None:
        """The slot's last preemption, as long as it is remembered."""
        return self._by_service.get(key, {}).get(slot)

    def of(self, key: ServiceKey) -> Iterable[Preempted]:
        """Those of a service, the oldest first."""
        return self._by_service.get(key, {}).values()

    def add(self, key: ServiceKey, victim: Preempted) -> None:
        """A slot is sent away."""
        slots = self._by_service.setdefault(key, {})
        slots.pop(victim.slot, None)
        slots[victim.slot] = victim
        self._nowhere[key, victim.slot] = None
        self._forget_oldest(key, slots)
        self.unwritten.add(key)

    def found_place(self, key: ServiceKey, slot: int) -> None:
        """It is nowhere no longer, or is not wanted any more."""
        self._nowhere.pop((key, slot), None)
        slots = self._by_service.get(key, {})
        if slot in slots:
            slots[slot] = evolve(slots[slot], nowhere=False)
            self._forget_oldest(key, slots)
            self.unwritten.add(key)

    def forget(self, key: ServiceKey) -> bool:
        """The service is deleted, and its record with it; whether there was anything of it."""
        self.unwritten.forget(key)
        slots = self._by_service.pop(key, {})
        for slot in slots:
            self._nowhere.pop((key, slot), None)
        return bool(slots)

    def _forget_oldest(self, key: ServiceKey, slots: dict[int, Preempted]) -> None:
        placed = [slot for slot, one in slots.items() if not one.nowhere]
        surplus = placed[: max(0, len(placed) - limits.HISTORY_MAX)]
        surplus += [slot for slot in slots if slot not in surplus][
            : max(0, len(slots) - len(surplus) - VICTIMS_MAX)
        ]
        for slot in surplus:
            del slots[slot]
            self._nowhere.pop((key, slot), None)

    # --- the store ---------------------------------------------------------------------------

    def know(self, record: PreemptedRecord) -> None:
        """Take in what the store has."""
        key = (record.tenant, record.service)
        self.unwritten.stored.add(key)
        self._by_service[key] = {one.slot: one for one in record.victims}
        self._nowhere.update({(key, one.slot): None for one in record.victims if one.nowhere})

    def encoded(self, key: ServiceKey) -> bytes:
        """A service's record."""
        return records.encode(PreemptedRecord(*key, tuple(self.of(key))))


async def load(cluster: "Cluster") -> None:
    """What an earlier controller has written, once the services are known.

    Raises:
        StorageDamaged: one of the records is.
    """
    for name, value in (await cluster.store.read(records.PREEMPTED)).items():
        record = records.decode(value, PreemptedRecord, name)
        service = cluster.state.services.get((record.tenant, record.service))
        if service is None:
            continue
        cluster.state.victims.know(record)
        for one in record.victims[-limits.HISTORY_MAX :]:
            service.history.append((one.at, f"{record.service}.{one.slot} {one.why}"))
