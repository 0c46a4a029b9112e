"""``run``: a service from an image, with docker's everyday flags."""

import os
import sys
from pathlib import Path
from typing import Any, Final

import click
from attrs import evolve

from swarmctl.cli import clusters
from swarmctl.cli.fencing import say_what_it_means
from swarmctl.cli.networks import say_what_is_missing
from swarmctl.cli.output import output_option, show_data
from swarmctl.cli.waiting import (
    COMMIT_TIMEOUT_S,
    Waiting,
    shall_wait,
    timeout_of,
    wait_for,
    wait_options,
)
from swarmctl.client import Client
from swarmctl.proto.errors import Conflict, InvalidSpec
from swarmctl.spec import wire
from swarmctl.spec.models import ServiceSpec
from swarmctl.spec.mounts import resolve_path
from swarmctl.spec.names import free_name
from swarmctl.spec.options import RunOptions, build_service, is_of_tenant

# Two users may choose the same free name at once; so often, one of them gives up.
_NAME_TRIES: Final = 5
# A file of user data or a key is small; a disk image given by mistake is not read whole.
_FILE_MAX_BYTES: Final = 1024 * 1024


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--name", default="", help="The service's name; made from the image unless given.")
@click.option("--replicas", type=int, default=1, show_default=True, help="How many copies.")
@click.option("--cpus", default="", help="Cores for each: 0.5, 2.")
@click.option("-m", "--memory", default="", metavar="SIZE", help="Memory for each: 512m, 2GiB.")
@click.option(
    "--reserve", multiple=True, metavar="NAME=N", help="A named resource for each: gpu=1."
)
@click.option("-e", "--env", "environment", multiple=True, metavar="NAME[=VALUE]")
@click.option("--env-file", multiple=True, metavar="FILE", help="Lines of NAME=VALUE.")
@click.option("-p", "--publish", multiple=True, metavar="[HOST:]PORT[/udp]")
@click.option("-v", "--volume", "volumes", multiple=True, metavar="SOURCE:TARGET[:ro]")
@click.option("-u", "--user", default="", metavar="NAME|UID[:GID]")
@click.option("-w", "--workdir", default="", metavar="DIR")
@click.option("--entrypoint", default="", metavar="COMMAND")
@click.option("--hostname", default="")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME",
    shell_complete=clusters.complete_networks,
    help="A tenant network, or more; or one of the node's own: bridge, host, none, node:NAME.",
)
@click.option("--ip", default="", metavar="ADDRESS", help="Its address on the first of them.")
@click.option("--network-alias", "network_aliases", multiple=True, metavar="NAME")
@click.option(
    "--floating", default="", metavar="auto|ADDRESS", help="Reached from outside, at the uplink's."
)
@click.option("-l", "--label", "labels", multiple=True, metavar="K=V")
@click.option(
    "--restart", default="", metavar="POLICY", help="no, on-failure[:N], always, unless-stopped."
)
@click.option("--stop-timeout", default="", metavar="TIME", help="Grace before it is killed.")
@click.option("--health-cmd", default="", metavar="COMMAND", help="Tells whether each is well.")
@click.option("--health-interval", default="", metavar="TIME", help="Between two checks (30s).")
@click.option("--health-timeout", default="", metavar="TIME", help="A check may take (30s).")
@click.option("--health-retries", type=int, help="Failures in a row that count (3).")
@click.option("--health-start-period", default="", metavar="TIME", help="Failures count after it.")
@click.option("--health-start-interval", default="", metavar="TIME", help="Checks in it (5s).")
@click.option("--no-healthcheck", is_flag=True, help="Not even the image's own check.")
@click.option("-t", "--tty", is_flag=True, help="Give each a terminal.")
@click.option("--constraint", "constraints", multiple=True, metavar="EXPR", help="Where it may be.")
@click.option(
    "--fencing",
    type=click.Choice(["none", "lease"]),
    help="lease: never two of one copy at once; its node ends it before another starts it.",
)
@click.option(
    "--driver",
    default="",
    metavar="NAME",
    help="What starts it: docker or oci (runc, without a daemon); libvirt for VMs.",
)
@click.option("--job", is_flag=True, help="It runs to its end, once; the end is kept.")
@click.option("--rm", is_flag=True, help="A job: show its output, and remove it when it has ended.")
@click.option("--vm", is_flag=True, help="A virtual machine: IMAGE is its disk's image.")
@click.option("--disk", default="", metavar="IMAGE", help="VM: the disk's image.")
@click.option("--disk-size", default="", metavar="SIZE", help="VM: the disk is grown to it.")
@click.option("--kernel", default="", metavar="FILE", help="VM: boot it directly.")
@click.option("--initrd", default="", metavar="FILE", help="VM: with this initial RAM disk.")
@click.option("--cmdline", default="", metavar="TEXT", help="VM: and these arguments.")
@click.option("--firmware", type=click.Choice(["bios", "uefi"]), help="VM: what it boots with.")
@click.option("--user-data", default="", metavar="FILE", help="VM: for cloud-init.")
@click.option("--ssh-key", multiple=True, metavar="FILE|KEY", help="VM: a public key to log in.")
@wait_options
@output_option("table", "json", "yaml", "name")
@click.argument("image", required=False, default="")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    wait: bool | None,
    timeout: str,
    output: str,
    rm: bool,
    name: str,
    env_file: tuple[str, ...],
    user_data: str,
    ssh_key: tuple[str, ...],
    firmware: str | None,
    fencing: str | None,
    **typed: Any,
) -> int | None:
    """Start a service from IMAGE: containers, or with --vm virtual machines.

    Prints the service's name. Options come before IMAGE; what follows it is the command.
    """
    if not typed["image"] and not typed["vm"]:
        raise click.UsageError("IMAGE is missing.", ctx)
    if typed["vm"] and typed["command"]:
        raise click.UsageError("A VM takes no COMMAND; options come before IMAGE.", ctx)
    if rm and wait is False:
        raise InvalidSpec("--rm and --detach exclude each other", "--rm", "use --job --detach")
    options = RunOptions(
        name=name,
        user_data=_read(user_data, "--user-data") if user_data else "",
        ssh_keys=tuple(_ssh_key(one) for one in ssh_key),
        firmware=firmware or "",
        fencing=fencing or "",
        folder=str(Path.cwd()),
        **typed,
    )
    options = _with_files(options, env_file)
    if rm:
        options = evolve(options, job=True, restart=options.restart or "no")
    timeout_s = timeout_of(timeout)
    # What is wrong is said before anything is asked; which networks are tenants' is known there.
    spec = build_service(options, os.environ, _possible_networks(options))
    with clusters.connect(ctx) as client:
        if possible := _possible_networks(options):
            networks = client.call("network.list")
            known = {one["network"] for one in networks}
            spec = build_service(options, os.environ, known)
            say_what_is_missing([one for one in networks if one["network"] in possible])
        spec = _create(client, spec, named=bool(name))
        say_what_it_means(client, [spec])
        if rm:
            from swarmctl.cli.foreground import run_to_end

            return run_to_end(client, spec.name, timeout_s)
        if output in ("table", "name"):
            # At once: a script that is stopped while it waits knows what to remove.
            print(spec.name, flush=True)
        if shall_wait(wait):
            _wait(client, spec, timeout_s)
        if output in ("json", "yaml"):
            show_data(client.call("service.inspect", {"name": spec.name}), output)
    return None


def _possible_networks(options: RunOptions) -> set[str]:
    """Those of ``--network`` that may be tenant networks."""
    return {one for one in options.networks if is_of_tenant(one)}


def _wait(client: Client, spec: ServiceSpec, timeout_s: float) -> None:
    wait_for(
        client,
        Waiting(
            names=(spec.name,),
            timeout_s=timeout_s,
            meanwhile=f"the service {spec.name} goes on starting",
            undo=f"swarmctl rm {spec.name}",
        ),
    )


def _create(client: Client, spec: ServiceSpec, *, named: bool) -> ServiceSpec:
    """Commit the service, under a free name when none was given."""
    base = spec.name
    for attempt in range(_NAME_TRIES):
        if not named:
            taken = {view["service"] for view in client.call("service.list")}
            spec = evolve(spec, name=free_name(base, taken))
        try:
            client.call(
                "service.apply",
                {"services": [wire.encode_service(spec)], "create_only": True},
                timeout_s=COMMIT_TIMEOUT_S,
            )
        except Conflict:
            if named or attempt == _NAME_TRIES - 1:
                raise
        else:
            break
    return spec


# --- files -----------------------------------------------------------------------------------


def _with_files(options: RunOptions, env_files: tuple[str, ...]) -> RunOptions:
    """The options with files read, and local paths made absolute: nodes have no such folder."""
    home = os.environ.get("HOME", "")
    found: list[str] = []
    for path in env_files:
        lines = (line.strip() for line in _read(path, "--env-file").splitlines())
        found += [line for line in lines if line and not line.startswith("#")]
    options = evolve(options, environment=(*found, *options.environment))
    if not options.vm:
        return options
    paths: dict[str, Any] = {
        key: resolve_path(getattr(options, key), options.folder, home)
        for key in ("image", "disk", "kernel", "initrd")
        if getattr(options, key)
    }
    return evolve(options, **paths)


def _ssh_key(text: str) -> str:
    """A public key, or the text of the file with one."""
    return text if " " in text.strip() else _read(text, "--ssh-key").strip()


def _read(path: str, option: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read(_FILE_MAX_BYTES)
        file = Path(path).expanduser()
        if file.stat().st_size > _FILE_MAX_BYTES:
            raise InvalidSpec(f"{path} is over 1 MiB", option, "is it the right file?")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidSpec(f"{path} cannot be read: {reason}", option) from error


COMMANDS: Final[dict[str, click.Command]] = {"run": run}
