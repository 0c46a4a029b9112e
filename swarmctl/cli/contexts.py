"""``context``: the clusters that this user knows, and the current one."""

from pathlib import Path
from typing import Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.output import output_option, show_list
from swarmctl.cli.tables import Column, column
from swarmctl.proto.errors import Conflict
from swarmctl.spec.names import check_service_name

CONTEXT_COLUMNS: Final = (
    column("CONTEXT", "context"),
    Column("CURRENT", lambda row: "yes" if row["current"] else "", is_state=True),
    Column("ADDRESSES", lambda row: ", ".join(row["addresses"])),
    column("ROLE", "role"),
    column("CLUSTER", "cluster", wide=True),
)


@click.group("context")
def context() -> None:
    """List, choose, add and remove ways into clusters."""


@context.command("ls")
@output_option()
def context_ls(output: str) -> None:
    """List contexts."""
    current = clusters.current_name()
    rows = []
    for name in clusters.names():
        found = clusters.named(name)
        rows.append(
            {
                "context": name,
                "current": name == current,
                "addresses": list(found.addresses),
                "role": found.role,
                "cluster": found.cluster_id,
            }
        )
    show_list(rows, CONTEXT_COLUMNS, "context", output)


@context.command("use")
@click.argument("name", shell_complete=clusters.complete_contexts)
def context_use(name: str) -> None:
    """Make a context the current one."""
    clusters.use_name(name)
    print(name)


@context.command("add")
@click.option("--name", default="", help="What to call it; the name in the file unless given.")
@click.option("--use", is_flag=True, help="Make it the current one; the first always is.")
@click.argument("file", type=click.Path(path_type=Path))
def context_add(file: Path, name: str, use: bool) -> None:
    """Add the context in FILE, a controller's admin.context."""
    found = clusters.from_file(file)
    found = clusters.renamed(found, check_service_name(name or found.name))
    if found.name in clusters.names():
        known = clusters.named(found.name)
        if known.cluster_id != found.cluster_id:
            raise Conflict(
                f"a context {found.name!r} of another cluster exists already",
                hint=f"choose another --name, or remove that one: swarmctl context rm {found.name}",
            )
    clusters.register(found, use=use or not clusters.current_name())
    print(found.name)


@context.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=clusters.complete_contexts)
def context_rm(names: tuple[str, ...]) -> None:
    """Forget contexts; the clusters are not touched."""
    for name in names:
        clusters.unregister(name)
        print(name)


COMMANDS: Final[dict[str, click.Command]] = {"context": context}
