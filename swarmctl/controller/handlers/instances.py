"""Requests that look: ``ps``, ``inspect``, ``explain``, ``wait``."""

from typing import Any

import trio

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers.targets import Target, holders, parse, resolve, tenant_of
from swarmctl.controller.instance import Instance, ServiceKey
from swarmctl.controller.placing import request_for
from swarmctl.controller.records import SlotWish
from swarmctl.controller.state import Service
from swarmctl.controller.views import View, instance_view, pending_views
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto import limits
from swarmctl.proto.errors import (
    InvalidSpec,
    LaunchFailed,
    NothingFits,
    ProtocolError,
    WaitExpired,
)
from swarmctl.proto.states import FINAL, LIVE, InstanceState, NodeState
from swarmctl.scheduler import explain as explain_placement
from swarmctl.spec import wire
from swarmctl.transport.rpc import Call, Handler

# How often a watcher is told at the most: fast enough for the eye, cheap for a million.
_PROGRESS_S = 0.1
# A watcher looks again after this long even when nothing was announced.
_LOOK_AGAIN_S = 1.0
# Between two looks a watcher rests this many times as long as a look takes.
_LOOK_SHARE = 10


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def listing(call: Call) -> Any:
        return _list(cluster, call)

    async def inspect(call: Call) -> Any:
        return _inspect(cluster, call)

    async def explain(call: Call) -> Any:
        return _explain(cluster, call)

    async def export(call: Call) -> Any:
        return await _export(cluster, call)

    async def wait(call: Call) -> Any:
        return await _wait(cluster, call)

    return {
        "instance.list": listing,
        "instance.inspect": inspect,
        "instance.explain": explain,
        "instance.export": export,
        "service.wait": wait,
    }


def _list(cluster: Cluster, call: Call) -> list[View]:
    """Instances of all services, or of those in ``names``; ``all`` includes those that ended."""
    tenant = tenant_of(call)
    names = call.texts("names")
    targets = resolve(cluster, names, tenant)
    keys = {target.key for target in targets}
    views: list[View] = []
    for key, service in cluster.state.services.items():
        if key[0] == tenant and (not names or key in keys):
            views += [instance_view(cluster.state, one) for one in service.holders.values()]
            views += pending_views(service)
    for instance in cluster.state.all_instances():
        loose = instance.quarantined or instance.removing
        if loose and instance.key[0] == tenant and (not names or instance.key in keys):
            views.append(instance_view(cluster.state, instance))
    slots = {target.name for target in targets if target.slot is not None}
    whole = {target.key[1] for target in targets if target.slot is None}
    if slots:
        views = [one for one in views if one["instance"] in slots or one["service"] in whole]
    if not call.flag("all"):
        views = [one for one in views if one["state"] not in _ENDED]
    views.sort(key=lambda one: (one["service"], int(one["instance"].rpartition(".")[2])))
    return views


async def _export(cluster: Cluster, call: Call) -> int:
    """Stream all instances on ``item`` as [incarnation, node, state], many to a chunk; the total.

    For programs that compare or archive a large cluster; people use ``instance.list``.
    """
    sent = 0
    for name in list(cluster.state.nodes):
        node = cluster.state.nodes.get(name)
        if node is None or not node.instances:
            continue
        rows = [
            (incarnations.label(one.incarnation), name, one.state.label)
            for one in node.instances.values()
        ]
        sent += len(rows)
        await call.send("item", rows)
    return sent


_ENDED = {
    InstanceState.STOPPED.label,
    InstanceState.SUCCEEDED.label,
    InstanceState.REMOVED.label,
}


def _inspect(cluster: Cluster, call: Call) -> View:
    [target] = resolve(cluster, [call.text("name")], tenant_of(call))
    if target.slot is None:
        raise InvalidSpec(f"{target.name} is a service", hint="use 'swarmctl service inspect'")
    service = cluster.state.services.get(target.key)
    if service is not None and target.slot not in service.holders:
        for view in pending_views(service):
            if view["instance"] == target.name:
                return view
    [instance] = holders(cluster, [target])
    encoded = cluster.state.templates.get(instance.template)
    template = wire.converter().unstructure(wire.decode_template(encoded)) if encoded else None
    return instance_view(cluster.state, instance) | {
        "template": template,
        "placed": instance.placed_at,
        "generation": instance.generation,
    }


# --- explain ---------------------------------------------------------------------------------


def _explain(cluster: Cluster, call: Call) -> View:
    """Why something is where it is, or why it is nowhere, as lines of text."""
    [target] = resolve(cluster, [call.text("name")], tenant_of(call))
    service = cluster.state.services.get(target.key)
    if service is None:
        return {
            "name": target.name,
            "lines": [
                instance_view(cluster.state, one)["reason"]
                for one in cluster.quarantined(target.key, target.slot)
            ],
        }
    slots = [target.slot] if target.slot else range(1, service.record.spec.replicas + 1)
    lines = [_explain_slot(cluster, service, slot) for slot in slots[: limits.HISTORY_MAX]]
    if len(slots) > limits.HISTORY_MAX:
        lines.append(f"… and {len(slots) - limits.HISTORY_MAX} more; name one of them to see it")
    explanation = explain_placement(cluster.fleet.snapshot, request_for(service, [1]))
    lines.append(f"one more copy now: {explanation}")
    return {
        "name": target.name,
        "lines": lines,
        "history": [[at, text] for at, text in service.history],
    }


def _explain_slot(cluster: Cluster, service: Service, slot: int) -> str:
    name = f"{service.key[1]}.{slot}"
    holder = service.holders.get(slot)
    wish = service.record.wish(slot)
    if slot in service.record.completed:
        return f"{name} has completed: a job's slot is not run again"
    if holder is None:
        if wish is not SlotWish.RUNNING:
            return f"{name} is nowhere: a user {wish.value} it ('swarmctl start {name}' undoes it)"
        if slot in service.unplaced:
            return f"{name} is nowhere: {service.unplaced[slot]}"
        if service.old and not cluster.reconciler.settled:
            silent = [node.name for node in cluster.state.nodes.values() if not node.reported]
            return (
                f"{name} is nowhere yet: the controller started a moment ago and waits for "
                f"{', '.join(silent)} to report, where it may be running"
            )
        return f"{name} is nowhere: it is about to be placed"
    return f"{name} is {holder.state.label} on {holder.node}: {_why_there(cluster, holder)}"


def _why_there(cluster: Cluster, holder: Instance) -> str:
    parts: list[str] = []
    victim = cluster.state.victims.get(holder.key, holder.slot)
    if victim is not None and holder.reason != victim.why:
        parts.append(f"it was {victim.why} before")
    if holder.reason:
        parts.append(holder.reason)
    waits = cluster.state.services[holder.key].unplaced.get(holder.slot)
    if waits:
        parts.append(f"not placed elsewhere: {waits}")
    node = cluster.state.nodes[holder.node]
    placement = cluster.state.services[holder.key].record.spec.placement
    term = incarnations.term_of(holder.incarnation)
    if term != cluster.state.term:
        parts.append("placed by an earlier controller, and adopted where it runs")
    else:
        goal = "most" if placement.strategy == "binpack" else "least"
        met = ", ".join(placement.constraints) or "its needs"
        parts.append(f"the {goal} allocated node that met {met} when it was placed")
    if node.reasons:
        parts.append(f"the node is sick: {'; '.join(node.reasons)}")
    if node.record.draining:
        why = cluster.drains.why_it_stays(holder)
        parts.append(f"the node is being drained{f': {why}' if why else ''}")
    return "; ".join(parts)


# --- wait ------------------------------------------------------------------------------------


async def _wait(cluster: Cluster, call: Call) -> Any:
    """Stream counts until the services are as asked for, or cannot become so.

    Parameters: ``names``, ``for`` (``running``, ``stopped`` or ``gone``), ``timeout_s``.
    Streams on ``progress``: {service: {state: count, "wanted": n}}.

    Raises:
        WaitExpired: it took longer than ``timeout_s``.
        NothingFits: an instance has no node that takes it.
        LaunchFailed: an instance has failed for a reason that waiting will not mend.
    """
    condition = call.text("for", "running")
    if condition not in _CONDITIONS:
        raise InvalidSpec(
            f"cannot wait for {condition!r}", "--for", f"one of {', '.join(_CONDITIONS)}"
        )
    tenant = tenant_of(call)
    names = call.texts("names")
    targets = [parse(name, tenant) for name in names]
    if condition != "gone":
        resolve(cluster, names, tenant)
    timeout_s = call.params.get("timeout_s")
    if timeout_s is not None and type(timeout_s) not in (int, float):
        raise ProtocolError("timeout_s is not a number of seconds", call.method)
    deadline = trio.current_time() + (float(timeout_s) if timeout_s else float("inf"))
    shown: dict[str, Any] = {}
    shown_at = -_PROGRESS_S
    while True:
        change, began = cluster.next_change(), trio.current_time()
        counts = {target.name: _progress(cluster, target) for target in targets}
        reached = all(_CONDITIONS[condition](cluster, target) for target in targets)
        looked_s = trio.current_time() - began
        if counts != shown and (reached or began - shown_at >= _PROGRESS_S):
            shown, shown_at = counts, began
            await call.send("progress", counts)
        if reached:
            return counts
        if trio.current_time() >= deadline:
            shortage = _shortage(cluster, targets) if condition == "running" else ""
            if cluster.hold:
                shortage = f"; the cluster is on hold: {cluster.hold} ('swarmctl store release')"
            raise WaitExpired(
                f"not {condition} after {timeout_s:g} s: {_summary(counts)}{shortage}",
                ", ".join(names),
                f"it goes on; see: swarmctl explain {names[0]}",
            )
        again_s = _LOOK_AGAIN_S if counts == shown else _PROGRESS_S
        with trio.move_on_after(min(again_s, max(0.0, deadline - trio.current_time()))):
            await change.wait()
        # A watcher of few is told at once, one of a million looks a tenth of the time.
        await trio.sleep(min(_PROGRESS_S, looked_s * _LOOK_SHARE))


def _summary(counts: dict[str, dict[str, int]]) -> str:
    totals: dict[str, int] = {}
    for states in counts.values():
        for state, count in states.items():
            totals[state] = totals.get(state, 0) + count
    wanted = totals.pop("wanted", 0)
    return ", ".join(f"{count} {state}" for state, count in totals.items()) + f" of {wanted}"


def _shortage(cluster: Cluster, targets: list[Target]) -> str:
    """Why the first slot that nobody can take is nowhere, to be said after a summary."""
    for target in targets:
        service = cluster.state.services.get(target.key)
        if service is None:
            continue
        for slot, why in service.unplaced.items():
            if target.slot in (None, slot):
                return f"; {target.key[1]}.{slot} cannot be placed: {why}"
    return ""


def _progress(cluster: Cluster, target: Target) -> dict[str, int]:
    leaving = cluster.state.leaving.get(target.key, 0)
    service = cluster.state.services.get(target.key)
    if service is None:
        return {"leaving": leaving, "wanted": 0} if leaving else {"wanted": 0}
    if target.slot is not None:
        holder = service.holders.get(target.slot)
        return {holder.state.label if holder else "pending": 1, "wanted": 1}
    counts = cluster.state.counts(service)
    if leaving:
        counts["leaving"] = leaving
    return counts | {"wanted": service.record.spec.replicas}


def _slots(service: Service, target: Target) -> list[int]:
    if target.slot is not None:
        return [target.slot]
    return list(range(1, service.record.spec.replicas + 1))


def _is_running(cluster: Cluster, target: Target) -> bool:
    service = cluster.service(target.key)
    if service.rolling:
        return False
    if _needs_no_look(service, target):
        return False
    job = service.record.spec.template.job
    ready = True
    final = bool(service.unplaced) and _is_final(cluster, service)
    for slot in _slots(service, target):
        if service.record.wish(slot) is not SlotWish.RUNNING or slot in service.record.completed:
            continue
        if final and slot in service.unplaced:
            raise NothingFits(
                f"{target.key[1]}.{slot} cannot be placed: {service.unplaced[slot]}",
                hint="it stays pending, and is placed when something fits",
            )
        holder = service.holders.get(slot)
        if holder is None:
            ready = False
            continue
        _raise_if_hopeless(holder)
        # A job's copy is done when that is durable.
        runs = not job and holder.state is InstanceState.RUNNING
        ready = ready and runs and _is_current(service, holder)
    return ready


def _needs_no_look(service: Service, target: Target) -> bool:
    """Whether the tally alone says "not yet", without a look at each slot."""
    if target.slot is not None or service.unplaced or service.tally[InstanceState.FAILED]:
        return False
    unwanted = len(service.record.overrides) + len(service.record.completed)
    if service.record.spec.template.job:
        return unwanted < service.record.spec.replicas
    return service.tally[InstanceState.RUNNING] + unwanted < service.record.spec.replicas


def _is_final(cluster: Cluster, service: Service) -> bool:
    """Whether "nothing fits" may be said aloud: nobody is about to leave, to end or to report."""
    job = service.record.spec.template.job
    ends = job and any(service.tally[state] for state in LIVE)
    waits = cluster.state.fences.waits(service.key) or cluster.reconciler.preempting.unfinished
    return cluster.reconciler.settled and not ends and not waits and not _is_leaving(cluster)


def _is_leaving(cluster: Cluster, key: ServiceKey | None = None) -> bool:
    """Whether an instance (of ``key``) is on its way out.

    What is on a lost node goes when that node returns; nobody waits for that.
    """
    leaving = cluster.state.leaving
    if not (leaving if key is None else leaving.get(key)):
        return False
    return any(
        cluster.state.nodes[one.node].state is not NodeState.LOST
        for one in cluster.state.all_instances()
        if one.removing and key in (None, one.key)
    )


def _is_current(service: Service, holder: Instance) -> bool:
    """Whether it was started again since the last restart that was asked for."""
    return holder.applied == service.record.slot_generation(holder.slot)


def _raise_if_hopeless(holder: Instance) -> None:
    """Give up on an instance that has failed by itself, and not only for the moment."""
    if holder.state is not InstanceState.FAILED:
        return
    looping = holder.restarts >= limits.CRASH_LOOP_RESTARTS
    never_ran = holder.exit_code is None
    if looping or never_ran or not holder.restarts:
        raise LaunchFailed(
            f"{holder.name} failed on {holder.node}: {holder.reason or 'no reason given'}",
            hint=f"see: swarmctl {'explain' if never_ran else 'logs'} {holder.name}",
        )


def _is_stopped(cluster: Cluster, target: Target) -> bool:
    service = cluster.service(target.key)
    return all(
        holder.state in FINAL
        for slot, holder in service.holders.items()
        if target.slot in (None, slot)
    )


def _is_gone(cluster: Cluster, target: Target) -> bool:
    key: ServiceKey = target.key
    if not cluster.reconciler.settled and not cluster.state.braked:
        return False  # A node that has not reported since the takeover may still have it.
    service = cluster.state.services.get(key)
    if target.slot is not None and service is not None:
        return target.slot not in service.holders and not _is_leaving(cluster, key)
    return service is None and not _is_leaving(cluster, key)


_CONDITIONS = {"running": _is_running, "stopped": _is_stopped, "gone": _is_gone}
