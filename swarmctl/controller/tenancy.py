"""Tenant networks as a cluster has them: loaded, written, and removed.

As with services, a change is committed first, and then memory and OVN follow.  One lock is for all
networks: they are few, and whether two subnets overlap is a question about all of them.
"""

from collections.abc import Sequence
from typing import Final

from swarmctl.controller import records, uplinks
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.networks import (
    UNDERLAY_MTU,
    GroupRecord,
    NetworkKey,
    NetworkRecord,
    NetworkTable,
)
from swarmctl.controller.plane import address_of
from swarmctl.controller.store.api import Delete, Op, Put
from swarmctl.proto import limits

#: Held by whoever changes any network or security group.
LOCK: Final = records.NETWORK


async def load(
    cluster: Cluster, ovn: str = "", underlay_mtu: int = UNDERLAY_MTU, *, is_v6: bool = False
) -> None:
    """Read the durable records into memory, before anything is placed.

    Args:
        cluster: whose.
        ovn: where the northbound database is, if that was given now; it is kept.
        underlay_mtu: of the network between the hosts.
        is_v6: the hosts speak IPv6 there.

    Raises:
        StorageFault: a record is damaged, or nothing can be kept.
    """
    table = cluster.state.ports.table
    table.underlay_mtu, table.underlay_is_v6 = underlay_mtu, is_v6
    cluster.plane.address = await address_of(cluster, ovn)
    cluster.state.ports.active = cluster.fleet.plugging = bool(cluster.plane.address)
    for key, value in (await cluster.store.read(records.SECURITY)).items():
        group = records.decode(value, GroupRecord, key)
        table.groups[group.key] = group
    for key, value in (await cluster.store.read(records.NETWORK)).items():
        record = records.decode(value, NetworkRecord, key)
        table.records[record.key] = record
    uplinks.hold(cluster.state)
    cluster.fleet.remapped = lambda: cluster.state.ports.changed()
    cluster.fleet.set_providers(_providers(table))


async def save(
    cluster: Cluster, networks: Sequence[NetworkRecord], groups: Sequence[GroupRecord] = ()
) -> None:
    """Commit new or changed networks and groups, then follow; :data:`LOCK` is held.

    Raises:
        NothingFits: the uplink has no address left for the router that a tenant needs now.
        Busy: it is not known yet which are taken.
    """
    with uplinks.joining(cluster, networks) as joined:
        await _save(cluster, joined, groups)


async def _save(
    cluster: Cluster, networks: Sequence[NetworkRecord], groups: Sequence[GroupRecord]
) -> None:
    table = cluster.state.ports.table
    ops: list[Op] = [Put(records.security_key(*one.key), records.encode(one)) for one in groups]
    ops += [Put(records.network_key(*one.key), records.encode(one)) for one in networks]

    def follow() -> None:
        table.groups.update({one.key: one for one in groups})
        for record in networks:
            before = table.records.get(record.key)
            table.records[record.key] = record
            if before is not None and (before.subnets, before.mtu) != (record.subnets, record.mtu):
                cluster.state.ports.drop_spares(key=record.key)
            cluster.state.ports.regroup(record)
        _changed(cluster)

    for start in range(0, len(ops), limits.TRANSACTION_OPS_MAX):
        last = start + limits.TRANSACTION_OPS_MAX >= len(ops)
        part = ops[start : start + limits.TRANSACTION_OPS_MAX]
        await cluster.commit(part, follow if last else lambda: None)


async def remove(cluster: Cluster, key: NetworkKey) -> None:
    """Commit the end of a network that nothing uses; :data:`LOCK` is held.

    Raises:
        Conflict: something uses it.
    """
    table = cluster.state.ports.table
    record = table.get(key)
    with table.removing(key, users_of(cluster, key)):
        asked = record.definition.security_groups
        others = [one for one in table.records.values() if one.key != key]
        # Groups come with a stack, and go with the last network that has them.
        unused = [
            (key[0], name)
            for name in asked
            if not any(name in one.definition.security_groups for one in others)
        ]
        ops: list[Op] = [Delete(records.network_key(*key))]
        ops += [Delete(records.security_key(*one)) for one in unused]

        def follow() -> None:
            del table.records[key]
            cluster.state.ports.drop_spares(key=key)
            if record.routers:
                uplinks.leave(cluster.state, record)
            for one in unused:
                table.groups.pop(one, None)
            cluster.state.ports.book.drop_network(key)
            _changed(cluster)

        await cluster.commit(ops, follow)


def _changed(cluster: Cluster) -> None:
    cluster.state.ports.changed()
    if cluster.fleet.set_providers(_providers(cluster.state.ports.table)):
        for node in cluster.state.nodes.values():
            cluster.fleet.node_changed(node)
    cluster.state.capacity_changed = True  # What had no address may have one now.
    cluster.wake()


def _providers(table: NetworkTable) -> dict[NetworkKey, str]:
    """The networks that need a physical one on a node, and which."""
    return {
        key: record.definition.provider.physical_network
        for key, record in table.records.items()
        if record.definition.provider is not None
    }


def users_of(cluster: Cluster, key: NetworkKey) -> list[str]:
    """The services and instances that are, or may come, on a network."""
    found = [
        service.record.spec.name
        for service in cluster.state.services.values()
        if service.key[0] == key[0]
        and any(use.network == key[1] for use in service.record.spec.template.networks)
    ]
    if cluster.state.ports.table.records[key].definition.uplink:
        found += [
            f"the floating address of {one.record.spec.name}"
            for one in cluster.state.services.values()
            if one.record.spec.floating
        ]
    found += [port.instance for port in cluster.state.ports.on_network(key)]
    leaving = sum(held.network == key for held in cluster.state.ports.leaving.values())
    if leaving:
        found.append(f"{leaving} ports that OVN has not removed yet")
    return found
