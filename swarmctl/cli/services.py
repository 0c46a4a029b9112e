"""``service``, ``scale``, ``stop``, ``start``, ``restart``, ``rm`` and ``wait``."""

from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.adopting import adopt
from swarmctl.cli.output import age_column, output_option, show_data, show_list
from swarmctl.cli.tables import Column, Row, column
from swarmctl.cli.waiting import (
    COMMIT_TIMEOUT_S,
    Waiting,
    shall_wait,
    timeout_of,
    wait_for,
    wait_options,
)
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.diff import Change


def _running(row: Row) -> str:
    if row["mode"] == "job":
        return f"{row['completed']}/{row['replicas']} done"
    return f"{row['running']}/{row['replicas']}"


SERVICE_COLUMNS: Final = (
    column("SERVICE", "service"),
    column("KIND", "kind"),
    column("MODE", "mode"),
    Column("RUNNING", _running),
    column("DESIRED", "desired", is_state=True),
    column("IMAGE", "image", may_cut=True),
    column("STACK", "stack"),
    Column("FLOATING", lambda row: row.get("floating", ""), wide=True),
    column("REVISION", "revision", wide=True),
    age_column("CREATED", "created"),
    age_column("UPDATED", "updated", wide=True),
)


@click.group()
def service() -> None:
    """List, show and roll back services."""


@service.command("ls")
@output_option()
@click.pass_context
def service_ls(ctx: click.Context, output: str) -> None:
    """List services."""
    with clusters.connect(ctx) as client:
        rows = client.call("service.list")
    show_list(rows, SERVICE_COLUMNS, "service", output)


@service.command("inspect")
@output_option("json", "yaml")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_services)
@click.pass_context
def service_inspect(ctx: click.Context, output: str, names: tuple[str, ...]) -> None:
    """Show all about services."""
    with clusters.connect(ctx) as client:
        found = [client.call("service.inspect", {"name": name}) for name in names]
    show_data(found if len(found) > 1 else found[0], output)


@service.command("rollback")
@wait_options
@click.argument("name", shell_complete=clusters.complete_services)
@click.pass_context
def service_rollback(ctx: click.Context, name: str, wait: bool | None, timeout: str) -> None:
    """Go back to the specification before the last change."""
    timeout_s = timeout_of(timeout)
    with clusters.connect(ctx) as client:
        answer = client.call("service.rollback", {"name": name}, timeout_s=COMMIT_TIMEOUT_S)
        for change in answer["changes"]:
            print(Change(*change))
        if shall_wait(wait):
            undo = f"swarmctl service rollback {name}"
            meanwhile = f"the service {name} goes on rolling back"
            wait_for(client, Waiting((name,), "running", timeout_s, meanwhile, undo))


service.add_command(adopt)


@click.command()
@wait_options
@click.argument(
    "assignments",
    nargs=-1,
    required=True,
    metavar="SERVICE=N...",
    shell_complete=clusters.complete_services,
)
@click.pass_context
def scale(
    ctx: click.Context, assignments: tuple[str, ...], wait: bool | None, timeout: str
) -> None:
    """Set the number of copies."""
    replicas = dict(_scaling(text) for text in assignments)
    timeout_s = timeout_of(timeout)
    with clusters.connect(ctx) as client:
        client.call("service.scale", {"replicas": replicas}, timeout_s=COMMIT_TIMEOUT_S)
        _done(tuple(replicas))
        if shall_wait(wait):
            names = " ".join(replicas)
            meanwhile = f"{names}: scaling goes on"
            wait_for(client, Waiting(tuple(replicas), "running", timeout_s, meanwhile))


def _scaling(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isdecimal():
        raise InvalidSpec(f'"{text}" is not a scaling', hint="write SERVICE=N, such as web=3")
    return name, int(count)


def _done(names: tuple[str, ...]) -> None:
    for name in names:
        print(name, flush=True)


def _changing(verb: str, help_: str, condition: str, goes_on: str) -> click.Command:
    """A command that changes what is wanted of services and instances, and waits for it."""

    @click.command(verb, help=help_)
    @wait_options
    @click.argument(
        "names",
        nargs=-1,
        required=True,
        metavar="SERVICE|INSTANCE...",
        shell_complete=clusters.complete_targets,
    )
    @click.pass_context
    def command(
        ctx: click.Context, names: tuple[str, ...], wait: bool | None, timeout: str
    ) -> None:
        timeout_s = timeout_of(timeout)
        method = "service.remove" if verb == "rm" else f"service.{verb}"
        with clusters.connect(ctx) as client:
            client.call(method, {"names": list(names)}, timeout_s=COMMIT_TIMEOUT_S)
            _done(names)
            if shall_wait(wait):
                meanwhile = f"{' '.join(names)}: {goes_on}"
                undo = f"swarmctl start {' '.join(names)}" if verb == "stop" else ""
                wait_for(client, Waiting(names, condition, timeout_s, meanwhile, undo))

    return command


@click.command()
@click.option(
    "--for",
    "condition",
    type=click.Choice(["running", "stopped", "gone"]),
    default="running",
    show_default=True,
    help="What to wait for; a job runs when it has succeeded.",
)
@click.option("--timeout", default="", metavar="TIME", help="Wait at most so long: 90s, 5m.")
@click.argument(
    "names",
    nargs=-1,
    required=True,
    metavar="SERVICE|INSTANCE...",
    shell_complete=clusters.complete_targets,
)
@click.pass_context
def wait(ctx: click.Context, names: tuple[str, ...], condition: str, timeout: str) -> None:
    """Wait until services or instances run, are stopped or are gone."""
    timeout_s = timeout_of(timeout)
    with clusters.connect(ctx) as client:
        wait_for(client, Waiting(names, condition, timeout_s))


_CHANGES: Final[dict[str, tuple[str, str, str]]] = {
    "stop": ("Stop services or instances; what they are is kept.", "stopped", "stopping goes on"),
    "start": ("Start what was stopped.", "running", "starting goes on"),
    "restart": ("Restart services or instances.", "running", "restarting goes on"),
    "rm": ("Remove services or instances.", "gone", "removing goes on"),
}

COMMANDS: Final[dict[str, Any]] = {
    "service": service,
    "scale": scale,
    "wait": wait,
    **{verb: _changing(verb, *rest) for verb, rest in _CHANGES.items()},
}
