"""Requests about tenant networks: list, create, inspect, remove; and what ``apply`` makes of them.

A network is checked against all others before anything is written, and refused while it is in use.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from attrs import frozen

from swarmctl.controller import tenancy, uplinks
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers.targets import tenant_of
from swarmctl.controller.nesting import vm_of
from swarmctl.controller.networks import (
    GroupRecord,
    NetworkKey,
    NetworkRecord,
    changes,
)
from swarmctl.net.model import PortWish, SecurityGroup
from swarmctl.proto.errors import Conflict, InvalidSpec, ProtocolError
from swarmctl.spec import wire
from swarmctl.spec.models import ServiceSpec
from swarmctl.spec.networks import NetworkDefinition, check_definition
from swarmctl.spec.security import check_group
from swarmctl.transport.rpc import Call, Handler

View = dict[str, Any]


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def listing(call: Call) -> Any:
        tenant = tenant_of(call)
        table = cluster.state.ports.table
        return [
            _view(cluster, one) for key, one in sorted(table.records.items()) if key[0] == tenant
        ]

    async def create(call: Call) -> Any:
        return await _create(cluster, call)

    async def inspect(call: Call) -> Any:
        record = cluster.state.ports.table.get((tenant_of(call), call.text("name")))
        return _inspect(cluster, record)

    async def remove(call: Call) -> Any:
        key = (tenant_of(call), call.text("name"))
        async with cluster.holding([tenancy.LOCK]):
            await tenancy.remove(cluster, key)
        return {"network": key[1]}

    return {
        "network.list": listing,
        "network.create": create,
        "network.inspect": inspect,
        "network.remove": remove,
    }


async def _create(cluster: Cluster, call: Call) -> Any:
    encoded = call.params.get("network")
    if not isinstance(encoded, bytes):
        raise ProtocolError("network is not an encoded definition", call.method)
    asked = wire.decode_plain(encoded, NetworkDefinition)
    table = cluster.state.ports.table
    async with cluster.holding([tenancy.LOCK]):
        if asked.key in table.records:
            raise Conflict(
                f"a network {asked.name!r} exists already",
                hint=f"choose another name, or remove it: swarmctl network rm {asked.name}",
            )
        [record] = table.settle([asked], cluster.wall())
        await tenancy.save(cluster, [record])
    return _view(cluster, record)


# --- with services ---------------------------------------------------------------------------


@frozen
class Asked:
    """The networks and security groups that come with an ``apply``."""

    definitions: tuple[NetworkDefinition, ...] = ()
    groups: tuple[SecurityGroup, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.definitions or self.groups)


def asked_of(call: Call) -> Asked:
    """What the request's ``networks`` and ``groups`` say.

    Raises:
        InvalidSpec: one makes no sense, or two have one name.
    """
    definitions = [wire.decode_plain(one, NetworkDefinition) for one in _encoded(call, "networks")]
    for one in definitions:
        check_definition(one)
    groups = [wire.decode_plain(one, SecurityGroup) for one in _encoded(call, "groups")]
    for group in groups:
        check_group(group)
    names = [one.key for one in definitions]
    if len(set(names)) != len(names):
        raise InvalidSpec("a network is given twice", call.method)
    return Asked(tuple(definitions), tuple(groups))


def _encoded(call: Call, name: str) -> Sequence[bytes]:
    found = call.params.get(name, ())
    if not isinstance(found, tuple | list) or not all(isinstance(one, bytes) for one in found):
        raise ProtocolError(f"{name} is not a list of encoded definitions", call.method)
    return found


@frozen
class Settled:
    """What :func:`asked_of` comes to: records to write, and what to answer."""

    networks: tuple[NetworkRecord, ...]
    groups: tuple[GroupRecord, ...]
    results: tuple[View, ...]

    async def save(self, cluster: Cluster) -> None:
        """Write them, if there is anything new."""
        if self.networks or self.groups:
            await tenancy.save(cluster, self.networks, self.groups)


def settle(cluster: Cluster, asked: Asked, specs: Iterable[ServiceSpec]) -> Settled:
    """Judge networks, and the services on them, before anything is written.

    Raises:
        UserError: one of them cannot be; nothing is made.
    """
    ports = cluster.state.ports
    table = ports.table
    records = table.settle(
        asked.definitions, cluster.wall(), groups=asked.groups, in_use=ports.in_use()
    )
    by_key = {one.key: one for one in records}
    coming = list(specs)
    for spec in (*coming, *_staying(cluster, coming, by_key.keys())):
        if spec.template.networks:
            table.check_service(spec, by_key)
    results: list[View] = []
    for record in records:
        before = table.records.get(record.key)
        found = changes(before, record) if before is not None else []
        unchanged = before is not None and before == record
        action = "created" if before is None else "unchanged" if unchanged else "updated"
        results.append({"network": record.key[1], "action": action, "changes": found})
    groups = [
        GroupRecord(one, asked.definitions[0].stack if asked.definitions else "")
        for one in asked.groups
    ]
    return Settled(
        tuple(one for one in records if table.records.get(one.key) != one),
        tuple(one for one in groups if table.groups.get(one.key) != one),
        tuple(results),
    )


def _staying(
    cluster: Cluster, coming: Sequence[ServiceSpec], changed: Container[NetworkKey]
) -> Iterator[ServiceSpec]:
    """The services on changed networks that stay as they are: their fixed addresses do, too."""
    names = {(one.tenant, one.name) for one in coming}
    for service in cluster.state.services.values():
        spec = service.record.spec
        used = ((spec.tenant, one.network) for one in spec.template.networks if one.addresses)
        if service.key not in names and any(key in changed for key in used):
            yield spec


async def prune(
    cluster: Cluster, stack: str, kept: set[NetworkKey], *, dry_run: bool
) -> list[View]:
    """Remove the stack's networks that are not among ``kept``, but for those in use."""
    results: list[View] = []
    for key, record in list(cluster.state.ports.table.records.items()):
        if record.definition.stack != stack or key in kept:
            continue
        users = tenancy.users_of(cluster, key)
        if users:
            why = f"in use by {users[0]}; then: swarmctl network rm {key[1]}"
            results.append({"network": key[1], "action": "kept", "changes": [], "reason": why})
            continue
        if not dry_run:
            await tenancy.remove(cluster, key)
        results.append({"network": key[1], "action": "removed", "changes": []})
    return results


# --- views -----------------------------------------------------------------------------------


def _view(cluster: Cluster, record: NetworkRecord) -> View:
    """One network, as ``network ls`` lists it."""
    asked, ports = record.definition, cluster.state.ports
    taken, size = ports.book.taken(record)
    state, reason, since = cluster.plane.standing(record.key)
    return {
        "network": asked.name,
        "tenant": asked.tenant,
        "stack": asked.stack,
        "subnets": [one.cidr for one in record.subnets],
        "gateways": [one.gateway for one in record.subnets],
        "ip_ranges": [one.ip_range for one in record.subnets],
        "uplink": asked.uplink,
        "mtu": record.mtu,
        "provider": f"{asked.provider.physical_network}" if asked.provider else "",
        "vlan": asked.provider.vlan if asked.provider else 0,
        "port_security": asked.port_security,
        "routed": asked.routed,
        "internal": asked.internal,
        "security_groups": list(asked.security_groups),
        "ports": len(ports.on_network(record.key)),
        "addresses_taken": taken,
        "addresses": size,
        "state": state,
        "reason": reason,
        "since": since,
        "created": record.created_at,
        "updated": record.updated_at,
    }


def _inspect(cluster: Cluster, record: NetworkRecord) -> View:
    """All about a network: the services on it, and each port with its path."""
    ports = sorted(
        cluster.state.ports.on_network(record.key), key=lambda one: (one.service, one.slot)
    )
    groups = cluster.state.ports.table.groups
    owners = {
        one.port: incarnation
        for incarnation, attachments in cluster.state.ports.attachments.items()
        for one in attachments
    }
    return _view(cluster, record) | {
        "services": sorted({port.service for port in ports}),
        "rules": {
            name: wire.converter().unstructure(groups[record.key[0], name].group)["rules"]
            for name in record.definition.security_groups
            if (record.key[0], name) in groups and groups[record.key[0], name].group.rules
        },
        "attached": [_port_view(cluster, port, owners.get(port.name, 0)) for port in ports],
        **({"uplinked": found} if (found := uplinks.view(cluster.state, record)) else {}),
        "spare_subports": cluster.state.ports.subports.count(record.key),
    }


def _port_view(cluster: Cluster, port: PortWish, incarnation: int) -> View:
    node = next((one for one in cluster.state.nodes.values() if incarnation in one.instances), None)
    vm = vm_of(cluster.state, node) if node is not None else None
    path = [port.instance]
    if node is not None:
        if vm is not None:
            path += [f"VLAN {port.vlan}", f"{vm.name} ({node.name})", vm.node]
        else:
            path.append(node.name)
    return {
        "port": port.name,
        "instance": port.instance,
        "addresses": list(port.addresses),
        "mac": port.mac,
        "node": node.name if node is not None else "",
        "state": node.instances[incarnation].state.label if node is not None else "unclaimed",
        "vlan": port.vlan,
        "vm": vm.name if vm is not None else "",
        "host": vm.node if vm is not None else node.name if node is not None else "",
        "path": path,
    }
