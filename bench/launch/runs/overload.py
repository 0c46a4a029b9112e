"""A client that sends many times more than can be done.

First what can be done is measured: single requests, no more under way than the controller takes
of one peer.  Then the same client stops heeding that bound and keeps ``excess`` times as many
under way, without waiting, for ``seconds``.  What is too much has to be refused with "busy" and
when to come back; memory must not grow with what was sent; another client must still be served;
and whatever was accepted has to run.
"""

import time
from typing import Any, Final

from attrs import define, field

from bench.launch.cluster import memory_mib
from bench.launch.measure import median_ms
from bench.launch.scenario import service
from bench.launch.trial import Trial
from swarmctl.client import Client
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, DeadlineExceeded, from_wire
from swarmctl.proto.messages import Failure, Message, Reply, Request
from swarmctl.spec import wire
from swarmctl.spec.models import Kind, ServiceSpec
from swarmctl.transport.errors import Backpressure

# How often the other client asks during the flood.
_PROBE_EVERY_S: Final = 0.1
_QUIET_S: Final = 30.0


@define
class _Flood:
    """Requests sent without waiting, and what came back."""

    trial: Trial
    client: Client
    sent: int = 0
    accepted: int = 0
    busy: int = 0
    said_when: int = 0
    withheld: int = 0
    waiting: dict[int, ServiceSpec] = field(factory=dict)

    def send(self) -> bool:
        """One more request; False when the connection takes no more."""
        number = self.sent + 1
        spec = service(f"flood-{number}", Kind.CONTAINER, 1, self.trial.scenario.needs)
        params = {"services": [wire.encode_service(spec)], "create_only": True}
        try:
            self.client.send(Request(1_000_000 + number, "service.apply", params, 60_000))
        except Backpressure:
            self.withheld += 1
            return False
        self.sent = number
        self.waiting[1_000_000 + number] = spec
        return True

    def take(self, timeout_s: float) -> bool:
        """One answer, if there is one in time."""
        try:
            message: Message = self.client.receive(timeout_s)
        except DeadlineExceeded:
            return False
        if isinstance(message, Reply):
            spec = self.waiting.pop(message.id)
            self.trial.specs[spec.name] = spec
            self.accepted += 1
        elif isinstance(message, Failure):
            self.waiting.pop(message.id)
            if message.code != Busy.code:
                raise from_wire(message.code, message.what, message.where, message.hint)
            self.busy += 1
            self.said_when += "retry in" in f"{message.what} {message.hint}"
        return True

    def run(self, seconds: float, at_once: int, probe: Client | None) -> list[float]:
        """Keep ``at_once`` under way; what the other client's requests took meanwhile."""
        began = looked = time.monotonic()
        probes: list[float] = []
        while (now := time.monotonic()) - began < seconds:
            while len(self.waiting) < at_once and self.send():
                pass
            while self.take(0.0):
                pass
            if probe is not None and now - looked > _PROBE_EVERY_S:
                looked = now
                probe.call("cluster.info")
                probes.append(time.monotonic() - now)
            self.take(0.001)
        return probes

    def drain(self) -> None:
        """Take the answers that are still to come."""
        until = time.monotonic() + _QUIET_S
        while self.waiting and time.monotonic() < until:
            self.take(0.1)


def run(trial: Trial) -> None:
    """See the module."""
    scenario, pid = trial.scenario, trial.cluster.controller.pid
    trial.launch()
    within = limits.RPC_PER_PEER // 2
    with trial.cluster.connect() as client, trial.cluster.connect() as probe:
        trial.progress.phase("what can be done", 0)
        flood = _Flood(trial, client)
        began = time.monotonic()
        flood.run(scenario.seconds / 4, within, None)
        flood.drain()
        can_per_s = flood.accepted / (time.monotonic() - began)
        done_before, rss_before = flood.accepted, memory_mib(pid)
        trial.progress.phase("overload", 0)
        began = time.monotonic()
        probes = flood.run(scenario.seconds, int(limits.RPC_PER_PEER * scenario.excess), probe)
        sent_s = time.monotonic() - began
        peak_mib = memory_mib(pid, peak=True)
        flood.drain()
    answered = flood.accepted + flood.busy
    trial.found["overload"] = {
        "can_be_done_per_s": can_per_s,
        "offered_per_s": (flood.sent - done_before) / sent_s,
        "sent": flood.sent,
        "accepted": flood.accepted,
        "refused_busy": flood.busy,
        "refused_with_when_to_retry": flood.said_when,
        "never_answered": flood.sent - answered,
        "held_back_by_the_connection": flood.withheld,
        "other_client_p50_ms": median_ms(probes),
        "other_client_max_ms": median_ms(probes, 1.0),
        "rss_before_mib": rss_before,
        "rss_peak_mib": peak_mib,
        "kib_per_accepted": (peak_mib - rss_before) * 1024 / max(1, flood.accepted - done_before),
    }
    _settle(trial, flood)
    trial.check()


def _settle(trial: Trial, flood: _Flood) -> None:
    """All that was accepted has to run."""
    # What was never answered may have been done.
    if flood.waiting:
        listed: list[dict[str, Any]] = trial.client.call("service.list", timeout_s=60.0)
        known = {one["service"] for one in listed}
        trial.specs |= {spec.name: spec for spec in flood.waiting.values() if spec.name in known}
    wanted = sum(spec.replicas for spec in trial.specs.values())
    trial.wait_until(
        lambda: trial.running() == wanted, "what was accepted runs", trial.scenario.timeout_s
    )
