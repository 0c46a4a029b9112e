"""``ps``, ``inspect``, ``explain`` and ``version``: commands that only look."""

from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.output import age_column, output_option, show_data, show_list
from swarmctl.cli.standing import look
from swarmctl.cli.tables import Column, Row, column
from swarmctl.client import Client
from swarmctl.proto.errors import NoController, NotFound
from swarmctl.spec.names import did_you_mean

# Docker shows as much of an id, and takes it back.
_ID_CHARS: Final = 12


def _runtime_id(row: Row) -> str:
    value = str(row["runtime_id"])
    return value if "-" in value else value[:_ID_CHARS]


def _state(row: Row) -> str:
    """The state, with the health beside it where that is checked: ``running (healthy)``."""
    health = row.get("health")
    return f"{row['state']} ({health})" if health and health != row["state"] else row["state"]


def _node(row: Row) -> str:
    """The node; of a pod the VM that it is in, and the host of that: ``db.1 on n2``."""
    return f"{row['vm']} on {row['host']}" if row.get("vm") else row["node"]


INSTANCE_COLUMNS: Final = (
    column("INSTANCE", "instance"),
    column("KIND", "kind"),
    Column("NODE", _node),
    Column("STATE", _state, is_state=True),
    column("DESIRED", "desired", wide=True),
    column("RESTARTS", "restarts"),
    age_column("SINCE", "since"),
    Column(
        "ADDRESSES", lambda row: ", ".join([*row["addresses"], *row.get("ports", ())]), may_cut=True
    ),
    Column("RUNTIME ID", _runtime_id, wide=True),
    column("DRIVER", "driver", wide=True),
    column("INCARNATION", "incarnation", wide=True),
    column("REASON", "reason", may_cut=True),
)


@click.command()
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that ended.")
@output_option()
@click.argument(
    "names", nargs=-1, metavar="[SERVICE|INSTANCE]...", shell_complete=clusters.complete_targets
)
@click.pass_context
def ps(ctx: click.Context, all_: bool, output: str, names: tuple[str, ...]) -> None:
    """List instances."""
    with clusters.connect(ctx) as client:
        rows = client.call("instance.list", {"names": list(names), "all": all_})
        if output in ("table", "wide"):
            look(ctx, client)
    show_list(rows, INSTANCE_COLUMNS, "instance", output)


@click.command()
@output_option("json", "yaml")
@click.argument("name", metavar="SERVICE|INSTANCE|NODE", shell_complete=clusters.complete_anything)
@click.pass_context
def inspect(ctx: click.Context, output: str, name: str) -> None:
    """Show all about a service, an instance or a node."""
    with clusters.connect(ctx) as client:
        show_data(_found(client, name), output)


def _found(client: Client, name: str) -> Any:
    """Whatever is called so; a service comes first, as in most commands."""
    _, dot, slot = name.rpartition(".")
    methods = ["service.inspect", "node.inspect"]
    if dot and slot.isdigit():
        methods = ["instance.inspect", "node.inspect"]
    first: NotFound | None = None
    for method in methods:
        try:
            return client.call(method, {"name": name})
        except NotFound as error:
            first = first or error
    assert first is not None, "there is at least one method"
    if dot and slot.isdigit():
        raise first
    services = [view["service"] for view in client.call("service.list")]
    nodes = [view["node"] for view in client.call("node.list")]
    raise NotFound(
        f"no service, instance or node {name!r}",
        hint=did_you_mean(name, [*services, *nodes], "'swarmctl ps' lists what there is"),
    )


@click.command()
@output_option("table", "json", "yaml")
@click.argument("name", metavar="SERVICE|INSTANCE", shell_complete=clusters.complete_targets)
@click.pass_context
def explain(ctx: click.Context, output: str, name: str) -> None:
    """Say why it is where it is, or why it is nowhere."""
    with clusters.connect(ctx) as client:
        answer = client.call("instance.explain", {"name": name})
    if output != "table":
        show_data(answer, output)
        return
    for line in answer["lines"]:
        print(line)
    history = answer.get("history") or []
    if history:
        rows = [{"since": at, "what": what} for at, what in history]
        print()
        show_list(rows, (age_column("WHEN", "since"), column("WHAT", "what")), "what", "table")


@click.command()
@output_option("table", "json", "yaml")
@click.pass_context
def version(ctx: click.Context, output: str) -> None:
    """Show the versions of this command and of the controller."""
    from swarmctl import __version__
    from swarmctl.proto.messages import PROTOCOL_VERSION

    found: dict[str, Any] = {"client": {"release": __version__, "protocol": PROTOCOL_VERSION}}
    problem: NoController | None = None
    try:
        with clusters.connect(ctx) as client:
            found["controller"] = client.call("cluster.info")
    except NoController as error:
        problem = error
        found["controller"] = None
    if output != "table":
        show_data(found, output)
    else:
        print(f"client      {__version__} (protocol {PROTOCOL_VERSION})")
        answer = found["controller"]
        if answer is not None:
            print(f"controller  {answer['release']} (protocol {answer['protocol']})")
    if problem is not None:
        raise problem


COMMANDS: Final[dict[str, click.Command]] = {
    "ps": ps,
    "inspect": inspect,
    "explain": explain,
    "version": version,
}
