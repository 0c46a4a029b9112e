"""The commands that move instances: drain, cordon, uncordon, rebalance; and who makes room."""

import json
import signal
import subprocess

import pytest
from attrs import evolve

from swarmctl.spec.stack import load_stack
from tests.e2e.cluster import SWARMCTL, Cluster, until

NODES = ("n1", "n2", "n3")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):
    """Three nodes of simulated containers, two cores each."""
    made = Cluster(tmp_path_factory.mktemp("trio"))
    for name in NODES:
        made.agent(name, "--capacity", "cpu=2", drivers="sim")
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def trio_of(shared: Cluster):
    """The same, empty and open again after each test."""
    try:
        yield shared
    finally:
        print(shared.logs())  # noqa: T201 - captured
    shared.remove_all()
    assert shared.swarmctl("node", "uncordon", *NODES).code == 0
    until(shared.all_ready, what="every node open again")


def run(cluster: Cluster, name: str, *arguments: str):
    """Start a service of simulated containers, and wait for it."""
    ended = cluster.swarmctl("run", "--name", name, "--driver", "sim", "--wait", *arguments, "box")
    assert ended.code == 0, ended.err


def nodes(cluster: Cluster) -> dict[str, str]:
    """Name to state, as ``node ls`` says."""
    ended = cluster.swarmctl("node", "ls", "-o", "json")
    return {one["node"]: one["state"] for one in json.loads(ended.out)}


def places(cluster: Cluster, name: str) -> dict[str, str]:
    """Instance to node of what runs."""
    ended = cluster.swarmctl("ps", name, "-o", "json")
    rows = json.loads(ended.out)
    return {one["instance"]: one["node"] for one in rows if one["state"] == "running"}


def test_drain_moves_what_runs_and_uncordon_ends_it(trio_of: Cluster):
    """The node is shown as draining, and is empty when the command ends."""
    run(trio_of, "web", "--replicas", "6", "--cpus", "0.1")
    ended = trio_of.swarmctl("node", "drain", "n1")

    assert ended.code == 0, ended.err
    assert ended.out == "n1\n"
    assert "drained: n1" in ended.err
    assert nodes(trio_of)["n1"] == "draining"
    until(lambda: len(places(trio_of, "web")) == 6, what="all six run")
    assert "n1" not in places(trio_of, "web").values()

    assert trio_of.swarmctl("node", "uncordon", "n1").code == 0
    assert nodes(trio_of)["n1"] == "ready"
    assert trio_of.swarmctl("node", "cordon", "n1").code == 0
    assert nodes(trio_of)["n1"] == "cordoned"


def test_what_has_no_room_elsewhere_stays_and_is_explained(trio_of: Cluster):
    """Exit code 4, with the instance and the reason; the drain goes on."""
    run(trio_of, "pinned", "--cpus", "0.1", "--constraint", "node.name == n1")
    ended = trio_of.swarmctl("node", "drain", "n1")

    assert ended.code == 4
    assert "pinned.1: no other node takes it: 0 of 3 nodes fit" in ended.err
    assert "the drain goes on" in ended.err
    assert "swarmctl node uncordon n1" in ended.err
    assert places(trio_of, "pinned") == {"pinned.1": "n1"}
    explained = trio_of.swarmctl("explain", "pinned.1")
    assert "the node is being drained: no other node takes it" in explained.out

    late = trio_of.swarmctl("node", "drain", "--timeout", "1s", "n1")
    assert late.code == 4
    assert "still there after 1 s" in late.err


def test_ctrl_c_says_what_goes_on(trio_of: Cluster):
    """The drain does; and how to end it."""
    run(trio_of, "pinned", "--cpus", "0.1", "--constraint", "node.name == n1")
    with subprocess.Popen(
        [*SWARMCTL, "node", "drain", "n1"],
        env=trio_of.environment,
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal, also when the tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        until(lambda: nodes(trio_of)["n1"] == "draining", what="the drain")
        until(lambda: process.poll() is None, what="the command looks on")
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "n1: 1 left; pinned.1 stays" in first
    assert "the drain of n1 goes on without you" in said
    assert "undo: swarmctl node uncordon n1" in said
    assert nodes(trio_of)["n1"] == "draining"


def test_drain_detached_and_of_a_node_that_is_not_there(trio_of: Cluster):
    """Noted at once; a wrong name is an error."""
    ended = trio_of.swarmctl("node", "drain", "--detach", "n2")
    assert (ended.code, ended.out, ended.err) == (0, "n2\n", "")
    ended = trio_of.swarmctl("node", "drain", "nx")
    assert ended.code == 1
    assert "no node 'nx'" in ended.err


def test_a_drains_deadline_is_shown_until_it_ends(trio_of: Cluster):
    """How long what has no room elsewhere may stay; not once nobody is drained."""
    assert trio_of.swarmctl("node", "drain", "--detach", "--deadline", "90m", "n2").code == 0
    assert "what is left is taken away in 1h" in trio_of.swarmctl("node", "ls").out
    views = json.loads(trio_of.swarmctl("node", "ls", "-o", "json").out)
    assert [one["node"] for one in views if one["drain_deadline"]] == ["n2"]

    assert trio_of.swarmctl("node", "uncordon", "n2").code == 0
    assert "taken away" not in trio_of.swarmctl("node", "ls").out


def test_rebalance_shows_its_moves_and_makes_them(trio_of: Cluster):
    """A dry run does not; even nodes are left alone."""
    trio_of.swarmctl("node", "cordon", "n2", "n3")
    run(trio_of, "web", "--replicas", "6", "--cpus", "0.2")
    trio_of.swarmctl("node", "uncordon", "n2", "n3")
    planned = trio_of.swarmctl("node", "rebalance", "--dry-run", "-o", "json")
    assert {one["from"] for one in json.loads(planned.out)} == {"n1"}
    assert set(places(trio_of, "web").values()) == {"n1"}

    ended = trio_of.swarmctl("node", "rebalance")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("INSTANCE")

    def even() -> bool:
        found = list(places(trio_of, "web").values())
        return len(found) == 6 and max(map(found.count, found)) <= 3

    until(even, what="even loads")
    until(lambda: "nothing to move" in trio_of.swarmctl("node", "rebalance").err, what="the end")


def test_a_higher_priority_makes_room_and_the_victim_says_so(trio_of: Cluster, tmp_path):
    """Through a stack file, as users write it."""
    stack = tmp_path / "stack.yaml"
    stack.write_text(
        "services:\n"
        "  low: {image: box, deploy: {replicas: 6, resources: {reservations: {cpus: '1'}}}}\n"
        "  vip: {image: box, deploy: {replicas: 1, priority: 50,"
        " resources: {reservations: {cpus: '1'}}}}\n"
    )
    run(trio_of, "low", "--replicas", "6", "--cpus", "1")
    text = stack.read_text(encoding="utf-8")
    vip = load_stack([(str(stack), text)], {}, str).services[-1]
    assert vip.priority == 50
    trio_of.apply(evolve(vip, driver="sim"))
    name = vip.name
    until(lambda: len(places(trio_of, name)) == 1, what="the important one")

    def waiting() -> list[dict]:
        rows = json.loads(trio_of.swarmctl("ps", "low", "-o", "json").out)
        return [one for one in rows if one["state"] == "pending"]

    [pending] = until(waiting, what="the victim waits")
    assert pending["reason"].startswith(f"preempted by {name}.1 (priority 50) on n")
    assert "preempted by" in trio_of.swarmctl("explain", pending["instance"]).out
