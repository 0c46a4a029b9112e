"""What an agent costs that has nothing to do: ``python -m bench.idle``.

A controller and an agent with the docker and libvirt drivers, ten containers and a VM or two; once
all run, CPU time and memory of both daemons are read over a while in which nothing happens.
Fails when the agent takes 1 % of a core or more, or 80 MiB or more.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from bench.launch_real import BenchCluster, bench_cluster, container_service, machine_service

CPU_MAX = 0.01
MEMORY_MAX_MIB = 80.0
RESULTS = Path(__file__).parent / "results" / "idle.json"


def resident_mib(pid: int) -> float:
    """The memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure(cluster: BenchCluster, seconds: float) -> dict[str, dict[str, float]]:
    """Share of a core and MiB, of each daemon."""
    before = [cluster.cpu_seconds(pid) for pid in cluster.pids]
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    return {
        name: {
            "cpu_share": round((cluster.cpu_seconds(pid) - used) / passed, 5),
            "memory_mib": round(resident_mib(pid), 1),
        }
        for name, pid, used in zip(("controller", "agent"), cluster.pids, before, strict=True)
    }


def main() -> int:
    """Measure, print, write the JSON; 1 when the agent is above its bounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--containers", type=int, default=8)
    parser.add_argument("--vms", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--settle", type=float, default=5.0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with bench_cluster() as cluster:
        if arguments.containers:
            cluster.launch(container_service(arguments.containers, "none"))
        if arguments.vms:
            cluster.launch(machine_service(arguments.vms))
        time.sleep(arguments.settle)
        found = measure(cluster, arguments.seconds)
    result = {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "containers": arguments.containers,
        "vms": arguments.vms,
        "seconds": arguments.seconds,
        "daemons": found,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, one in found.items():
        print(f"{name:12}{one['cpu_share']:>8.2%} of a core{one['memory_mib']:>8.1f} MiB")
    agent = found["agent"]
    good = agent["cpu_share"] < CPU_MAX and agent["memory_mib"] < MEMORY_MAX_MIB
    print("within the bounds" if good else "the agent is above its bounds")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
