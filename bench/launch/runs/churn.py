"""A cluster that changes all the time: services end, and others take their place.

Every step removes one service and makes another of the same size, at the rate that replaces
``churn_per_min`` of all instances in a minute; each new one is timed until all of it runs.
"""

import time
from typing import Final

from attrs import evolve

from bench.launch.cluster import cpu_s, memory_mib
from bench.launch.measure import Measurement, median_ms, submit
from bench.launch.trial import Trial
from swarmctl.spec.models import ServiceSpec

# Waiting for one step; a step that takes longer holds up the next, and the report shows the rate.
_STEP_S: Final = 30.0


def run(trial: Trial) -> None:
    """See the module."""
    scenario, pid = trial.scenario, trial.cluster.controller.pid
    trial.launch()
    trial.progress.phase("churn", 0)
    steps_per_s = len(trial.specs) * scenario.churn_per_min / 60.0
    durable: list[float] = []
    running: list[float] = []
    replaced = 0
    cpu_before, rss_before = cpu_s(pid), memory_mib(pid)
    began = time.monotonic()
    order = list(trial.specs.values())
    while time.monotonic() - began < scenario.seconds:
        number = len(durable)
        time.sleep(max(0.0, began + number / steps_per_s - time.monotonic()))
        old = order[number % len(order)]
        new = evolve(old, name=f"churn-{number}")
        order[number % len(order)] = new
        times = _replace(trial, old, new)
        durable.append(times[0])
        running.append(times[1])
        replaced += new.replicas
    passed = time.monotonic() - began
    trial.found["churn"] = {
        "seconds": passed,
        "services_replaced": len(durable),
        "instances_replaced": replaced,
        "share_per_min": replaced / scenario.instances / passed * 60.0,
        "durable_p50_ms": median_ms(durable),
        "running_p50_ms": median_ms(running),
        "running_p99_ms": median_ms(running, 0.99),
        "running_max_ms": median_ms(running, 1.0),
        "controller_cpu_share": (cpu_s(pid) - cpu_before) / passed,
        "controller_rss_grown_mib": memory_mib(pid) - rss_before,
    }
    trial.check()


def _replace(trial: Trial, old: ServiceSpec, new: ServiceSpec) -> tuple[float, float]:
    """Seconds until the change is durable, and until the old is gone and all of the new runs."""
    began = time.monotonic()
    trial.remove([old.name])
    submit(trial.client, [new], Measurement(new.replicas))
    trial.specs[new.name] = new
    durable_s = time.monotonic() - began
    params = {"names": [new.name], "for": "running", "timeout_s": _STEP_S}
    trial.client.call("service.wait", params, timeout_s=_STEP_S * 2)
    running_s = time.monotonic() - began
    params = {"names": [old.name], "for": "gone", "timeout_s": _STEP_S}
    trial.client.call("service.wait", params, timeout_s=_STEP_S * 2)
    return durable_s, running_s
