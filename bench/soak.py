"""Churn for twenty minutes, and see whether anything grows: ``python -m bench.soak``.

A controller, agents with simulated drivers and one with real containers and a VM are processes of
their own.  Every few seconds a service is removed and another of its size made, at the rate that
replaces ``--churn`` of all instances in a minute; every sixth time it is the VM, in place of what
would be next.  Every five seconds memory, file descriptors and threads of each daemon are read from
the kernel, and it is asked for the tasks that live in it.

What counts is that the curves are flat, so the machine need not be quiet.  The first quarter warms
up; then the medians of the second and of the last quarter are compared, and the program fails when
one has grown by more than ``ALLOWED``.

At the end all services are removed, and every daemon comes to rest.  What it has then is compared
with what it had before the first launch, and its tasks with ``TASKS_AT_REST``: a leak that is over
before the second quarter, or that all daemons share, shows there.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field

from bench.launch.cluster import memory_mib
from bench.launch.report import machine
from swarmctl.client import Client
from swarmctl.proto.errors import NothingFits
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Resources, ServiceSpec, Template
from tests.e2e.cluster import IMAGE, Cluster, Daemon
from tests.e2e.cluster import machine as virtual_machine
from tests.integration import real_instances

RESULTS: Final = Path(__file__).parent / "results" / "soak.json"
PICTURE: Final = Path(__file__).parents[1] / "docs" / "soak.svg"
SAMPLE_EVERY_S: Final = 5.0
# A step's service is waited for this long; a later one is a failure of its own.
STEP_S: Final = 120.0
# From the second quarter to the last, some 620 replaced instances apart: a leak of 7 KiB a launch,
# or of a descriptor in two hundred, shows as more than this; a cache that fills, or an allocator
# that keeps its pages, as less, and so would a leak that is smaller.
ALLOWED: Final = {"memory_mib": 4.0, "descriptors": 3.0, "threads": 3.0, "tasks": 3.0}


# Of a daemon that has nothing to do, whatever it did before: what it is made of, and the one that
# answers how many there are. A driver has three. More of them in the product are more here.
TASKS_AT_REST: Final = {"controller": 19, "sim": 19, "real": 22}
# At rest after all, more than before the first launch: connections and threads that are kept for
# the next time, by Docker's and libvirt's libraries.
KEPT: Final = {"descriptors": 8.0, "threads": 8.0}
REST_S: Final = 60.0
# Every so many steps it is a VM's turn: it takes seconds, where others take milliseconds.
VM_EVERY: Final = 6


@define
class Curve:
    """One daemon: seconds and what was read then, by what is measured."""

    at_s: list[float] = field(factory=list)
    values: dict[str, list[float]] = field(factory=lambda: {name: [] for name in ALLOWED})

    def growth(self, name: str) -> float:
        """The median of the last quarter less that of the second."""
        values = self.values[name]
        quarter = len(values) // 4
        second, last = values[quarter : 2 * quarter], values[-quarter:]
        return statistics.median(last) - statistics.median(second) if quarter else 0.0


@define
class Soak:
    """A cluster under churn, and what was read of it."""

    cluster: Cluster
    client: Client
    specs: list[ServiceSpec]
    vms: list[ServiceSpec]
    curves: dict[str, Curve] = field(factory=dict)
    before: dict[str, dict[str, float]] = field(factory=dict)
    after: dict[str, dict[str, float]] = field(factory=dict)
    vms_replaced: int = 0
    replaced: int = 0
    step_s: list[float] = field(factory=list)

    @property
    def instances(self) -> int:
        """Of all services."""
        return sum(spec.replicas for spec in self.specs + self.vms)

    def run(self, seconds: float, churn_per_min: float) -> None:
        """Replace and sample until the time is over."""
        began = sampled = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            due = self.instances * churn_per_min / 60.0 * (now - began)
            if self.replaced < due:
                self._replace(len(self.step_s))
            if now >= sampled:
                self.sample(now - began)
                sampled += SAMPLE_EVERY_S
            time.sleep(0.1)

    def _replace(self, number: int) -> None:
        """One service goes, another comes: oldest first, real ones among them."""
        began = time.monotonic()
        is_vms_turn = self.vms and number % VM_EVERY == VM_EVERY - 1
        queue = self.vms if is_vms_turn else self.specs
        old = queue.pop(0)
        new = evolve(old, name=f"{old.name.partition('-')[0]}-again-{number}")
        self.client.call("service.remove", {"names": [old.name]}, timeout_s=STEP_S)
        self.launch([new])
        self.await_each([old], "gone")
        queue.append(new)
        self.replaced += new.replicas
        self.vms_replaced += new.replicas if is_vms_turn else 0
        self.step_s.append(time.monotonic() - began)

    def launch(self, specs: list[ServiceSpec]) -> None:
        """Make services, and wait until all of them run."""
        encoded = [wire.encode_service(spec) for spec in specs]
        self.client.call("service.apply", {"services": encoded}, timeout_s=STEP_S)
        self.await_each(specs, "running")

    def await_each(self, specs: list[ServiceSpec], condition: str) -> None:
        """Wait until services are so; a node may be sick for a while, on a busy machine."""
        names = [spec.name for spec in specs]
        params = {"names": names, "for": condition, "timeout_s": STEP_S}
        deadline = time.monotonic() + STEP_S
        while True:
            try:
                self.client.call("service.wait", params, timeout_s=2 * STEP_S)
            except NothingFits:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
            else:
                return

    def rest(self) -> dict[str, dict[str, float]]:
        """What every daemon has once nothing is there, and nothing comes to an end any more."""
        deadline = time.monotonic() + REST_S
        names = [one["service"] for one in self.client.call("service.list", timeout_s=STEP_S)]
        if names:
            self.client.call("service.remove", {"names": names}, timeout_s=STEP_S)
            self.await_each(self.specs + self.vms, "gone")
        lowest: dict[str, dict[str, float]] = {}
        while True:
            for daemon in self.cluster.others:
                values = self._read(daemon)
                known = lowest.setdefault(daemon.name, values)
                # Heartbeats come and go, and threads that have nothing to do end after seconds.
                lowest[daemon.name] = {name: min(known[name], values[name]) for name in values}
            if time.monotonic() > deadline or not left_over(self.before, lowest):
                return lowest
            time.sleep(1.0)

    def sample(self, at_s: float) -> None:
        """Read all daemons."""
        for daemon in self.cluster.others:
            curve = self.curves.setdefault(daemon.name, Curve())
            curve.at_s.append(round(at_s, 1))
            for name, value in self._read(daemon).items():
                curve.values[name].append(value)

    def _read(self, daemon: Daemon) -> dict[str, float]:
        assert daemon.process is not None, f"{daemon.name} has ended:\n{daemon.tail()}"
        process = Path(f"/proc/{daemon.process.pid}")
        if daemon is self.cluster.controller:
            said = self.client.call("cluster.statistics", timeout_s=STEP_S)
        else:
            said = self.client.call("node.statistics", {"name": daemon.name}, timeout_s=STEP_S)
        return {
            "memory_mib": round(memory_mib(daemon.process.pid), 2),
            "descriptors": len(list((process / "fd").iterdir())),
            "threads": len(list((process / "task").iterdir())),
            "tasks": said["tasks"],
        }

    def report(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "instances": self.instances,
            "vms": len(self.vms),
            "instances_replaced": self.replaced,
            "vms_replaced": self.vms_replaced,
            "services_replaced": len(self.step_s),
            "step_p50_s": round(statistics.median(self.step_s), 2),
            "step_max_s": round(max(self.step_s), 2),
            "growth": {
                daemon: {name: round(curve.growth(name), 2) for name in ALLOWED}
                for daemon, curve in self.curves.items()
            },
            "at_rest": {"before": self.before, "after": self.after},
            "left_over": left_over(self.before, self.after),
            "curves": {
                daemon: {"at_s": curve.at_s} | curve.values for daemon, curve in self.curves.items()
            },
        }


def left_over(
    before: dict[str, dict[str, float]], at_rest: dict[str, dict[str, float]]
) -> list[str]:
    """What daemons have more of at rest than they may; ``before`` is at rest before a launch."""
    found = []
    for daemon, values in at_rest.items():
        most = {"tasks": float(TASKS_AT_REST[daemon.rstrip("0123456789")])}
        for name, kept in KEPT.items():
            most[name] = before[daemon][name] + kept if daemon in before else math.inf
        found += [
            f"{daemon}: {values[name]:g} {name} at rest, more than {limit:g}"
            for name, limit in most.items()
            if values[name] > limit
        ]
    return found


def services(simulated: int, real: int) -> list[ServiceSpec]:
    """Tens of simulated instances, and pairs of real containers evenly among them."""
    nowhere = Resources(memory_bytes=1 << 20)
    sim = Template(container=ContainerSpec("box"), resources=nowhere)
    container = ContainerSpec(IMAGE, command=("sleep", "86400"), network="none")
    box = Template(container=container, stop_grace_period_s=0.0)
    found = [ServiceSpec(f"s-{n}", sim, replicas=10, driver="sim") for n in range(simulated // 10)]
    for number in range(real // 2):
        place = (number * 2 + 1) * len(found) // max(1, real)
        found.insert(place, ServiceSpec(f"real-{number}", box, replicas=2, driver="docker"))
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    """The four curves of every daemon, into a file."""
    # Not at the top: it takes half a second, and only this needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    titles = {
        "memory_mib": "Resident memory (MiB)",
        "descriptors": "Open file descriptors",
        "threads": "Threads",
        "tasks": "Tasks",
    }
    for axes, (name, title) in zip(panels.flat, titles.items(), strict=True):
        for daemon, curve in report["curves"].items():
            axes.plot([at_s / 60 for at_s in curve["at_s"]], curve[name], label=daemon, lw=1)
        axes.set(title=title, xlabel="minutes", ylim=(0, None))
    panels.flat[0].legend(fontsize="small", ncols=2)
    figure.suptitle(
        f"{report['instances']} instances, {report['instances_replaced']} replaced in "
        f"{report['seconds'] / 60:.0f} minutes"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start it all, soak it, end it all."""
    cluster = Cluster(folder)
    for number in range(options.nodes):
        cluster.agent(f"sim{number}", drivers="sim")
    cluster.agent("real", drivers=real_instances.DRIVERS)
    try:
        cluster.start()
        with cluster.client() as client:
            vms = [virtual_machine(f"vm-{number}") for number in range(options.vms)]
            soak = Soak(cluster, client, services(options.simulated, options.real), vms)
            soak.before = soak.rest()
            soak.launch(soak.specs + soak.vms)
            began = time.monotonic()
            soak.run(options.seconds, options.churn)
            seconds = time.monotonic() - began
            soak.after = soak.rest()
            return soak.report() | {"seconds": round(seconds, 1)}
    except BaseException:
        print(cluster.logs(), file=sys.stderr)
        raise
    finally:
        cluster.close()


def main() -> int:
    """Measure, print, write the JSON and the picture; 1 when something grows."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--churn", type=float, default=0.1, help="share replaced in a minute")
    parser.add_argument("--nodes", type=int, default=4, help="agents with simulated drivers")
    parser.add_argument("--simulated", type=int, default=600, help="simulated instances")
    parser.add_argument("--real", type=int, default=20, help="real containers")
    parser.add_argument("--vms", type=int, default=1, help="VMs, one of which is replaced a minute")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swarmctl-soak-") as folder:
        report = measure(options, Path(folder))
    options.output.write_text(json.dumps(report) + "\n", encoding="utf-8")
    draw(report, options.picture)
    grown = []
    for daemon, growth in report["growth"].items():
        print(f"{daemon:12}", *(f"{name} {value:+.1f}" for name, value in growth.items()))
        grown += [f"{daemon}: {name}" for name in ALLOWED if growth[name] > ALLOWED[name]]
    replaced = f"{report['instances_replaced']} instances replaced"
    print(f"{replaced}, {report['vms_replaced']} of them VMs; grown: {', '.join(grown) or 'none'}")
    print(f"at rest: {'; '.join(report['left_over']) or 'as before the first launch'}")
    return 1 if grown or report["left_over"] else 0


if __name__ == "__main__":
    sys.exit(main())
