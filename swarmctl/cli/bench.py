"""``swarmctl bench``: the launch-scale benchmark, on simulated nodes of its own.

The harness is in the source's ``bench/`` folder and is not part of the product; this module reads
the options and finds it.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click

from swarmctl.proto.errors import EnvironmentFault

_HARNESS: Final = "bench.launch.command"


@click.group()
def bench() -> None:
    """Measure swarmctl itself, on simulated nodes."""


@bench.command("launch")
@click.option("--scenario", default="", metavar="NAME", help="A file of bench/scenarios.")
@click.option("--nodes", type=click.IntRange(1), help="Simulated nodes.")
@click.option("--containers", type=click.IntRange(0), help="Containers to launch.")
@click.option("--vms", type=click.IntRange(0), help="Virtual machines to launch.")
@click.option("--services", type=click.IntRange(1), help="Services that these are shared out over.")
@click.option(
    "--requests",
    type=click.Choice(["batch", "one-by-one"]),
    help="Many services a request, or a request an instance.",
)
@click.option("--seed", type=int, help="Of the simulation's chance.")
@click.option("--seconds", type=click.FloatRange(0.1), help="How long a steady state is watched.")
@click.option("--processes", type=click.IntRange(1), help="Processes that hold the nodes.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report.")
@click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path), help="Draw it: a .svg or .png file."
)
def launch(**options: Any) -> int:
    """Launch simulated instances on simulated nodes, and measure it.

    A real controller with a durable store, and nodes in other processes over CURVE on loopback:
    only what is below the nodes' drivers is simulated. Without --scenario it is a plain launch of
    as many as the options say.
    """
    code: int = _harness().bench_launch(**options)
    return code


def _harness() -> ModuleType:
    """The harness, from wherever it is.

    Raises:
        EnvironmentFault: this installation has none.
    """
    source = Path(__file__).parents[2]
    if (source / "bench" / "launch").is_dir() and str(source) not in sys.path:
        sys.path.append(str(source))
    try:
        return importlib.import_module(_HARNESS)
    except ModuleNotFoundError as error:
        if error.name not in ("bench", "bench.launch", _HARNESS):
            raise
        raise EnvironmentFault(
            "this installation has no benchmarks: they are in the source's bench/ folder",
            hint="in a checkout: make venv, then .venv/bin/swarmctl bench launch",
        ) from error


COMMANDS: Final = {"bench": bench}
