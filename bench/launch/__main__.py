"""``python -m bench.launch SCENARIO``: run one scenario and print its report as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from bench.launch.command import code_of, write
from bench.launch.progress import shown
from bench.launch.running import chosen, run

# Too long to be read on a screen.
_LONG = ("launch_curve", "scenario")


@click.command()
@click.argument("name")
@click.option("--nodes", type=int)
@click.option("--containers", type=int)
@click.option("--vms", type=int)
@click.option("--services", type=int)
@click.option("--seed", type=int)
@click.option("--seconds", type=float)
@click.option("--processes", type=int)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(name: str, json_file: Path | None, **overrides: Any) -> None:
    """Run the scenario NAME."""
    with shown() as progress:
        found = run(chosen(name, **overrides), progress)
    if json_file is not None:
        write(found, json_file)
    short = {key: value for key, value in found.items() if key not in _LONG}
    short["latency_ms"] = found["latency_ms"] | {"buckets": len(found["latency_ms"]["buckets"])}
    print(json.dumps(short, indent=1))
    sys.exit(code_of(found))


if __name__ == "__main__":
    main()
