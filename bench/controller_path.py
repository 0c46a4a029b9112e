"""The controller's CPU for a launch, an instance: ``python -m bench.controller_path``.

The controller's own code from the committed services to the reports taken in, in one process,
without sockets, store or nodes: what the nodes would say is made beforehand, between the timed
parts.  CPU time is counted, not the clock, so that it can be compared on a machine that does other
things as well.  The shape is that of a million on 5,000 nodes, smaller: 200 instances a node, of
services with 1,000 copies.
"""

import gc
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import structlog
from attrs import define, field

from bench.launch.scenario import service
from swarmctl import garbage
from swarmctl.controller.meters import Meters
from swarmctl.controller.placing import Fleet
from swarmctl.controller.reconciler import Reconciler
from swarmctl.controller.records import NodeRecord, ServiceRecord
from swarmctl.controller.sessions import Sessions
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.proto import codec
from swarmctl.proto.messages import (
    PROTOCOL_VERSION,
    Assign,
    DriverFacts,
    Hello,
    Message,
    NodeFacts,
    Report,
    ReportedGroup,
)
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import Kind

_A_NODE = 200
_A_SERVICE = 1_000
_NEEDS = {"cpu_millis": 100, "memory_bytes": 64 << 20}
_FACTS = NodeFacts(
    capacity={"cpu_millis": 64_000, "memory_bytes": 256 << 30, "disk_bytes": 4 << 40},
    drivers=(DriverFacts("docker", available=True),),
)
_SLOTS_A_TURN = 10_000
_TOLD_A_NODE = 50


@define
class Stages:
    """CPU seconds by stage."""

    spent_s: dict[str, float] = field(factory=dict)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the block."""
        began = time.process_time()
        yield
        self.spent_s[name] = self.spent_s.get(name, 0.0) + time.process_time() - began


class Controller:
    """The controller's memory and its nodes' ends."""

    def __init__(self, nodes: int) -> None:
        self.state = ClusterState("bench", 1)
        self.fleet = Fleet()
        self.sent: list[tuple[bytes, bytes]] = []
        meters = Meters()
        self.sessions = Sessions(
            self.state,
            self.fleet,
            self._send,
            meters,
            wake=lambda: None,
            now=time.monotonic,
            arrival=lambda: (0.0, 0.0),
            wall=time.time,
        )
        self.reconciler = Reconciler(self.state, self.fleet, meters, time.time)
        self.reconciler.settle()
        self.sequences: dict[bytes, int] = {}
        for number in range(nodes):
            self._join(f"node-{number:05}", b"peer-%d" % number)

    def _send(self, peer: bytes, message: Message) -> None:
        self.sent.append((peer, codec.encode(message)))

    def _join(self, name: str, peer: bytes) -> None:
        node = Node(NodeRecord(name, "k" * 40, 0.0), heard_at=time.monotonic())
        self.state.nodes[name] = node
        self.fleet.node_changed(node)
        hello = Hello(PROTOCOL_VERSION, "0", name, "boot", "bench", 0, _FACTS, sequence=1)
        self.sessions.on_message(peer, f"node:{name}", hello)

    def apply(self, services: int) -> None:
        """Services as they are once committed."""
        for number in range(services):
            spec = service(f"svc-{number}", Kind.CONTAINER, _A_SERVICE, _NEEDS)
            made = Service(ServiceRecord(spec, time.time(), time.time()))
            self.state.services[made.key] = made
            self.state.dirty_services.add(made.key)

    def answers(self) -> list[tuple[bytes, str, bytes]]:
        """What the nodes report of what they were told."""
        found = []
        for peer, payload in self.sent:
            message = codec.decode(payload)
            if not isinstance(message, Assign) or not message.groups:
                continue
            entries = tuple(
                (entry[1], f"sim-{entry[1]}") for group in message.groups for entry in group.entries
            )
            self.sequences[peer] = sequence = self.sequences.get(peer, 0) + 1
            group = ReportedGroup(int(InstanceState.RUNNING), 1, 0, time.time(), 0, entries)
            report = codec.encode(Report(sequence, (), groups=(group,)))
            found.append((peer, f"node:node-{int(peer[5:]):05}", report))
        self.sent.clear()
        return found


def launch(nodes: int) -> tuple[int, dict[str, float]]:
    """One launch; instances that run, and CPU seconds by stage."""
    controller = Controller(nodes)
    controller.apply(nodes * _A_NODE // _A_SERVICE)
    stages = Stages()
    more, told = True, 0
    while more:
        with stages.of("plan and assign"):
            more = controller.reconciler.cycle(_SLOTS_A_TURN)
        if more and controller.reconciler.assigned - told < _TOLD_A_NODE * nodes:
            continue
        told = controller.reconciler.assigned
        with stages.of("dispatch"):
            controller.sessions.dispatch(controller.state.take_dirty_nodes())
        reports = controller.answers()
        with stages.of("acknowledge"):
            for peer, user, payload in reports:
                controller.sessions.on_message(peer, user, codec.decode(payload))
    return controller.state.totals()["running"], stages.spent_s


@click.command()
@click.option("--nodes", default=1_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(*, nodes: int, rounds: int) -> None:
    """Print µs of CPU an instance by stage: the median of the rounds."""
    garbage.tune()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    found: list[dict[str, float]] = []
    count = 0
    for _ in range(rounds):
        count, spent_s = launch(nodes)
        found.append({name: spent * 1e6 / count for name, spent in spent_s.items()})
        gc.collect()
    found = [one | {"all": sum(one.values())} for one in found]
    for name in found[0]:
        each = [one[name] for one in found]
        print(
            f"{name:16} {statistics.median(each):6.2f} µs   ({', '.join(f'{v:.2f}' for v in each)})"
        )
    print(f"{count:,} instances on {nodes:,} nodes")


if __name__ == "__main__":
    main()
