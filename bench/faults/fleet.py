"""Faults that fencing and the storm brake are for, a controller's clock, and etcd's own leader."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from attrs import evolve

from bench.faults.nodes import COPIES, pair, runs, settled, state_of, with_own_docker
from bench.faults.rows import Row, Watch
from bench.faults.several import on_etcd
from lab.etcd import EtcdCluster
from swarmctl.proto import limits
from swarmctl.spec.models import ServiceSpec
from tests.e2e.cluster import Cluster, box, docker_client, until
from tests.integration.test_clock_steps import HOUR_S, SOURCE, WATCHED_S, with_clock
from tests.integration.test_controllers import Controllers, service
from tests.integration.test_etcd_leader_change import leading_member

# A launch that takes some seconds, so that a leader can be killed in the midst of it.
MANY: Final = 10_000
MANY_NODES: Final = 4
# More than a fifth of them, and at least five, are a storm.
STORM_NODES: Final = 8
VANISH: Final = 6


# --- fencing ---------------------------------------------------------------------------------


def fenced_node_frozen(folder: Path) -> Row:
    """Agent and dockerd stop at once: nobody but the guard is left to end what is fenced."""
    with with_own_docker(folder) as (cluster, dockerd):
        assert dockerd.process is not None
        cluster.call("node.change", {"names": ["a"], "cordoned": True})
        cluster.apply(_fenced("only"))
        cluster.wait("only")
        cluster.call("node.change", {"names": ["a"], "cordoned": False})
        with closing(docker_client(dockerd.host)) as client:
            state = client.inspect_container(cluster.ps("only")["only.1"]["runtime_id"])["State"]
        process = Path(f"/proc/{state['Pid']}")
        watch = Watch()
        dockerd.process.send_signal(signal.SIGSTOP)
        cluster.agents["b"].send_signal(signal.SIGSTOP)
        try:
            noticed_s = watch.until(lambda: state_of(cluster, "b") == "lost", "loss")
            killed_s = watch.until(lambda: not process.exists(), "end of the first")
            assert not _runs_on_a(cluster), "the second came before the first had ended"
            healed_s = watch.until(lambda: _runs_on_a(cluster), "second")
        finally:
            dockerd.process.send_signal(signal.SIGCONT)
            cluster.agents["b"].send_signal(signal.SIGCONT)
    outcome = "its guard ends what is fenced there when the lease does; only then it runs elsewhere"
    more = {"ended by its guard": killed_s}
    return Row(
        f"agent and dockerd of a fenced copy: SIGSTOP, lease {limits.FENCING_LEASE_S:g} s",
        outcome,
        healed_s,
        "the fault",
        noticed_s,
        more,
    )


def _fenced(name: str) -> ServiceSpec:
    spec = box(name, 1)
    return evolve(spec, template=evolve(spec.template, fenced=True), fencing="lease")


def _runs_on_a(cluster: Cluster) -> bool:
    found = cluster.containers(node="a").get("only.1")
    return found is not None and found.running


# --- the storm brake -------------------------------------------------------------------------


def storm(folder: Path) -> Row:
    """Most nodes fall silent at once, for longer than a node may; and come back."""
    cluster = Cluster(folder)
    names = [f"n{number}" for number in range(STORM_NODES)]
    for name in names:
        cluster.agent(name, drivers="sim")
    silent = [cluster.agents[name] for name in names[:VANISH]]
    try:
        cluster.start()
        cluster.apply(service("web", STORM_NODES * COPIES))
        cluster.wait("web")
        before = _homes(cluster)
        watch = Watch()
        for agent in silent:
            agent.send_signal(signal.SIGSTOP)
        noticed_s = watch.until(lambda: _brakes(cluster), "brake")
        watch.until(
            lambda: all(state_of(cluster, name) == "lost" for name in names[:VANISH]), "losses"
        )
        assert _homes(cluster) == before, "something was placed anew"
        watch = Watch()
        for agent in silent:
            agent.send_signal(signal.SIGCONT)
        healed_s = watch.until(cluster.all_ready, "return")
        until(lambda: _homes(cluster) == before, what="the same instances")
    finally:
        for agent in silent:
            if agent.process is not None:
                agent.send_signal(signal.SIGCONT)
        cluster.close()
    return Row(
        f"{VANISH} of {STORM_NODES} nodes vanish at once",
        "rescheduling brakes, and says so; when they return nothing has moved or restarted",
        healed_s,
        "their return",
        noticed_s,
    )


def _homes(cluster: Cluster) -> set[tuple[str, str, str, int]]:
    """Every copy, with its node, its run, and how often it was started again."""
    return {
        (name, one["node"], one["runtime_id"], one["restarts"])
        for name, one in cluster.ps("web").items()
    }


def _brakes(cluster: Cluster) -> bool:
    reasons = [str(one["reasons"]) for one in cluster.call("node.list")]
    return any("node release" in one for one in reasons)


# --- the controller's clock ------------------------------------------------------------------


def controllers_clock_stepped(folder: Path) -> Row:
    """An hour ahead, and back again."""
    library = folder.parent / "stepped_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    with pair(folder) as cluster:
        # Of four nodes two used to be blamed; of two, one.
        for name in ("c", "d"):
            cluster.agent(name, drivers="sim")
        cluster.controller.kill()
        step = with_clock(cluster.controller, library)
        cluster.start()
        until(cluster.all_ready, what="all nodes")
        before = runs(cluster)
        watch = Watch()
        step(HOUR_S)
        cluster.apply(box("meanwhile", 1))
        cluster.wait("meanwhile")
        healed_s = watch.passed_s
        blamed = cluster.blamed(WATCHED_S)
        assert not blamed, blamed
        cluster.remove("meanwhile")
        step(0)
        blamed = cluster.blamed(WATCHED_S)
        assert not blamed, blamed
        until(lambda: settled(cluster, before), what="the same containers")
    outcome = "no node is called sick or lost, nothing restarts, launches go on"
    return Row(
        "the controller's clock stepped by an hour", outcome, healed_s, "the step, until a launch"
    )


# --- etcd's own leader -----------------------------------------------------------------------


@contextmanager
def _launching(folder: Path) -> Iterator[tuple[Controllers, EtcdCluster]]:
    with on_etcd(folder, 2) as (made, etcd):
        for number in range(MANY_NODES):
            agent = made.agent(f"n{number}")
            agent.arguments += ["--capacity", "memory=64g"]
            made.agents.append(agent)
        made.start(nodes=0)
        yield made, etcd


def etcds_leader_killed(folder: Path) -> Row:
    """Kill -9 of the member that leads, in the midst of a launch."""
    with _launching(folder) as (controllers, etcd):

        def running() -> int:
            found: int = controllers.ask("cluster.statistics")["states"].get("running", 0)
            return found

        controllers.apply(service("many", MANY))
        until(lambda: running() > 0, what="the first ones")
        watch = Watch()
        etcd.members[leading_member(etcd)].kill()
        controllers.apply(service("meanwhile", 1))
        committed_s = watch.passed_s
        healed_s = watch.until(lambda: running() == MANY + 1, "all of them")
        counted = sum(one["instances"] for one in controllers.ask("node.list"))
        assert counted == MANY + 1, f"{counted} instances in place of {MANY + 1}"
        controllers.await_ready()
    return Row(
        f"etcd's leader, in a launch of {MANY:,}: kill -9",
        "all of them run, once",
        healed_s,
        "the fault, until all run",
        None,
        {"until the next commit": committed_s},
    )


FAULTS: Final[dict[str, Callable[[Path], Row]]] = {
    "fenced-node-frozen": fenced_node_frozen,
    "storm": storm,
    "controllers-clock-stepped": controllers_clock_stepped,
    "etcds-leader-killed": etcds_leader_killed,
}
