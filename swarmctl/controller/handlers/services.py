"""Requests that change intent: apply, scale, stop, start, restart, remove; and service views.

Every change is committed before it is answered (DESIGN 1.2).  What the nodes then do about it is
watched with ``service.wait``.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from attrs import evolve

from swarmctl.controller import tenancy
from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers import networks
from swarmctl.controller.handlers.targets import Target, parse, resolve, tenant_of
from swarmctl.controller.instance import ServiceKey
from swarmctl.controller.placing import request_for
from swarmctl.controller.records import ServiceRecord, SlotOverride, SlotWish
from swarmctl.controller.serviceaddresses import giving
from swarmctl.controller.state import Service
from swarmctl.controller.views import service_view
from swarmctl.proto import limits
from swarmctl.proto.errors import Conflict, InvalidSpec, ProtocolError
from swarmctl.spec import wire
from swarmctl.spec.diff import diff_services
from swarmctl.spec.floating import check_floating
from swarmctl.spec.health import check_health
from swarmctl.spec.models import ServiceSpec
from swarmctl.spec.names import check_service_name, check_tenant_name
from swarmctl.transport.rpc import Call, Handler

Change = Callable[[ServiceRecord, int | None], ServiceRecord]


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def apply(call: Call) -> Any:
        return await _apply(cluster, call)

    async def scale(call: Call) -> Any:
        return await _scale(cluster, call)

    async def remove(call: Call) -> Any:
        return await _remove(cluster, call)

    async def stop(call: Call) -> Any:
        return await _change_targets(cluster, call, _stopped)

    async def start(call: Call) -> Any:
        return await _change_targets(cluster, call, _started)

    async def restart(call: Call) -> Any:
        return await _change_targets(cluster, call, _restarted)

    async def rollback(call: Call) -> Any:
        return await _rollback(cluster, (tenant_of(call), call.text("name")))

    async def listing(call: Call) -> Any:
        tenant = tenant_of(call)
        return [
            service_view(cluster.state, service)
            for key, service in sorted(cluster.state.services.items())
            if key[0] == tenant
        ]

    async def inspect(call: Call) -> Any:
        return _inspect(cluster, (tenant_of(call), call.text("name")))

    return {
        "service.apply": apply,
        "service.scale": scale,
        "service.remove": remove,
        "service.stop": stop,
        "service.start": start,
        "service.restart": restart,
        "service.rollback": rollback,
        "service.list": listing,
        "service.inspect": inspect,
    }


# --- apply -----------------------------------------------------------------------------------


async def _apply(cluster: Cluster, call: Call) -> Any:
    """Make services as given: created, changed in place, or left alone.

    Parameters: ``services`` (encoded specs), ``create_only`` (a name in use is an error),
    ``dry_run``, ``prune`` (a stack: what it has and is not given is removed); ``networks`` and
    ``groups`` (encoded definitions) are made before the services that use them.
    """
    with cluster.meters.stage("validate"):
        specs = _specs(call)
        asked = networks.asked_of(call)
    prune = call.text("prune", "")
    if not (asked or prune):
        with ExitStack() as used:
            for spec in specs:
                if spec.template.networks:
                    used.enter_context(cluster.state.ports.table.using(spec))
            return {"services": await _apply_services(cluster, call, specs, "")}
    async with cluster.holding([tenancy.LOCK]):
        settled = networks.settle(cluster, asked, specs)
        dry_run = call.flag("dry_run")
        if not dry_run:
            await settled.save(cluster)
        results = await _apply_services(cluster, call, specs, prune)
        kept = {one.key for one in asked.definitions}
        pruned = await networks.prune(cluster, prune, kept, dry_run=dry_run) if prune else []
    return {"services": results, "networks": [*settled.results, *pruned]}


async def _apply_services(
    cluster: Cluster, call: Call, specs: list[ServiceSpec], prune: str
) -> list[dict[str, Any]]:
    keys = [(spec.tenant, spec.name) for spec in specs]
    members = _members(cluster, prune)
    async with cluster.changing([*keys, *members]):
        # Looked up again: one may have gone while we waited. One that came is not ours to take.
        still = _members(cluster, prune)
        doomed = [key for key in members if key in still and key not in keys]
        results: list[dict[str, Any]] = []
        changed: list[ServiceRecord] = []
        now = cluster.wall()
        for spec in specs:
            record, result = applied(cluster, spec, now, create_only=call.flag("create_only"))
            results.append(result)
            if record is not None:
                changed.append(record)
        results += [{"service": key[1], "action": "removed", "changes": []} for key in doomed]
        if not call.flag("dry_run"):
            if changed:
                with giving(cluster) as give:
                    await cluster.save_services([give(one) for one in changed])
            if doomed:
                await cluster.delete_services(doomed)
            if not (changed or doomed):
                await cluster.confirm()  # Another controller may have changed it since.
    return results


def _members(cluster: Cluster, stack: str) -> list[ServiceKey]:
    """The services of a stack; none of the stack without a name."""
    if not stack:
        return []
    return [
        key for key, service in cluster.state.services.items() if service.record.spec.stack == stack
    ]


def _specs(call: Call) -> list[ServiceSpec]:
    encoded = call.params.get("services")
    if not isinstance(encoded, tuple | list) or not all(isinstance(one, bytes) for one in encoded):
        raise ProtocolError("services is not a list of encoded specs", call.method)
    specs = [wire.decode_service(one) for one in encoded]
    for spec in specs:
        _check(spec)
        check_health(spec)
    names = [(spec.tenant, spec.name) for spec in specs]
    if len(set(names)) != len(names):
        raise InvalidSpec("a service is given twice", call.method)
    return specs


def _check(spec: ServiceSpec) -> None:
    check(Service(ServiceRecord(spec, 0.0, 0.0)))


def check(service: Service) -> None:
    """Refuse what no client of this release sends: others may.

    Raises:
        InvalidSpec: a name, a number or a wish makes no sense.
    """
    spec = service.record.spec
    check_service_name(spec.name)
    check_tenant_name(spec.tenant)
    check_floating(spec)
    # All that the scheduler would refuse later, when nobody is there to be told.
    made = request_for(service, [1])
    if spec.replicas == 1:
        service.request = made  # Placed in a moment, most likely.
    if not 0 <= spec.replicas <= limits.REPLICAS_MAX:
        raise InvalidSpec(
            f"replicas has to be from 0 to {limits.REPLICAS_MAX}, not {spec.replicas}", spec.name
        )


def applied(
    cluster: Cluster, spec: ServiceSpec, now: float, *, create_only: bool
) -> tuple[ServiceRecord | None, dict[str, Any]]:
    """The record after ``spec`` is applied (None when nothing changes), and what to answer.

    All that is accepted together has one time, ``now``: what it took is then counted together.
    """
    existing = cluster.state.services.get((spec.tenant, spec.name))
    if existing is None:
        return new_record(cluster, spec, now), _result(spec, "created", None)
    if create_only:
        raise Conflict(
            f"a service {spec.name!r} exists already",
            hint=f"choose another --name, or remove it: swarmctl rm {spec.name}",
        )
    before = existing.record
    if before.spec == spec:
        return None, _result(spec, "unchanged", before.spec)
    record = evolve(
        before, spec=spec, previous=before.spec, updated_at=now, revision=before.revision + 1
    )
    return _without_overrides_beyond(record), _result(spec, "updated", before.spec)


def new_record(cluster: Cluster, spec: ServiceSpec, now: float) -> ServiceRecord:
    """A new record. Instances in quarantine are adopted as they run: their restarts are counted."""
    loose = cluster.quarantined((spec.tenant, spec.name))
    if not loose:
        return ServiceRecord(spec, now, now)
    counted = {one.slot: one.generation for one in loose}
    least = min(counted.values(), default=0)
    overrides = {
        slot: SlotOverride(generation=count - least)
        for slot, count in counted.items()
        if count > least and slot <= spec.replicas
    }
    return ServiceRecord(spec, now, now, generation=least, overrides=overrides)


def _result(spec: ServiceSpec, action: str, before: ServiceSpec | None) -> dict[str, Any]:
    changes = diff_services(before, spec) if before is not None else ()
    return {
        "service": spec.name,
        "action": action,
        "changes": [[one.field_path, one.before, one.after, one.restarts] for one in changes],
    }


def _without_overrides_beyond(record: ServiceRecord) -> ServiceRecord:
    """Exceptions of slots that are scaled away go with them."""
    replicas = record.spec.replicas
    return evolve(
        record,
        overrides={slot: one for slot, one in record.overrides.items() if slot <= replicas},
        completed=record.completed.upto(replicas),
    )


async def _rollback(cluster: Cluster, key: ServiceKey) -> Any:
    """Exchange a service's spec and the one before its last change."""
    cluster.service(parse(key[1], key[0]).key)
    async with cluster.changing([key]):
        before = cluster.service(key).record
        if before.previous is None:
            raise Conflict(
                f"{key[1]} has not been changed since it was made",
                hint="there is nothing to go back to",
            )
        record = evolve(
            before,
            spec=_with_networks(cluster, before.previous),
            previous=before.spec,
            updated_at=cluster.wall(),
            revision=before.revision + 1,
        )
        with giving(cluster) as give:
            await cluster.save_services([give(_without_overrides_beyond(record))])
    return _result(record.spec, "rolled back", before.spec)


def _with_networks(cluster: Cluster, spec: ServiceSpec) -> ServiceSpec:
    """``spec``, when the networks that it had are still there."""
    if spec.template.networks:
        cluster.state.ports.table.check_service(spec)
    return spec


# --- scale, stop, start, restart -------------------------------------------------------------


async def _scale(cluster: Cluster, call: Call) -> Any:
    wanted = call.params.get("replicas")
    if not isinstance(wanted, dict) or not all(type(count) is int for count in wanted.values()):
        raise ProtocolError("replicas is not a map of service to count", call.method)
    tenant = tenant_of(call)
    targets = resolve(cluster, list(wanted), tenant)
    for target in targets:
        if target.slot is not None:
            raise InvalidSpec(f"{target.name} is an instance; a service is scaled")
    keys = [target.key for target in targets]
    async with cluster.changing(keys):
        changed: list[ServiceRecord] = []
        for key in keys:
            before = cluster.service(key).record
            spec = _with_networks(cluster, before.spec.with_replicas(wanted[key[1]]))
            _check(spec)
            changed.append(
                _without_overrides_beyond(evolve(before, spec=spec, updated_at=cluster.wall()))
            )
        await cluster.save_services(changed)
    return {"services": [key[1] for key in keys]}


async def _change_targets(cluster: Cluster, call: Call, change: Change) -> Any:
    """Apply ``change`` to every target of the request, in one commit."""
    targets = resolve(cluster, call.texts("names"), tenant_of(call))
    known = [target for target in targets if target.key in cluster.state.services]
    for target in targets:
        if target not in known:
            raise Conflict(
                f"{target.name} is quarantined: this controller does not know its service",
                hint=f"adopt it: swarmctl service adopt {target.key[1]}; or remove it: swarmctl rm "
                f"{target.name}",
            )
    async with cluster.changing([target.key for target in known]):
        records: dict[ServiceKey, ServiceRecord] = {}
        for target in known:
            record = records.get(target.key) or cluster.service(target.key).record
            records[target.key] = change(record, target.slot)
        now = cluster.wall()
        await cluster.save_services([evolve(one, updated_at=now) for one in records.values()])
    return {"targets": [target.name for target in targets]}


def _stopped(record: ServiceRecord, slot: int | None) -> ServiceRecord:
    if slot is None:
        return _all_following(evolve(record, stopped=True))
    return _wishing(record, slot, SlotWish.STOPPED)


def _started(record: ServiceRecord, slot: int | None) -> ServiceRecord:
    if slot is None:
        return _all_following(evolve(record, stopped=False))
    # Started again, a slot of a stopped service is the exception; else it follows the service.
    return _wishing(record, slot, SlotWish.RUNNING if record.stopped else None)


def _restarted(record: ServiceRecord, slot: int | None) -> ServiceRecord:
    # What has completed is to run once more.
    if slot is None:
        return evolve(record, generation=record.generation + 1, completed=())
    record = evolve(record, completed=record.completed.without(slot))
    override = record.overrides.get(slot, SlotOverride())
    return record.with_override(slot, evolve(override, generation=override.generation + 1))


def _all_following(record: ServiceRecord) -> ServiceRecord:
    """Exceptions of single slots end when the whole service is stopped or started."""
    for slot, override in record.overrides.items():
        record = record.with_override(slot, evolve(override, wish=None))
    return record


def _wishing(record: ServiceRecord, slot: int, wish: SlotWish | None) -> ServiceRecord:
    override = record.overrides.get(slot, SlotOverride())
    return record.with_override(slot, evolve(override, wish=wish))


# --- remove ----------------------------------------------------------------------------------


async def _remove(cluster: Cluster, call: Call) -> Any:
    """Remove services (with a tombstone), single instances (an override), or quarantined ones."""
    targets = resolve(cluster, call.texts("names"), tenant_of(call))
    async with cluster.changing([target.key for target in targets]):
        whole = [one for one in targets if one.slot is None and one.key in cluster.state.services]
        single = [one for one in targets if one.slot and one.key in cluster.state.services]
        unknown = [one for one in targets if one.key not in cluster.state.services]
        records: dict[ServiceKey, ServiceRecord] = {}
        for target in single:
            record = records.get(target.key) or cluster.service(target.key).record
            assert target.slot is not None
            records[target.key] = _wishing(record, target.slot, SlotWish.REMOVED)
        if records:
            now = cluster.wall()
            await cluster.save_services([evolve(one, updated_at=now) for one in records.values()])
        if whole:
            await cluster.delete_services([target.key for target in whole])
        for target in unknown:
            if target.slot is None:
                await cluster.bury_unknown(target.key)
            else:
                _remove_quarantined(cluster, target)
    return {"targets": [target.name for target in targets]}


def _remove_quarantined(cluster: Cluster, target: Target) -> None:
    for instance in cluster.quarantined(target.key, target.slot):
        cluster.state.remove(instance)
    cluster.wake()


# --- views -----------------------------------------------------------------------------------


def _inspect(cluster: Cluster, key: ServiceKey) -> Any:
    service = cluster.service(parse(key[1], key[0]).key)
    record = service.record
    return service_view(cluster.state, service) | {
        "spec": wire.converter().unstructure(record.spec),
        "generation": record.generation,
        "overrides": {
            str(slot): {"wish": one.wish.value if one.wish else None, "generation": one.generation}
            for slot, one in record.overrides.items()
        },
        "unplaced": {str(slot): why for slot, why in service.unplaced.items()},
        "history": [[at, text] for at, text in service.history],
    }
