"""``store``: copies of what the controllers keep, made and brought back."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from swarmctl.cli import clusters
from swarmctl.cli.adopting import show_adopted
from swarmctl.cli.output import output_option
from swarmctl.cli.waiting import COMMIT_TIMEOUT_S
from swarmctl.proto.errors import InvalidSpec, sole_error

if TYPE_CHECKING:
    from swarmctl.controller.transfer import Copied, StoreAddress

_T = TypeVar("_T")
_RESTORED: Final = "restored from a backup"


@click.group("store")
def store() -> None:
    """Back up, restore and move the store; release a cluster that is on hold."""


@store.command()
@click.argument("source", metavar="STORE")
@click.argument("file", type=click.Path(path_type=Path))
def backup(source: str, file: Path) -> None:
    """Copy STORE (sqlite:FILE or etcd://HOST:PORT,…) into FILE, while it is in use.

    Keep the data folder's cluster.key, admin.context and join.token beside it.
    """
    _copy(source, f"sqlite:{file}", "")


@store.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("target", metavar="STORE")
def restore(file: Path, target: str) -> None:
    """Copy FILE, a backup, into STORE, which has to be empty; the cluster begins on hold.

    On hold nothing is started or stopped; look at it with ps, then: swarmctl store release.
    What is fenced runs on if its lease had not run out before the controller was there again.
    """
    _copy(f"sqlite:{file}", target, _RESTORED)


@store.command()
@click.argument("source", metavar="STORE")
@click.argument("target", metavar="STORE")
def migrate(source: str, target: str) -> None:
    """Move one STORE into another, as from a file to etcd.

    Stop the controller first; then start it with --store and the new one, and the same --data.
    The old store is kept, and marked: no controller starts on it again, see 'store reopen'.
    """
    from swarmctl.controller import transfer

    copied = _run(lambda: transfer.migrate(_address(source), _address(target)))
    print(f"{_told(copied)}; start the controllers with --store {transfer.named(_address(target))}")


@store.command()
@click.argument("address", metavar="STORE")
def reopen(address: str) -> None:
    """Use a STORE again that was moved, as it was then; the cluster begins on hold.

    Stop the controllers of the new one first. What was changed there since the move is not here.
    """
    from swarmctl.controller import transfer

    moved = _run(lambda: transfer.reopen(_address(address)))
    print(f"it is used again; it was {moved}")
    _say_hold()


@store.command()
@click.option("--dry-run", is_flag=True, help="Only show what a rebuilt store would adopt.")
@output_option()
@click.pass_context
def release(ctx: click.Context, dry_run: bool, output: str) -> None:
    """Let a cluster that is on hold go on: what its store says becomes true on the nodes.

    After 'controller --rebuild' what the nodes run is adopted first, and shown; wait until
    'node ls' shows them all. What is not wanted is removed before: swarmctl rm NAME.
    """
    with clusters.connect(ctx) as client:
        answer = client.call("store.release", {"dry_run": dry_run}, timeout_s=COMMIT_TIMEOUT_S)
    services, was = answer.get("services") or [], answer["was"]
    if services or output != "table":
        show_adopted(services, output)
    if output != "table":
        return
    if dry_run:
        print(f"on hold: {was}; nothing was changed" if was else "it is not on hold")
    else:
        print(f"released; it was on hold: {was}" if was else "it was not on hold")


def _address(text: str) -> "StoreAddress":
    from swarmctl.controller.etcd.address import SCHEME, parse_etcd

    if text.startswith(SCHEME):
        return parse_etcd(text, "STORE")
    scheme, _, rest = text.partition(":")
    if scheme != "sqlite" or not rest:
        raise InvalidSpec(f'"{text}" is not a store', "STORE", "write sqlite:FILE or etcd://HOST")
    return Path(rest.removeprefix("//")).absolute()


def _copy(source: str, target: str, hold: str) -> None:
    from swarmctl.controller import transfer

    print(_told(_run(lambda: transfer.copy(_address(source), _address(target), hold))))
    if hold:
        _say_hold()


def _run(action: Callable[[], Awaitable[_T]]) -> _T:
    import trio

    async def run() -> _T:
        return await action()

    try:
        return trio.run(run)
    except BaseExceptionGroup as group:
        raise sole_error(group) from None


def _told(copied: "Copied") -> str:
    return (
        f"{copied.entries} entries of cluster {copied.cluster_id[:8]} copied; "
        f"the term is {copied.term} now"
    )


def _say_hold() -> None:
    print("it begins on hold: look with ps, then: swarmctl store release", file=sys.stderr)


COMMANDS: Final[dict[str, click.Command]] = {"store": store}
