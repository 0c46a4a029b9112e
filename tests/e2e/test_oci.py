"""Containers without a daemon, as a user has them: stack files, commands, an agent that dies."""

import contextlib
from pathlib import Path

import pytest
from attrs import evolve

from tests.e2e.cluster import Cluster, box, until
from tests.oci_leftovers import take_all_away

STACK = """
services:
  web:
    image: swarmctl/testbox
    driver: oci
    network_mode: none
    command: [sh, -c, "echo hello; trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    deploy: {replicas: 2, fencing: lease}
  job:
    image: swarmctl/testbox
    driver: oci
    network_mode: none
    command: [sh, -c, "sleep 4; exit 7"]
    restart: "no"
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A controller and an agent that has no other driver."""
    cluster = Cluster(tmp_path_factory.mktemp("oci") / "cluster")
    cluster.agent("n1", drivers="oci")
    try:
        yield cluster.start()
    finally:
        cluster.close()
        take_all_away(folder_of(cluster))


@pytest.fixture
def cluster(shared):
    """The same, whole and empty again after each test."""
    try:
        yield shared.start()
    finally:
        print(shared.logs())  # noqa: T201 - captured
    shared.start()
    shared.remove_all()


def folder_of(cluster) -> Path:
    """Where the driver keeps its containers."""
    return cluster.folder / "n1" / "oci"


def test_a_stack_runs_without_docker_and_outlives_its_agent(cluster, tmp_path):
    """Applied, looked at, and adopted by the agent's next life with the same containers."""
    file = tmp_path / "compose.yaml"
    file.write_text(STACK)
    applied = cluster.swarmctl("apply", "-f", str(file), "--detach")
    assert applied.code == 0, applied.err
    cluster.wait("web", "job")
    before = cluster.ps("web")
    job = cluster.ps("job")["job.1"]
    agent = cluster.agents["n1"]
    agent.kill()
    until(lambda: cluster.call("node.list")[0]["state"] != "ready", what="the node's loss noticed")
    agent.start()
    until(cluster.all_ready, what="the node back")
    cluster.await_states({"job.1": "failed"}, "job")
    after = cluster.ps("web")
    said = cluster.swarmctl("exec", "web.1", "cat", "/www/index.html")
    logs = cluster.swarmctl("logs", "web.2")

    assert {one["driver"] for one in before.values()} == {"oci"}
    assert [one["runtime_id"] for one in after.values()] == [
        one["runtime_id"] for one in before.values()
    ]
    assert [one["restarts"] for one in after.values()] == [0, 0]
    assert cluster.ps("job")["job.1"]["runtime_id"] == job["runtime_id"]
    assert "7" in cluster.ps("job")["job.1"]["reason"]
    assert said.out.strip() == "swarmctl testbox", said.err
    assert "hello" in logs.out, logs.err


def mounts_below(folder) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]


def monitors_of(folder) -> list[bytes]:
    """The command lines of all conmons that watch over something below ``folder``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            if b"conmon" in words and str(folder).encode() in words:
                found.append(words)
    return found


def test_an_agent_killed_while_it_launches_leaves_nothing_twice(cluster):
    """Killed at moments of a launch, it goes on where it was: one container for each copy."""
    folder = folder_of(cluster)
    agent = cluster.agents["n1"]
    command = ("sh", "-c", "while :; do sleep 0.5; done")
    spec = evolve(box("many", 12, *command), driver="oci")
    cluster.apply(spec)
    for started in (1, 4, 8):
        until(
            lambda least=started: len(list((folder / "starts").glob("[0-9a-f]*"))) >= least,
            what=f"{started} started",
        )
        agent.kill()
        agent.start()
    cluster.wait("many")
    running = [one["runtime_id"] for one in cluster.ps("many").values()]
    containers = {path.name for path in (folder / "containers").glob("[0-9a-f]*")}
    monitors = monitors_of(folder)
    cluster.remove_all()

    assert len(set(running)) == 12
    assert containers == set(running)
    assert len(monitors) == 12
    until(lambda: not monitors_of(folder), what="every monitor ended")
    assert mounts_below(folder) == []
    assert list((folder / "containers").iterdir()) == []


def test_run_says_why_it_cannot_have_a_network(cluster):
    """Without a network that the driver can give, the reason reaches the user."""
    ended = cluster.swarmctl(
        "run", "--driver", "oci", "--name", "nat", "--wait", "swarmctl/testbox"
    )

    assert ended.code != 0
    assert "NAT" in ended.err + ended.out


def test_an_interrupted_agent_leaves_its_containers(cluster):
    """Ctrl-C and a service manager's stop end the agent alone."""
    ended = cluster.swarmctl(
        *("run", "--driver", "oci", "--name", "stays", "--network", "none", "--wait"),
        *("--stop-timeout", "0s", "swarmctl/testbox", "sleep", "600"),
    )
    assert ended.code == 0, ended.err
    before = cluster.ps("stays")["stays.1"]
    agent = cluster.agents["n1"]
    agent.stop()
    agent.start()
    until(cluster.all_ready, what="the node back")
    after = cluster.ps("stays")["stays.1"]

    assert (after["runtime_id"], after["restarts"]) == (before["runtime_id"], 0)


def test_the_guard_ends_a_fenced_container_whose_agent_died(tmp_path):
    """No agent, no daemon: when the lease ends, so does the container, and its end is recorded."""
    cluster = Cluster(tmp_path / "cluster")
    cluster.controller.arguments += ["--fencing-lease", "8s"]
    agent = cluster.agent("n1", drivers="oci")
    folder = folder_of(cluster)
    try:
        cluster.start()
        spec = evolve(box("only", 1, "sleep", "600"), driver="oci")
        spec = evolve(spec, fencing="lease", template=evolve(spec.template, fenced=True))
        cluster.apply(spec)
        cluster.wait("only")
        container = cluster.ps("only")["only.1"]["runtime_id"]
        agent.kill()
        end = until(lambda: _text_of(folder / "exits" / container), what="the guard's kill")
        agent.start()
        cluster.remove_all()
        agent.stop()  # With nothing to guard, its guard ends with it.
    finally:
        print(cluster.logs())  # noqa: T201 - captured
        cluster.close()
        take_all_away(folder)

    assert end == "137"


def _text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""
