"""Jobs: that a copy has succeeded is a durable fact, committed in groups.

An agent keeps an instance that has succeeded, and tells of it in every session, until it is told
to take it away; so a completion that was not committed when a controller ended is told to the next
one.  Here they gather while the disk works, and all that have gathered are one write a service:
its record with the slots that have completed (:mod:`swarmctl.controller.slots`).
A copy runs at least once, and again when its node is lost before the commit.
"""

from collections.abc import Callable, Sequence

from attrs import evolve

from swarmctl.controller import records
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.instance import Instance, ServiceKey
from swarmctl.controller.jobs import Completion
from swarmctl.controller.records import ServiceRecord, Tombstone, service_key
from swarmctl.controller.state import Service
from swarmctl.controller.store.api import Put
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, StorageFault
from swarmctl.proto.messages import Message, ReportAck


async def commit_gathered(cluster: Cluster, send: Callable[[bytes, Message], None]) -> None:
    """Make all that have gathered durable, then acknowledge (by ``send``) what told of them.

    Raises:
        StorageFault, Busy: the disk refuses; they wait for another time.
    """
    done, cluster.sessions.completions = cluster.sessions.completions, []
    try:
        await commit(cluster, done)
    except (StorageFault, Busy):
        cluster.sessions.completions[:0] = done
        raise
    for peer, sequence in {(one.peer, one.sequence) for one in done if one.peer}:
        send(peer, ReportAck(sequence))


async def commit(cluster: Cluster, done: Sequence[Completion]) -> None:
    """Make completions durable, and let memory follow.

    Raises:
        StorageFault, Busy: the disk refuses; some of them may stand.
    """
    by_service: dict[ServiceKey, list[Instance]] = {}
    for one in done:
        by_service.setdefault(one.instance.key, []).append(one.instance)
    keys = list(by_service)
    for start in range(0, len(keys), limits.TRANSACTION_OPS_MAX):
        part = keys[start : start + limits.TRANSACTION_OPS_MAX]
        async with cluster.changing(part):
            await _commit_part(cluster, {key: by_service[key] for key in part})


async def _commit_part(cluster: Cluster, by_service: dict[ServiceKey, list[Instance]]) -> None:
    """At most one transaction's worth; the locks are held."""
    after: dict[ServiceKey, ServiceRecord] = {}
    for key, instances in by_service.items():
        service = cluster.state.services.get(key)
        if service is None:
            continue
        buried = cluster.state.tombstones.get(key)
        slots = [one.slot for one in instances if _counts(service, one, buried)]
        if slots:
            completed = service.record.completed.united(slots)
            after[key] = evolve(service.record, completed=completed)
    if not after:
        return

    def follow() -> None:
        for key, record in after.items():
            service = cluster.state.services[key]
            service.record = record
            if service.unplaced:
                cluster.state.dirty_services.add(key)
        cluster.wake()

    await cluster.commit(
        [Put(service_key(*key), records.encode(record)) for key, record in after.items()], follow
    )


def _counts(service: Service, instance: Instance, buried: Tombstone | None) -> bool:
    """Whether it is what was asked for yet: not replaced or deleted, and of the newest restart."""
    record, slot = service.record, instance.slot
    if instance.removing or (buried is not None and instance.incarnation <= buried.incarnation):
        return False  # It may be of another service that had this name.
    return (
        record.spec.template.job
        and slot <= record.spec.replicas
        and slot not in record.completed
        and service.holders.get(slot) in (None, instance)
        and instance.applied >= record.slot_generation(slot)
    )
