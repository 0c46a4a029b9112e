"""``controller``, ``agent`` and ``dev``: the commands that run as long as they are needed.

Each turns options into a configuration and then runs the daemon's own coroutine until it is told
to stop.  What a daemon needs (trio, the store, drivers) is imported when it runs.
"""

import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from swarmctl.cli.process import default_data, run_daemon
from swarmctl.net.locations import check_northbound
from swarmctl.proto.errors import EnvironmentFault, InvalidSpec, sole_error

if TYPE_CHECKING:
    import trio

    from swarmctl.controller.etcd.address import EtcdAddress

_F = TypeVar("_F", bound=Callable[..., Any])

DEFAULT_LISTEN: Final = "tcp://127.0.0.1:7077"
LEVELS: Final = ("debug", "info", "warning", "error")
_WILDCARDS: Final = ("0.0.0.0", "*", "[::]", "::")  # noqa: S104 - recognised, not listened on
# Any address beyond this machine: asking for the way there sends nothing.
_ELSEWHERE: Final = ("192.0.2.1", 9)
_PORT_MAX: Final = 65535


def _supervised(command: _F) -> _F:
    """Options of every daemon; the hidden ones are for who starts it (see cli/process.py)."""
    for decorate in (
        click.option("--lifeline-fd", type=int, default=-1, hidden=True),
        click.option("--notify-fd", type=int, default=-1, hidden=True),
        click.option(
            "--log-level",
            type=click.Choice(LEVELS),
            default="info",
            show_default=True,
            help="What to log, to stderr: JSON, or console style on a terminal.",
        ),
    ):
        command = decorate(command)
    return command


@click.command()
@click.option(
    "--listen",
    multiple=True,
    default=(DEFAULT_LISTEN,),
    show_default=True,
    metavar="tcp://HOST:PORT",
    help="Where to listen; may be repeated. Only this machine, unless told otherwise.",
)
@click.option(
    "--advertise",
    multiple=True,
    metavar="tcp://HOST:PORT",
    help="Addresses for contexts and join tokens, when others than those listened on.",
)
@click.option(
    "--store",
    default="",
    metavar="sqlite:FILE|etcd://HOST:PORT,…",
    help="Where intent is kept; a file in --data unless given. On etcd there may be several.",
)
@click.option(
    "--join",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Another controller's cluster.key, on etcd; taken from there unless given.",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="The data folder.")
@click.option(
    "--fencing-lease",
    default="30s",
    show_default=True,
    metavar="TIME",
    help="How long a node runs what is fenced without a word of the controller.",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Begin anew where the store file is lost or damaged (it is kept aside), on hold, from "
    "what the nodes run.",
)
@click.option(
    "--ovn",
    default="",
    metavar="tcp:HOST:6641|unix:PATH|ssl:…",
    help="OVN's northbound database, for tenant networks; kept, so given once. none: without.",
)
@click.option(
    "--underlay-mtu",
    type=click.IntRange(576, 65_535),
    default=1500,
    show_default=True,
    help="The MTU of the network between the hosts.",
)
@click.option("--context-name", default="default", hidden=True)
@_supervised
def controller(
    listen: tuple[str, ...],
    advertise: tuple[str, ...],
    store: str,
    join: Path | None,
    data: Path | None,
    context_name: str,
    fencing_lease: str,
    rebuild: bool,
    ovn: str,
    underlay_mtu: int,
    log_level: str,
    notify_fd: int,
    lifeline_fd: int,
) -> None:
    """Run a controller.

    On first start it makes its keys in the data folder, and writes there admin.context (add it
    with 'swarmctl context add') and join.token (for 'swarmctl agent --join').
    """
    addresses = tuple(listen_address(one) for one in listen)
    lease_s = _lease(fencing_lease)
    folder = data or default_data("controller")
    etcd = _etcd_address(store)
    store_file = _store_file(store) if etcd is None else None
    _check_store_options(join, rebuild, on_etcd=etcd is not None)
    check_northbound(ovn)

    async def serve(task_status: "trio.TaskStatus[dict[str, Any]]") -> None:
        import trio

        from swarmctl.controller.daemon import ControllerConfig, run_controller
        from swarmctl.transport.errors import AddressInUse

        config = ControllerConfig(
            data=folder,
            listen=addresses,
            advertise=tuple(map(listen_address, advertise)) or _reachable(addresses),
            context_name=context_name,
            store_file=store_file,
            fencing_lease_s=lease_s,
            join=join,
            rebuild=rebuild,
            ovn=ovn,
            underlay_mtu=underlay_mtu,
        )
        run: Any = run_controller
        if etcd is not None:
            from swarmctl.controller.candidate import run_candidate

            run = partial(run_candidate, address=etcd)
        try:
            async with trio.open_nursery() as nursery:
                cluster = await nursery.start(run_controller_in, run, config)
                task_status.started({"addresses": list(cluster.addresses)})
                if notify_fd < 0 and sys.stderr.isatty():
                    _say_the_ways_in(folder)
        except* AddressInUse as group:
            raise _port_taken(group) from None

    async def run_controller_in(
        run: Any, config: Any, *, task_status: "trio.TaskStatus[Any]"
    ) -> None:
        await run(config, task_status=task_status)

    run_daemon("controller", log_level, serve, notify_fd=notify_fd, lifeline_fd=lifeline_fd)


def _say_the_ways_in(folder: Path) -> None:
    print(f"administer it: swarmctl context add {folder / 'admin.context'}", file=sys.stderr)
    if (folder / "join.token").exists():
        print(f"add a node:    swarmctl agent --join {folder / 'join.token'}", file=sys.stderr)


def _port_taken(group: BaseExceptionGroup[Any]) -> EnvironmentFault:
    error = sole_error(group)
    assert isinstance(error, EnvironmentFault), "the group holds nothing else"
    return type(error)(
        error.what, error.where, "stop it, or choose another with --listen tcp://127.0.0.1:PORT"
    )


@click.command()
@click.option(
    "--controller",
    "controllers",
    multiple=True,
    metavar="tcp://HOST:PORT",
    help="The controller's addresses, when others than the token's; may be repeated.",
)
@click.option(
    "--join", default="", metavar="FILE|TOKEN", help="A join token, needed the first time."
)
@click.option("--name", default="", help="The node's name; this machine's unless given.")
@click.option("-l", "--label", "labels", multiple=True, metavar="K=V", help="A label of the node.")
@click.option(
    "--drivers",
    default="docker,libvirt",
    show_default=True,
    metavar="NAME,…",
    help="What to start instances with: docker, libvirt, oci, sim.",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="The data folder.")
@click.option(
    "--capacity",
    multiple=True,
    metavar="NAME=AMOUNT",
    help="What the node has to give, in place of what is found: cpus=4, memory=8g, gpu=2.",
)
@click.option(
    "--reserve", multiple=True, metavar="NAME=AMOUNT", help="What to hold back of it: memory=1g."
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder in which relative disk images and kernels are.",
)
@click.option("--docker-host", default="", metavar="URL", help="dockerd's address.")
@click.option(
    "--libvirt-uri",
    default="qemu:///system",
    show_default=True,
    metavar="URI",
    help="libvirt's connection.",
)
@click.option(
    "--ovs",
    default="unix:/run/openvswitch/db.sock",
    show_default=True,
    metavar="REMOTE",
    help="Where Open vSwitch's database listens.",
)
@click.option("--trunk", default="", metavar="INTERFACE", help="In a VM: its port, for pods.")
@click.option("--parent", default="", metavar="VM", help="In a VM: which one; its port, or web.1.")
@_supervised
def agent(
    controllers: tuple[str, ...],
    join: str,
    name: str,
    labels: tuple[str, ...],
    drivers: str,
    data: Path | None,
    capacity: tuple[str, ...],
    reserve: tuple[str, ...],
    images: Path | None,
    docker_host: str,
    libvirt_uri: str,
    ovs: str,
    trunk: str,
    parent: str,
    log_level: str,
    notify_fd: int,
    lifeline_fd: int,
) -> None:
    """Run an agent: this machine becomes a node."""
    addresses = tuple(
        listen_address(one.strip()) for text in controllers for one in text.split(",") if one
    )
    parts: dict[str, Any] = {
        "data": data or default_data("agent"),
        "name": name,
        "controllers": addresses,
        "join": join,
        "labels": dict(key_value("--label", text) for text in labels),
        "drivers": tuple(one.strip() for one in drivers.split(",") if one.strip()),
        "capacity": dict(_amount("--capacity", text) for text in capacity),
        "reserve": dict(_amount("--reserve", text) for text in reserve),
        "docker_host": docker_host,
        "libvirt_uri": libvirt_uri,
        "ovs": ovs,
        "trunk": trunk,
        "parent": parent,
        "images": images,
    }

    async def serve(task_status: "trio.TaskStatus[dict[str, Any]]") -> None:
        import trio

        from swarmctl.agent.config import AgentConfig, check_drivers
        from swarmctl.agent.daemon import run_agent

        config = AgentConfig(**parts)
        check_drivers(config)  # Before a join token is spent on it.

        async def run(*, task_status: "trio.TaskStatus[Any]") -> None:
            await run_agent(config, task_status=task_status)

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            task_status.started({})

    run_daemon("agent", log_level, serve, notify_fd=notify_fd, lifeline_fd=lifeline_fd)


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Leave it running, and return once it is ready.")
@click.option("--stop", is_flag=True, help="Stop the one that runs on the data folder.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="The data folder.")
@click.option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="tcp://HOST:PORT",
    help="Where the controller listens.",
)
@click.option(
    "--drivers",
    default="docker,libvirt",
    show_default=True,
    metavar="NAME,…",
    help="What to start instances with: docker, libvirt, oci, sim.",
)
@click.option("--name", default="", help="The node's name; this machine's unless given.")
@click.option("-l", "--label", "labels", multiple=True, metavar="K=V", help="A label of the node.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder in which relative disk images and kernels are.",
)
@click.option("--log-level", type=click.Choice(LEVELS), help="What to log.")
@click.option("--log-files", is_flag=True, hidden=True)
@click.option("--notify-fd", type=int, default=-1, hidden=True)
def dev(
    detach: bool,
    stop: bool,
    data: Path | None,
    listen: str,
    drivers: str,
    name: str,
    labels: tuple[str, ...],
    images: Path | None,
    log_level: str | None,
    log_files: bool,
    notify_fd: int,
) -> None:
    """Run a controller and an agent on this machine, and make it the current context.

    Either is started again when it dies. Instances outlive both: the next start finds them.
    """
    from swarmctl.cli import dev as commands

    folder = (data or default_data("dev")).absolute()
    if stop:
        commands.stop(folder)
        return
    options = commands.DevOptions(
        data=folder,
        listen=listen_address(listen),
        drivers=drivers,
        name=name,
        labels=labels,
        images=images.absolute() if images else None,
        log_level=log_level or ("info" if detach or log_files else "warning"),
        log_files=log_files,
    )
    if detach:
        commands.detach(options)
    else:
        run_daemon(
            "dev", options.log_level, commands.serving(options), notify_fd=notify_fd, lifeline_fd=-1
        )


# --- reading options -------------------------------------------------------------------------


def listen_address(text: str) -> str:
    """``HOST:PORT``, with or without ``tcp://``, as ``tcp://HOST:PORT``.

    Raises:
        InvalidSpec: it is neither.
    """
    scheme, separator, rest = text.rpartition("://")
    host, colon, port = rest.rpartition(":")
    good = scheme == ("tcp" if separator else "") and colon and host and port.isdecimal()
    if not good or int(port) > _PORT_MAX:
        raise InvalidSpec(
            f'"{text}" is not an address', hint=f"write tcp://HOST:PORT, such as {DEFAULT_LISTEN}"
        )
    return f"tcp://{rest}"


def _reachable(listened: Sequence[str]) -> tuple[str, ...]:
    """What to advertise: an address of this machine where all of them are listened on.

    Empty when what is listened on will do, and is known for sure only then (port 0).
    """
    if not any(_host(one) in _WILDCARDS for one in listened):
        return ()
    if any(one.endswith(":0") for one in listened):
        raise InvalidSpec(
            "port 0 on all addresses cannot be told to others", "--listen", "name a port"
        )
    return tuple(
        one.replace(_host(one), _primary_address(), 1) if _host(one) in _WILDCARDS else one
        for one in listened
    )


def _host(address: str) -> str:
    return address.removeprefix("tcp://").rpartition(":")[0]


def _primary_address() -> str:
    """This machine's address as others see it; loopback when it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"  # There is no way out: nobody else is there to be told.
        return str(probe.getsockname()[0])


def _check_store_options(join: Path | None, rebuild: bool, *, on_etcd: bool) -> None:
    if join is not None and not on_etcd:
        raise InvalidSpec("a single controller joins no others", "--join", "give --store etcd://…")
    if rebuild and on_etcd:
        raise InvalidSpec(
            "only a SQLite store is rebuilt",
            "--rebuild",
            "an etcd that lost its data gets a backup: swarmctl store restore BACKUP etcd://…",
        )


def _etcd_address(store: str) -> "EtcdAddress | None":
    if not store.startswith("etcd:"):
        return None
    from swarmctl.controller.etcd.address import parse_etcd

    return parse_etcd(store)


def _store_file(store: str) -> Path | None:
    scheme, _, rest = store.partition(":")
    if not store:
        return None
    if scheme != "sqlite" or not rest:
        raise InvalidSpec(
            f'"{store}" is not a store', "--store", "write sqlite:FILE or etcd://HOST:PORT,…"
        )
    return Path(rest.removeprefix("//")).absolute()


def _lease(text: str) -> float:
    """``--fencing-lease`` in seconds."""
    from swarmctl.proto.limits import FENCING_LEASE_MIN_S
    from swarmctl.spec.sizes import parse_duration

    try:
        seconds = parse_duration(text)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, "--fencing-lease", error.hint) from error
    if seconds < FENCING_LEASE_MIN_S:
        raise InvalidSpec(
            f'"{text}" is too short',
            "--fencing-lease",
            f"{FENCING_LEASE_MIN_S:g}s is the least: it is renewed with every heartbeat",
        )
    return seconds


def key_value(option: str, text: str) -> tuple[str, str]:
    """``K=V`` apart.

    Raises:
        InvalidSpec: there is no ``=``, or nothing before it.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidSpec(f'"{text}" is not of the form NAME=VALUE', option)
    return key, value


def _amount(option: str, text: str) -> tuple[str, int]:
    """``cpus=4``, ``memory=8g`` or ``gpu=2`` as the scheduler counts it."""
    from swarmctl.spec.sizes import parse_cpus, parse_size

    name, value = key_value(option, text)
    try:
        if name in ("cpu", "cpus"):
            return "cpu_millis", parse_cpus(value)
        if name in ("memory", "disk"):
            return f"{name}_bytes", parse_size(value)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, option, error.hint) from error
    if not value.isdecimal():
        raise InvalidSpec(f'"{value}" is not a count', option, "such as gpu=2")
    return name, int(value)


COMMANDS: Final[dict[str, click.Command]] = {"controller": controller, "agent": agent, "dev": dev}
