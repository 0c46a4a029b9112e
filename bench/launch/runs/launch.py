"""A launch into an idle cluster; with failures in the middle, if the scenario has any.

Afterwards, with all of it running: what one more request costs, alone.  Such a change should
cost the same in a cluster of any size.
"""

import time
from typing import Any, Final

from attrs import evolve

from bench.launch.measure import Counters, Measurement, median_ms, submit, watch
from bench.launch.scenario import service
from bench.launch.trial import Trial
from swarmctl.spec.models import Kind

# Nodes vanish when this share runs: in the middle of the launch.
_VANISH_AT: Final = 0.3
# Single changes that are timed, for a median.
_CHANGES: Final = 15
# Reasons that the report quotes; the rest are counted.
_QUOTED_MAX: Final = 5
# Changes come when the launch has died away: heartbeats carry digests for a moment.
_SETTLE_S: Final = 0.5


def run(trial: Trial) -> None:
    """See the module."""
    scenario = trial.scenario
    failing = bool(scenario.failure_rate or scenario.vanishing)
    if scenario.vanishing:
        trial.launch(_vanisher(trial), nodes_ready=scenario.nodes - scenario.vanishing)
    else:
        trial.launch()
    if failing:
        trial.found["failures"] = failures(trial)
    trial.check()
    assert trial.measured is not None, "it was launched"
    if not trial.measured.complete:
        trial.found["not_running"] = not_running(trial)
    elif not failing:
        trial.found["one_change"] = one_change(trial)


def _vanisher(trial: Trial) -> Any:
    """At a look: lets the nodes vanish once, in the middle."""
    scenario = trial.scenario
    wanted = scenario.instances * _VANISH_AT

    def look(running: int, seconds: float) -> None:
        if "vanished_at" not in trial.found and running >= wanted:
            trial.cluster.vanish(scenario.vanishing)
            trial.found["vanished_at"] = {"seconds": seconds, "running": running}

    return look


# --- failures -------------------------------------------------------------------------------------


def failures(trial: Trial) -> dict[str, Any]:
    """What became of the launches that failed and of those whose node is gone."""
    retried = replaced = not_running = left_behind = unexplained = 0
    reasons: list[str] = []
    nodes = trial.client.call("node.list", timeout_s=60.0)
    lost = {node["node"] for node in nodes if node["state"] == "lost"}
    for name in trial.specs:
        for view in trial.client.call("instance.list", {"names": [name], "all": True}):
            retried += view["restarts"] > 0 or view["attempt"] > 1
            if view["desired"] == "removed":  # Given up with its node, and replaced elsewhere.
                replaced += 1
                continue
            if view["state"] == "running":
                continue
            not_running += 1
            left_behind += view["node"] in lost
            if not view["reason"]:
                unexplained += 1
            elif view["reason"] not in reasons:
                reasons.append(view["reason"])
    assert trial.measured is not None, "it was launched"
    return {
        "nodes_vanished": trial.scenario.vanishing if "vanished_at" in trial.found else 0,
        "nodes_known_lost": len(lost),
        "launched_again": retried,
        "replaced_elsewhere": replaced,
        "not_running": not_running,
        "not_running_on_lost_nodes": left_behind,
        "unexplained": unexplained,
        "recovered": not not_running and trial.measured.complete,
        "reasons": reasons[:_QUOTED_MAX],
    }


def not_running(trial: Trial) -> dict[str, Any]:
    """What the controller says of those that do not run: how many a state, and why."""
    states: dict[str, int] = {}
    reasons: list[str] = []
    for name in trial.specs:
        for view in trial.client.call("instance.list", {"names": [name]}):
            if view["state"] != "running":
                states[view["state"]] = states.get(view["state"], 0) + 1
                if view["reason"] not in reasons:
                    reasons.append(view["reason"])
    return {"states": states, "reasons": reasons[:_QUOTED_MAX]}


# --- one change -----------------------------------------------------------------------------------


def one_change(trial: Trial) -> dict[str, float]:
    """What a single change costs beside all that runs: one request alone, and ``scale +1``."""
    specs = [
        service(f"alone-{number}", Kind.CONTAINER, 1, trial.scenario.needs)
        for number in range(_CHANGES)
    ]
    time.sleep(_SETTLE_S)
    requests: list[float] = []
    until_running: list[float] = []
    for spec in specs:
        took = _alone(trial, lambda spec=spec: submit(trial.client, [spec], Measurement(1)))
        trial.specs[spec.name] = spec
        requests.append(took[0])
        until_running.append(took[1])
    name = specs[0].name
    before = Counters.read(trial.cluster, trial.client)
    scaled = [
        _alone(trial, lambda to=number + 2: _scale(trial, name, to)) for number in range(_CHANGES)
    ]
    after = Counters.read(trial.cluster, trial.client)
    trial.specs[name] = evolve(trial.specs[name], replicas=_CHANGES + 1)
    stages = after.since(before)["stages_s"]
    busy_s = sum(stages.get(one, 0.0) for one in ("validate", "plan", "assign", "dispatch"))
    return {
        "request_durable_p50_ms": median_ms(requests),
        "request_running_p50_ms": median_ms(until_running),
        "scale_durable_p50_ms": median_ms([one[0] for one in scaled]),
        "scale_running_p50_ms": median_ms([one[1] for one in scaled]),
        "scale_stages_ms": busy_s * 1000 / _CHANGES,
    }


def _scale(trial: Trial, name: str, replicas: int) -> None:
    trial.client.call("service.scale", {"replicas": {name: replicas}})


def _alone(trial: Trial, change: Any) -> tuple[float, float]:
    """Seconds until one more is durable, and until it runs."""
    already = trial.running()
    measured = Measurement(1)
    began = time.monotonic()
    change()
    durable_s = time.monotonic() - began
    watch(
        trial.client,
        measured,
        began,
        lambda *_: None,
        already=already,
        timeout_s=trial.scenario.timeout_s,
    )
    return durable_s, measured.running_s
