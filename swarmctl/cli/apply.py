"""``apply`` and ``diff``: stack files against the cluster."""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

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
from swarmctl.proto.errors import InvalidSpec, UserError
from swarmctl.spec import wire
from swarmctl.spec.diff import Change, diff_services
from swarmctl.spec.reading import Warning_
from swarmctl.spec.stack import Stack, load_stack

# A stack file of a thousand services is a few hundred KiB.
FILE_MAX_BYTES: Final = 8 * 1024 * 1024


def _changes(row: Row) -> str:
    return row.get("reason") or "; ".join(str(Change(*change)) for change in row["changes"])


def _name(row: Row) -> str:
    return f"network {row['network']}" if "network" in row else str(row["service"])


RESULT_COLUMNS: Final = (
    Column("SERVICE", _name),
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
    files_ = StackFiles.read(files)
    stack = files_.stack()
    with clusters.connect(ctx) as client:
        stack = _settled(client, files_, stack)
        results, networks = _send(client, stack, dry_run=dry_run, prune=prune)
        shown = [*networks, *results] if output in ("table", "wide") else results
        show_list(shown, RESULT_COLUMNS, "service", output)
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
    files_ = StackFiles.read(files)
    stack = files_.stack()
    with clusters.connect(ctx) as client:
        stack = _settled(client, files_, stack)
        results, networks = _send(client, stack, dry_run=True, prune=prune)
    if output != "table":
        show_data([*networks, *results], output)
        return
    for one in networks:
        print(f"network {one['network']}: {one['action']}")
        for change in [Change(*change) for change in one["changes"]]:
            print(f"  {change}")
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


def _settled(client: Client, files: "StackFiles", stack: Stack) -> Stack:
    """The stack, once it is known which networks there are; its warnings go to stderr."""
    if stack.externals or stack.networks:
        rows = client.call("network.list")
        known = {str(one["network"]) for one in rows}
        if known.intersection(stack.externals):
            stack = files.stack(known)
    _say(stack.warnings)
    if stack.networks and not client.call("cluster.info").get("ovn"):
        for one in stack.networks:
            print(
                f"warning: {one.where}: this cluster has no OVN: the node's own network is used in "
                "place of it, and addresses are the node's to give "
                "(start the controller with --ovn to have tenant networks)",
                file=sys.stderr,
            )
        print(
            "warning: without OVN nothing keeps networks apart, and security groups, internal and "
            "the services' names are not in force",
            file=sys.stderr,
        )
    return stack


def _send(
    client: Client, stack: Stack, *, dry_run: bool, prune: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Apply the stack; what became of its services, and of its networks."""
    asked: dict[str, Any] = {
        "services": [wire.encode_service(spec) for spec in stack.services],
        "dry_run": dry_run,
        "prune": stack.name if prune else "",
    }
    if stack.networks or stack.groups:
        asked["networks"] = [wire.encode_plain(one.definition) for one in stack.networks]
        asked["groups"] = [wire.encode_plain(one) for one in stack.groups]
    try:
        answer = client.call("service.apply", asked, timeout_s=COMMIT_TIMEOUT_S)
    except UserError as error:
        raise _located(error, stack) from error
    return (
        [dict(one) for one in answer["services"]],
        [dict(one) for one in answer.get("networks", ())],
    )


def _located(error: UserError, stack: Stack) -> UserError:
    """The error with the line of the file, when it is about one of the file's networks."""
    for one in stack.networks:
        names = (f"network {one.definition.name}", f"network {'/'.join(one.definition.key)}")
        if error.where in names:
            return type(error)(f"{error.where}: {error.what}", one.where, error.hint)
    return error


def _say(warnings: Sequence[Warning_]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


@frozen
class StackFiles:
    """The texts of stack files, which may have to be read again in the light of the cluster."""

    texts: tuple[tuple[str, str], ...]
    folder: Path

    @classmethod
    def read(cls, names: tuple[str, ...]) -> "StackFiles":
        """Those files.

        Raises:
            InvalidSpec: one cannot be read.
        """
        texts = tuple(("<stdin>" if name == "-" else name, _read(name)) for name in names)
        return cls(texts, Path.cwd() if names[0] == "-" else Path(names[0]).absolute().parent)

    def stack(self, tenant_networks: Collection[str] = ()) -> Stack:
        """The stack in them.

        Raises:
            InvalidSpec: it is not valid.
        """
        return load_stack(
            self.texts,
            os.environ,
            lambda path: Path(path).read_text(encoding="utf-8"),
            folder=str(self.folder),
            default_name=self.folder.name,
            tenant_networks=tenant_networks,
        )


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
