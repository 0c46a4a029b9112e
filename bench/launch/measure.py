"""One launch, measured: from the first byte submitted until the controller knows that all run.

The clock starts before the specs are encoded, and ends with the controller's own count of what
it knows to run: what a user of the command line would see, without the interpreter's start.
Looking costs the controller something, so it is looked at rarely while the end is far and often
when it is near.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from attrs import define, field, frozen

from bench.launch.cluster import BenchCluster, cpu_s, memory_mib
from swarmctl.client import Client
from swarmctl.spec import wire
from swarmctl.spec.models import ServiceSpec

# Told how many run, and after how many seconds.
Look = Callable[[int, float], None]

# Services in one apply request: a stack of that size is a large one.
_SERVICES_A_REQUEST: Final = 100
# Longer than it takes to give up a silent node, and than an instance waits to be tried again.
_STALLED_S: Final = 20.0
_LOOK_FIRST_S: Final = 0.002
_LOOK_MIN_S: Final = 0.01
_LOOK_MAX_S: Final = 0.25
# While requests are sent, a look takes the sender about 1 ms.
_LOOK_SUBMITTING_S: Final = 0.1
# A request that waits for a disk or a plan of a million.
_REQUEST_S: Final = 60.0


@define
class Measurement:
    """What one launch took. Times are seconds since the start of the submission."""

    wanted: int
    submitted_s: float = 0.0
    curve: list[tuple[float, int]] = field(factory=lambda: [(0.0, 0)])
    request_latency_s: list[float] = field(factory=list, repr=False)
    refused_busy: int = 0

    @property
    def running_s(self) -> float:
        """When the last look was."""
        return self.curve[-1][0]

    @property
    def running(self) -> int:
        """How many ran at the last look."""
        return self.curve[-1][1]

    @property
    def complete(self) -> bool:
        """Whether all run."""
        return self.running >= self.wanted


def submit(client: Client, specs: Sequence[ServiceSpec], measured: Measurement) -> None:
    """Apply ``specs`` in few requests, one after the other."""
    for start in range(0, len(specs), _SERVICES_A_REQUEST):
        part = [wire.encode_service(spec) for spec in specs[start : start + _SERVICES_A_REQUEST]]
        began = time.monotonic()
        client.call("service.apply", {"services": part, "create_only": True}, timeout_s=_REQUEST_S)
        measured.request_latency_s.append(time.monotonic() - began)


def submit_each(
    client: Client,
    specs: Sequence[ServiceSpec],
    measured: Measurement,
    look: Callable[[], object],
) -> None:
    """A request a service, pipelined; every answer means that it is durable.

    ``look`` is called now and then: this takes as long as the launch itself.
    """
    looked = time.monotonic()
    params = ({"services": [wire.encode_service(spec)], "create_only": True} for spec in specs)
    for answer in client.call_each("service.apply", params, timeout_s=_REQUEST_S):
        measured.refused_busy += answer.refusals
        if answer.error is not None:
            raise answer.error
        measured.request_latency_s.append(answer.took_s)
        now = time.monotonic()
        if now - looked > _LOOK_SUBMITTING_S:
            looked = now
            look()


def watch(
    client: Client,
    measured: Measurement,
    began: float,
    look: Look,
    *,
    already: int = 0,
    nodes_ready: int | None = None,
    timeout_s: float,
) -> None:
    """Follow the launch curve until all run, or the time is up.

    Args:
        client: of its own: it asks again and again.
        measured: gets the curve.
        began: when the submission did.
        look: told at each look.
        already: instances that ran before, which are not counted.
        nodes_ready: the end is also that exactly so many nodes are.
        timeout_s: from ``began`` on; it also ends when nothing has changed for long.
    """
    changed_at = 0.0
    while True:
        found = take_look(client, measured, began, look, already=already)
        now, running = measured.curve[-1]
        if measured.complete and nodes_ready in (None, found["nodes_ready"]):
            return
        if running != measured.curve[-2][1]:
            changed_at = now
        if now > timeout_s or now - changed_at > _STALLED_S:
            return
        time.sleep(_until_next_look(measured))


def take_look(
    client: Client, measured: Measurement, began: float, look: Look, *, already: int = 0
) -> dict[str, Any]:
    """One more point of the launch curve; the counters that it is from."""
    found = statistics(client)
    running = int(found["states"].get("running", 0)) - already
    measured.curve.append((time.monotonic() - began, running))
    look(running, measured.running_s)
    return found


def _until_next_look(measured: Measurement) -> float:
    """A quarter of the time that is left at the present rate."""
    if not measured.running:
        return min(_LOOK_MAX_S, max(_LOOK_FIRST_S, measured.running_s / 10))
    left_s = measured.running_s * (measured.wanted - measured.running) / measured.running
    return min(_LOOK_MAX_S, max(_LOOK_MIN_S, left_s / 4))


# --- what it cost -----------------------------------------------------------------------------


@frozen
class Counters:
    """The controller's counters at one moment."""

    values: dict[str, Any]
    cpu_s: float
    rss_mib: float

    @classmethod
    def read(cls, cluster: BenchCluster, client: Client) -> "Counters":
        """As they are now."""
        pid = cluster.controller.pid
        return cls(statistics(client), cpu_s(pid), memory_mib(pid))

    def since(self, before: "Counters") -> dict[str, Any]:
        """What was used from ``before`` until now."""
        now, then = self.values, before.values
        listener, earlier = now["listener"], then["listener"]
        return {
            "latency_ms": latency_between(then["launches"], now["launches"]),
            "stages_s": {
                name: seconds - then["stages_s"].get(name, 0.0)
                for name, seconds in now["stages_s"].items()
            },
            "store_statistics": {
                name: value - then["store"][name] for name, value in now["store"].items()
            },
            "controller_cpu_s": now["cpu_s"] - then["cpu_s"],
            "controller_cpu_total_s": now["cpu_s"],
            "messages": {
                "in": listener["received"] - earlier["received"],
                "out": listener["sent"] - earlier["sent"],
            },
            "bytes": {
                "in": listener["received_bytes"] - earlier["received_bytes"],
                "out": listener["sent_bytes"] - earlier["sent_bytes"],
            },
        }


def latency_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Quantiles of what was counted between two views of one histogram, in milliseconds."""
    counts = dict(map(tuple, after["buckets_ms"]))
    for upper_ms, count in before["buckets_ms"]:
        counts[upper_ms] -= count
    buckets = [(upper_ms, count) for upper_ms, count in sorted(counts.items()) if count]
    longest_ms = buckets[-1][0] if buckets else 0.0
    if not before["count"]:
        longest_ms = after["max_ms"]  # Exact, while the histogram knows buckets only.
    return {
        "p50": min(longest_ms, quantile(buckets, 0.5)),
        "p99": min(longest_ms, quantile(buckets, 0.99)),
        "max": longest_ms,
        "buckets": buckets,
    }


def quantile(buckets: Sequence[tuple[float, int]], share: float) -> float:
    """The value that ``share`` of all do not exceed; 0 when there are none."""
    wanted = share * sum(count for _, count in buckets)
    seen = 0
    for value, count in buckets:
        seen += count
        if seen >= wanted:
            return value
    return 0.0


def median_ms(seconds: Sequence[float], share: float = 0.5) -> float:
    """The ``share`` quantile of single values, in milliseconds; 0 when there are none."""
    return quantile([(one * 1000, 1) for one in sorted(seconds)], share)


def statistics(client: Client) -> dict[str, Any]:
    """The controller's own counters."""
    found: dict[str, Any] = client.call("cluster.statistics", timeout_s=_REQUEST_S)
    return found
