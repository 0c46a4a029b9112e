"""``controller``, ``agent`` and ``dev``: the commands that run as long as they are needed.

Each turns options into a configuration and then runs the daemon's own coroutine until it is told
to stop.  What a daemon needs (trio, the store, drivers) is imported when it runs.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from swarmctl.cli import daemon_options as options
from swarmctl.cli.process import default_data, run_daemon
from swarmctl.net.locations import check_northbound
from swarmctl.proto.errors import EnvironmentFault, sole_error

if TYPE_CHECKING:
    import trio

_F = TypeVar("_F", bound=Callable[..., Any])

LEVELS: Final = ("debug", "info", "warning", "error")


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
    default=(options.DEFAULT_LISTEN,),
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
    "--ovn-private-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For ssl:, as ovn-nbctl's, at every start: the controller's key,",
)
@click.option(
    "--ovn-certificate", type=click.Path(path_type=Path), metavar="FILE", help="its certificate,"
)
@click.option(
    "--ovn-ca-cert",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="and the authority that the database's certificate is of.",
)
@click.option(
    "--underlay-mtu",
    type=click.IntRange(576, 65_535),
    default=1500,
    show_default=True,
    help="The MTU of the network between the hosts.",
)
@click.option(
    "--underlay-ipv6",
    is_flag=True,
    help="The hosts speak IPv6 to each other: its header is 20 bytes longer.",
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
    ovn_private_key: Path | None,
    ovn_certificate: Path | None,
    ovn_ca_cert: Path | None,
    underlay_mtu: int,
    underlay_ipv6: bool,
    log_level: str,
    notify_fd: int,
    lifeline_fd: int,
) -> None:
    """Run a controller.

    On first start it makes its keys in the data folder, and writes there admin.context (add it
    with 'swarmctl context add') and join.token (for 'swarmctl agent --join').
    """
    addresses = tuple(options.listen_address(one) for one in listen)
    lease_s = options.lease_seconds(fencing_lease)
    folder = data or default_data("controller")
    etcd = options.etcd_address(store)
    store_file = options.store_file(store) if etcd is None else None
    options.check_store_options(join, rebuild, on_etcd=etcd is not None)
    check_northbound(ovn)
    credentials = options.ovn_credentials(ovn, ovn_private_key, ovn_certificate, ovn_ca_cert)

    async def serve(task_status: "trio.TaskStatus[dict[str, Any]]") -> None:
        import trio

        from swarmctl.controller.daemon import ControllerConfig, run_controller
        from swarmctl.transport.errors import AddressInUse

        config = ControllerConfig(
            data=folder,
            listen=addresses,
            advertise=tuple(map(options.listen_address, advertise)) or options.reachable(addresses),
            context_name=context_name,
            store_file=store_file,
            fencing_lease_s=lease_s,
            join=join,
            rebuild=rebuild,
            ovn=ovn,
            ovn_credentials=credentials,
            underlay_mtu=underlay_mtu,
            underlay_is_v6=underlay_ipv6,
        )
        run: Any = run_controller
        if etcd is not None:
            from swarmctl.controller.candidate import run_candidate

            run = partial(run_candidate, address=etcd)
        try:
            async with trio.open_nursery() as nursery:
                cluster = await nursery.start(partial(run, config))
                task_status.started({"addresses": list(cluster.addresses)})
                if notify_fd < 0 and sys.stderr.isatty():
                    _say_the_ways_in(folder)
        except* AddressInUse as group:
            raise _port_taken(group) from None

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
@click.option(
    "--bridge",
    "bridges",
    multiple=True,
    metavar="PHYS=BRIDGE",
    help="A physical network, and the bridge of Open vSwitch that its NIC is on.",
)
@click.option("--trunk", default="", metavar="INTERFACE", help="In a VM: its port, for pods.")
@click.option("--parent", default="", metavar="VM", help="In a VM: which one; its port, or web.1.")
@click.option(
    "--seed",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In a VM with trunk: true: its seed disk (/dev/disk/by-label/cidata), or swarmctl.json of "
    "it, in place of --controller, --join, --name, --trunk and --parent.",
)
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
    bridges: tuple[str, ...],
    trunk: str,
    parent: str,
    seed: Path | None,
    log_level: str,
    notify_fd: int,
    lifeline_fd: int,
) -> None:
    """Run an agent: this machine becomes a node."""
    addresses = tuple(
        options.listen_address(one.strip())
        for text in controllers
        for one in text.split(",")
        if one
    )
    parts: dict[str, Any] = {
        "data": data or default_data("agent"),
        "name": name,
        "controllers": addresses,
        "join": join,
        "labels": dict(options.key_value("--label", text) for text in labels),
        "drivers": tuple(one.strip() for one in drivers.split(",") if one.strip()),
        "capacity": dict(options.amount("--capacity", text) for text in capacity),
        "reserve": dict(options.amount("--reserve", text) for text in reserve),
        "docker_host": docker_host,
        "libvirt_uri": libvirt_uri,
        "ovs": ovs,
        "bridges": dict(options.key_value("--bridge", text) for text in bridges),
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
        if seed is not None:
            from swarmctl.agent.guest import keep_way, told_by

            config = await told_by(seed, config)

        async def run(*, task_status: "trio.TaskStatus[Any]") -> None:
            await run_agent(config, task_status=task_status)

        async with trio.open_nursery() as nursery:
            if seed is not None:
                nursery.start_soon(keep_way, seed)
            await nursery.start(run)
            task_status.started({})

    run_daemon("agent", log_level, serve, notify_fd=notify_fd, lifeline_fd=lifeline_fd)


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Leave it running, and return once it is ready.")
@click.option("--stop", is_flag=True, help="Stop the one that runs on the data folder.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="The data folder.")
@click.option(
    "--listen",
    default=options.DEFAULT_LISTEN,
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
    chosen = commands.DevOptions(
        data=folder,
        listen=options.listen_address(listen),
        drivers=drivers,
        name=name,
        labels=labels,
        images=images.absolute() if images else None,
        log_level=log_level or ("info" if detach or log_files else "warning"),
        log_files=log_files,
    )
    if detach:
        commands.detach(chosen)
    else:
        run_daemon(
            "dev", chosen.log_level, commands.serving(chosen), notify_fd=notify_fd, lifeline_fd=-1
        )


COMMANDS: Final[dict[str, click.Command]] = {"controller": controller, "agent": agent, "dev": dev}
