"""``node`` and ``token``."""

import sys
import time
from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.draining import drain
from swarmctl.cli.output import age_column, output_option, show_data, show_list
from swarmctl.cli.standing import look
from swarmctl.cli.tables import Column, Row, column
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.sizes import format_bytes, format_cpus, format_duration


def _cpus(row: Row) -> str:
    used = format_cpus(row["allocated"].get("cpu_millis", 0))
    return f"{used or 0}/{format_cpus(row['capacity'].get('cpu_millis', 0))}"


def _memory(row: Row) -> str:
    used = format_bytes(row["allocated"].get("memory_bytes", 0))
    return f"{used}/{format_bytes(row['capacity'].get('memory_bytes', 0))}"


def _labels(row: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(row["labels"].items()))


def _parent(row: Row) -> str:
    """The VM that the node is, and the host of that: ``db.1 on n2``."""
    return f"{row['parent']} on {row['host']}" if row.get("host") else row["parent"]


def _reasons(row: Row) -> str:
    """What is wrong with the node, and what is to come."""
    reasons = list(row["reasons"])
    if deadline := row.get("drain_deadline"):
        left_s = deadline - time.time()
        when = f"in {format_duration(round(left_s))}" if left_s >= 1 else "now"
        reasons.append(f"what is left is taken away {when}")
    return "; ".join(reasons)


NODE_COLUMNS: Final = (
    column("NODE", "node"),
    column("STATE", "state", is_state=True),
    Column("DRIVERS", lambda row: ", ".join(row["drivers"])),
    column("INSTANCES", "instances"),
    Column("CPUS", _cpus),
    Column("MEMORY", _memory),
    column("RELEASE", "release", wide=True),
    Column("PARENT", _parent, wide=True),
    age_column("JOINED", "joined", wide=True),
    Column("LABELS", _labels, wide=True, may_cut=True),
    Column("REASONS", _reasons, may_cut=True),
)

TOKEN_COLUMNS: Final = (
    column("ID", "id"),
    Column("KIND", lambda row: "one-time" if row["one_time"] else "reusable"),
    column("USED BY", "used_by"),
    age_column("CREATED", "created"),
)


@click.group()
def node() -> None:
    """List, show and change nodes."""


@node.command("ls")
@output_option()
@click.pass_context
def node_ls(ctx: click.Context, output: str) -> None:
    """List nodes."""
    with clusters.connect(ctx) as client:
        rows = client.call("node.list")
        if output in ("table", "wide"):
            look(ctx, client)
    show_list(rows, NODE_COLUMNS, "node", output)


@node.command("inspect")
@output_option("json", "yaml")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_nodes)
@click.pass_context
def node_inspect(ctx: click.Context, output: str, names: tuple[str, ...]) -> None:
    """Show all about nodes."""
    with clusters.connect(ctx) as client:
        found = [client.call("node.inspect", {"name": name}) for name in names]
    show_data(found if len(found) > 1 else found[0], output)


def _cordoning(verb: str, help_: str, *, cordoned: bool) -> click.Command:
    @click.command(verb, help=help_)
    @click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_nodes)
    @click.pass_context
    def command(ctx: click.Context, names: tuple[str, ...]) -> None:
        _change(ctx, names, {"cordoned": cordoned})

    return command


_CORDON: Final = "Place nothing new on nodes; what is there stays, and a drain ends."
_UNCORDON: Final = "Place on nodes again; a drain ends."
node.add_command(_cordoning("cordon", _CORDON, cordoned=True))
node.add_command(_cordoning("uncordon", _UNCORDON, cordoned=False))
node.add_command(drain)

MOVE_COLUMNS: Final = (column("INSTANCE", "instance"), column("FROM", "from"), column("TO", "to"))


@node.command("rebalance")
@click.option("--dry-run", is_flag=True, help="Only show what would be moved.")
@output_option()
@click.pass_context
def node_rebalance(ctx: click.Context, dry_run: bool, output: str) -> None:
    """Move instances from nodes with much on them to nodes with little, a few at a time.

    Shows what is moved; it goes on alone. Jobs, fenced instances and what keeps data on its node
    stay where they are.
    """
    with clusters.connect(ctx) as client:
        answer = client.call("node.rebalance", {"dry_run": dry_run})
    if answer["moves"] or output != "table":
        show_list(answer["moves"], MOVE_COLUMNS, "instance", output)
    if not answer["moves"]:
        print("nothing to move: the nodes are even, as far as they can be", file=sys.stderr)
    elif answer["more"]:
        print(f"these are the first {len(answer['moves'])}", file=sys.stderr)


@node.command("label")
@click.argument("name", shell_complete=clusters.complete_nodes)
@click.argument("labels", nargs=-1, required=True, metavar="K=V|K-...")
@click.pass_context
def node_label(ctx: click.Context, name: str, labels: tuple[str, ...]) -> None:
    """Set labels of a node; K- takes one away."""
    _change(ctx, (name,), {"labels": dict(map(_label, labels))})


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if equals and key and value:
        return key, value
    if not equals and len(text) > 1 and text.endswith("-"):
        return text[:-1], ""
    raise InvalidSpec(f'"{text}" is not a label', hint="write K=V to set one, K- to take it away")


def _change(ctx: click.Context, names: tuple[str, ...], change: dict[str, Any]) -> None:
    with clusters.connect(ctx) as client:
        client.call("node.change", {"names": list(names)} | change)
    for name in names:
        print(name)


@node.command("release")
@click.pass_context
def node_release(ctx: click.Context) -> None:
    """End the wait for nodes that vanished many at once.

    When many nodes fall silent within seconds, the fault is likelier with the controller or the
    network than with them, and what they had is not placed elsewhere for five minutes. This ends
    that wait now.
    """
    with clusters.connect(ctx) as client:
        found = client.call("node.release")
    if found["released"]:
        print(f"released: {found['instances']} instances of lost nodes are placed elsewhere")
    else:
        print("nothing to release: no wait for lost nodes is under way")


@node.command("fenced")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_nodes)
@click.pass_context
def node_fenced(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Say that lost nodes are off for sure: what is fenced may start elsewhere.

    See to it first: what still runs there would run twice.
    """
    with clusters.connect(ctx) as client:
        client.call("node.fenced", {"names": list(names)})
    for name in names:
        print(name)


@node.command("rm")
@click.option("-f", "--force", is_flag=True, help="Also one that is connected.")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_nodes)
@click.pass_context
def node_rm(ctx: click.Context, force: bool, names: tuple[str, ...]) -> None:
    """Take nodes out of the cluster; their keys are let in no more."""
    with clusters.connect(ctx) as client:
        for name in names:
            client.call("node.remove", {"name": name, "force": force})
            print(name, flush=True)


@click.group()
def token() -> None:
    """Make, list and revoke join tokens."""


@token.command("create")
@click.option("--reusable", is_flag=True, help="For any number of nodes, until it is revoked.")
@output_option("table", "json", "yaml", "name")
@click.pass_context
def token_create(ctx: click.Context, reusable: bool, output: str) -> None:
    """Make a join token, for one node unless it is reusable."""
    with clusters.connect(ctx) as client:
        made = client.call("token.create", {"reusable": reusable})
    if output in ("json", "yaml"):
        show_data(made, output)
        return
    print(made["id"] if output == "name" else made["token"])
    if output == "table" and sys.stdout.isatty():
        print("on the new node: swarmctl agent --join TOKEN", file=sys.stderr)


@token.command("ls")
@output_option()
@click.pass_context
def token_ls(ctx: click.Context, output: str) -> None:
    """List join tokens; what lets nodes in is shown once, when one is made."""
    with clusters.connect(ctx) as client:
        rows = client.call("token.list")
    show_list(rows, TOKEN_COLUMNS, "id", output)


@token.command("revoke")
@click.argument("ids", nargs=-1, required=True)
@click.pass_context
def token_revoke(ctx: click.Context, ids: tuple[str, ...]) -> None:
    """Let no more nodes in by these tokens; those that are in stay."""
    with clusters.connect(ctx) as client:
        for one in ids:
            client.call("token.revoke", {"id": one})
            print(one, flush=True)


COMMANDS: Final[dict[str, click.Command]] = {"node": node, "token": token}
