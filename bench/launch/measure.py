"""One launch, measured: from the first byte submitted until the controller knows that all run.

The clock starts before the specs are encoded and ends with the answer to ``service.wait``: what
a user of the command line would see, without the interpreter's start.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from attrs import field, frozen

from bench.launch.cluster import BenchCluster
from bench.launch.scenario import Scenario
from swarmctl.client import Client
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, from_wire
from swarmctl.proto.messages import Failure, Reply, Request
from swarmctl.spec import wire
from swarmctl.spec.models import ServiceSpec

Progress = Callable[[int, float], None]

# Services in one apply request: a stack of that size is a large one.
_SERVICES_A_REQUEST: Final = 100
# Requests sent ahead of their answers, in one-by-one mode; the server's bound a peer is higher.
_PIPELINED: Final = limits.RPC_PER_PEER // 2
_LOOK_S: Final = 0.05


@frozen
class Measurement:
    """What one launch took. Times are seconds since the start of the submission."""

    submitted_s: float
    running_s: float
    running: int
    curve: list[tuple[float, int]] = field(factory=list)
    request_latency_s: list[float] = field(factory=list, repr=False)
    refused_busy: int = 0


def launch(scenario: Scenario, cluster: BenchCluster, progress: Progress) -> Measurement:
    """Submit the scenario's services and wait until all run, or until its time is up."""
    specs = scenario.specs()
    with cluster.connect() as client, cluster.connect() as watcher:
        began = time.monotonic()
        if scenario.requests == "one-by-one":
            latencies, busy = _one_by_one(client, specs)
        else:
            latencies, busy = _in_batches(client, specs), 0
        submitted_s = time.monotonic() - began
        curve = _watch(scenario, watcher, began, progress)
    return Measurement(submitted_s, curve[-1][0], curve[-1][1], curve, latencies, busy)


def _in_batches(client: Client, specs: list[ServiceSpec]) -> list[float]:
    latencies = []
    for start in range(0, len(specs), _SERVICES_A_REQUEST):
        part = [wire.encode_service(spec) for spec in specs[start : start + _SERVICES_A_REQUEST]]
        began = time.monotonic()
        client.call("service.apply", {"services": part, "create_only": True}, timeout_s=60.0)
        latencies.append(time.monotonic() - began)
    return latencies


def _one_by_one(client: Client, specs: list[ServiceSpec]) -> tuple[list[float], int]:
    """A request a service, pipelined; every answer means that it is durable."""
    waiting: dict[int, tuple[float, ServiceSpec]] = {}
    latencies: list[float] = []
    busy = 0
    todo = list(reversed(specs))
    number = 1_000_000
    while todo or waiting:
        while todo and len(waiting) < _PIPELINED:
            spec = todo.pop()
            number += 1
            params = {"services": [wire.encode_service(spec)], "create_only": True}
            client.send(Request(number, "service.apply", params, 60_000))
            waiting[number] = (time.monotonic(), spec)
        message = client.receive(60.0)
        if isinstance(message, Reply):
            began, _ = waiting.pop(message.id)
            latencies.append(time.monotonic() - began)
        elif isinstance(message, Failure):
            _, spec = waiting.pop(message.id)
            if message.code != Busy.code:
                raise from_wire(message.code, message.what, message.where, message.hint)
            busy += 1
            todo.append(spec)
    return latencies, busy


def _watch(
    scenario: Scenario, client: Client, began: float, progress: Progress
) -> list[tuple[float, int]]:
    """The launch curve: how many the controller knew to be running, and when."""
    curve: list[tuple[float, int]] = []
    while True:
        running = int(statistics(client)["states"].get("running", 0))
        now = time.monotonic() - began
        curve.append((now, running))
        progress(running, now)
        if running >= scenario.instances or now > scenario.timeout_s:
            return curve
        time.sleep(_LOOK_S)


def statistics(client: Client) -> dict[str, Any]:
    """The controller's own counters."""
    found: dict[str, Any] = client.call("cluster.statistics", timeout_s=60.0)
    return found
