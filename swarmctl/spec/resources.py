"""``deploy.resources`` of a stack file: what an instance reserves, and what it is held to.

A limit without a reservation reserves the limit, so that a file which says only
``limits: {memory: 512M}`` is placed where 512 MiB are free.
"""

import re
from typing import Final

from attrs import evolve, frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import Resources
from swarmctl.spec.reading import Field
from swarmctl.spec.sizes import parse_cpus, parse_memory, parse_size
from swarmctl.spec.unsupported import NOT_YET

# The scheduler's own bound for one amount.
AMOUNT_MAX: Final = 1 << 50
RESOURCE_NAME_MAX_CHARS: Final = 63

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._/-]*[a-z0-9])?", re.IGNORECASE)
_BUILT_IN: Final = {"cpu_millis": "cpus", "memory_bytes": "memory", "disk_bytes": "disk"}


@frozen
class Demand:
    """What an instance reserves, and what it is limited to."""

    reserved: Resources
    limits: Resources


def check_resource_name(name: str) -> str:
    """``name`` when a named resource may be called so.

    Raises:
        InvalidSpec: it may not.
    """
    if name in _BUILT_IN:
        raise InvalidSpec(f'"{name}" has its own field', hint=f'write "{_BUILT_IN[name]}"')
    if _NAME.fullmatch(name) is None or len(name) > RESOURCE_NAME_MAX_CHARS:
        raise InvalidSpec(
            f'"{name}" cannot be a resource\'s name', hint='such as "gpu" or "licence/matlab"'
        )
    return name


def read_resources(service: dict[str, Field], deploy: dict[str, Field]) -> Demand:
    """The demand of a service: from ``deploy.resources``, else from its older fields.

    Args:
        service: the service's fields; ``cpus``, ``mem_limit``, ``mem_reservation`` are read.
        deploy: its deploy's fields; ``resources`` is read.

    Raises:
        InvalidSpec: an amount is not one.
    """
    limits, reserved = _older_fields(service)
    if "resources" in deploy:
        parts = deploy["resources"].fields(("limits", "reservations"))
        if "limits" in parts:
            limits = _overlay(limits, _read_limits(parts["limits"]))
        if "reservations" in parts:
            reserved = _overlay(reserved, _read_reservations(parts["reservations"]))
        for name in ("cpu_millis", "memory_bytes"):
            least, most = getattr(reserved, name), getattr(limits, name)
            if most and least > most:
                word = _BUILT_IN[name]
                raise deploy["resources"].fail(
                    f"reserves more {word} than its limit", "raise the limit or reserve less"
                )
    return Demand(_overlay(limits, reserved), limits)


def _older_fields(service: dict[str, Field]) -> tuple[Resources, Resources]:
    limits = Resources(
        cpu_millis=service["cpus"].parse(parse_cpus) if "cpus" in service else 0,
        memory_bytes=service["mem_limit"].parse(parse_memory) if "mem_limit" in service else 0,
    )
    reserved = Resources(
        memory_bytes=service["mem_reservation"].parse(parse_memory)
        if "mem_reservation" in service
        else 0
    )
    return limits, reserved


def _overlay(base: Resources, over: Resources) -> Resources:
    return Resources(
        cpu_millis=over.cpu_millis or base.cpu_millis,
        memory_bytes=over.memory_bytes or base.memory_bytes,
        disk_bytes=over.disk_bytes or base.disk_bytes,
        named=base.named | over.named,
    )


def _read_limits(field: Field) -> Resources:
    return _read_amounts(field.fields(("cpus", "memory"), {"pids": NOT_YET}))


def _read_reservations(field: Field) -> Resources:
    fields = field.fields(("cpus", "memory", "disk", "devices", "custom", "generic_resources"))
    named: dict[str, int] = {}
    for key in ("devices", "custom", "generic_resources"):
        if key not in fields:
            continue
        for name, amount in _read_named(key, fields[key]).items():
            if name in named:
                raise fields[key].fail(f'"{name}" is asked for twice', "remove one")
            named[name] = amount
    return evolve(_read_amounts(fields), named=named)


def _read_amounts(fields: dict[str, Field]) -> Resources:
    return Resources(
        cpu_millis=fields["cpus"].parse(parse_cpus) if "cpus" in fields else 0,
        memory_bytes=fields["memory"].parse(parse_memory) if "memory" in fields else 0,
        disk_bytes=fields["disk"].parse(parse_size) if "disk" in fields else 0,
    )


def _read_named(key: str, field: Field) -> dict[str, int]:
    if key == "generic_resources":
        return dict(_read_generic(item) for item in field.elements())
    if key == "devices" and field.is_list:
        return dict(_read_device(item) for item in field.elements())
    return {_named(entry, name): _amount(entry) for name, entry in field.entries().items()}


def _named(field: Field, name: str) -> str:
    try:
        return check_resource_name(name)
    except InvalidSpec as error:
        raise field.fail(error.what, error.hint) from error


def _amount(field: Field) -> int:
    if field.is_list:
        raise field.fail("sets of a resource are not supported yet", "ask for a count")
    return field.integer(0, AMOUNT_MAX)


def _read_device(item: Field) -> tuple[str, int]:
    """Compose's own form: ``{driver: nvidia, count: 1, capabilities: [gpu]}``."""
    fields = item.fields(
        ("capabilities", "count", "device_ids"), {"driver": NOT_YET, "options": NOT_YET}
    )
    if "capabilities" not in fields or not (names := fields["capabilities"].texts()):
        raise item.fail("a device needs capabilities", "such as capabilities: [gpu]")
    count = 1
    if "device_ids" in fields:
        count = len(fields["device_ids"].texts())
        fields["device_ids"].warn(
            f"any {count} {names[0]} are given, not these", "constrain the node instead"
        )
    if "count" in fields:
        if fields["count"].is_scalar and fields["count"].text() == "all":
            raise fields["count"].fail('"all" is not supported yet', "give a number")
        count = _amount(fields["count"])
    return _named(item, names[0]), count


def _read_generic(item: Field) -> tuple[str, int]:
    """Docker's form: ``{discrete_resource_spec: {kind: gpu, value: 2}}``."""
    fields = item.fields(("discrete_resource_spec",))
    if "discrete_resource_spec" not in fields:
        raise item.fail("must hold a discrete_resource_spec")
    spec = fields["discrete_resource_spec"].fields(("kind", "value"))
    if "kind" not in spec or "value" not in spec:
        raise item.fail("a discrete_resource_spec has kind and value")
    return spec["kind"].parse(check_resource_name), _amount(spec["value"])
