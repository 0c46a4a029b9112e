"""Services made from what runs: of quarantined instances, and at the release of a hold.

What a node reports of an instance and its template is most of a service: its name, its slots and
what they are made from.  What is not on the nodes (placement rules, priority, the stack's name) is
left at its default, and comes back when the stack is applied; that restarts nothing.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from attrs import evolve, frozen

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers.services import check, new_record
from swarmctl.controller.handlers.targets import resolve, tenant_of
from swarmctl.controller.holding import HOLD, REBUILT
from swarmctl.controller.instance import Instance, ServiceKey
from swarmctl.controller.records import ServiceRecord, SlotOverride, SlotWish
from swarmctl.controller.state import Service
from swarmctl.controller.store.api import Delete
from swarmctl.controller.views import image_of
from swarmctl.proto import limits
from swarmctl.proto.errors import InvalidSpec, ProtocolError
from swarmctl.proto.states import InstanceState
from swarmctl.spec import wire
from swarmctl.spec.models import ServiceSpec, Template
from swarmctl.transport.rpc import Call, Handler

_log = structlog.get_logger(__name__)

_STOPPED = (InstanceState.STOPPING, InstanceState.STOPPED)


@frozen
class Proposal:
    """What a quarantined service would be; ``record`` None where it cannot, for the reason ``why``.

    ``newest`` are the instances that keep their slots.
    """

    key: ServiceKey
    found: tuple[Instance, ...]
    newest: dict[int, Instance]
    record: ServiceRecord | None = None
    why: str = ""


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def adopt(call: Call) -> Any:
        tenant = tenant_of(call)
        keys = [one.key for one in resolve(cluster, call.texts("names"), tenant)]
        keys = keys or [key for key in cluster.state.quarantine if key[0] == tenant]
        return {"services": await _adopt(cluster, keys, dry_run=call.flag("dry_run"))}

    async def release(call: Call) -> Any:
        return await _release(cluster, dry_run=call.flag("dry_run"))

    return {"service.adopt": adopt, "store.release": release}


async def _release(cluster: Cluster, *, dry_run: bool) -> Any:
    """End the hold; of a rebuilt store, after what the nodes run has become services."""
    reason, services = cluster.hold, []
    if reason == REBUILT:
        services = await _adopt(cluster, list(cluster.state.quarantine), dry_run=dry_run)

    def follow() -> None:
        cluster.hold = ""
        # Nodes were told nothing meanwhile, whatever was asked for.
        for node in cluster.state.nodes.values():
            cluster.state.resend(node)
        cluster.wake()

    if reason and not dry_run:
        await cluster.commit([Delete(HOLD)], follow)
        _log.warning("released", why=reason)
    return {"was": reason, "services": services}


async def _adopt(cluster: Cluster, keys: Sequence[ServiceKey], *, dry_run: bool) -> list[Any]:
    """Make services of the quarantined instances of ``keys``; what was (or would be) made."""
    keys = list(dict.fromkeys(keys))
    async with cluster.changing(keys):
        proposals = [propose(cluster, key) for key in sorted(keys) if cluster.quarantined(key)]
        views = [_view(one) for one in proposals]
        records = [one.record for one in proposals if one.record is not None]
        if records and not dry_run:
            await cluster.save_services(records)
            _log.warning("adopted", services=[one.spec.name for one in records])
    return views


def propose(cluster: Cluster, key: ServiceKey) -> Proposal:
    """What the quarantined instances of ``key`` say their service was."""
    found = tuple(cluster.quarantined(key))
    newest: dict[int, Instance] = {}
    for one in sorted(found, key=lambda one: one.incarnation):
        newest[one.slot] = one
    proposal = Proposal(key, found, newest)
    if key in cluster.state.services:
        return evolve(proposal, why="it is known already")
    last = max(newest.values(), key=lambda one: (bool(one.template), one.incarnation))
    encoded = cluster.state.templates.get(last.template)
    if encoded is None:
        return evolve(proposal, why="no node knows what it is made from: apply its stack")
    try:
        spec = _spec(key, wire.decode_template(encoded), last.driver, max(newest))
        check(Service(ServiceRecord(spec, 0.0, 0.0)))
    except (InvalidSpec, ProtocolError) as error:
        return evolve(proposal, why=f"what its node says of it is not valid: {error.what}")
    record = new_record(cluster, spec, cluster.wall())
    return evolve(proposal, record=_as_found(record, newest))


def _spec(key: ServiceKey, template: Template, driver: str, replicas: int) -> ServiceSpec:
    spec = ServiceSpec(
        key[1],
        template,
        replicas,
        tenant=key[0],
        fencing="lease" if template.fenced else "none",
    )
    return spec if driver in ("", spec.driver_name) else evolve(spec, driver=driver)


def _as_found(record: ServiceRecord, newest: dict[int, Instance]) -> ServiceRecord:
    """What was stopped stays so, and what a job has completed is not run again."""
    stopped = [slot for slot, one in newest.items() if one.state in _STOPPED]
    if len(stopped) == record.spec.replicas:
        record = evolve(record, stopped=True)
        stopped = []
    for slot in stopped:
        override = record.overrides.get(slot, SlotOverride())
        record = record.with_override(slot, evolve(override, wish=SlotWish.STOPPED))
    if record.spec.template.job:
        done = [slot for slot, one in newest.items() if one.state is InstanceState.SUCCEEDED]
        record = evolve(record, completed=record.completed.united(done))
    return record


def _view(proposal: Proposal) -> dict[str, Any]:
    """A proposal as users are shown it.

    ``missing`` are slots below the highest that no node has now: they are placed. ``replaced`` are
    instances of an older template, which a roll-out takes away, ``doubled`` those whose slot a
    newer one holds.
    """
    record, newest = proposal.record, proposal.newest.values()
    replicas = record.spec.replicas if record else 0
    missing = [slot for slot in range(1, replicas + 1) if slot not in proposal.newest]
    view = {
        "service": proposal.key[1],
        "tenant": proposal.key[0],
        "adopted": record is not None,
        "why": proposal.why,
        "found": len(proposal.newest),
        "nodes": sorted({one.node for one in newest}),
        "replicas": replicas,
        "missing": missing[: limits.HISTORY_MAX],
        "doubled": len(proposal.found) - len(proposal.newest),
        "kind": "",
        "image": "",
        "replaced": 0,
    }
    if record is not None:
        service = Service(record)
        view["kind"] = record.spec.template.kind.value
        view["image"] = image_of(service)
        view["replaced"] = sum(one.template not in (b"", service.template) for one in newest)
    return view
