"""A cluster that is full but for the last hundredth: placing there, and being told when it is over.

The scenario's services fill it; then single requests take what is left, each timed; then one asks
for more than there is, which has to be explained and not done.
"""

import time
from typing import Any, Final

from bench.launch.measure import Measurement, median_ms, submit
from bench.launch.scenario import Scenario, service
from bench.launch.trial import Trial
from swarmctl.spec.models import Kind

# Single requests into the rest.
_SINGLES: Final = 100
# What the last request asks beyond all that is left.
_BEYOND: Final = 50


def run(trial: Trial) -> None:
    """See the module."""
    trial.launch()
    used, total = _fullest(trial.scenario)
    left = total - used
    singles = min(_SINGLES, left)
    times = [_one(trial, number) for number in range(singles)]
    trial.found["full"] = {
        "filled_share": used / total,
        "left": left,
        "singles": singles,
        "single_running_p50_ms": median_ms(times),
        "single_running_max_ms": median_ms(times, 1.0),
    } | _beyond(trial, left - singles)
    trial.check()


def _fullest(scenario: Scenario) -> tuple[int, int]:
    """How many instances run, and how many fit into all nodes."""
    fitting = min(scenario.capacity[name] // need for name, need in scenario.needs.items())
    return scenario.instances, fitting * scenario.nodes


def _one(trial: Trial, number: int) -> float:
    spec = service(f"last-{number}", Kind.CONTAINER, 1, trial.scenario.needs)
    return trial.launch_more([spec]).running_s


def _beyond(trial: Trial, left: int) -> dict[str, Any]:
    """Ask for more than there is: what fits has to run, and the rest to be explained."""
    spec = service("beyond", Kind.CONTAINER, left + _BEYOND, trial.scenario.needs)
    if left:
        trial.launch_more([spec], wanted=left)
    else:
        trial.specs[spec.name] = spec
        submit(trial.client, [spec], Measurement(0))
    began = time.monotonic()
    waiting = _pending(trial, spec.name)
    while len(waiting) != _BEYOND or not all(one["reason"] for one in waiting):
        if time.monotonic() - began > trial.scenario.timeout_s:
            break
        waiting = _pending(trial, spec.name)
    return {
        "beyond_asked": _BEYOND,
        "beyond_pending": len(waiting),
        "beyond_explained": sum(bool(one["reason"]) for one in waiting),
        "explanation": waiting[0]["reason"] if waiting else "",
    }


def _pending(trial: Trial, name: str) -> list[dict[str, Any]]:
    views = trial.client.call("instance.list", {"names": [name], "all": True})
    return [view for view in views if view["state"] == "pending"]
