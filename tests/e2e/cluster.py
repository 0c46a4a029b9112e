"""A cluster of real processes for tests: a controller and agents, each killed and started at will.

Daemons are children started by the ``swarmctl`` executable, each with a data folder of its own;
they end with the test process, however that ends (their lifeline).  What a cluster made in Docker
and libvirt is found by its cluster id and removed by :meth:`Cluster.close`.

Nothing here sleeps for time: :func:`until` asks until a condition is true, with a deadline.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import docker
import libvirt
from attrs import define, field, frozen

from swarmctl.client import Client
from swarmctl.credentials import Context, parse_context
from swarmctl.proto.errors import NoController
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Resources, ServiceSpec, Template, VmSpec

T = TypeVar("T")

IMAGE = "swarmctl/testbox:latest"
LIBVIRT_URI = "qemu:///system"
MIB = 1 << 20
# The machine of the tests has two busy cores; a daemon imports for a second on an idle one.
# These are when it is given up: thrice what has been seen there with others at their work.
START_DEADLINE_S = 90.0
LAUNCH_DEADLINE_S = 120.0
PAUSE_S = 0.03
LOG_TAIL_BYTES = 6_000
SWARMCTL = [sys.executable, "-P", "-m", "swarmctl"]


def until(condition: Callable[[], T], deadline_s: float = LAUNCH_DEADLINE_S, what: str = "it") -> T:
    """Ask until ``condition`` is true, and return what it said."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} was not so after {deadline_s:g} s: {value!r}"
        time.sleep(PAUSE_S)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@frozen
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it said of its failure, without the log lines before."""
        return [line for line in self.err.splitlines() if line and not line.startswith("{")]


@define(eq=False)
class Daemon:
    """One child process that can be killed and started again.

    ``prefix`` goes before the command: ``setpriv``, for one.
    """

    name: str
    arguments: list[str]
    log: Path
    environment: dict[str, str]
    prefix: list[str] = field(factory=list)
    process: subprocess.Popen[bytes] | None = None
    _lifeline: int = -1

    def start(self, deadline_s: float = START_DEADLINE_S) -> dict[str, Any]:
        """Start it and wait until it serves; what it says of itself."""
        heard = self._spawn(deadline_s)
        assert "ready" in heard, f"{self.name} did not start: {heard}\n{self.tail()}"
        ready: dict[str, Any] = heard["ready"]
        return ready

    def spawn(self) -> None:
        """Start it, and do not wait until it serves."""
        self._spawn(0.0)

    def _spawn(self, deadline_s: float) -> dict[str, Any]:
        assert self.process is None, f"{self.name} runs already"
        read_end, notify = os.pipe()
        lifeline, self._lifeline = os.pipe()
        descriptors = ["--notify-fd", str(notify), "--lifeline-fd", str(lifeline)]
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [*self.prefix, *SWARMCTL, *self.arguments, *descriptors],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(notify, lifeline),
                    env=self.environment,
                )
        finally:
            os.close(notify)
            os.close(lifeline)
        try:
            return _hear(read_end, deadline_s) if deadline_s else {}
        finally:
            os.close(read_end)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None, f"{self.name} does not run"
        self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and wait; its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None, f"{self.name} does not run"
        self.process.send_signal(number)
        code = self.process.wait(START_DEADLINE_S)
        self._reaped()
        return code

    def ended(self, deadline_s: float = START_DEADLINE_S) -> int:
        """Wait until it has ended by itself; its exit code."""
        assert self.process is not None, f"{self.name} does not run"
        code = self.process.wait(deadline_s)
        self._reaped()
        return code

    def _reaped(self) -> None:
        self.process = None
        os.close(self._lifeline)

    @property
    def runs(self) -> bool:
        """Whether it was started, and has not ended."""
        return self.process is not None and self.process.poll() is None

    def tail(self) -> str:
        """The end of its log."""
        data = self.log.read_bytes() if self.log.exists() else b""
        return f"--- {self.name}\n{data[-LOG_TAIL_BYTES:].decode(errors='replace')}"


def _hear(descriptor: int, deadline_s: float) -> dict[str, Any]:
    """The one line that a daemon says; nothing when it ended without a word."""
    end = time.monotonic() + deadline_s
    said = b""
    while b"\n" not in said:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not readable:
            return {"silent": f"for {deadline_s:g} s"}
        data = os.read(descriptor, 65536)
        if not data:
            return {"ended": said.decode()}
        said += data
    heard: dict[str, Any] = json.loads(said)
    return heard


@frozen
class Running:
    """What Docker says of a container: enough to know whether it is the same run."""

    id: str
    started_at: str
    running: bool
    node: str


@define(eq=False)
class Cluster:
    """A controller and its agents, below ``folder``; the controller's data is in ``home`` there."""

    folder: Path
    home: str = "controller"
    agents: dict[str, Daemon] = field(factory=dict)
    others: list[Daemon] = field(factory=list)
    port: int = field(factory=free_port)
    controller: Daemon = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.controller = self.daemon(
            "controller", "controller", "--data", str(self.data), "--listen", self.address
        )

    # --- processes ----------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The controller's data folder."""
        return self.folder / self.home

    @property
    def address(self) -> str:
        """Where the controller listens."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process: nothing of the user's own configuration."""
        kept = {key: value for key, value in os.environ.items() if "SWARMCTL" not in key}
        return kept | {
            "SWARMCTL_CONFIG": str(self.folder / "config"),
            "SWARMCTL_CONTEXT": str(self.data / "admin.context"),
            "COLUMNS": "200",
        }

    def daemon(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> Daemon:
        """A daemon of this cluster that is not started yet."""
        log = self.folder / f"{name}.log"
        made = Daemon(name, list(arguments), log, self.environment, list(prefix))
        self.others.append(made)
        return made

    def agent(self, name: str, *more: str, drivers: str = "docker") -> Daemon:
        """An agent of this cluster, not started yet."""
        made = self.daemon(
            name,
            "agent",
            *("--name", name, "--data", str(self.folder / name), "--drivers", drivers),
            *("--join", str(self.data / "join.token"), *more),
        )
        self.agents[name] = made
        return made

    def start(self) -> "Cluster":
        """Start what does not run: the controller first."""
        if not self.controller.runs:
            self.controller.start()
        for agent in self.agents.values():
            if not agent.runs:
                agent.start()
        until(self.all_ready, START_DEADLINE_S, "every node ready")
        return self

    def all_ready(self) -> bool:
        """Whether every agent's node is ready; not while nobody leads."""
        try:
            states = {node["node"]: node["state"] for node in self.call("node.list")}
        except NoController:
            return False
        return all(states.get(name) == "ready" for name in self.agents)

    def blamed(self, seconds: float) -> dict[str, str]:
        """Nodes that were called anything but ready at any time of so long, and why."""
        found: dict[str, str] = {}
        end = time.monotonic() + seconds
        with self.client() as client:
            while time.monotonic() < end:
                for node in client.call("node.list"):
                    if node["state"] != "ready":
                        found[node["node"]] = f"{node['state']}: {'; '.join(node['reasons'])}"
                time.sleep(PAUSE_S)
        return found

    def swarmctl(self, *arguments: str, deadline_s: float = LAUNCH_DEADLINE_S) -> Ended:
        """Run a command as a user does."""
        return run_swarmctl(self.environment, *arguments, deadline_s=deadline_s)

    # --- requests -----------------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """The administrator's way in."""
        path = self.data / "admin.context"
        return parse_context(path.read_text(encoding="utf-8"), str(path))

    @property
    def id(self) -> str:
        """The cluster's id; empty before the first start."""
        path = self.data / "cluster.key"
        return str(json.loads(path.read_text())["cluster_id"]) if path.exists() else ""

    def client(self) -> Client:
        """A new connection."""
        return Client(self.context)

    def call(self, method: str, params: dict[str, Any] | None = None, **options: Any) -> Any:
        """One request over a connection of its own."""
        with self.client() as client:
            return client.call(method, params, **options)

    def apply(self, *specs: ServiceSpec) -> Any:
        """Make services as given."""
        return self.call("service.apply", {"services": [wire.encode_service(one) for one in specs]})

    def wait(
        self, *names: str, condition: str = "running", deadline_s: float = LAUNCH_DEADLINE_S
    ) -> None:
        """Wait until services or instances are so."""
        params = {"names": list(names), "for": condition, "timeout_s": deadline_s}
        with self.client() as client, client.stream("service.wait", params) as stream:
            for _ in stream:
                pass
            assert stream.result is not None

    def ps(self, *names: str) -> dict[str, dict[str, Any]]:
        """Instance name to what ``ps`` shows of it; the newest where there are two."""
        views = self.call("instance.list", {"names": list(names), "all": True})
        by_age = sorted(views, key=lambda one: (one["desired"] != "removed", one["incarnation"]))
        return {one["instance"]: one for one in by_age}

    def states(self, *names: str) -> dict[str, str]:
        """Instance name to its state."""
        return {name: one["state"] for name, one in self.ps(*names).items()}

    def await_states(
        self, expected: dict[str, str], *names: str, deadline_s: float = LAUNCH_DEADLINE_S
    ) -> None:
        """Wait until ``ps`` shows exactly that."""
        end = time.monotonic() + deadline_s
        while (shown := self.states(*names)) != expected:
            reasons = {name: one["reason"] for name, one in self.ps(*names).items()}
            assert time.monotonic() < end, f"not {expected} in {deadline_s:g} s: {shown} {reasons}"
            time.sleep(PAUSE_S)

    def remove(self, *names: str) -> None:
        """Remove services and wait until they are gone."""
        self.call("service.remove", {"names": list(names)})
        self.wait(*names, condition="gone")

    def remove_all(self) -> None:
        """Remove every service, and whatever else ``ps`` shows."""
        names = {one["service"] for one in self.call("service.list")}
        names |= {one["service"] for one in self.ps().values()}
        if names:
            self.remove(*names)

    # --- what Docker and libvirt say ----------------------------------------------------------

    def containers(self, *, node: str = "", host: str = "") -> dict[str, Running]:
        """Instance name to its container, as Docker sees it; also those that do not run."""
        labels = [f"swarmctl.cluster={self.id}"] + ([f"swarmctl.node={node}"] if node else [])
        found: dict[str, Running] = {}
        with closing(docker_client(host)) as client:
            for row in client.containers(all=True, filters={"label": labels}):
                try:
                    info = client.inspect_container(row["Id"])
                except docker.errors.NotFound:
                    continue  # Removed since.
                state, its = info["State"], info["Config"]["Labels"]
                name = f"{its['swarmctl.service']}.{its['swarmctl.slot']}"
                one = Running(
                    info["Id"], state["StartedAt"], state["Running"], its["swarmctl.node"]
                )
                if name not in found or one.running:
                    found[name] = one
        return found

    def domains(self) -> dict[str, int]:
        """UUID to libvirt's number of the run (another one after each start), of what runs."""
        prefix = f"swarmctl-{self.id[:8]}-"
        with closing(libvirt.open(LIBVIRT_URI)) as connection:
            found = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return {one.UUIDString(): one.ID() for one in found if one.name().startswith(prefix)}

    # --- the end ------------------------------------------------------------------------------

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(daemon.tail() for daemon in self.others)

    def close(self) -> None:
        """End all processes, and remove all that they made."""
        for daemon in self.others:
            if daemon.process is not None:
                daemon.kill()
        if not self.id:
            return
        with closing(docker_client()) as client:
            label = f"swarmctl.cluster={self.id}"
            for row in client.containers(all=True, filters={"label": label}):
                client.remove_container(row["Id"], force=True, v=True)
        prefix = f"swarmctl-{self.id[:8]}-"
        with closing(libvirt.open(LIBVIRT_URI)) as connection:
            for domain in connection.listAllDomains():
                if domain.name().startswith(prefix):
                    if domain.isActive():
                        domain.destroy()
                    domain.undefine()


def run_swarmctl(
    environment: dict[str, str],
    *arguments: str,
    deadline_s: float = LAUNCH_DEADLINE_S,
    prefix: Sequence[str] = (),
) -> Ended:
    """Run a command to its end."""
    done = subprocess.run(
        [*prefix, *SWARMCTL, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=deadline_s,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def docker_client(host: str = "") -> Any:
    """Docker's own SDK."""
    return docker.APIClient(base_url=host or "unix:///var/run/docker.sock", timeout=60)


def box(name: str, replicas: int = 1, *command: str, **changes: Any) -> ServiceSpec:
    """A service of test containers; they sleep unless a command is given."""
    container = ContainerSpec(IMAGE, command=command or ("sleep", "3600"), network="none")
    template = Template(container=container, stop_grace_period_s=0.0)
    return ServiceSpec(name, template, replicas=replicas, **changes)


@cache
def guest_files() -> dict[str, Any]:
    """The lab's guest: kernel, initrd, cmdline."""
    done = subprocess.run(
        [sys.executable, "-m", "lab", "status", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    guest: dict[str, Any] = json.loads(done.stdout)["parts"]["guest"]
    assert guest["up"], "the lab's guest is not there: python3 -m lab up"
    return guest


def machine(name: str, replicas: int = 1, **changes: Any) -> ServiceSpec:
    """A service of test VMs."""
    guest = guest_files()
    vm = VmSpec(
        kernel=guest["kernel"], initrd=guest["initrd"], cmdline=guest["cmdline"], network="none"
    )
    template = Template(
        vm=vm, resources=Resources(memory_bytes=96 * MIB), stop_grace_period_s=0.0, **changes
    )
    return ServiceSpec(name, template, replicas=replicas)
