"""A service from the options of ``swarmctl run``.

Options arrive as the texts that the user typed, and are read by the same parsers as the fields of
a stack file. An error names the option that it is about.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from attrs import evolve, frozen

from swarmctl.proto.errors import InvalidSpec, NotFound
from swarmctl.proto.limits import REPLICAS_MAX, STOP_GRACE_S
from swarmctl.spec import mounts, ports, processes
from swarmctl.spec.attachments import MODES, NETWORKS_MAX, Plugging, parse_address
from swarmctl.spec.environments import parse_assignment
from swarmctl.spec.floating import check_floating, parse_floating
from swarmctl.spec.health import RETRIES_MAX, parse_period, shell_check
from swarmctl.spec.machines import check_ssh_key, check_user_data, check_vm, with_defaults
from swarmctl.spec.models import (
    CloudInit,
    ContainerSpec,
    DiskSpec,
    HealthCheck,
    Mount,
    NetworkUse,
    Placement,
    PortMapping,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceSpec,
    Template,
    VmSpec,
)
from swarmctl.spec.names import (
    check_alias,
    check_driver,
    check_network_name,
    check_service_name,
    did_you_mean,
    name_from_image,
)
from swarmctl.spec.placements import check_constraint
from swarmctl.spec.resources import AMOUNT_MAX, check_resource_name
from swarmctl.spec.restarts import check_job_restart, parse_restart
from swarmctl.spec.sizes import parse_cpus, parse_duration, parse_memory, parse_size
from swarmctl.spec.wording import one_line

_T = TypeVar("_T")

# Before the name of a network that the nodes have by themselves: one of Docker's or libvirt's.
OF_NODE: Final = "node:"

# Of a container only; a VM that is given one of them is refused.
_CONTAINER_OPTIONS: Final = {
    "command": "COMMAND",
    "environment": "--env",
    "publish": "--publish",
    "volumes": "--volume",
    "user": "--user",
    "workdir": "--workdir",
    "entrypoint": "--entrypoint",
    "tty": "--tty",
    "health_cmd": "--health-cmd",
}
_VM_OPTIONS: Final = {
    "disk": "--disk",
    "disk_size": "--disk-size",
    "kernel": "--kernel",
    "initrd": "--initrd",
    "cmdline": "--cmdline",
    "firmware": "--firmware",
    "user_data": "--user-data",
    "ssh_keys": "--ssh-key",
}


@frozen(kw_only=True)
class RunOptions:
    """What was typed after ``swarmctl run``; empty means not given.

    ``user_data`` and ``ssh_keys`` are texts, not names of files: their reader is the caller.
    With ``vm``, ``image`` is the disk's image unless ``disk`` or ``kernel`` is given.
    ``folder`` is where relative paths of ``--volume`` begin.
    """

    image: str = ""
    command: Sequence[str] = ()
    name: str = ""
    replicas: int = 1
    cpus: str = ""
    memory: str = ""
    reserve: Sequence[str] = ()
    labels: Sequence[str] = ()
    constraints: Sequence[str] = ()
    environment: Sequence[str] = ()
    publish: Sequence[str] = ()
    volumes: Sequence[str] = ()
    user: str = ""
    workdir: str = ""
    entrypoint: str = ""
    hostname: str = ""
    networks: Sequence[str] = ()
    ip: str = ""
    network_aliases: Sequence[str] = ()
    floating: str = ""
    restart: str = ""
    stop_timeout: str = ""
    tty: bool = False
    job: bool = False
    driver: str = ""
    vm: bool = False
    disk: str = ""
    disk_size: str = ""
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    firmware: str = ""
    user_data: str = ""
    ssh_keys: Sequence[str] = ()
    folder: str = ""
    health_cmd: str = ""
    health_interval: str = ""
    health_timeout: str = ""
    health_retries: int | None = None
    health_start_period: str = ""
    health_start_interval: str = ""
    no_healthcheck: bool = False
    fencing: str = ""


def build_service(
    options: RunOptions, environment: Mapping[str, str], tenant_networks: Collection[str] = ()
) -> ServiceSpec:
    """The service that ``options`` describe.

    Args:
        options: what was typed.
        environment: for ``--env NAME`` without a value, and for ``~`` in paths.
        tenant_networks: the tenant networks that there are; the node's own are ``host``, ``none``,
            ``bridge``, and ``node:NAME``.

    Raises:
        InvalidSpec: ``where`` is the option that is wrong.
        NotFound: a ``--network`` is neither.
    """
    _refuse(options, _CONTAINER_OPTIONS if options.vm else _VM_OPTIONS, is_vm=options.vm)
    if not 0 <= options.replicas <= REPLICAS_MAX:
        raise InvalidSpec(
            f"{options.replicas} is not between 0 and {REPLICAS_MAX}", where="--replicas"
        )
    plugging = _build_plugging(options, tenant_networks)
    vm = _build_vm(options, plugging.own) if options.vm else None
    container = None if options.vm else _build_container(options, plugging.own, environment)
    resources = _build_resources(options)
    template = Template(
        container=container,
        vm=vm,
        resources=with_defaults(resources) if options.vm else resources,
        restart=_build_restart(options),
        stop_grace_period_s=_optional(
            "--stop-timeout", options.stop_timeout, parse_duration, STOP_GRACE_S
        ),
        labels=dict(_pairs("--label", options.labels)),
        job=options.job,
        # docker's --cpus and --memory are limits; here they are reserved as well.
        limits=Resources() if options.vm else evolve(resources, named={}),
        health=_build_health(options),
        fenced=options.fencing == "lease",
        networks=plugging.uses,
    )
    spec = ServiceSpec(
        name=_build_name(options),
        template=template,
        replicas=options.replicas,
        placement=Placement(
            constraints=tuple(_each("--constraint", options.constraints, check_constraint))
        ),
        fencing=options.fencing or "none",
        driver=_optional("--driver", options.driver, partial(check_driver, is_vm=options.vm), ""),
        floating=_optional("--floating", options.floating, parse_floating, ""),
    )
    try:
        check_floating(spec)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, "--floating", error.hint) from error
    return spec


def _refuse(options: RunOptions, unfit: Mapping[str, str], *, is_vm: bool) -> None:
    """Refuse options that mean nothing for what is started."""
    for attribute, option in unfit.items():
        if not getattr(options, attribute):
            continue
        if is_vm:
            raise InvalidSpec(
                "a VM has none", where=option, hint="configure the guest with --user-data"
            )
        raise InvalidSpec("a container has none", where=option, hint="add --vm to start a VM")


def _build_name(options: RunOptions) -> str:
    if options.name:
        return _located("--name", options.name, check_service_name)
    source = options.image or options.disk or options.kernel
    return _located("--name", source, name_from_image)


def _build_plugging(options: RunOptions, tenant_networks: Collection[str]) -> Plugging:
    names = list(dict.fromkeys(_each("--network", options.networks, _check_network)))
    for name in names:
        if is_of_tenant(name) and name not in tenant_networks:
            raise _unknown_network(name, tenant_networks)
    address = _optional("--ip", options.ip, parse_address, "")
    aliases = tuple(_each("--network-alias", options.network_aliases, check_alias))
    uses = tuple(NetworkUse(name, aliases=aliases) for name in names if name in tenant_networks)
    own = [name.removeprefix(OF_NODE) for name in names if not is_of_tenant(name)]
    if own and (uses or len(own) > 1):
        raise InvalidSpec(
            f"{own[0]} is the node's own network, and cannot be beside another",
            where="--network",
            hint="'swarmctl network ls' lists the tenant networks, which can",
        )
    if not uses:
        for option, given in (("--ip", address), ("--network-alias", aliases)):
            if given:
                raise InvalidSpec(
                    "it is for a tenant network, and none was given",
                    where=option,
                    hint="name one with --network; 'swarmctl network ls' lists them",
                )
        return Plugging(own[0] if own else "")
    if len(uses) > NETWORKS_MAX:
        raise InvalidSpec(f"{len(uses)} networks are too many", where="--network")
    if address and options.replicas > 1:
        raise InvalidSpec(
            f"one address for {options.replicas} copies", where="--ip", hint="leave one out"
        )
    addresses = (address,) if address else ()
    return Plugging(uses=(evolve(uses[0], addresses=addresses), *uses[1:]))


def is_of_tenant(network: str) -> bool:
    """Whether a ``--network`` can only be a tenant network."""
    return network not in MODES and not network.startswith(OF_NODE)


def _check_network(text: str) -> str:
    check_network_name(text.removeprefix(OF_NODE))
    return text


def _unknown_network(name: str, known: Collection[str]) -> NotFound:
    listed = f"there are: {', '.join(sorted(known))}" if known else "there are none"
    return NotFound(
        f'there is no network "{name}"',
        "--network",
        did_you_mean(name, known, listed)
        + f"; make it: swarmctl network create {name}; one that the nodes have: {OF_NODE}{name}",
    )


def _build_container(
    options: RunOptions, network: str, environment: Mapping[str, str]
) -> ContainerSpec:
    image = _located("IMAGE", options.image, processes.check_image)
    entrypoint = _optional("--entrypoint", options.entrypoint, processes.split_command, None)
    return ContainerSpec(
        image=image,
        command=tuple(options.command) or None,
        entrypoint=entrypoint,
        environment=_build_environment(options, environment),
        user=options.user,
        working_dir=_optional("--workdir", options.workdir, processes.check_working_dir, ""),
        hostname=_optional("--hostname", options.hostname, processes.check_hostname, ""),
        ports=_build_ports(options),
        mounts=_build_mounts(options, environment),
        network=network,
        tty=options.tty,
    )


def _build_environment(options: RunOptions, environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in _each("--env", options.environment, parse_assignment):
        if value is None and (value := environment.get(name)) is None:
            raise InvalidSpec(
                f"{name} is not set here, so it has no value to pass on",
                where="--env",
                hint=f"write --env {name}=VALUE",
            )
        found[name] = value
    return found


def _build_ports(options: RunOptions) -> tuple[PortMapping, ...]:
    found: list[PortMapping] = []
    for mappings in _each("--publish", options.publish, ports.parse_port):
        found.extend(mappings)
    _located("--publish", tuple(found), ports.check_ports)
    return tuple(found)


def _build_mounts(options: RunOptions, environment: Mapping[str, str]) -> tuple[Mount, ...]:
    home = environment.get("HOME", "")

    def parse(text: str) -> Mount:
        # What docker takes without effect on Linux (":cached", ":z") is taken so here as well.
        mount = mounts.parse_mount(text, lambda _: None)
        if mount.kind != mounts.BIND:
            return mount
        return evolve(mount, source=mounts.resolve_path(mount.source, options.folder, home))

    found = list(_each("--volume", options.volumes, parse))
    _located("--volume", found, mounts.check_mounts)
    return tuple(found)


def _build_resources(options: RunOptions) -> Resources:
    named: dict[str, int] = {}
    for name, amount in _pairs("--reserve", options.reserve):
        _located("--reserve", name, check_resource_name)
        if not amount.isascii() or not amount.isdigit() or int(amount[:20]) > AMOUNT_MAX:
            raise InvalidSpec(f'"{amount}" is not a count', where="--reserve", hint="such as gpu=1")
        named[name] = int(amount)
    return Resources(
        cpu_millis=_optional("--cpus", options.cpus, parse_cpus, 0),
        memory_bytes=_optional("--memory", options.memory, parse_memory, 0),
        named=named,
    )


def _build_restart(options: RunOptions) -> RestartPolicy:
    if not options.restart:
        condition = RestartCondition.ON_FAILURE if options.job else RestartCondition.ALWAYS
        return RestartPolicy(condition)
    policy = _located("--restart", options.restart, parse_restart)
    if options.job:
        _located("--restart", policy, check_job_restart)
    return policy


def _build_health(options: RunOptions) -> HealthCheck | None:
    periods = (
        ("interval_s", options.health_interval, parse_period),
        ("timeout_s", options.health_timeout, parse_period),
        ("start_period_s", options.health_start_period, parse_duration),
        ("start_interval_s", options.health_start_interval, parse_period),
    )
    changes: dict[str, Any] = {}
    for attribute, text, parse in periods:
        if text:
            option = "--health-" + attribute.removesuffix("_s").replace("_", "-")
            changes[attribute] = _located(option, text, parse)
    if options.health_retries is not None:
        if not 0 <= options.health_retries <= RETRIES_MAX:
            raise InvalidSpec(f"not between 0 and {RETRIES_MAX}", where="--health-retries")
        changes["retries"] = options.health_retries or HealthCheck().retries
    if options.no_healthcheck:
        if options.health_cmd or changes:
            raise InvalidSpec(
                "there is to be no check", where="--no-healthcheck", hint="leave one of them out"
            )
        return HealthCheck()
    if options.health_cmd:
        return evolve(_located("--health-cmd", options.health_cmd, shell_check), **changes)
    if changes:
        raise InvalidSpec(
            "these options tell how to make a check, and there is none",
            where="--health-cmd",
            hint="add --health-cmd COMMAND",
        )
    return None


def _build_vm(options: RunOptions, network: str) -> VmSpec:
    image = options.disk or ("" if options.kernel else options.image)
    if options.image and image != options.image:
        given = "--disk" if options.disk else "--kernel"
        raise InvalidSpec(
            f"both IMAGE and {given} say what to boot", where=given, hint="leave one out"
        )
    size_bytes = _optional("--disk-size", options.disk_size, parse_size, 0)
    if size_bytes and not image:
        raise InvalidSpec("there is no disk", where="--disk-size", hint="add --disk IMAGE")
    cloud_init = CloudInit(
        user_data=_optional("--user-data", options.user_data, check_user_data, ""),
        hostname=_optional("--hostname", options.hostname, processes.check_hostname, ""),
        ssh_authorized_keys=tuple(_each("--ssh-key", options.ssh_keys, check_ssh_key)),
    )
    vm = VmSpec(
        disk=DiskSpec(image, size_bytes) if image else None,
        kernel=options.kernel,
        initrd=options.initrd,
        cmdline=options.cmdline,
        firmware=options.firmware or "bios",
        cloud_init=cloud_init if cloud_init != CloudInit() else None,
        network=network,
    )
    _located("--vm", vm, check_vm)
    return vm


# --- naming the option in errors ---

_In = TypeVar("_In")


def _located(option: str, value: _In, parser: Callable[[_In], _T]) -> _T:
    """``parser(value)``, with ``option`` as the place of its errors."""
    try:
        return parser(value)
    except InvalidSpec as error:
        raise InvalidSpec(one_line(error.what), where=option, hint=one_line(error.hint)) from error


def _optional(option: str, text: str, parser: Callable[[str], _T], otherwise: _T) -> _T:
    return _located(option, text, parser) if text else otherwise


def _each(option: str, texts: Sequence[str], parser: Callable[[str], _T]) -> Iterable[_T]:
    return [_located(option, text, parser) for text in texts]


def _pairs(option: str, texts: Sequence[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        name, _, value = text.partition("=")
        if not name.strip():
            raise InvalidSpec(f'"{text}" has no name', where=option, hint="write NAME=VALUE")
        yield name, value
