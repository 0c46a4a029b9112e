"""What went wrong in a slot goes with it to another node, also over a new start of the controller.

Restarts, and bad ends in a row with the waits that they cause, are the agent's (DESIGN 8.6).  When
a slot changes its node they are carried to the one that has it next, which begins where the other
ended.  Between the two, only the controller knows them: while the slot waits for room, for a lease
or for an operator.  And when a node and the controller end together, nobody would.  So they are
written down, a moment later (:mod:`swarmctl.controller.unwritten`), one record a service
(``past/TENANT/NAME``):

- of what is lost, or sent away to run elsewhere: as it was then;
- of what fails again and again: as long as it does, each end while the next wait depends on it,
  and then when their number has doubled.  That is :data:`_AHEAD_MAX` slots at the most.

What is noted is let go when the one that has the slot has nothing of it any more: it is well, or
was restarted by a user; when the template changes; and with the slot.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, evolve, field, frozen

from swarmctl.controller import records
from swarmctl.controller.instance import Instance, ServiceKey
from swarmctl.controller.unwritten import Unwritten
from swarmctl.proto import limits
from swarmctl.proto.states import InstanceState

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster
    from swarmctl.controller.state import Service

# Slots of one service that are written down: some 70 bytes each, in a value that is written whole.
PASTS_MAX: Final = 1_000
# Slots that are noted while their instance lives, in the whole cluster.
_AHEAD_MAX: Final = 10_000
# Slots that are looked at in one turn: some milliseconds.
_A_TURN: Final = 2_000
# Up to here each end makes the next wait longer; agents wait no longer than a minute.
_EXACT_MAX: Final = 16


@frozen
class Past:
    """What an instance leaves to the next one in its slot, on another node.

    Attributes:
        restarts: how often it was started again.
        failures: its bad ends in a row, which decide on the next wait.
        generation: the restart that was asked for last, when it was told of it.
        ran_since: when it began to run, if it did (epoch seconds); infinite if not.
        template: what it was made from; another template begins anew.
    """

    restarts: int = 0
    failures: int = 0
    generation: int = 0
    ran_since: float = math.inf
    template: bytes = b""

    def failures_now(self, generation: int, now: float) -> int:
        """Those that count yet: not after a long run, nor a restart that was asked for."""
        if generation != self.generation or now - self.ran_since >= limits.RESTART_RESET_S:
            return 0
        return self.failures


@frozen
class PastRecord:
    """The pasts of one service, by slot."""

    tenant: str
    service: str
    pasts: dict[int, Past]


def past_of(instance: Instance, state: InstanceState, since: float) -> Past:
    """What ``instance`` would leave now; it was seen last in ``state``, ``since`` epoch seconds."""
    restarts = max(instance.restarts, instance.carried[0])
    failures = max(instance.failures, instance.carried[1] * (not instance.reported))
    if state is InstanceState.FAILED and instance.exit_code is None:
        failures = 0  # Its launch failed, which may be its node's fault.
    ran_since = since if state is InstanceState.RUNNING else math.inf
    return Past(restarts, failures, instance.generation, ran_since, instance.template)


@define(eq=False)
class Pasts:
    """The book of them; see the module's docstring."""

    _noted: dict[ServiceKey, dict[int, Past]] = field(factory=dict)
    # Slots to look at, each once: those that are noted, and those whose instance fails.
    _queue: deque[tuple[ServiceKey, int]] = field(factory=deque)
    _queued: set[tuple[ServiceKey, int]] = field(factory=set)
    unwritten: Unwritten = Factory(
        lambda it: Unwritten(records.past_key, it.encoded), takes_self=True
    )

    def has(self, key: ServiceKey) -> bool:
        """Whether anything is noted of the service."""
        return key in self._noted

    def get(self, key: ServiceKey, slot: int, template: bytes) -> Past | None:
        """What is noted of the slot, for an instance that is made from ``template``."""
        past = self._noted.get(key, {}).get(slot)
        return past if past is not None and past.template == template else None

    def watch(self, instance: Instance) -> None:
        """Its last attempts have failed: it is to be noted, for as long as they do."""
        if len(self._queue) < _AHEAD_MAX:
            self._enqueue(instance.key, instance.slot)

    def leave(self, instance: Instance, state: InstanceState, since: float) -> None:
        """It is lost, or to run elsewhere; before, it was in ``state`` ``since`` then."""
        past = past_of(instance, state, since)
        if past.restarts or past.failures:
            self._note(instance.key, instance.slot, past)
            self._enqueue(instance.key, instance.slot)
        else:
            self.drop(instance.key, instance.slot)

    def drop(self, key: ServiceKey, slot: int) -> None:
        """Whoever has the slot next begins anew."""
        slots = self._noted.get(key)
        if slots is not None and slots.pop(slot, None) is not None:
            self.unwritten.add(key)
            if not slots:
                del self._noted[key]

    def forget(self, key: ServiceKey) -> None:
        """The service is deleted, and its record with it."""
        self._noted.pop(key, None)
        self.unwritten.forget(key)

    def _note(self, key: ServiceKey, slot: int, past: Past) -> None:
        slots = self._noted.setdefault(key, {})
        if slots.get(slot) != past:
            slots.pop(slot, None)  # Anew: the last ones are written down, if there are too many.
            slots[slot] = past
            self.unwritten.add(key)

    def _enqueue(self, key: ServiceKey, slot: int) -> None:
        if (key, slot) not in self._queued:
            self._queued.add((key, slot))
            self._queue.append((key, slot))

    # --- looking -----------------------------------------------------------------------------

    def look(self, services: "Mapping[ServiceKey, Service]", now: float) -> None:
        """Bring what is noted in line with what was reported; ``now`` in epoch seconds."""
        for _ in range(min(_A_TURN, len(self._queue))):
            key, slot = self._queue.popleft()
            service = services.get(key)
            if service is not None and self._look_at(service, slot, now):
                self._queue.append((key, slot))
            else:
                self._queued.discard((key, slot))

    def _look_at(self, service: "Service", slot: int, now: float) -> bool:
        """Whether to look again."""
        key, record = service.key, service.record
        if slot > record.spec.replicas or slot in record.completed:
            self.drop(key, slot)
            return False
        noted = self.get(key, slot, service.template)
        holder = service.holders.get(slot)
        if holder is None or holder.state is InstanceState.LOST or not holder.reported:
            if noted is None:
                self.drop(key, slot)
            return noted is not None
        past = past_of(holder, holder.state, holder.since)
        if past.template != service.template or not past.failures_now(holder.generation, now):
            self.drop(key, slot)
            return False
        if noted is None or _says_more(past, noted):
            # Whether it goes on running is not known to whoever reads this.
            self._note(key, slot, evolve(past, ran_since=math.inf))
        return True

    # --- the store ---------------------------------------------------------------------------

    def encoded(self, key: ServiceKey) -> bytes | None:
        """A service's record; None when there is nothing to say."""
        slots = self._noted.get(key)
        if slots is None:
            return None
        return records.encode(PastRecord(*key, dict(list(slots.items())[-PASTS_MAX:])))

    def know(self, record: PastRecord) -> None:
        """Take in what the store has."""
        key = (record.tenant, record.service)
        self.unwritten.stored.add(key)
        self._noted[key] = dict(record.pasts)
        for slot in record.pasts:
            self._enqueue(key, slot)


def _says_more(past: Past, noted: Past) -> bool:
    if min(past.failures, noted.failures) < _EXACT_MAX:
        return past.failures != noted.failures
    return past.failures.bit_length() != noted.failures.bit_length()


async def load(cluster: "Cluster") -> None:
    """What an earlier controller has written, once the services are known.

    Raises:
        StorageDamaged: one of the records is.
    """
    for name, value in (await cluster.store.read(records.PAST)).items():
        record = records.decode(value, PastRecord, name)
        if record.pasts and (record.tenant, record.service) in cluster.state.services:
            cluster.state.pasts.know(record)
