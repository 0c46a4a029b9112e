"""One service of a stack file."""

from functools import partial
from typing import Final

from swarmctl.proto.errors import InvalidSpec
from swarmctl.proto.limits import STOP_GRACE_S
from swarmctl.spec.attachments import check_copies, read_plugging
from swarmctl.spec.containers import Surroundings, read_container
from swarmctl.spec.deploys import read_deploy
from swarmctl.spec.floating import check_floating, parse_floating
from swarmctl.spec.health import check_health, read_health
from swarmctl.spec.machines import read_vm, with_defaults
from swarmctl.spec.models import Resources, ServiceSpec, Template
from swarmctl.spec.names import check_driver, check_service_name
from swarmctl.spec.reading import Field
from swarmctl.spec.sizes import parse_duration
from swarmctl.spec.unsupported import SERVICE

# Fields of a container that a VM has no use for.
_CONTAINER_ONLY: Final = (
    "command",
    "entrypoint",
    "environment",
    "env_file",
    "ports",
    "volumes",
    "tmpfs",
    "cap_add",
    "user",
    "working_dir",
    "hostname",
    "stop_signal",
    "tty",
)
_KNOWN: Final = (
    "image",
    "vm",
    "driver",
    "deploy",
    "networks",
    "network_mode",
    "labels",
    "restart",
    "stop_grace_period",
    "healthcheck",
    "floating",
    *_CONTAINER_ONLY,
    "scale",
    "cpus",
    "mem_limit",
    "mem_reservation",
    "build",
    "extends",
    "profiles",
)


def read_service(name: str, field: Field, surroundings: Surroundings) -> ServiceSpec | None:
    """The service called ``name``; None when its profiles are not asked for.

    Raises:
        InvalidSpec: a part of it is not valid.
    """
    _check_name(name, field)
    if field.is_null:
        raise field.fail("the service says nothing", 'it needs at least an "image"')
    if field.is_scalar:
        raise field.mismatch("a map", f'write "image: {field.text()[:40]}" on a line below it')
    fields = field.fields(_KNOWN, SERVICE)
    if _left_out(name, fields, surroundings):
        return None
    _check_what_it_is(field, fields)
    plugging = read_plugging(fields, surroundings.networks)
    deploy = read_deploy(fields)
    check_copies(fields, plugging, deploy.replicas)
    is_vm = "vm" in fields
    if is_vm:
        for key in _CONTAINER_ONLY:
            if key in fields:
                fields[key].warn("ignored, a VM has none", "configure the guest with vm.cloud_init")
    grace = fields.get("stop_grace_period")
    reserved = deploy.demand.reserved
    health = read_health(fields["healthcheck"], is_vm=is_vm) if "healthcheck" in fields else None
    template = Template(
        container=None if is_vm else read_container(fields, plugging.own, surroundings),
        vm=read_vm(fields["vm"], plugging, surroundings.resolve) if is_vm else None,
        resources=with_defaults(reserved) if is_vm else reserved,
        restart=deploy.restart,
        stop_grace_period_s=grace.parse(parse_duration) if grace else STOP_GRACE_S,
        labels=_read_labels(fields["labels"]) if "labels" in fields else {},
        job=deploy.job,
        limits=Resources() if is_vm else deploy.demand.limits,
        health=health,
        fenced=deploy.fencing == "lease",
        networks=plugging.uses,
    )
    spec = ServiceSpec(
        name=name,
        template=template,
        replicas=deploy.replicas,
        stack=surroundings.stack,
        placement=deploy.placement,
        priority=deploy.priority,
        fencing=deploy.fencing,
        driver=fields["driver"].parse(partial(check_driver, is_vm=is_vm))
        if "driver" in fields
        else "",
        max_unavailable=deploy.max_unavailable,
        floating=fields["floating"].parse(parse_floating) if "floating" in fields else "",
    )
    _check_whole(spec, fields)
    return spec


def _check_whole(spec: ServiceSpec, fields: dict[str, Field]) -> None:
    """Refuse what is wrong only beside something else."""
    for key, check in (("floating", check_floating), ("healthcheck", check_health)):
        if key in fields:
            try:
                check(spec)
            except InvalidSpec as error:
                raise fields[key].fail(error.what, error.hint) from error


def _check_name(name: str, field: Field) -> None:
    try:
        check_service_name(name)
    except InvalidSpec as error:
        raise field.fail(error.what, error.hint) from error


def _left_out(name: str, fields: dict[str, Field], surroundings: Surroundings) -> bool:
    """Whether the service belongs to profiles of which none is asked for."""
    if "profiles" not in fields:
        return False
    profiles = fields["profiles"].texts()
    asked = {
        word.strip() for word in surroundings.environment.get("COMPOSE_PROFILES", "").split(",")
    }
    if not profiles or "*" in asked or asked.intersection(profiles):
        return False
    fields["profiles"].warn(
        f"{name} is left out: it is only for the profiles {', '.join(profiles)}",
        f"set COMPOSE_PROFILES={profiles[0]} to have it",
    )
    return True


def _check_what_it_is(field: Field, fields: dict[str, Field]) -> None:
    if "extends" in fields:
        raise fields["extends"].fail("not supported", "use an anchor and <<, or a second -f file")
    if "image" in fields and "vm" in fields:
        raise fields["vm"].fail(
            "a service is a container (image) or a VM (vm), not both",
            "a VM's image goes to vm.disk",
        )
    if "build" in fields:
        if "image" not in fields:
            raise fields["build"].fail(
                "nothing is built here, and there is no image",
                "build it elsewhere, and name the result with image:",
            )
        fields["build"].warn("ignored, the image is taken as it is")
    if "image" not in fields and "vm" not in fields:
        raise field.fail('the service has neither "image" nor "vm"', "add one")


def _read_labels(field: Field) -> dict[str, str]:
    if not field.is_list:
        return {
            name: "" if entry.is_null else entry.text() for name, entry in field.entries().items()
        }
    pairs = (text.partition("=") for text in field.texts())
    return {name: value for name, _, value in pairs}
