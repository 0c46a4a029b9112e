"""``trace``: the launch of one instance step by step, and the path of its packets."""

import sys
from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.output import age, output_option, rfc3339, show_data, show_list
from swarmctl.cli.tables import Column, Row, column


def _ms(key: str) -> Column:
    """A column of milliseconds, or a dash where they are not known."""
    heading = {"after_ms": "AFTER ms", "total_ms": "TOTAL ms"}[key]
    return Column(heading, lambda row: "-" if row[key] is None else f"{row[key]:.1f}")


STEP_COLUMNS: Final = (
    column("STEP", "step"),
    column("SIDE", "side"),
    Column("WHEN", lambda row: rfc3339(row["when"]) or "-"),
    _ms("after_ms"),
    _ms("total_ms"),
    column("DETAIL", "detail", may_cut=True),
)
HOP_COLUMNS: Final = (
    column("NETWORK", "network"),
    column("HOP", "hop"),
    column("WHERE", "where"),
    column("WHAT", "what"),
)


@click.command()
@output_option("table", "json", "yaml")
@click.option(
    "--to",
    metavar="INSTANCE|ADDRESS",
    default="",
    help="Show the whole way to another instance, or out to an address.",
    shell_complete=clusters.complete_targets,
)
@click.argument("name", metavar="INSTANCE", shell_complete=clusters.complete_targets)
@click.pass_context
def trace(ctx: click.Context, output: str, to: str, name: str) -> None:
    """Show the launch of an instance step by step, and the path of its packets.

    AFTER is the time after the first step of the same side, TOTAL after the very first one.
    """
    with clusters.connect(ctx) as client:
        found = client.call("instance.trace", {"name": name} | ({"to": to} if to else {}))
    if output != "table":
        show_data(found, output)
        return
    print(_title(found))
    print()
    show_list(found["steps"], STEP_COLUMNS, "step", "table")
    hops = [hop | {"network": one["network"]} for one in found["networks"] for hop in one["hops"]]
    if hops:
        print()
        show_list(hops, HOP_COLUMNS, "hop", "table")
    if found["to"]:
        _show_way(found["to"])
    clocks = found["clocks"]
    for note in [*([clocks["note"]] if clocks else []), *found["notes"]]:
        print(f"note: {note}", file=sys.stderr)


def _show_way(way: Row) -> None:
    """The way to another instance or outside, and whether anything passes."""
    whom = " at ".join(one for one in (way["instance"], way["address"]) if one)
    said = f"{', '.join(way['passes'])} may pass" if way["reached"] else way["why"]
    seen_as = f", seen there as {way['seen_as']}" if way.get("seen_as") else ""
    print(f"\nto {whom}: {said}{seen_as}")
    if way["hops"]:
        print()
        show_list(way["hops"], HOP_COLUMNS[1:], "hop", "table")
    if way["instance"] and way["state"] != "running":
        print(f"note: {way['instance']} is {way['state']}", file=sys.stderr)


def _title(found: Row) -> str:
    """Who it is, where, and how."""
    where = f"{found['vm']} on {found['host']}" if found["vm"] else found["node"]
    parts: list[Any] = [f"{found['instance']} {found['state']}"]
    if found["health"]:
        parts[0] += f" ({found['health']})"
    if where:
        parts[0] += f" on {where}"
    parts += [f"since {age(found['since'])}"] if found["since"] else []
    parts += [f"incarnation {found['incarnation']}"] if found["incarnation"] else []
    parts += [f"attempt {found['attempt']}"] if found["attempt"] > 1 else []
    parts += [found["reason"]] if found["reason"] and found["state"] != "pending" else []
    return ", ".join(parts)


COMMANDS: Final[dict[str, click.Command]] = {"trace": trace}
