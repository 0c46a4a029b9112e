"""Launching for real beside the raw SDKs, in one run: ``python -m bench.launch_real``.

Rounds alternate, so that whatever else the machine does falls on both: the Docker SDK (or libvirt)
driven directly by as many threads as the agent has launches under way, and a service of the same
containers (or domains) submitted to a controller, until the client hears that all of them run.
The rate of a round is instances over seconds; the result is the ratio of the medians.

CPU time is counted beside it (controller and agent, by instance): it tells the cost of our path
also where a busy machine blurs the clock.  Everything is started and removed by this program.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen

from swarmctl.client import Client
from swarmctl.credentials import parse_context
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Resources, ServiceSpec, Template, VmSpec

IMAGE = "swarmctl/testbox:latest"
COMMAND = ("sleep", "600")
LIBVIRT_URI = "qemu:///system"
WAIT_S = 300.0
START_S = 30.0
VM_MEMORY_BYTES = 96 << 20
RESULTS = Path(__file__).parent / "results" / "launch_real.json"


@frozen
class Round:
    """One measurement: seconds until all ran, and CPU seconds of our daemons."""

    side: str
    seconds: float
    cpu_seconds: float = 0.0


@define
class Comparison:
    """Raw and ours for one kind of instance."""

    kind: str
    count: int
    rounds: list[Round] = field(factory=list)

    def median_s(self, side: str) -> float:
        """The median of the rounds of ``raw`` or ``swarmctl``."""
        return statistics.median(one.seconds for one in self.rounds if one.side == side)

    @property
    def ratio(self) -> float:
        """Our rate over the raw rate."""
        return self.median_s("raw") / self.median_s("swarmctl")

    def row(self) -> dict[str, Any]:
        """The result as plain data."""
        cpu = statistics.median(one.cpu_seconds for one in self.rounds if one.side == "swarmctl")
        return {
            "kind": self.kind,
            "count": self.count,
            "raw_per_s": round(self.count / self.median_s("raw"), 2),
            "swarmctl_per_s": round(self.count / self.median_s("swarmctl"), 2),
            "ratio": round(self.ratio, 3),
            "cpu_ms_per_instance": round(cpu * 1000 / self.count, 1),
            "rounds": [asdict(one) for one in self.rounds],
        }


# --- the cluster under test ------------------------------------------------------------------


@define
class BenchCluster:
    """A controller and an agent of our own, and a connection to them."""

    client: Client
    cluster_id: str
    pids: tuple[int, ...]

    def cpu_seconds(self, *pids: int) -> float:
        """What the daemons (or those named) have used so far."""
        ticks = 0
        for pid in pids or self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def launch(self, spec: ServiceSpec) -> Round:
        """Submit, and wait until all run."""
        cpu = self.cpu_seconds()
        began = time.monotonic()
        self.client.call(
            "service.apply", {"services": [wire.encode_service(spec)], "create_only": True}
        )
        self.wait(spec.name, "running")
        seconds = time.monotonic() - began
        return Round("swarmctl", seconds, self.cpu_seconds() - cpu)

    def remove(self, spec: ServiceSpec) -> None:
        """Remove, and wait until all are gone."""
        self.client.call("service.remove", {"names": [spec.name]})
        self.wait(spec.name, "gone")

    def wait(self, name: str, condition: str) -> None:
        """Wait until a service is ``running`` or ``gone``."""
        params = {"names": [name], "for": condition, "timeout_s": WAIT_S}
        with self.client.stream("service.wait", params) as stream:
            for _ in stream:
                pass
            assert stream.result is not None


@contextmanager
def bench_cluster(agent_prefix: Sequence[str] = ()) -> Iterator[BenchCluster]:
    """Start both daemons; ended, with what they left, at the end.

    ``agent_prefix`` is a command that the agent's is given to, as its last arguments.
    """
    with tempfile.TemporaryDirectory(prefix="swarmctl-bench-") as name:
        folder = Path(name)
        # QEMU's own user passes through to the console logs.
        folder.chmod(0o711)
        data = folder / "controller"
        started: list[subprocess.Popen[bytes]] = []
        try:
            started.append(
                _start(folder, "controller", "--data", str(data), "--listen", "tcp://127.0.0.1:0")
            )
            started.append(
                _start(
                    folder,
                    *("agent", "--name", "bench", "--data", str(folder / "agent")),
                    *("--join", str(data / "join.token"), "--drivers", "docker,libvirt,oci"),
                    prefix=agent_prefix,
                )
            )
            context = parse_context((data / "admin.context").read_text(), "admin.context")
            pids = tuple(process.pid for process in started)
            with Client(context) as client:
                cluster = BenchCluster(client, context.cluster_id, pids)
                _await_ready(client)
                try:
                    yield cluster
                finally:
                    _remove_all(cluster)
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(START_S)


def _start(folder: Path, *arguments: str, prefix: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    read_end, notify = os.pipe()
    with (folder / f"{arguments[0]}.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(*prefix, sys.executable, "-P", "-m", "swarmctl"),
                *(*arguments, "--notify-fd", str(notify)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(notify,),
        )
    os.close(notify)
    with os.fdopen(read_end) as heard:
        said = heard.readline()
    assert '"ready"' in said, f"{arguments[0]} did not start: {said}"
    return process


def _await_ready(client: Client) -> None:
    deadline = time.monotonic() + START_S
    while [node["state"] for node in client.call("node.list")] != ["ready"]:
        assert time.monotonic() < deadline, client.call("node.list")
        time.sleep(0.05)


def _remove_all(cluster: BenchCluster) -> None:
    names = [one["service"] for one in cluster.client.call("service.list")]
    if names:
        cluster.client.call("service.remove", {"names": names})
        for name in names:
            cluster.wait(name, "gone")


# --- containers ------------------------------------------------------------------------------


def container_service(count: int, network: str) -> ServiceSpec:
    """The containers that are launched."""
    container = ContainerSpec(IMAGE, command=COMMAND, network=network)
    template = Template(container=container, stop_grace_period_s=0.0)
    return ServiceSpec("containers", template, replicas=count)


def _containers(cluster: BenchCluster, count: int, threads: int, rounds: int, network: str) -> Any:
    comparison = Comparison("containers", count)
    spec = container_service(count, network)
    _alternate(
        comparison,
        rounds,
        lambda: _raw_containers(count, threads, network),
        lambda: cluster.launch(spec),
        lambda: cluster.remove(spec),
    )
    return comparison


def oci_service(count: int) -> ServiceSpec:
    """The same containers without Docker; the image comes from it, once."""
    container = ContainerSpec(f"docker-daemon:{IMAGE}", command=COMMAND, network="none")
    template = Template(container=container, stop_grace_period_s=0.0)
    return ServiceSpec("oci", template, replicas=count, driver="oci")


def _without_docker(cluster: BenchCluster, count: int, threads: int, rounds: int) -> Any:
    """Containers of the oci driver beside what the Docker SDK does, both without a network."""
    comparison = Comparison("oci", count)
    spec = oci_service(count)
    _alternate(
        comparison,
        rounds,
        lambda: _raw_containers(count, threads, "none"),
        lambda: cluster.launch(spec),
        lambda: cluster.remove(spec),
    )
    return comparison


def _raw_containers(count: int, threads: int, network: str) -> Round:
    import docker

    clients = [docker.APIClient(timeout=60) for _ in range(threads)]
    idle = list(clients)

    def launch(_: int) -> str:
        client = idle.pop()
        host_config = client.create_host_config(network_mode=network or None)
        made = client.create_container(IMAGE, list(COMMAND), host_config=host_config)
        client.start(made["Id"])
        idle.append(client)
        return str(made["Id"])

    def remove(container_id: str) -> None:
        client = idle.pop()
        client.remove_container(container_id, force=True)
        idle.append(client)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda one: one.ping(), clients))
        began = time.monotonic()
        made = list(pool.map(launch, range(count)))
        seconds = time.monotonic() - began
        list(pool.map(remove, made))
    for client in clients:
        client.close()
    return Round("raw", seconds)


# --- VMs -------------------------------------------------------------------------------------


def machine_service(count: int) -> ServiceSpec:
    """The VMs that are launched: the lab's guest."""
    template = Template(
        vm=_guest(), resources=Resources(memory_bytes=VM_MEMORY_BYTES), stop_grace_period_s=0.0
    )
    return ServiceSpec("vms", template, replicas=count)


def _machines(cluster: BenchCluster, count: int, threads: int, rounds: int) -> Any:
    comparison = Comparison("vms", count)
    spec = machine_service(count)
    cluster.launch(spec.with_replicas(1))
    xml = _domain_of(cluster)
    cluster.remove(spec)
    _alternate(
        comparison,
        rounds,
        lambda: _raw_machines(xml, count, threads),
        lambda: cluster.launch(spec),
        lambda: cluster.remove(spec),
    )
    return comparison


def _guest() -> VmSpec:
    """The lab's guest."""
    done = subprocess.run(
        [sys.executable, "-m", "lab", "status", "--json"], capture_output=True, check=False
    )
    guest = json.loads(done.stdout)["parts"]["guest"]
    return VmSpec(
        kernel=guest["kernel"], initrd=guest["initrd"], cmdline=guest["cmdline"], network="none"
    )


def _domain_of(cluster: BenchCluster) -> str:
    """The XML that our driver made, to be launched without it."""
    import libvirt

    [view] = cluster.client.call("instance.list", {"all": True})
    connection = libvirt.open(LIBVIRT_URI)
    try:
        domain = connection.lookupByUUIDString(view["runtime_id"])
        return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    finally:
        connection.close()


def _raw_machines(xml: str, count: int, threads: int) -> Round:
    import libvirt

    # The XML is libvirt's own.
    with tempfile.TemporaryDirectory(prefix="swarmctl-raw-") as folder:
        connection = libvirt.open(LIBVIRT_URI)
        texts = [_renamed(xml, number, Path(folder)) for number in range(count)]
        with ThreadPoolExecutor(threads) as pool:
            began = time.monotonic()
            domains = list(pool.map(lambda text: connection.createXML(text, 0), texts))
            seconds = time.monotonic() - began
            list(pool.map(lambda domain: domain.destroy(), domains))
        del domains
        connection.close()
    return Round("raw", seconds)


def _renamed(xml: str, number: int, folder: Path) -> str:
    """The same domain under another name, without our metadata."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirtd wrote it
    for name, text in (("name", f"raw-{os.getpid()}-{number}"), ("uuid", str(uuid.uuid4()))):
        element = root.find(name)
        assert element is not None, f"a domain without {name}"
        element.text = text
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    for log in root.iterfind("./devices/*/log"):
        log.set("file", str(folder / f"{number}.log"))
    return ET.tostring(root, encoding="unicode")


# --- measuring -------------------------------------------------------------------------------


def _alternate(
    comparison: Comparison,
    rounds: int,
    raw: Callable[[], Round],
    ours: Callable[[], Round],
    remove: Callable[[], None],
) -> None:
    """One round of each that is not counted (imports, caches), then ``rounds`` of each."""
    for number in range(rounds + 1):
        pair = [raw(), ours()]
        remove()
        if number:
            comparison.rounds += pair
            said = ", ".join(f"{one.side} {comparison.count / one.seconds:.1f}/s" for one in pair)
            print(f"  {comparison.kind} round {number}: {said}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.launch_real", description=__doc__)
    parser.add_argument("--containers", type=int, default=40)
    parser.add_argument("--oci", type=int, default=40, help="containers without Docker")
    parser.add_argument("--vms", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", default="", help="Docker's default unless given")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    before = os.getloadavg()
    comparisons: list[Comparison] = []
    with bench_cluster() as cluster:
        threads, rounds = arguments.concurrency, arguments.rounds
        if arguments.containers:
            comparisons.append(
                _containers(cluster, arguments.containers, threads, rounds, arguments.network)
            )
        if arguments.oci:
            comparisons.append(_without_docker(cluster, arguments.oci, threads, rounds))
        if arguments.vms:
            comparisons.append(_machines(cluster, arguments.vms, threads, rounds))
    rows = [one.row() for one in comparisons]
    result = {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": before[0],
        "concurrency": arguments.concurrency,
        "network": arguments.network or "docker's default",
        "results": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'':12}{'count':>6}{'raw/s':>9}{'ours/s':>9}{'ratio':>8}{'cpu ms each':>13}")
    for row in rows:
        print(
            f"{row['kind']:12}{row['count']:>6}{row['raw_per_s']:>9}{row['swarmctl_per_s']:>9}"
            f"{row['ratio']:>8}{row['cpu_ms_per_instance']:>13}"
        )


if __name__ == "__main__":
    main()
