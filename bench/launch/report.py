"""What a run found, as data (the JSON file) and as text for people."""

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from bench.launch.cluster import memory_mib
from bench.launch.measure import Counters, Measurement, median_ms
from bench.launch.scenario import Scenario
from bench.launch.trial import Trial

FORMAT: Final = 1
_STAGES: Final = ("validate", "commit", "plan", "assign", "dispatch", "acknowledge")


def report(trial: Trial) -> dict[str, Any]:
    """The report of a run, whole or interrupted."""
    scenario, cluster = trial.scenario, trial.cluster
    measured = trial.measured or Measurement(scenario.instances)
    after = trial.after or Counters.read(cluster, trial.client)
    cost = after.since(trial.before or after)
    seconds = measured.running_s
    return {
        "format": FORMAT,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "scenario": plain(scenario),
        "kind": scenario.kind,
        "interrupted": trial.interrupted,
        "gave_up": trial.gave_up,
        "nodes": scenario.nodes,
        "instances": scenario.instances,
        "services": len(scenario.specs()),
        "running": measured.running,
        "driver": "simulated",
        "store": "sqlite",
        "store_filesystem": _filesystem(cluster.folder),
        "curve": True,
        "seconds_to_submitted": measured.submitted_s,
        "seconds_to_all_running": seconds if measured.complete else None,
        "seconds": seconds,
        "instances_per_s": measured.running / seconds if seconds else 0.0,
        **cost,
        "request_latency_ms": {
            "p50": median_ms(measured.request_latency_s),
            "p99": median_ms(measured.request_latency_s, 0.99),
            "max": max(measured.request_latency_s, default=0.0) * 1000,
        },
        "requests": len(measured.request_latency_s),
        "refused_busy": measured.refused_busy,
        "controller_cpu_us_per_instance": _each(cost["controller_cpu_s"], measured),
        "controller_peak_rss_mib": memory_mib(cluster.controller.pid, peak=True),
        "enrolment": {
            "seconds": cluster.enrolment_s,
            "nodes_per_s": scenario.nodes / cluster.enrolment_s if cluster.enrolment_s else 0.0,
        },
        "launch_curve": measured.curve,
        "machine": machine(),
        "found": trial.found,
        "check": trial.checked.to_json() if trial.checked else None,
    }


def _each(cpu_s: float, measured: Measurement) -> float:
    """µs of CPU an instance; 0 where none runs."""
    return cpu_s * 1e6 / measured.running if measured.running else 0.0


def plain(scenario: Scenario) -> dict[str, Any]:
    """A scenario as JSON has it."""
    found = asdict(scenario)
    for workload in found["workloads"]:
        workload["kind"] = workload["kind"].value
    return found


def machine() -> dict[str, Any]:
    """What it was measured on."""
    memory = Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def _filesystem(path: Path) -> str:
    """What the store is on: a tmpfs would make its fsync free."""
    done = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


# --- for people -------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The report as people read it."""
    return "\n".join(_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    name = found["scenario"]["name"]
    yield (
        f"{name}: {found['instances']:,} simulated instances of {found['services']:,} services on "
        f"{found['nodes']:,} simulated nodes"
    )
    if found["interrupted"]:
        yield "  interrupted: this is what there was"
    if found["gave_up"]:
        yield f"  gave up: {found['gave_up']}; this is what there was"
    took = found["seconds_to_all_running"]
    if took is None:
        yield f"  {found['running']:,} running after {found['seconds']:.2f} s, not all"
    else:
        yield f"  all running after {took:.2f} s: {found['instances_per_s']:,.0f} instances/s"
    latency = found["latency_ms"]
    yield (
        f"  an instance: p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms, "
        f"max {latency['max']:.0f} ms; submitted within {found['seconds_to_submitted']:.2f} s "
        f"by {found['requests']:,} requests"
    )
    yield "  stages: " + ", ".join(
        f"{stage} {found['stages_s'].get(stage, 0.0):.3f} s" for stage in _STAGES
    )
    store = found["store_statistics"]
    yield (
        f"  store: {found['store']} on {found['store_filesystem']}, {store['groups']:,} commits to "
        f"disk, fsync {store['sync_s']:.3f} s"
    )
    yield (
        f"  controller: {found['controller_cpu_s']:.2f} s of CPU "
        f"({found['controller_cpu_us_per_instance']:.1f} µs an instance), "
        f"peak {found['controller_peak_rss_mib']:.0f} MiB"
    )
    messages, size = found["messages"], found["bytes"]
    yield (
        f"  messages: {messages['in']:,} in, {messages['out']:,} out; "
        f"{size['in'] / 1e6:.1f} MB in, {size['out'] / 1e6:.1f} MB out, with CURVE"
    )
    for key, value in found["found"].items():
        yield f"  {key.replace('_', ' ')}: {_shown(value)}"
    yield _verdict(found["check"])
    on = found["machine"]
    yield (
        f"  machine: {on['cores']} cores of {on['cpu']}, {on['memory_mib']:,} MiB, "
        f"Linux {on['kernel']}, Python {on['python']}, load {on['load']:.2f} at the end"
    )


def _verdict(check: dict[str, Any] | None) -> str:
    if check is None:
        return "  checker: did not run"
    counts = ", ".join(
        f"{name.replace('_', ' ')} {count:,}" for name, count in check.items() if name != "passed"
    )
    return f"  checker: {'passed' if check['passed'] else 'FAILED'} ({counts})"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_shown(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    return str(value)
