"""``python -m bench.launch SCENARIO``: run one scenario and print its report."""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import click
from attrs import asdict

from bench.launch.check import check
from bench.launch.cluster import bench_cluster
from bench.launch.measure import Measurement, launch, statistics
from bench.launch.scenario import Scenario, load


def run(scenario: Scenario) -> dict[str, Any]:
    """Run ``scenario``; its report, as the JSON file has it."""
    with bench_cluster(scenario) as cluster:
        measured = launch(scenario, cluster, _progress)
        print(file=sys.stderr)
        with cluster.connect() as client:
            counters = statistics(client)
            checked = check(scenario, client, cluster.lists())
    return _report(scenario, measured, counters) | {"check": checked.to_json()}


def _progress(running: int, seconds: float) -> None:
    print(f"\r{seconds:7.2f} s  {running:>9,} running", end="", file=sys.stderr, flush=True)


def _report(scenario: Scenario, measured: Measurement, counters: dict[str, Any]) -> dict[str, Any]:
    launches = counters["launches"]
    listener = counters["listener"]
    return {
        "scenario": asdict(scenario),
        "nodes": scenario.nodes,
        "instances": scenario.instances,
        "running": measured.running,
        "driver": "simulated",
        "store": "sqlite",
        "curve": True,
        "seconds_to_submitted": measured.submitted_s,
        "seconds_to_all_running": measured.running_s,
        "instances_per_s": measured.running / measured.running_s,
        "latency_ms": {
            "p50": launches["p50_ms"],
            "p99": launches["p99_ms"],
            "max": launches["max_ms"],
        },
        "stages_s": counters["stages_s"],
        "store_statistics": counters["store"],
        "controller_cpu_s": counters["cpu_s"],
        "controller_peak_rss_mib": counters["peak_rss_mib"],
        "messages": {"in": listener["received"], "out": listener["sent"]},
        "bytes": {"in": listener["received_bytes"], "out": listener["sent_bytes"]},
        "launch_curve": measured.curve,
        "machine": _machine(),
    }


def _machine() -> dict[str, Any]:
    import os

    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


@click.command()
@click.argument("name")
@click.option("--nodes", type=int)
@click.option("--containers", type=int)
@click.option("--vms", type=int)
@click.option("--services", type=int)
@click.option("--seed", type=int)
@click.option("--processes", type=int)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(name: str, json_file: Path | None, **overrides: Any) -> None:
    """Run the scenario NAME."""
    report = run(load(name, **overrides))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shown = {key: value for key, value in report.items() if key not in ("launch_curve", "scenario")}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
