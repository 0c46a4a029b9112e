"""How many copies of a service may be away at a time, when we are who takes them away.

Drains and rebalancing move instances that run well.  A service lets go of one only while fewer
than its ``max_unavailable`` copies (one, unless its update policy says more) are away already, for
whatever reason: a service that is not well is left alone.
"""

from swarmctl.controller.instance import Instance
from swarmctl.controller.records import ServiceRecord, SlotWish
from swarmctl.controller.state import Service
from swarmctl.proto.states import LIVE, Desired, InstanceState

UNHEALTHY = "unhealthy"


def serves(holder: Instance) -> bool:
    """Whether it runs, and is well as far as anybody knows."""
    return holder.state is InstanceState.RUNNING and holder.health != UNHEALTHY


def wanted_running(record: ServiceRecord) -> int:
    """How many slots are to run now."""
    replicas = record.spec.replicas
    wanted = 0 if record.stopped else replicas
    for slot, override in record.overrides.items():
        if override.wish is not None and slot <= replicas:
            wanted += (override.wish is SlotWish.RUNNING) - (not record.stopped)
    return max(0, wanted - len(record.completed))


def max_unavailable(service: Service) -> int:
    """How many copies may be away at a time."""
    return max(1, service.record.spec.max_unavailable)


def away(service: Service) -> int:
    """How many of the copies that are to run do not serve now."""
    serving = service.tally[InstanceState.RUNNING]
    if service.record.spec.template.checked is not None:
        serving = sum(serves(holder) for holder in service.holders.values())
    return max(0, wanted_running(service.record) - serving)


def may_leave(service: Service) -> int:
    """How many copies that serve may be taken away now."""
    return max(0, max_unavailable(service) - away(service))


def uses_its_node(instance: Instance) -> bool:
    """Whether it runs, is on its way to, or will be tried again there."""
    return instance.state in LIVE or instance.retrying


def is_to_begin(instance: Instance) -> bool:
    """Whether it was asked to run, and its node has not begun that: a start, or a restart."""
    if instance.desired is not Desired.RUNNING:
        return False
    return instance.state is InstanceState.STOPPED or instance.applied < instance.generation
