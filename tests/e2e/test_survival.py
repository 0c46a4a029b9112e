"""What outlives what: daemons are killed and containers taken away, on real Docker and libvirt."""

import shutil
import signal
import threading
import time
from contextlib import closing

import pytest
import trio
from attrs import evolve

from swarmctl.agent.drivers.api import Launch, Owner, resource_name
from swarmctl.agent.drivers.docker.config import container_body
from swarmctl.controller.store.sqlite import SqliteStore
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import SwarmError
from swarmctl.spec import wire
from swarmctl.spec.models import Placement, RestartCondition, RestartPolicy
from tests.e2e.cluster import Cluster, box, docker_client, machine, until

# The promises that are tested (seconds).
TRUTH_S = 3.0
REPLACED_S = 2.0
AT_ONCE_S = 1.0
# On a quiet machine both hold with room to spare; a busy one may take longer without being wrong.
SLACK = 5
# An agent takes away what was created and never started after this, and a bit.
ORPHAN_S = 45.0

FIRST = Placement(constraints=("node.labels.seat == first",))
SECOND = Placement(constraints=("node.labels.seat == second",))
BOTH = Placement(max_replicas_per_node=2)
NEVER = RestartPolicy(RestartCondition.NEVER)


def once(name: str, **changes):
    """A service whose containers are not restarted."""
    spec = box(name, **changes)
    return evolve(spec, template=evolve(spec.template, restart=NEVER))


def kill_container(container_id: str) -> None:
    """End it behind everyone's back."""
    with closing(docker_client()) as client:
        client.kill(container_id, "KILL")


def remove_container(container_id: str) -> None:
    """Take it away behind everyone's back."""
    with closing(docker_client()) as client:
        client.remove_container(container_id, force=True)


def incarnation_of(view: dict) -> int:
    return incarnations.parse(view["incarnation"])


# --- kill -9 ---------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("victims", ["controller", "agents", "all"])
def test_nothing_restarts_when_daemons_are_killed(cluster: Cluster, victims: str):
    """After kill -9 and a new start: the same runs of all instances, and ps is true within 3 s."""
    cluster.apply(box("web", 4, placement=BOTH), once("odd"), machine("vm", 1))
    cluster.wait("web", "odd", "vm")
    shown, containers, domains = cluster.ps(), cluster.containers(), cluster.domains()
    assert len(containers) == 5
    assert len(domains) == 1

    agents = [] if victims == "controller" else list(cluster.agents.values())
    controller = victims != "agents"
    if controller:
        cluster.controller.kill()
    for agent in agents:
        agent.kill()
    kill_container(containers["odd.1"].id)
    began = time.monotonic()
    if controller:
        cluster.controller.start()
    for agent in agents:
        agent.spawn()

    def true() -> bool:
        now = cluster.ps()
        same = all(now[name]["runtime_id"] == one["runtime_id"] for name, one in shown.items())
        states = {name: one["state"] for name, one in now.items()}
        return same and states.pop("odd.1") == "failed" and set(states.values()) == {"running"}

    until(lambda: len(cluster.ps()) == len(shown) and true(), what="ps")
    took = time.monotonic() - began
    now = cluster.containers()
    del now["odd.1"], containers["odd.1"]
    assert now == containers
    assert cluster.domains() == domains
    assert {one["restarts"] for one in cluster.ps().values()} == {0}
    assert took < TRUTH_S * SLACK, f"the truth took {took:.1f} s"


def test_no_acknowledged_service_is_lost(cluster: Cluster):
    """The controller dies in a stream of applies: every acknowledged service is there after."""
    acknowledged: list[str] = []
    over = threading.Event()

    def apply() -> None:
        with cluster.client() as client:
            for number in range(100_000):
                if over.is_set():
                    return
                name = f"s{number}"
                encoded = wire.encode_service(box(name, replicas=0))
                try:
                    client.call("service.apply", {"services": [encoded]}, timeout_s=5.0)
                except SwarmError:
                    return
                acknowledged.append(name)

    writer = threading.Thread(target=apply)
    writer.start()
    until(lambda: len(acknowledged) > 100, what="a hundred applies")
    cluster.controller.kill()
    # It would go on with the next controller: what counts here is what this one acknowledged.
    over.set()
    writer.join(30.0)
    assert not writer.is_alive()
    cluster.controller.start()

    names = {one["service"] for one in cluster.call("service.list")}
    assert set(acknowledged) <= names
    assert len(names) <= len(acknowledged) + 1


# --- behind our back -------------------------------------------------------------------------


@pytest.mark.alone
def test_killed_container_runs_again_within_two_seconds(cluster: Cluster):
    """A container killed behind our back runs again by policy, and ps counts the restart."""
    cluster.apply(box("web"))
    cluster.wait("web")
    before = cluster.containers()["web.1"]
    began = time.monotonic()
    kill_container(before.id)

    def back() -> bool:
        one = cluster.containers().get("web.1")
        return one is not None and one.running and one.started_at != before.started_at

    until(back, what="running again")
    took = time.monotonic() - began
    view = until(lambda: cluster.ps()["web.1"]["restarts"] == 1 and cluster.ps()["web.1"])
    assert view["state"] == "running"
    assert took < REPLACED_S * SLACK, f"it took {took:.1f} s"


@pytest.mark.alone
def test_removed_container_is_made_again(cluster: Cluster):
    """After docker rm -f behind our back another one is made in its place."""
    cluster.apply(box("web", 2))
    cluster.wait("web")
    before = cluster.containers()
    began = time.monotonic()
    remove_container(before["web.1"].id)

    def back() -> bool:
        one = cluster.containers().get("web.1")
        return one is not None and one.running and one.id != before["web.1"].id

    until(back, what="made again")
    took = time.monotonic() - began
    until(lambda: cluster.ps()["web.1"]["restarts"] == 1, what="the restart counted")
    assert cluster.containers()["web.2"] == before["web.2"]
    assert took < REPLACED_S * SLACK, f"it took {took:.1f} s"


# --- two agents, one dockerd -----------------------------------------------------------------


def test_two_agents_share_one_dockerd(cluster: Cluster):
    """Removing one's service and restarting one agent leaves the other's containers alone."""
    cluster.apply(box("left", 2, placement=FIRST), box("right", 2, placement=SECOND))
    cluster.wait("left", "right")
    right = cluster.containers(node="n2")
    assert {one.node for one in cluster.containers().values()} == {"n1", "n2"}
    assert set(right) == {"right.1", "right.2"}

    cluster.agents["n1"].kill()
    cluster.agents["n1"].start()
    cluster.remove("left")

    assert cluster.containers() == right
    cluster.agents["n2"].kill()
    cluster.agents["n2"].start()
    cluster.await_states({"right.1": "running", "right.2": "running"})
    assert cluster.containers() == right


def test_two_clusters_share_one_dockerd(cluster: Cluster, own: Cluster):
    """A node of the same name in another cluster does not touch what is not its own."""
    cluster.apply(box("web", 2, placement=FIRST))
    cluster.wait("web")
    before = cluster.containers()
    own.agent("n1")
    own.start()
    own.apply(box("web"))
    own.wait("web")
    own.remove("web")

    assert own.containers() == {}
    assert cluster.containers() == before


# --- terms -----------------------------------------------------------------------------------


def test_restored_store_raises_its_term_and_stops_nothing(own: Cluster):
    """An older store meets agents that saw later terms: it goes above them, unknown ones stay."""
    own.agent("n1")
    own.start()
    own.apply(box("old"))
    own.wait("old")
    own.controller.stop()
    backup = own.folder / "backup.db"
    shutil.copy(own.data / "store.db", backup)
    for _ in range(2):
        own.controller.start()
        own.controller.stop()
    own.controller.start()
    own.apply(box("new"))
    own.wait("new")
    seen = own.call("cluster.info")["term"]
    before = own.containers()
    own.controller.stop()
    for file in own.data.glob("store.db*"):
        file.unlink()
    shutil.copy(backup, own.data / "store.db")
    own.controller.start()

    own.await_states({"old.1": "running", "new.1": "quarantined"})
    assert own.call("cluster.info")["term"] > seen
    assert own.containers() == before
    own.apply(box("new"))
    own.await_states({"old.1": "running", "new.1": "running"})
    assert own.containers() == before


# --- an empty store, and none ----------------------------------------------------------------


def empty_store(cluster: Cluster) -> None:
    """A sound store that knows nothing, in place of the controller's."""
    for file in cluster.data.glob("store.db*"):
        file.unlink()

    async def make() -> None:
        store = await SqliteStore.open(cluster.data / "store.db", new_cluster_id=lambda: cluster.id)
        await store.aclose()

    trio.run(make)


def test_empty_store_stops_nothing(own: Cluster):
    """What runs is shown as quarantined; adopt and apply take it in as it runs, rm removes it."""
    own.agent("n1")
    own.start()
    own.apply(box("kept", 2), box("gone"), once("ended"), box("more", 2))
    own.wait("kept", "gone", "ended", "more")
    before = own.containers()
    own.controller.kill()
    empty_store(own)
    own.controller.start()

    names = ["ended.1", "gone.1", "kept.1", "kept.2", "more.1", "more.2"]
    own.await_states(dict.fromkeys(names, "quarantined"))
    assert own.containers() == before
    for one in own.ps().values():
        said = ("service adopt", "apply", "swarmctl rm")
        assert all(text in one["reason"] for text in said)

    done = own.swarmctl("service", "adopt", "more")
    assert (done.code, "2/2" in done.out) == (0, True), done
    own.wait("more")
    assert own.containers() == before

    own.apply(box("kept", 2), box("other"))
    own.wait("kept", "other")
    after = own.containers()
    assert {name: after[name] for name in before} == before
    own.call("service.remove", {"names": ["gone"]})
    until(lambda: "gone.1" not in own.states(), what="gone")
    left = {"kept.1", "kept.2", "other.1", "ended.1", "more.1", "more.2"}
    assert set(own.containers()) == left


@pytest.mark.parametrize("damage", [pytest.param("lost", marks=pytest.mark.slow), "truncated"])
def test_a_store_is_rebuilt_from_what_runs(own: Cluster, damage: str):
    """Refused until --rebuild; that begins on hold, shows what runs, and its release adopts it."""
    own.agent("n1")
    own.agent("n2")
    own.start()
    own.apply(box("web", 4, placement=BOTH), box("still"), box("gone"))
    own.wait("web", "still", "gone")
    own.call("service.stop", {"names": ["still"]})
    own.wait("still", condition="stopped")
    before = own.containers()
    own.controller.kill()
    store = own.data / "store.db"
    if damage == "truncated":
        store.write_bytes(store.read_bytes()[:2000])
    for file in own.data.glob("store.db-*" if damage == "truncated" else "store.db*"):
        file.unlink()

    refused = own.swarmctl(*own.controller.arguments)
    assert refused.code == 1
    assert "store restore" in refused.err
    assert "controller --rebuild" in refused.err
    assert "Traceback" not in refused.err
    own.controller.arguments.append("--rebuild")
    own.controller.start()
    own.controller.arguments.pop()
    assert bool(list(own.data.glob("*.damaged-*"))) == (damage == "truncated")

    until(own.all_ready, what="both nodes are back")
    own.await_states(dict.fromkeys(before, "quarantined"))
    # It outlives the controller, and nothing is told to any node meanwhile.
    own.controller.kill()
    own.controller.start()
    until(own.all_ready, what="both nodes are back")
    own.await_states(dict.fromkeys(before, "quarantined"))
    assert "on hold: rebuilt" in own.swarmctl("node", "ls").err
    assert own.swarmctl("rm", "gone", "--detach").code == 0
    shown = own.swarmctl("store", "release", "--dry-run")
    assert (shown.code, "4/4" in shown.out) == (0, True), shown
    assert own.containers() == before

    released = own.swarmctl("store", "release")
    assert (released.code, "4/4" in released.out) == (0, True), released
    until(lambda: "gone.1" not in own.containers(), what="what was removed on hold")
    own.wait("web")
    del before["gone.1"]
    assert own.containers() == before
    slots = [f"web.{slot}" for slot in range(1, 5)]
    own.await_states(dict.fromkeys(slots, "running") | {"still.1": "stopped"})
    kill_container(before["web.1"].id)
    until(lambda: own.containers()["web.1"].started_at != before["web.1"].started_at)
    own.call("service.scale", {"replicas": {"web": 2}})
    until(lambda: len(own.containers()) == 3, what="two of web and the stopped one")


# --- creates that collide with themselves ----------------------------------------------------


def view_launch(spec, view: dict) -> Launch:
    """The launch of the instance that ps shows."""
    return Launch(spec.name, 1, incarnation_of(view), spec.template)


def launch_of(cluster: Cluster, spec, view: dict) -> tuple[str, dict]:
    """The name and the body with which the agent would create it."""
    owner = Owner(cluster.id, view["node"])
    launch = view_launch(spec, view)
    return resource_name(owner, launch), container_body(owner, launch)


def test_create_that_was_not_followed_by_a_start_collides_with_itself(cluster: Cluster):
    """An agent killed between create and start goes on with what it created."""
    spec = box("web", placement=FIRST)
    cluster.apply(spec)
    cluster.wait("web")
    view = cluster.ps()["web.1"]
    name, body = launch_of(cluster, spec, view)
    cluster.agents["n1"].kill()
    remove_container(view["runtime_id"])
    with closing(docker_client()) as client:
        created = client.create_container_from_config(body, name)["Id"]
    cluster.agents["n1"].start()

    until(lambda: cluster.containers()["web.1"].running, what="started")
    until(lambda: cluster.states() == {"web.1": "running"}, what="shown")
    assert {one.id for one in cluster.containers().values()} == {created}
    assert cluster.ps()["web.1"]["runtime_id"] == created


def test_killed_while_it_launches_makes_nothing_twice(cluster: Cluster):
    """An agent killed again and again amid launches ends with one container for each instance."""
    cluster.apply(box("web", 12, placement=FIRST))
    for made in (1, 4, 8):
        until(lambda made=made: len(cluster.containers()) >= made, what=f"{made} containers")
        cluster.agents["n1"].kill()
        cluster.agents["n1"].start()
    cluster.wait("web")

    with closing(docker_client()) as client:
        label = f"swarmctl.cluster={cluster.id}"
        rows = client.containers(all=True, filters={"label": label})
    assert len(rows) == 12
    assert {one["runtime_id"] for one in cluster.ps().values()} == {row["Id"] for row in rows}


# --- slots and overrides ---------------------------------------------------------------------


def test_scale_down_removes_the_highest_slots(cluster: Cluster):
    """Four copies scaled to two: 1 and 2 run on, 3 and 4 are gone."""
    cluster.apply(box("web", 4))
    cluster.wait("web")
    before = cluster.containers()
    cluster.call("service.scale", {"replicas": {"web": 2}})
    cluster.await_states({"web.1": "running", "web.2": "running"})

    until(lambda: len(cluster.containers()) == 2, what="two containers")
    assert cluster.containers() == {name: before[name] for name in ("web.1", "web.2")}


def test_what_was_asked_of_single_instances_outlives_the_controller(cluster: Cluster):
    """The stop, restart and rm of one instance hold over kill -9, and start undoes them."""
    cluster.apply(box("web", 4))
    cluster.wait("web")
    before = cluster.containers()
    cluster.call("service.stop", {"names": ["web.2"]})
    cluster.call("service.restart", {"names": ["web.3"]})
    cluster.call("service.remove", {"names": ["web.4"]})
    cluster.controller.kill()
    cluster.controller.start()

    expected = {"web.1": "running", "web.2": "stopped", "web.3": "running"}
    cluster.await_states(expected)
    cluster.wait("web")
    until(lambda: "web.4" not in cluster.containers(), what="web.4 gone")
    after = cluster.containers()
    assert after["web.1"] == before["web.1"]
    assert not after["web.2"].running
    assert after["web.3"].started_at != before["web.3"].started_at
    cluster.controller.kill()
    cluster.controller.start()
    cluster.await_states(expected)
    assert cluster.containers() == after, "the restart was carried out once"

    cluster.call("service.start", {"names": ["web.2", "web.4"]})
    cluster.await_states({f"web.{slot}": "running" for slot in (1, 2, 3, 4)})


def test_rm_while_the_agent_is_away_is_carried_out_when_it_returns(cluster: Cluster):
    """Stopping and removing on a node that is not there succeed at once, and happen later."""
    cluster.apply(box("web", placement=FIRST), box("still", placement=FIRST))
    cluster.wait("web", "still")
    cluster.agents["n1"].kill()
    began = time.monotonic()
    cluster.call("service.remove", {"names": ["web"]})
    cluster.call("service.stop", {"names": ["still"]})
    assert time.monotonic() - began < AT_ONCE_S * SLACK
    assert len(cluster.containers()) == 2
    cluster.agents["n1"].start()

    until(lambda: "web.1" not in cluster.containers(), what="web gone")
    until(lambda: not cluster.containers()["still.1"].running, what="still stopped")


# --- one process a folder --------------------------------------------------------------------


def test_second_agent_on_a_folder_is_refused(cluster: Cluster):
    """An agent's folder is locked; the second one says who has it, and how to go on."""
    first = cluster.agents["n1"]
    assert first.process is not None
    done = cluster.swarmctl(*first.arguments)

    assert done.code == 1
    assert f"in use by process {first.process.pid}" in done.lines[0]
    assert "--data" in done.lines[1]
    assert first.runs


def test_second_session_with_the_same_key_is_refused(cluster: Cluster):
    """A copied folder does not make a second node: it is refused, and both are named."""
    copied = cluster.folder / "copy"
    shutil.copytree(cluster.folder / "n1", copied)
    first = cluster.agents["n1"]
    assert first.process is not None
    arguments = [
        str(copied) if one == str(cluster.folder / "n1") else one for one in first.arguments
    ]
    done = cluster.swarmctl(*arguments)
    shutil.rmtree(copied)

    assert done.code == 1
    assert "n1" in done.lines[0]
    assert f"process {first.process.pid}" in done.err
    until(cluster.all_ready, what="both ready")


def test_stopped_agent_leaves_its_instances(cluster: Cluster):
    """SIGTERM ends the daemons only, at once, with code 0."""
    cluster.apply(box("web", 2))
    cluster.wait("web")
    before = cluster.containers()
    assert cluster.agents["n1"].stop() == 0
    assert cluster.agents["n2"].stop() == 0
    assert cluster.controller.stop() == 0

    assert cluster.containers() == before
    # The agents first: a controller waits for those that it knows, but not for long.
    for agent in cluster.agents.values():
        agent.start()
    cluster.start()
    cluster.await_states({"web.1": "running", "web.2": "running"})
    assert cluster.containers() == before


def test_paused_agent_is_lost_and_returns(cluster: Cluster):
    """A node that hangs is called lost, its instances go elsewhere; what was replaced ends."""
    cluster.apply(box("web", placement=Placement()))
    cluster.wait("web")
    view = cluster.ps()["web.1"]
    hung = cluster.agents[view["node"]]
    hung.send_signal(signal.SIGSTOP)
    try:

        def moved() -> bool:
            now = cluster.ps()["web.1"]
            return now["state"] == "running" and now["node"] != view["node"]

        until(moved, what="running elsewhere")
        assert view["runtime_id"] in {
            one.id for one in cluster.containers(node=view["node"]).values()
        }
    finally:
        hung.send_signal(signal.SIGCONT)

    until(lambda: not cluster.containers(node=view["node"]), what="the replaced one taken away")
    until(cluster.all_ready, what="both ready")
    assert cluster.states() == {"web.1": "running"}


# --- who may come back -----------------------------------------------------------------------


def test_removed_node_does_not_come_back_by_itself(own: Cluster):
    """After node rm the agent ends, says why, and its kept token does not let it in again."""
    agent = own.agent("n1")
    own.start()
    own.call("node.remove", {"name": "n1", "force": True})

    assert agent.ended() == 1
    said = agent.tail()
    assert "was removed (node rm)" in said
    assert "Traceback" not in said
    done = own.swarmctl(*agent.arguments)
    assert done.code == 1
    assert "was removed (node rm)" in done.err
    assert not own.call("node.list")


def test_controller_that_hung_is_deposed(own: Cluster):
    """A controller that wakes up after another took over can change nothing, and ends."""
    own.agent("n1")
    own.start()
    own.apply(box("web"))
    own.wait("web")
    before = own.containers()
    other = Cluster(own.folder / "other")
    other.data.mkdir(parents=True)
    for name in ("cluster.key", "admin.context", "join.token"):
        shutil.copy(own.data / name, other.data / name)
    store = own.data / "store.db"
    successor = own.daemon(
        "successor",
        *("controller", "--data", str(other.data), "--listen", other.address),
        *("--store", f"sqlite:{store}"),
    )
    own.controller.send_signal(signal.SIGSTOP)
    successor.start()
    assert other.call("cluster.info")["term"] > 1
    own.controller.send_signal(signal.SIGCONT)

    with pytest.raises(SwarmError):
        own.apply(box("late"))
    assert own.controller.ended() == 1
    assert "error: " in own.controller.tail()
    assert "another controller" in own.controller.tail().rpartition("error: ")[2]
    assert [one["service"] for one in other.call("service.list")] == ["web"]
    assert own.containers() == before


# --- strangers -------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def strange(tmp_path_factory: pytest.TempPathFactory):
    """A cluster whose agent lost its journal and finds containers that nobody knows.

    Made before the first test and looked at by the last one: what was created and never started is
    given half a minute.
    """
    strange = Cluster(tmp_path_factory.mktemp("strange"))
    try:
        strange.agent("n1")
        strange.start()
        plant_strangers(strange)
        yield strange
    finally:
        print(strange.logs())  # noqa: T201 - captured
        strange.close()


def plant_strangers(cluster: Cluster) -> None:
    """Beside a container that is known, one that runs and one that was only created."""
    spec = box("web")
    cluster.apply(spec)
    cluster.wait("web")
    view = cluster.ps()["web.1"]
    stranger, orphan = (
        evolve(view_launch(spec, view), service=name, incarnation=incarnation_of(view) + number)
        for number, name in enumerate(("stranger", "orphan"), 1)
    )
    owner = Owner(cluster.id, "n1")
    cluster.agents["n1"].kill()
    with closing(docker_client()) as client:
        for one in (stranger, orphan):
            client.create_container_from_config(
                container_body(owner, one), resource_name(owner, one)
            )
        client.start(resource_name(owner, stranger))
    for file in (cluster.folder / "n1").glob("journal.db*"):
        file.unlink()
    before = cluster.containers()
    cluster.agents["n1"].start()
    expected = {"web.1": "running", "stranger.1": "quarantined", "orphan.1": "quarantined"}
    cluster.await_states(expected)
    assert cluster.containers() == before


def test_containers_that_nobody_remembers(strange: Cluster):
    """Of containers with our labels, one that runs is shown and left; one never started is reaped.

    The journal is lost with the agent's folder, so only the labels tell of them.
    """
    until(lambda: "orphan.1" not in strange.containers(), ORPHAN_S, "the orphan reaped")
    strange.await_states({"web.1": "running", "stranger.1": "quarantined"})
    after = strange.containers()
    assert after["stranger.1"].running
    assert after["web.1"].id == strange.ps()["web.1"]["runtime_id"]
    strange.remove("stranger")
    assert set(strange.containers()) == {"web.1"}
