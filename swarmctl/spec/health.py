"""Health checks: ``healthcheck:`` of a stack file, and docker's ``--health-…`` options.

Compose's own form is a command (``test``). Added to it are ``tcp: PORT``, ``http: PORT/PATH`` and
``guest_agent: true`` (for VMs), of which one may stand in its place.
"""

from typing import Any, Final

from attrs import evolve

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import HealthCheck, HealthKind, ServiceSpec
from swarmctl.spec.reading import Field
from swarmctl.spec.sizes import parse_duration

# More often than this a check costs more than it tells.
PERIOD_MIN_S: Final = 0.1
RETRIES_MAX: Final = 1_000
_PORT_MAX: Final = 65_535
_SHELL: Final = ("/bin/sh", "-c")

_HOWS: Final = ("test", "tcp", "http", "guest_agent")
_PERIODS: Final = ("interval", "timeout", "start_period", "start_interval")
_NO_COMMANDS: Final = "no command can be run in a VM from outside"
_VM_HINT: Final = "use tcp: PORT, http: PORT/PATH or guest_agent: true"


def read_health(field: Field, *, is_vm: bool) -> HealthCheck:
    """The check that ``healthcheck:`` describes.

    Raises:
        InvalidSpec: a part of it is not valid.
    """
    fields = field.fields((*_HOWS, *_PERIODS, "retries", "disable"))
    if "disable" in fields and fields["disable"].boolean():
        return HealthCheck()
    hows = [key for key in _HOWS if key in fields]
    if not hows:
        raise field.fail("it does not say what to check", 'add "test", or "disable: true"')
    if len(hows) > 1:
        raise fields[hows[1]].fail(f"there is {hows[0]} already", "an instance has one check")
    check = _read_how(hows[0], fields[hows[0]], is_vm=is_vm)
    changes: dict[str, Any] = {}
    for key in _PERIODS:
        if key in fields:
            parse = parse_duration if key == "start_period" else parse_period
            changes[f"{key}_s"] = fields[key].parse(parse)
    if "retries" in fields:
        # As docker has it, 0 is the default.
        changes["retries"] = fields["retries"].integer(0, RETRIES_MAX) or check.retries
    return evolve(check, **changes)


def _read_how(key: str, field: Field, *, is_vm: bool) -> HealthCheck:
    if key == "test":
        return _read_test(field, is_vm=is_vm)
    if key == "tcp":
        return HealthCheck(HealthKind.TCP, port=field.parse(parse_port))
    if key == "http":
        return field.parse(parse_http)
    if not is_vm:
        raise field.fail("a container has no guest agent", 'use "test", "tcp" or "http"')
    if not field.boolean():
        raise field.fail("false checks nothing", 'leave it out, or write "disable: true"')
    return HealthCheck(HealthKind.GUEST_AGENT)


def _read_test(field: Field, *, is_vm: bool) -> HealthCheck:
    if field.is_scalar:
        how, words = "CMD-SHELL", [field.text()]
    else:
        how, *words = field.texts() or ("",)
    if how == "NONE":
        return HealthCheck()
    if how not in ("CMD", "CMD-SHELL"):
        raise field.fail(
            f'a test begins with "CMD", "CMD-SHELL" or "NONE", not with "{how}"',
            'write test: ["CMD", "curl", "-f", "http://localhost"], or a text for the shell',
        )
    if not words or not words[0]:
        raise field.fail("there is no command to run")
    if is_vm:
        raise field.fail(_NO_COMMANDS, _VM_HINT)
    return command_check(tuple(words) if how == "CMD" else (*_SHELL, *words))


def check_health(spec: ServiceSpec) -> None:
    """Refuse a check that its node could never make.

    Raises:
        InvalidSpec: it asks a VM over a tenant network, into which its node has no way: there is no
            network namespace of the VM's on the node, as there is of a container's.
    """
    template = spec.template
    check = template.checked
    own = template.container or template.vm
    if check is not None and check.port and own is not None and own.network == "none":
        raise InvalidSpec("without a network it cannot be asked", hint='use "test"')
    if template.vm is not None and template.networks and check is not None and check.port:
        raise InvalidSpec(
            f"its node has no way into {template.networks[0].network}, so it cannot ask the VM",
            hint="use guest_agent: true, or leave the VM on the node's own network",
        )


def command_check(command: tuple[str, ...]) -> HealthCheck:
    """The check that runs ``command``."""
    return HealthCheck(HealthKind.COMMAND, command=command)


def shell_check(text: str) -> HealthCheck:
    """The check that runs ``text`` in a shell, as docker's ``--health-cmd`` does."""
    if not text.strip():
        raise InvalidSpec("there is no command to run")
    return command_check((*_SHELL, text))


def parse_port(text: str) -> int:
    """A port to ask.

    Raises:
        InvalidSpec: it is none.
    """
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= _PORT_MAX:
        raise InvalidSpec(f'"{text}" is not a port', hint="a number from 1 to 65535")
    return int(text)


def parse_http(text: str) -> HealthCheck:
    """``8080/healthz``, ``:8080`` or ``http://localhost:8080/healthz`` as a check.

    Raises:
        InvalidSpec: it names no port, or something else than plain HTTP.
    """
    rest = text.removeprefix("http://")
    if "://" in rest:
        raise InvalidSpec(f'"{text}" is not plain HTTP', hint="use a command for anything else")
    place, _, path = rest.partition("/")
    port = place.rpartition(":")[2] or "80"
    if not all("!" <= one <= "~" for one in path):
        raise InvalidSpec(f'"{path}" is not a path', hint="write spaces and the like as %20")
    try:
        return HealthCheck(HealthKind.HTTP, port=parse_port(port), path=f"/{path}")
    except InvalidSpec as error:
        raise InvalidSpec(f'"{text}" names no port', hint='such as "8080/healthz"') from error


def parse_period(text: str) -> float:
    """A time between two checks, or the longest that one may take, in seconds.

    Raises:
        InvalidSpec: it is no time, or too short a one.
    """
    value = parse_duration(text)
    if value < PERIOD_MIN_S:
        raise InvalidSpec(f'"{text}" is too short', hint="100ms is the shortest")
    return value
