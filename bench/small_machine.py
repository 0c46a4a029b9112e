"""An agent on a machine of one core and 512 MiB: ``python -m bench.small_machine``.

The agent runs with one core to itself and in a control group of 512 MiB, and launches fifty real
containers on it; then it idles.  What is measured is the agent's: dockerd and the containers are
not in the group, since they would be there without swarmctl, too.  The exit code is 1 when the
group's memory was ever short, or the agent at rest takes more than 1 % of
the core or a fifth of the memory.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.idle import resident_mib
from bench.launch.report import machine
from bench.launch_real import BenchCluster, bench_cluster, container_service

MEMORY_BYTES: Final = 512 << 20
RESULTS: Final = Path(__file__).parent / "results" / "small_machine.json"
IDLE_SHARE_MAX: Final = 0.01
MEMORY_SHARE_MAX: Final = 0.2
# Version 1 of control groups has a tree a resource, version 2 has one in all.
_TREE_V1: Final = Path("/sys/fs/cgroup/memory")
_TREE_V2: Final = Path("/sys/fs/cgroup")


@contextmanager
def memory_group() -> Iterator[Path]:
    """A control group with ``MEMORY_BYTES``, gone at the end; needs root."""
    version_1 = _TREE_V1.is_dir()
    group = (_TREE_V1 if version_1 else _TREE_V2) / f"swarmctl-bench-{os.getpid()}"
    group.mkdir()
    try:
        limit = "memory.limit_in_bytes" if version_1 else "memory.max"
        (group / limit).write_text(str(MEMORY_BYTES))
        yield group
    finally:
        group.rmdir()


def times_short(group: Path) -> int:
    """How often a process of the group was ended, or had to wait, for want of memory."""
    if (group / "memory.failcnt").exists():
        return int((group / "memory.failcnt").read_text())
    events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
    return int(events["max"]) + int(events["oom"])


def confined(group: Path) -> tuple[str, ...]:
    """The command that runs its arguments in ``group``, on one core."""
    core = min(os.sched_getaffinity(0))
    script = f'echo $$ > "$0/cgroup.procs" && exec taskset -c {core} "$@"'
    return ("sh", "-c", script, str(group))


def measure(cluster: BenchCluster, containers: int, seconds: float) -> dict[str, Any]:
    """Launch, idle, and remove."""
    agent = cluster.pids[1]
    alone_mib = resident_mib(agent)
    cpu_s = cluster.cpu_seconds(agent)
    launched = cluster.launch(container_service(containers, "none"))
    launch_cpu_s = cluster.cpu_seconds(agent) - cpu_s
    before, began = cluster.cpu_seconds(agent), time.monotonic()
    time.sleep(seconds)
    idle_share = (cluster.cpu_seconds(agent) - before) / (time.monotonic() - began)
    return {
        "containers": containers,
        "seconds_to_all_running": round(launched.seconds, 2),
        "agent_cpu_ms_per_container": round(launch_cpu_s * 1000 / containers, 2),
        "agent_alone_mib": round(alone_mib, 1),
        "agent_mib": round(resident_mib(agent), 1),
        "idle_cpu_share": round(idle_share, 5),
    }


def main() -> int:
    """Measure, print, write the JSON; 1 when the machine would be too small."""
    parser = argparse.ArgumentParser(prog="python -m bench.small_machine", description=__doc__)
    parser.add_argument("--containers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with memory_group() as group, bench_cluster(confined(group)) as cluster:
        found = measure(cluster, arguments.containers, arguments.seconds)
        found["times_short_of_memory"] = times_short(group)
    found |= {"memory_bytes": MEMORY_BYTES, "cores": 1, "machine": machine()}
    arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        if name != "machine":
            print(f"{name.replace('_', ' '):30}{value}")
    good = (
        not found["times_short_of_memory"]
        and found["idle_cpu_share"] < IDLE_SHARE_MAX
        and found["agent_mib"] < MEMORY_SHARE_MAX * (MEMORY_BYTES >> 20)
    )
    print("fits a small machine" if good else "too much for a small machine")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
