"""``deploy:`` of a stack file: how many, where, and what happens when one ends."""

from typing import Final

from attrs import field, frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.proto.limits import REPLICAS_MAX
from swarmctl.spec.models import Placement, RestartCondition, RestartPolicy
from swarmctl.spec.placements import read_placement
from swarmctl.spec.reading import Field
from swarmctl.spec.resources import Demand, read_resources
from swarmctl.spec.restarts import ATTEMPTS_MAX, check_job_restart, parse_restart
from swarmctl.spec.sizes import parse_duration
from swarmctl.spec.unsupported import NOT_YET

# Priorities are compared, never added; a thousand steps either way are plenty to sort by.
PRIORITY_MAX: Final = 1_000
FENCINGS: Final = ("none", "lease")

_MODES: Final = ("replicated", "replicated-job", "job")
_CONDITIONS: Final = {
    "none": RestartCondition.NEVER,
    "on-failure": RestartCondition.ON_FAILURE,
    "any": RestartCondition.ALWAYS,
    "unless-stopped": RestartCondition.UNLESS_STOPPED,
}


@frozen
class Deploy:
    """What ``deploy:``, and the service's older fields for the same, ask for."""

    demand: Demand
    job: bool = False
    replicas: int = 1
    placement: Placement = field(factory=Placement)
    restart: RestartPolicy = field(factory=RestartPolicy)
    priority: int = 0
    fencing: str = "none"
    max_unavailable: int = 0


def read_deploy(service: dict[str, Field]) -> Deploy:
    """The deploy of a service, from ``deploy``, ``restart``, ``scale``, ``cpus`` and ``mem_*``.

    Raises:
        InvalidSpec: a part of it is not valid.
    """
    fields: dict[str, Field] = {}
    if "deploy" in service:
        fields = service["deploy"].fields(
            (
                "mode",
                "replicas",
                "resources",
                "placement",
                "restart_policy",
                "priority",
                "fencing",
                "update_config",
            ),
            {
                "rollback_config": NOT_YET,
                "labels": "labels of a service are not supported yet, only those of instances",
                "endpoint_mode": NOT_YET,
            },
        )
    job = _read_job(fields)
    priority = fields.get("priority")
    return Deploy(
        demand=read_resources(service, fields),
        job=job,
        replicas=_read_replicas(service, fields),
        placement=read_placement(fields["placement"]) if "placement" in fields else Placement(),
        restart=_read_restart(service, fields, job=job),
        priority=priority.integer(-PRIORITY_MAX, PRIORITY_MAX) if priority else 0,
        fencing=fields["fencing"].choice(FENCINGS) if "fencing" in fields else "none",
        max_unavailable=_read_unavailable(fields),
    )


def _read_unavailable(fields: dict[str, Field]) -> int:
    """How many copies an update, or a drain, may take away at a time; 0 when nothing is said.

    ``parallelism`` is Compose's word, and its 0 means all of them.
    """
    if "update_config" not in fields:
        return 0
    update = fields["update_config"].fields(
        ("parallelism", "max_unavailable"),
        dict.fromkeys(
            ("delay", "failure_action", "monitor", "max_failure_ratio", "order"), NOT_YET
        ),
    )
    if len(update) > 1:
        raise update["parallelism"].fail("max_unavailable is there too", "remove one of the two")
    if "max_unavailable" in update:
        return update["max_unavailable"].integer(1, REPLICAS_MAX)
    if "parallelism" in update:
        return update["parallelism"].integer(0, REPLICAS_MAX) or REPLICAS_MAX
    return 0


def _read_job(fields: dict[str, Field]) -> bool:
    if "mode" not in fields:
        return False
    mode = fields["mode"]
    if mode.text() in ("global", "global-job"):
        raise mode.fail(
            f'mode "{mode.text()}" is not supported yet',
            "use replicated, with max_replicas_per_node: 1 and as many replicas as nodes",
        )
    return mode.choice(_MODES) != "replicated"


def _read_replicas(service: dict[str, Field], fields: dict[str, Field]) -> int:
    given = [source for source in (fields.get("replicas"), service.get("scale")) if source]
    counts = [source.integer(0, REPLICAS_MAX) for source in given]
    if len(set(counts)) > 1:
        raise given[1].fail(f"scale is {counts[1]} and replicas is {counts[0]}", "remove one")
    return counts[0] if counts else 1


def _read_restart(
    service: dict[str, Field], fields: dict[str, Field], *, job: bool
) -> RestartPolicy:
    source = fields.get("restart_policy") or service.get("restart")
    if source is None:
        return RestartPolicy(RestartCondition.ON_FAILURE if job else RestartCondition.ALWAYS)
    if "restart_policy" in fields:
        if "restart" in service:
            service["restart"].warn("ignored, because deploy.restart_policy is there too")
        policy = _read_policy(fields["restart_policy"], job=job)
    else:
        policy = source.parse(parse_restart)
    if job:
        try:
            check_job_restart(policy)
        except InvalidSpec as error:
            raise source.fail(error.what, error.hint) from error
    return policy


def _read_policy(field_: Field, *, job: bool) -> RestartPolicy:
    fields = field_.fields(("condition", "delay", "max_attempts", "window"))
    condition = RestartCondition.ON_FAILURE if job else RestartCondition.ALWAYS
    if "condition" in fields:
        condition = _CONDITIONS[fields["condition"].choice(_CONDITIONS)]
    attempts = fields.get("max_attempts")
    return RestartPolicy(
        condition=condition,
        delay_s=fields["delay"].parse(parse_duration) if "delay" in fields else 0.0,
        max_attempts=attempts.integer(0, ATTEMPTS_MAX) if attempts else 0,
        window_s=fields["window"].parse(parse_duration) if "window" in fields else 0.0,
    )
