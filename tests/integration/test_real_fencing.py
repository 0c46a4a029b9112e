"""Fencing on real containers and VMs: never two at once, whoever is killed or stopped.

Four agents on this machine are four nodes. Three fail at the same moment, each in its way; the
fourth takes what they had. A thread looks through /proc all the time and notes every process of
every copy, so that two that live at once would be seen, also for some milliseconds.
"""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from attrs import define, evolve, field

from lab import procs
from swarmctl.spec.models import Placement
from tests.e2e.cluster import Cluster, box, docker_client, machine, until

LEASE_S = 8.0
# The controller waits for the lease, for the kill and for clocks that drift.
PLACED_AFTER_S = LEASE_S + 5.0
IMAGE = "swarmctl/testbox:latest"
CONTAINER_ID = re.compile(rb"[0-9a-f]{64}")


@define(eq=False)
class Watcher:
    """Sees every process of marked copies, and when it lived.

    ``lives`` is by mark and by container id or domain UUID: first and last time seen.
    """

    marks: dict[str, bytes]
    lives: dict[str, dict[bytes, list[float]]] = field(factory=dict)
    rounds: int = 0
    longest_s: float = 0.0
    _stop: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        last = time.monotonic()
        while not self._stop.is_set():
            self._look()
            now = time.monotonic()
            self.longest_s, last = max(self.longest_s, now - last), now
            self.rounds += 1
            time.sleep(0.005)

    def _look(self):
        for entry in os.listdir("/proc"):  # noqa: PTH208 - it is done all the time
            if not entry.isdigit():
                continue
            try:
                cmdline = Path(f"/proc/{entry}/cmdline").read_bytes()
                mark = next((one for one, text in self.marks.items() if text in cmdline), None)
                if mark is None or b"runc" in cmdline or b"shim" in cmdline:
                    continue
                name = self._name(entry, cmdline)
            except OSError:
                continue
            if name:
                now = time.monotonic()
                self.lives.setdefault(mark, {}).setdefault(name, [now, now])[1] = now

    def _name(self, entry, cmdline):
        words = cmdline.split(b"\0")
        if b"-uuid" in words[:-1]:
            return words[words.index(b"-uuid") + 1]
        found = CONTAINER_ID.findall(Path(f"/proc/{entry}/cgroup").read_bytes())
        return found[0] if found else b""


@pytest.fixture
def private_dockerd(tmp_path):
    """A dockerd of the test's own, in its own namespaces: it may be stopped. (process, address)."""
    folder = tmp_path / "docker"
    address = f"unix://{folder}/sock"
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "dockerd", "--host", address, "--iptables=false",
             "--bridge=none", "--data-root", str(folder / "data"), "--exec-root",
             str(folder / "exec"), "--pidfile", str(folder / "pid")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: (folder / "sock").exists() and _answers(address), 60.0, "a private dockerd")
        image = subprocess.run(["docker", "save", IMAGE], capture_output=True, check=True)
        subprocess.run(
            ["docker", "-H", address, "load"], input=image.stdout, check=True, timeout=60
        )
        yield process, address
    finally:
        process.send_signal(signal.SIGCONT)
        if _answers(address):
            client = docker_client(address)
            for row in client.containers(all=True):
                client.remove_container(row["Id"], force=True)
            client.close()
        process.terminate()
        process.wait(30)


def _answers(address):
    return (
        subprocess.run(
            ["docker", "-H", address, "version"], capture_output=True, timeout=10, check=False
        ).returncode
        == 0
    )


def marked(name, node):
    """A fenced container of ``node`` that may go to ``spare``, known by its command."""
    spec = box(name, 1, "sh", "-c", f"while :; do sleep 0.2; done # {name}-marked")
    placement = Placement(constraints=(f"node.name in ({node}, spare)",))
    return evolve(spec, template=evolve(spec.template, fenced=True), placement=placement)


def guard_logs():
    return [path.read_text() for path in Path("/run/swarmctl").glob("guard-*/log")]


@pytest.mark.alone
def test_never_two_at_once(tmp_path, private_dockerd):
    """Agent stopped, agent killed, agent and dockerd stopped: dead before the next one starts."""
    dockerd, address = private_dockerd
    cluster = Cluster(tmp_path / "cluster")
    cluster.controller.arguments += ["--fencing-lease", f"{LEASE_S:g}s"]
    cluster.agent("stopped", drivers="docker,libvirt")
    cluster.agent("killed")
    cluster.agent("deaf", "--docker-host", address)
    names = ("web", "vm", "paused", "late")
    try:
        cluster.start()
        vm = machine("vm", fenced=True)
        vm = evolve(vm, placement=Placement(constraints=("node.name in (stopped, spare)",)))
        cluster.apply(
            marked("web", "stopped"), vm, marked("paused", "killed"), marked("late", "deaf")
        )
        cluster.wait(*names)
        cluster.agent("spare", drivers="docker,libvirt")
        cluster.start()
        before = {name: cluster.ps(name)[f"{name}.1"] for name in names}
        assert [before[name]["node"] for name in names] == ["stopped", "stopped", "killed", "deaf"]
        marks = {name: f"{name}-marked".encode() for name in ("web", "paused", "late")}
        marks["vm"] = f"guest=swarmctl-{cluster.id[:8]}-".encode()
        with Watcher(marks) as watcher:
            until(lambda: len(watcher.lives) == 4, what="the watcher's first look")
            _fail(cluster, dockerd, before)
            failed_at = time.monotonic()
            until(
                lambda: all(len(found) == 2 for found in watcher.lives.values()),
                PLACED_AFTER_S + 40.0,
                "all four elsewhere",
            )
            cluster.wait(*names)
            _heal(cluster, dockerd)
            until(cluster.all_ready, 40.0, "every node back")
            time_to_settle = time.monotonic() + 3.0
            until(lambda: time.monotonic() > time_to_settle, 5.0)
        _judge(watcher, before, failed_at)
        after = {name: cluster.ps(name)[f"{name}.1"] for name in names}
        assert {one["node"] for one in after.values()} == {"spare"}
        cluster.remove_all()
        for agent in cluster.agents.values():
            agent.stop()  # With nothing to guard, their guards end with them.
    finally:
        print(cluster.logs(), *guard_logs())  # noqa: T201 - captured
        _heal(cluster, dockerd)
        cluster.close()


def _fail(cluster, dockerd, before):
    """All at once: as a machine would hang, or half of it die."""
    client = docker_client()
    client.pause(before["paused"]["runtime_id"])
    client.close()
    dockerd.send_signal(signal.SIGSTOP)
    cluster.agents["deaf"].send_signal(signal.SIGSTOP)
    cluster.agents["stopped"].send_signal(signal.SIGSTOP)
    cluster.agents["killed"].kill()


def _heal(cluster, dockerd):
    dockerd.send_signal(signal.SIGCONT)
    for name in ("deaf", "stopped"):
        if cluster.agents[name].runs:
            cluster.agents[name].send_signal(signal.SIGCONT)
    if cluster.agents["killed"].process is None and cluster.controller.runs:
        cluster.agents["killed"].start()


def _judge(watcher, before, failed_at):
    """What the watcher saw of each: the first gone before the second came, and in time."""
    assert watcher.longest_s < 2.0, f"it looked away for {watcher.longest_s:.1f} s"
    for name, lives in watcher.lives.items():
        first, second = before[name]["runtime_id"].encode(), None
        (second,) = set(lives) - {first}
        ended, began = lives[first][1], lives[second][0]
        print(  # noqa: T201 - captured
            f"{name}: ended {ended - failed_at:.2f} s after the failure, "
            f"the next began {began - ended:.2f} s after that"
        )
        assert ended < began, f"two of {name} lived at once"
        assert LEASE_S - 4.0 < ended - failed_at < LEASE_S + 1.0
        assert began - ended > 3.0


def test_a_guard_that_is_killed_is_replaced(tmp_path):
    """The agent starts another, which has the list; the service runs on."""
    cluster = Cluster(tmp_path / "cluster")
    cluster.agent("n1")
    try:
        cluster.start()
        cluster.apply(marked("web", "n1"))
        cluster.wait("web")
        before = cluster.ps("web")["web.1"]
        mine = _guards_of(cluster.agents["n1"].process.pid)
        assert len(mine) == 1
        os.kill(mine[0], signal.SIGKILL)
        until(lambda: set(_guards_of(cluster.agents["n1"].process.pid)) - set(mine), what="a guard")
        after = cluster.ps("web")["web.1"]
        assert (after["state"], after["runtime_id"]) == ("running", before["runtime_id"])

        cluster.remove("web")
        (guard,) = _guards_of(cluster.agents["n1"].process.pid)
        cluster.agents["n1"].stop()
        until(lambda: _has_ended(guard), what="its end")
    finally:
        print(cluster.logs())  # noqa: T201 - captured
        cluster.close()


def _guards_of(agent):
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = (entry / "stat").read_text().rpartition(") ")[2].split()[1]
            except OSError:
                continue
            if b"swarmctl.agent.guard" in words and int(parent) == agent:
                found.append(int(entry.name))
    return found


def _has_ended(pid):
    """Whether it is gone, or only its exit code is left."""
    return procs.read_stat(pid) is None


@pytest.mark.slow  # Twenty seconds, most of them until it is noticed.
def test_dockerd_is_frozen(tmp_path, private_dockerd):
    """The node is sick and says why, what runs there runs on, and what comes runs elsewhere."""
    dockerd, address = private_dockerd
    cluster = Cluster(tmp_path / "cluster")
    cluster.agent("deaf", "--docker-host", address)
    try:
        cluster.start()
        cluster.apply(box("web"))
        cluster.wait("web")
        before = cluster.ps("web")["web.1"]
        cluster.agent("well")
        cluster.start()
        dockerd.send_signal(signal.SIGSTOP)
        until(lambda: "docker" in _reasons(cluster)["deaf"], 60.0, "a node that is sick")
        cluster.apply(box("late", 2))
        cluster.wait("late")
        assert {one["node"] for one in cluster.ps("late").values()} == {"well"}
        dockerd.send_signal(signal.SIGCONT)
        until(cluster.all_ready, 40.0, "the node well again")
        after = cluster.ps("web")["web.1"]
        assert (after["node"], after["runtime_id"], after["state"]) == (
            "deaf",
            before["runtime_id"],
            "running",
        )
        assert after["restarts"] == 0
    finally:
        print(cluster.logs())  # noqa: T201 - captured
        dockerd.send_signal(signal.SIGCONT)
        cluster.close()


def _reasons(cluster):
    return {one["node"]: "; ".join(one["reasons"]) for one in cluster.call("node.list")}
