"""``apply`` and ``diff``: stack files against the cluster."""

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from swarmctl.cli import clusters
from swarmctl.cli.fencing import say_what_it_means
from swarmctl.cli.output import output_option, show_data, show_list
from swarmctl.cli.tables import Column, Row, column
from swarmctl.cli.waiting import (
    COMMIT_TIMEOUT_S,
    Waiting,
    shall_wait,
    timeout_of,
    wait_for,
    wait_options,
)
from swarmctl.client import Client
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec import wire
from swarmctl.spec.diff import Change, diff_services
from swarmctl.spec.stack import Stack, load_stack

# A stack file of a thousand services is a few hundred KiB.
FILE_MAX_BYTES: Final = 8 * 1024 * 1024


def _changes(row: Row) -> str:
    return "; ".join(str(Change(*change)) for change in row["changes"])


RESULT_COLUMNS: Final = (
    column("SERVICE", "service"),
    column("ACTION", "action", is_state=True),
    Column("CHANGES", _changes, may_cut=True),
)

_files_option = click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    help="A stack file, - for stdin; later ones are laid over earlier ones.",
)


@click.command()
@_files_option
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--prune", is_flag=True, help="Remove the stack's services that are in no file.")
@wait_options
@output_option()
@click.pass_context
def apply(
    ctx: click.Context,
    files: tuple[str, ...],
    dry_run: bool,
    prune: bool,
    wait: bool | None,
    timeout: str,
    output: str,
) -> None:
    """Make the services of stack files true."""
    timeout_s = timeout_of(timeout)
    stack = read_stack(files)
    with clusters.connect(ctx) as client:
        results = _send(client, stack, dry_run=dry_run, prune=prune)
        show_list(results, RESULT_COLUMNS, "service", output)
        sys.stdout.flush()
        changed = {one["service"] for one in results if one["action"] in ("created", "updated")}
        say_what_it_means(client, [one for one in stack.services if one.name in changed])
        if dry_run:
            print("nothing was changed (--dry-run)", file=sys.stderr)
        elif shall_wait(wait):
            _wait(client, results, timeout_s)


def _wait(client: Client, results: list[dict[str, Any]], timeout_s: float) -> None:
    by_action: dict[bool, list[str]] = {True: [], False: []}
    for one in results:
        by_action[one["action"] == "removed"].append(one["service"])
    meanwhile = "what was applied goes on"
    wait_for(client, Waiting(tuple(by_action[False]), "running", timeout_s, meanwhile))
    wait_for(client, Waiting(tuple(by_action[True]), "gone", timeout_s, meanwhile))


@click.command()
@_files_option
@click.option("--prune", is_flag=True, help="Also what --prune would remove.")
@output_option("table", "json", "yaml")
@click.pass_context
def diff(ctx: click.Context, files: tuple[str, ...], prune: bool, output: str) -> None:
    """Show what apply would change."""
    stack = read_stack(files)
    with clusters.connect(ctx) as client:
        results = _send(client, stack, dry_run=True, prune=prune)
    if output != "table":
        show_data(results, output)
        return
    specs = {spec.name: spec for spec in stack.services}
    for one in results:
        name, action = one["service"], one["action"]
        print(f"{name}: {action}")
        changes = [Change(*change) for change in one["changes"]]
        if action == "created":
            changes = list(diff_services(None, specs[name]))
        for change in changes:
            note = "   (instances are made anew)" if change.restarts else ""
            print(f"  {change}{note}")


def _send(client: Client, stack: Stack, *, dry_run: bool, prune: bool) -> list[dict[str, Any]]:
    answer = client.call(
        "service.apply",
        {
            "services": [wire.encode_service(spec) for spec in stack.services],
            "dry_run": dry_run,
            "prune": stack.name if prune else "",
        },
        timeout_s=COMMIT_TIMEOUT_S,
    )
    results: list[dict[str, Any]] = [dict(one) for one in answer["services"]]
    return results


def read_stack(files: tuple[str, ...]) -> Stack:
    """The stack in ``files``; its warnings go to stderr.

    Raises:
        InvalidSpec: a file cannot be read, or is not valid.
    """
    texts = [("<stdin>" if name == "-" else name, _read(name)) for name in files]
    folder = Path.cwd() if files[0] == "-" else Path(files[0]).absolute().parent
    stack = load_stack(
        texts,
        os.environ,
        lambda path: Path(path).read_text(encoding="utf-8"),
        folder=str(folder),
        default_name=folder.name,
    )
    for warning in stack.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return stack


def _read(name: str) -> str:
    hint = "a stack file is YAML text"
    try:
        with sys.stdin.buffer if name == "-" else Path(name).open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
        if len(data) > FILE_MAX_BYTES:
            raise InvalidSpec(f"the file is over {FILE_MAX_BYTES >> 20} MiB", name, hint)
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSpec("the file is not UTF-8 text", name, hint) from error
    except OSError as error:
        raise InvalidSpec(
            f"cannot be read: {error.strerror}", name, "is the path right?"
        ) from error


COMMANDS: Final[dict[str, click.Command]] = {"apply": apply, "diff": diff}
