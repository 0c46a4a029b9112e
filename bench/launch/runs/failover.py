"""The controller is killed under load and started again on its data.

While requests go on coming, one by one, the process is ended without a warning.  From then it is
measured until the next request is accepted (durable), until something new runs, until all agents
are back, and until each of them has been placed on; and that nothing which ran was touched.
"""

import time
from typing import Any, Final

from attrs import define

from bench.launch.measure import Measurement, statistics, submit
from bench.launch.scenario import service
from bench.launch.trial import Trial
from swarmctl.proto.errors import Busy, Conflict, DeadlineExceeded, PeerError
from swarmctl.proto.messages import Request
from swarmctl.spec import wire
from swarmctl.spec.models import Kind, Placement, ServiceSpec

# For how long requests come before the kill.
_LOAD_S: Final = 1.0
# Requests that have no answer yet at the kill.
_UNDER_WAY: Final = 100
_PAUSE_S: Final = 0.01


@define
class _Load:
    """Requests one by one, each a service of one copy, repeated until they are accepted."""

    trial: Trial
    made: int = 0
    refused: int = 0

    def next(self) -> ServiceSpec:
        """One more service."""
        self.made += 1
        return service(f"load-{self.made}", Kind.CONTAINER, 1, self.trial.scenario.needs)

    def send(self, spec: ServiceSpec) -> None:
        """Ask without waiting for the answer."""
        params = {"services": [wire.encode_service(spec)], "create_only": True}
        number = 1_000_000 + self.made
        self.trial.client.send(Request(number, "service.apply", params, 10_000))

    def accept(self, spec: ServiceSpec) -> None:
        """Repeat until it is durable, with a new connection where the old one is lost."""
        accepted = False
        while not accepted:
            try:
                submit(self.trial.client, [spec], Measurement(1))
                accepted = True
            except Conflict:
                accepted = True  # A repetition: it had come through before the kill.
            except Busy:
                self.refused += 1
                time.sleep(_PAUSE_S)
            except (PeerError, DeadlineExceeded):
                self.refused += 1
                self.trial.client.close()
                self.trial.client = self.trial.cluster.connect()
        self.trial.specs[spec.name] = spec


def run(trial: Trial) -> None:
    """See the module."""
    nodes = trial.scenario.nodes
    trial.launch()
    load = _Load(trial)
    trial.progress.phase("load", 0)
    until = time.monotonic() + _LOAD_S
    while time.monotonic() < until:
        load.accept(load.next())
    had = trial.incarnations()
    under_way = [load.next() for _ in range(_UNDER_WAY)]
    trial.progress.phase("killed", 0)
    for spec in under_way:
        load.send(spec)
    killed = time.monotonic()
    trial.cluster.kill_controller()
    trial.client.close()
    trial.client = trial.cluster.connect()
    # As it comes: a run that gives up has shown what it had come to.
    found = trial.found["failover"] = {"seconds_to_serving": time.monotonic() - killed}
    first = load.next()
    load.accept(first)
    found["seconds_to_first_accepted"] = time.monotonic() - killed
    trial.wait_until(lambda: _runs(trial, first.name), "the first runs", trial.scenario.timeout_s)
    found["seconds_to_first_running"] = time.monotonic() - killed
    trial.wait_ready(nodes, trial.scenario.timeout_s)
    found["seconds_to_all_back"] = time.monotonic() - killed
    for spec in under_way:
        load.accept(spec)
    spec = service(
        "everywhere",
        Kind.CONTAINER,
        nodes,
        trial.scenario.needs,
        placement=Placement(max_replicas_per_node=1),
    )
    if trial.launch_more([spec]).complete:
        found["seconds_to_placed_on_all"] = time.monotonic() - killed
    has = trial.incarnations()
    found |= _found(trial, load, had, has)
    trial.check(replaced=trial.found["failover"]["instances_replaced"])


def _found(
    trial: Trial, load: _Load, had: dict[str, set[int]], has: dict[str, set[int]]
) -> dict[str, Any]:
    return {
        "requests_accepted": load.made,
        "attempts_refused": load.refused,
        "nodes_back": _ready(trial),
        "instances_before": sum(map(len, had.values())),
        "instances_replaced": sum(len(had[node] - has[node]) for node in had),
    }


def _ready(trial: Trial) -> int:
    return int(statistics(trial.client)["nodes_ready"])


def _runs(trial: Trial, name: str) -> bool:
    views = trial.client.call("instance.list", {"names": [name]})
    return [view["state"] for view in views] == ["running"]
