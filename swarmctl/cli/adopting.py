"""``service adopt``, and what it and ``store release`` show."""

import sys
from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.output import output_option, show_list
from swarmctl.cli.tables import Column, Row, column
from swarmctl.cli.waiting import COMMIT_TIMEOUT_S

# More slots than this are counted, not listed.
_LISTED_MAX: Final = 5


def _remarks(row: Row) -> str:
    """What becomes of what is not simply taken in."""
    if not row["adopted"]:
        return f"not adopted: {row['why']}"
    parts = []
    missing = row["missing"]
    if missing:
        shown = ", ".join(f"{row['service']}.{slot}" for slot in missing[:_LISTED_MAX])
        more = row["replicas"] - row["found"] - len(missing[:_LISTED_MAX])
        parts.append(f"{shown}{f' and {more} more' if more > 0 else ''} not seen: placed anew")
    if row["replaced"]:
        parts.append(f"{row['replaced']} of an older template: replaced, a few at a time")
    if row["doubled"]:
        parts.append(f"{row['doubled']} older of a slot that a newer one has: taken away")
    return "; ".join(parts)


ADOPTED_COLUMNS: Final = (
    column("SERVICE", "service"),
    column("KIND", "kind"),
    Column("FOUND", lambda row: f"{row['found']}/{row['replicas'] or '?'}"),
    column("IMAGE", "image", may_cut=True),
    Column("NODES", lambda row: ", ".join(row["nodes"]), may_cut=True),
    Column("REMARKS", _remarks),
)


def show_adopted(services: list[Any], output: str) -> None:
    """What was (or would be) adopted; what nodes do not know is said beside a table."""
    show_list(services, ADOPTED_COLUMNS, "service", output)
    if output in ("table", "wide") and any(one["adopted"] for one in services):
        print(
            "placement rules, priorities and names of stacks are not on the nodes: "
            "apply the stacks to bring them back, it restarts nothing",
            file=sys.stderr,
        )


@click.command("adopt")
@click.option("--dry-run", is_flag=True, help="Only show what would be adopted.")
@output_option()
@click.argument("names", nargs=-1, metavar="[SERVICE]...")
@click.pass_context
def adopt(ctx: click.Context, dry_run: bool, output: str, names: tuple[str, ...]) -> None:
    """Make services of quarantined instances as they run; all of them unless named.

    Nothing restarts. To take away what is not wanted: swarmctl rm NAME.
    """
    params = {"names": list(names), "dry_run": dry_run}
    with clusters.connect(ctx) as client:
        services = client.call("service.adopt", params, timeout_s=COMMIT_TIMEOUT_S)["services"]
    if services or output != "table":
        show_adopted(services, output)
    else:
        print("nothing is quarantined", file=sys.stderr)
