"""A fleet with nothing to do: what heartbeats cost the controller, and what an agent takes there.

Memory is compared with the least that there can be, in the same run: a bare pyzmq ROUTER with
CURVE that as many connections are made to (:mod:`bench.launch.bare`).
"""

import time
from typing import Final

from bench.launch import bare
from bench.launch.cluster import cpu_s, memory_mib
from bench.launch.trial import Trial

# After a launch or a join the controller has rubbish to let go of, and agents to be quiet.
_SETTLE_S: Final = 3.0


def run(trial: Trial) -> None:
    """See the module."""
    scenario, cluster = trial.scenario, trial.cluster
    pid = cluster.controller.pid
    trial.wait_ready(scenario.nodes)
    joined_mib = memory_mib(pid)
    trial.launch()
    trial.progress.phase("idle", 0)
    time.sleep(_SETTLE_S)
    before, began = cpu_s(pid), time.monotonic()
    time.sleep(scenario.seconds)
    passed = time.monotonic() - began
    used = cpu_s(pid) - before
    agents_kib = (joined_mib - cluster.controller_alone_rss_mib) * 1024 / scenario.nodes
    trial.found["idle"] = {
        "seconds": passed,
        "controller_cpu_share": used / passed,
        "controller_cpu_us_per_heartbeat": used * 1e6 / max(1.0, passed * scenario.nodes / 2.0),
        "controller_rss_mib": memory_mib(pid),
        "controller_kib_per_agent": agents_kib,
    }
    trial.check()
    ready = trial.wait_ready(scenario.nodes)
    trial.found["idle"]["all_still_ready"] = ready < 1.0
    cluster.stop_fleets()
    trial.progress.phase("bare pyzmq", 0)
    bare_kib = bare.memory_per_connection_kib(scenario.nodes, scenario.processes)
    trial.found["idle"] |= {
        "bare_pyzmq_kib_per_connection": bare_kib,
        "above_bare_kib_per_agent": agents_kib - bare_kib,
    }
