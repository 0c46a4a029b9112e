"""What to know of a cluster beside what was asked for; and where its controllers are.

Said in a line of its own on stderr, beside tables.  A named context (``context add`` copies it)
learns the controllers' addresses meanwhile, so that it outlives those that it was made with.
"""

import os
import sys
from pathlib import Path
from typing import Any

import click
from attrs import evolve

from swarmctl.cli import clusters
from swarmctl.client import Client


def look(ctx: click.Context, client: Client) -> None:
    """Say what holds the cluster up, and learn where its controllers are."""
    info = client.call("cluster.info")
    say_hold(info)
    if info.get("shortage"):
        print(f"the controller is short of {info['shortage']}", file=sys.stderr)
    learn(ctx, client, tuple(info["addresses"]))


def say_hold(info: dict[str, Any]) -> None:
    """Say that the cluster is on hold, if it is."""
    if info.get("hold"):
        print(
            f"on hold: {info['hold']}; nothing is started or stopped until "
            "'swarmctl store release'",
            file=sys.stderr,
        )


def learn(ctx: click.Context, client: Client, told: tuple[str, ...]) -> None:
    """Keep in a named context where the controllers are; what answers now goes first.

    A context that was given as a file is its owner's, and left alone.
    """
    given = ctx.obj.context
    if given and (os.sep in given or Path(given).is_file()):
        return
    context = client.context
    addresses = tuple(dict.fromkeys((client.connection.endpoint, *told)))
    if set(addresses) == set(context.addresses):
        return
    try:
        clusters.register(evolve(context, addresses=addresses), use=False)
    except OSError as error:
        print(f"the context's new addresses were not kept: {error}", file=sys.stderr)
