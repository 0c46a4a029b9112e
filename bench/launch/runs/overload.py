"""A client that sends many times more than can be done.

First what can be done is measured: single requests over one connection, no more under way than
the controller takes of one peer.  Then ``excess`` connections keep more than that under way each,
without waiting, for ``seconds``; their requests are encoded beforehand, so that the client is
not what holds them up.  What is too much has to be refused with "busy" and when to come back;
memory must not grow with what was sent; another client must still be served; and whatever was
accepted has to run.
"""

import time
from contextlib import ExitStack
from typing import Any, Final

from attrs import define, field

from bench.launch.cluster import memory_mib
from bench.launch.measure import median_ms
from bench.launch.scenario import service
from bench.launch.trial import Trial
from swarmctl.client import Client
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import Busy, DeadlineExceeded, from_wire
from swarmctl.proto.messages import Failure, Message, Reply, Request
from swarmctl.spec import wire
from swarmctl.spec.models import Kind, ServiceSpec
from swarmctl.transport.errors import Backpressure

# How often the other client asks during the flood.
_PROBE_EVERY_S: Final = 0.1
_QUIET_S: Final = 30.0
# Requests made ready: beyond what a client can send in the time.
_READY_PER_S: Final = 20_000
# Sent over one connection before the next has its turn.
_BURST: Final = 64
# A request's number is its service's, beyond those that a client gives to its own.
_FIRST: Final = 1_000_000


@define
class _Flood:
    """Requests sent without waiting over some connections, and what came back."""

    trial: Trial
    ready: list[tuple[ServiceSpec, bytes]]
    sent: int = 0
    accepted: int = 0
    busy: int = 0
    said_when: int = 0
    withheld: int = 0
    waiting: dict[int, ServiceSpec] = field(factory=dict)

    def send(self, client: Client) -> bool:
        """One more request; False when the connection takes no more, or all are sent."""
        if self.sent == len(self.ready):
            return False
        spec, payload = self.ready[self.sent]
        try:
            client.connection.send(payload)
        except Backpressure:
            self.withheld += 1
            return False
        self.waiting[_FIRST + self.sent] = spec
        self.sent += 1
        return True

    def take(self, client: Client, timeout_s: float) -> bool:
        """One answer, if there is one in time."""
        try:
            message: Message = client.receive(timeout_s)
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

    def run(
        self, clients: list[Client], seconds: float, at_once: int, probe: Client | None
    ) -> list[float]:
        """Keep ``at_once`` under way; what the other client's requests took meanwhile."""
        began = looked = time.monotonic()
        probes: list[float] = []
        while (now := time.monotonic()) - began < seconds:
            for client in clients:
                for _ in range(_BURST):
                    if len(self.waiting) >= at_once or not self.send(client):
                        break
                while self.take(client, 0.0):
                    pass
            if probe is not None and now - looked > _PROBE_EVERY_S:
                looked = now
                probe.call("cluster.info", timeout_s=_QUIET_S)
                probes.append(time.monotonic() - now)
        return probes

    def drain(self, clients: list[Client]) -> None:
        """Take the answers that are still to come."""
        until = time.monotonic() + _QUIET_S
        while self.waiting and time.monotonic() < until:
            for client in clients:
                while self.take(client, 0.01):
                    pass


def _encoded(trial: Trial, first: int, count: int) -> list[tuple[ServiceSpec, bytes]]:
    ready = []
    for number in range(first, first + count):
        spec = service(f"flood-{number}", Kind.CONTAINER, 1, trial.scenario.needs)
        params = {"services": [wire.encode_service(spec)], "create_only": True}
        request = Request(_FIRST + number, "service.apply", params, 60_000)
        ready.append((spec, codec.encode(request)))
    return ready


def run(trial: Trial) -> None:
    """See the module."""
    scenario, pid = trial.scenario, trial.cluster.controller.pid
    trial.launch()
    count = int(_READY_PER_S * scenario.seconds * 1.25)
    trial.progress.phase("encoding requests", 0)
    flood = _Flood(trial, _encoded(trial, 0, count))
    with ExitStack() as stack:
        clients = [
            stack.enter_context(trial.cluster.connect()) for _ in range(round(scenario.excess))
        ]
        probe = stack.enter_context(trial.cluster.connect())
        trial.progress.phase("what can be done", 0)
        began = time.monotonic()
        flood.run(clients[:1], scenario.seconds / 4, limits.RPC_PER_PEER // 2, None)
        flood.drain(clients[:1])
        can_per_s = flood.accepted / (time.monotonic() - began)
        before = (flood.sent, flood.accepted, flood.busy)
        rss_before = memory_mib(pid)
        trial.progress.phase("overload", 0)
        began = time.monotonic()
        at_once = int(limits.RPC_PER_PEER * scenario.excess * 2)
        probes = flood.run(clients, scenario.seconds, at_once, probe)
        sent_s = time.monotonic() - began
        peak_mib = memory_mib(pid, peak=True)
        flood.drain(clients)
    sent, accepted, busy = (
        flood.sent - before[0],
        flood.accepted - before[1],
        flood.busy - before[2],
    )
    trial.found["overload"] = {
        "can_be_done_per_s": can_per_s,
        "offered_per_s": sent / sent_s,
        "sent": sent,
        "accepted": accepted,
        "refused_busy": busy,
        "refused_with_when_to_retry": flood.said_when,
        "never_answered": sent - accepted - busy,
        "held_back_by_the_connection": flood.withheld,
        "other_client_p50_ms": median_ms(probes),
        "other_client_max_ms": median_ms(probes, 1.0),
        "rss_before_mib": rss_before,
        "rss_peak_mib": peak_mib,
        "kib_per_accepted": (peak_mib - rss_before) * 1024 / max(1, accepted),
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
