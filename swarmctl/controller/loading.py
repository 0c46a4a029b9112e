"""What a controller reads at its start: the durable records, into memory.

Nothing is decided here.  Nodes are known and not heard of, services are known and have no
instances; both come with the nodes' first reports (DESIGN 8).
"""

from swarmctl.controller import guardless, pasts, records, templates, victims
from swarmctl.controller.access import ADMIN, user_id
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.records import (
    AdminRecord,
    NodeRecord,
    RevokedKey,
    ServiceRecord,
    TokenRecord,
    Tombstone,
)
from swarmctl.controller.state import Service


async def load(cluster: Cluster) -> None:
    """Read the durable records of ``cluster`` into memory.

    Raises:
        StorageFault: one of them is damaged.
    """
    store, state = cluster.store, cluster.state
    for key, value in (await store.read(records.ADMIN)).items():
        admin = records.decode(value, AdminRecord, key)
        cluster.access.allow(admin.public_key, user_id(ADMIN, admin.id))
    for key, value in (await store.read(records.TOKEN)).items():
        cluster.know_token(records.decode(value, TokenRecord, key))
    for key, value in (await store.read(records.NODE)).items():
        cluster.know_node(records.decode(value, NodeRecord, key))
    for key, value in (await store.read(records.REVOKED)).items():
        gone = records.decode(value, RevokedKey, key)
        cluster.revoked[gone.public_key] = gone.token_id
        guardless.know_removed(cluster, gone)
    stored = (await store.read(records.TOMBSTONE)).items()
    buried = [records.decode(value, Tombstone, key) for key, value in stored]
    for tombstone in sorted(buried, key=lambda one: one.deleted_at):
        state.tombstones[(tombstone.tenant, tombstone.service)] = tombstone
    for key, value in (await store.read(records.SERVICE)).items():
        _know_service(cluster, records.decode(value, ServiceRecord, key))
    await victims.load(cluster)
    await pasts.load(cluster)
    if not state.nodes:
        cluster.reconciler.settle()  # Nobody has to be waited for.


def _know_service(cluster: Cluster, record: ServiceRecord) -> None:
    state, service = cluster.state, Service(record, old=True)
    state.services[service.key] = service
    templates.know(state, service)
    if record.previous is not None:
        templates.know(state, Service(ServiceRecord(record.previous, 0, 0)))
