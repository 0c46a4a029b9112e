"""What users are shown: plain dictionaries, the source of both tables and ``-o json``.

Field names are an interface (DESIGN 5): adding is fine, renaming is not.  Times are epoch
seconds here; the command line turns them into RFC 3339 or into ages.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from swarmctl.controller.instance import Instance
from swarmctl.controller.nesting import is_nested, vm_of
from swarmctl.controller.records import SlotWish
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.messages import Attachment
from swarmctl.proto.states import Desired, InstanceState, NodeState

View = dict[str, Any]


def instance_view(state: ClusterState, instance: Instance) -> View:
    """One instance, as ``ps`` lists it."""
    quarantined = instance.quarantined
    node = state.nodes[instance.node]
    vm = vm_of(state, node) if is_nested(node) else None
    given = state.ports.attachments.get(instance.incarnation, ())
    own = [address.partition("/")[0] for one in given for address in one.addresses]
    return {
        "instance": instance.name,
        "service": instance.key[1],
        "tenant": instance.key[0],
        "kind": "vm" if instance.driver == "libvirt" else "container",
        "driver": instance.driver,
        "node": instance.node,
        "state": "quarantined" if quarantined else instance.state.label,
        "desired": "removed" if instance.removing else instance.desired.label,
        "runtime_id": instance.runtime_id,
        "addresses": list(dict.fromkeys([*own, *instance.addresses]))
        if given
        else list(instance.addresses),
        "networks": [_attachment_view(one) for one in given],
        "vm": vm.name if vm is not None else node.facts.parent,
        "host": vm.node if vm is not None else instance.node,
        "ports": list(instance.ports),
        "restarts": instance.restarts,
        "attempt": instance.attempt,
        "incarnation": incarnations.label(instance.incarnation),
        "since": instance.since,
        "exit_code": instance.exit_code,
        "health": instance.health,
        "reason": _reason(instance),
    }


def _attachment_view(one: Attachment) -> View:
    return {
        "network": one.network.partition("/")[2],
        "addresses": list(one.addresses),
        "mac": one.mac,
        "port": one.port,
        "vlan": one.vlan,
    }


def _reason(instance: Instance) -> str:
    if instance.quarantined:
        return _quarantine_reason(instance)
    return instance.departure or instance.reason


def _quarantine_reason(instance: Instance) -> str:
    return (
        f"{instance.state.label} on {instance.node}, and this controller knows no service "
        f"{instance.key[1]}: adopt it with 'swarmctl service adopt {instance.key[1]}' or apply its "
        f"stack, or take it away with 'swarmctl rm {instance.name}'"
    )


def pending_views(service: Service) -> Iterator[View]:
    """Slots that want a node and have none; and those that have completed on one that is gone."""
    for slot in range(1, service.record.spec.replicas + 1):
        if slot in service.holders:
            continue
        if slot in service.record.completed:
            yield _nowhere(service, slot, InstanceState.SUCCEEDED, "completed; its node is gone")
        elif service.record.wish(slot) is SlotWish.RUNNING:
            why = service.unplaced.get(slot, "waiting for the nodes to report")
            yield _nowhere(service, slot, InstanceState.PENDING, why)


def _nowhere(service: Service, slot: int, state: InstanceState, why: str) -> View:
    spec = service.record.spec
    return {
        "instance": f"{spec.name}.{slot}",
        "service": spec.name,
        "tenant": spec.tenant,
        "kind": spec.template.kind.value,
        "driver": spec.driver_name,
        "node": "",
        "state": state.label,
        "desired": Desired.RUNNING.label,
        "runtime_id": "",
        "addresses": [],
        "networks": [],
        "vm": "",
        "host": "",
        "ports": [],
        "restarts": 0,
        "attempt": 0,
        "incarnation": "",
        "since": service.record.updated_at,
        "exit_code": 0 if state is InstanceState.SUCCEEDED else None,
        "health": "",
        "reason": why,
    }


def service_view(state: ClusterState, service: Service) -> View:
    """One service, as ``service ls`` lists it."""
    spec = service.record.spec
    template = spec.template
    running = service.tally[InstanceState.RUNNING]
    return {
        "service": spec.name,
        "tenant": spec.tenant,
        "stack": spec.stack,
        "kind": template.kind.value,
        "mode": "job" if template.job else "replicated",
        "desired": "stopped" if service.record.stopped else "running",
        "replicas": spec.replicas,
        "running": running,
        "completed": len(service.record.completed),
        "states": state.counts(service),
        "image": image_of(service),
        "addresses": dict(service.record.addresses),
        "floating": service.record.floating,
        "revision": service.record.revision,
        "created": service.record.created_at,
        "updated": service.record.updated_at,
    }


def image_of(service: Service) -> str:
    """What it is made from, in a word."""
    template = service.record.spec.template
    if template.container is not None:
        return template.container.image
    assert template.vm is not None
    return template.vm.disk.image if template.vm.disk else template.vm.kernel


def _brake_reasons(node: Node, ends_at: float) -> list[str]:
    if not ends_at or (node.reported and node.state is not NodeState.LOST):
        return []
    until = datetime.fromtimestamp(ends_at, UTC).strftime("%H:%M:%S UTC")
    wait = f"before {until}, or 'swarmctl node release'"
    return [f"many nodes vanished at once: what it had is not placed elsewhere {wait}"]


def node_view(node: Node, allocated: dict[str, int], brake_ends_at: float = 0.0) -> View:
    """One node, as ``node ls`` lists it.

    ``brake_ends_at`` is the storm brake's end (epoch seconds), 0 when it does not hold.
    """
    return {
        "node": node.name,
        "state": node.state.value,
        "reasons": [*node.reasons, *_brake_reasons(node, brake_ends_at)],
        "drivers": [driver.name for driver in node.facts.drivers if driver.available],
        "labels": dict(node.labels),
        "capacity": dict(node.facts.capacity),
        "allocated": allocated,
        "parent": node.facts.parent,
        "instances": len(node.instances),
        "release": node.facts.release,
        "address": node.facts.address,
        "joined": node.joined_at,
        "guarded": node.guarded,
        # From then on a drain takes away what is left (epoch seconds); 0 where there is none.
        "drain_deadline": node.record.drain_deadline,
    }
