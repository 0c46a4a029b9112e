"""Copies of jobs that have succeeded: what that means at once, before it is durable."""

from attrs import frozen

from swarmctl.controller.availability import is_to_begin
from swarmctl.controller.instance import Instance
from swarmctl.controller.placing import Fleet
from swarmctl.controller.state import ClusterState
from swarmctl.proto.states import LIVE, InstanceState
from swarmctl.spec import wire


@frozen
class Completion:
    """A job's slot that has succeeded; ``peer`` waits for the acknowledgement of ``sequence``."""

    instance: Instance
    peer: bytes = b""
    sequence: int = 0


def is_over(state: ClusterState, instance: Instance) -> bool:
    """Whether it is a job's, has succeeded, and nobody asked for it again: it takes nothing."""
    service = state.services.get(instance.key)
    job = service is not None and service.record.spec.template.job
    return job and instance.state is InstanceState.SUCCEEDED and not is_to_begin(instance)


def count(state: ClusterState, fleet: Fleet, instance: Instance) -> None:
    """Count what it takes, where its template was not known when it was taken in."""
    encoded = state.templates.get(instance.template)
    if encoded is None:
        return
    template = wire.decode_template(encoded)
    if template.job and instance.state is InstanceState.SUCCEEDED:
        return
    fleet.allocate(state, instance)


def settle(state: ClusterState, fleet: Fleet, instance: Instance) -> bool:
    """What has succeeded takes nothing any more; whether that it has is to be committed."""
    service = state.services.get(instance.key)
    if service is None or not service.record.spec.template.job:
        return False
    if instance.state is not InstanceState.SUCCEEDED:
        if instance.state in LIVE:  # Started again, as a user asked.
            fleet.allocate(state, instance)
        return False
    if instance.counted:
        fleet.free(state, instance)
        state.capacity_changed = True
    holds = service.holders.get(instance.slot) is instance
    return holds and instance.slot not in service.record.completed
