"""Several controllers on a real etcd: processes that are killed and frozen, and nodes that go on.

Where a leader or etcd fails, the first node has a real container and a real VM beside simulated
instances: they are the same runs after it.  The other tests are of who leads, who answers and who
is let in, which nothing that runs has a part in: there instances are simulated.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from lab.etcd import EtcdCluster
from swarmctl.client import Client
from swarmctl.controller.etcd import client as etcd_client
from swarmctl.controller.etcd.address import EtcdAddress, parse_etcd
from swarmctl.credentials import parse_context
from swarmctl.proto.errors import NoController, SwarmError
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Resources, ServiceSpec, Template
from swarmctl.transport.errors import HandshakeFailed
from tests.e2e.cluster import Cluster, Daemon, Ended, free_port, run_swarmctl, until
from tests.integration import real_instances
from tests.integration.etcd_fixture import etcd_of, own_address

# Lease (4 s), look (0.25 s), start of a leader; and slack for a busy machine.
FAILOVER_S = 60.0
# A container and a VM.
REAL = len(real_instances.SERVICES)


def service(name: str, replicas: int = 4) -> ServiceSpec:
    resources = Resources(memory_bytes=1 << 20)
    template = Template(container=ContainerSpec("box"), resources=resources)
    return ServiceSpec(name, template, replicas=replicas, driver="sim")


class Controllers:
    """Some controllers and nodes; requests go to whoever leads.

    ``address`` is the place in etcd that is theirs, if not all of it is.
    """

    def __init__(
        self, folder: Path, etcd: EtcdCluster, count: int, address: EtcdAddress | None = None
    ) -> None:
        self.folder = folder
        self.etcd = etcd
        self.address = address or parse_etcd(etcd.url)
        self.base = Cluster(folder, home="c0")
        self.ports = [free_port() for _ in range(count)]
        self.controllers = [self.make(number) for number in range(count)]
        self.agents: list[Daemon] = []

    def make(self, number: int, *more: str) -> Daemon:
        return self.base.daemon(
            f"c{number}",
            *("controller", "--data", str(self.folder / f"c{number}")),
            *("--store", str(self.address)),
            *("--listen", f"tcp://127.0.0.1:{self.ports[number]}", *more),
        )

    def start(self, nodes: int = 2, first: str = "sim") -> "Controllers":
        """All controllers, and so many nodes; ``first`` are the drivers of the first one."""
        for controller in self.controllers:
            controller.start()
        until(lambda: self.leader() is not None, FAILOVER_S, "a leader")
        for number in range(nodes):
            self.agents.append(self.agent(f"n{number}", drivers="sim" if number else first))
        for agent in self.agents:
            agent.start()
        self.await_ready()
        return self

    def agent(self, name: str, token_of: int = 0, drivers: str = "sim") -> Daemon:
        return self.base.daemon(
            name,
            *("agent", "--name", name, "--data", str(self.folder / name), "--drivers", drivers),
            *("--join", str(self.folder / f"c{token_of}" / "join.token")),
        )

    def await_ready(self) -> None:
        def ready() -> bool:
            states = {one["node"]: one["state"] for one in self.ask("node.list")}
            return all(states.get(agent.name) == "ready" for agent in self.agents)

        until(ready, FAILOVER_S, "nodes ready")

    # --- who leads ----------------------------------------------------------------------------

    def leader(self) -> int | None:
        """The number of who leads, by what the etcd says."""
        with closing(etcd_client.EtcdClient(self.address)) as client:
            found = etcd_client.entries(client.range(self.address.key("leader"), deadline_s=30))
        if not found:
            return None
        (port,) = (one.rpartition(":")[2] for one in json.loads(found[0][1])["addresses"])
        return self.ports.index(int(port))

    def await_leader(self, other_than: int = -1) -> int:
        return until(
            lambda: [one] if (one := self.leader()) not in (None, other_than) else [],
            FAILOVER_S,
            "another leader",
        )[0]

    # --- requests -----------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of all controllers."""
        return tuple(f"tcp://127.0.0.1:{port}" for port in self.ports)

    def client(self, of: int | None = None) -> Client:
        """By the context that controller ``of`` wrote; by default whichever is there."""
        numbers = range(len(self.controllers)) if of is None else [of]
        path = next(p for n in numbers if (p := self.folder / f"c{n}" / "admin.context").exists())
        return Client(parse_context(path.read_text(encoding="utf-8"), str(path)))

    def ask(
        self, method: str, params: dict[str, Any] | None = None, timeout_s: float = 10.0
    ) -> Any:
        """As a user who tries again does."""

        def attempt() -> list[Any]:
            try:
                with self.client() as client:
                    return [client.call(method, params or {}, timeout_s=timeout_s)]
            except SwarmError:
                return []

        return until(attempt, FAILOVER_S, method)[0]

    def client_at(self, number: int) -> Client:
        """By one controller alone."""
        path = self.folder / f"c{number}" / "admin.context"
        context = parse_context(path.read_text(encoding="utf-8"), str(path))
        return Client(evolve(context, addresses=(self.addresses[number],)))

    def asked_at(self, number: int, method: str, params: dict[str, Any] | None = None) -> Any:
        """One request there alone, as soon as it listens: between two roles nobody does.

        The request has to work at once, whatever becomes of the connection.
        """

        def connection() -> list[Client]:
            try:
                return [self.client_at(number)]
            except (NoController, HandshakeFailed):
                return []  # It went away, or was about to.

        with until(connection, FAILOVER_S, f"controller {number} listens")[0] as client:
            return client.call(method, params or {}, timeout_s=20.0)

    def refusal(self) -> list[SwarmError]:
        """How a write fails now; empty if it does not."""
        spec = wire.encode_service(service("refused", 0))
        try:
            with self.client() as client:
                client.call("service.apply", {"services": [spec]}, timeout_s=12.0)
        except SwarmError as error:
            return [error]
        return []

    def apply(self, *specs: ServiceSpec) -> None:
        self.ask("service.apply", {"services": [wire.encode_service(one) for one in specs]})

    def runs(self) -> dict[str, tuple[str, str, int]]:
        """Instance to what tells one run from another."""
        return {
            one["instance"]: (one["node"], one["runtime_id"], one["restarts"])
            for one in self.ask("instance.list", {"names": [], "all": True})
            if one["state"] == "running"
        }

    def await_running(self, count: int) -> dict[str, tuple[str, str, int]]:
        until(lambda: len(self.runs()) == count, FAILOVER_S, f"{count} running")
        return self.runs()

    def mend(self, nodes: int = 2) -> None:
        """All processes as at the start, those nodes alone, and no service."""
        self.etcd.start()
        self._thaw()
        for daemon in (*self.controllers, *self.agents):
            if daemon.process is not None and not daemon.runs:
                daemon.ended()
            if daemon.process is None:
                daemon.start()
        for number in range(len(self.controllers)):
            assert self.asked_at(number, "node.list")
        for extra in self.agents[nodes:]:
            self.ask("node.remove", {"name": extra.name, "force": True})
            extra.ended()
        del self.agents[nodes:]
        self.await_ready()
        names = [one["service"] for one in self.ask("service.list")]
        if names:
            self.ask("service.remove", {"names": names})
        params = {"names": [], "all": True}
        until(lambda: not self.ask("instance.list", params), FAILOVER_S, "nothing left")

    def _thaw(self) -> None:
        for daemon in self.base.others:
            if daemon.process is not None:
                daemon.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self._thaw()
        self.base.close()


@pytest.fixture(scope="module")
def etcd():
    with etcd_of(3) as cluster:
        yield cluster


@contextmanager
def started(made: Controllers, nodes: int, first: str = "sim") -> Iterator[Controllers]:
    """Them with so many nodes; ``first`` are the drivers of the first one."""
    try:
        yield made.start(nodes, first)
    finally:
        print(made.base.logs())  # noqa: T201 - captured
        made.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster):
    """Three controllers and two nodes, the first one with containers and VMs."""
    made = Controllers(tmp_path_factory.mktemp("three"), etcd, 3, own_address(etcd))
    with started(made, 2, f"sim,{real_instances.DRIVERS}"):
        yield made


@pytest.fixture
def controllers(three: Controllers):
    """They, whole and empty again after each test."""
    try:
        yield three
    finally:
        print(three.base.logs())  # noqa: T201 - captured
    three.mend()


@pytest.fixture
def real(controllers: Controllers):
    """With a real container and a real VM, which are the same runs at the end of the test."""
    with real_instances.untouched(controllers.base, controllers.ask):
        yield controllers


# A process that is frozen takes as long again to be noticed.
KILLED_OR_FROZEN = [
    pytest.param(signal.SIGKILL, id="killed"),
    pytest.param(signal.SIGSTOP, id="frozen", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("number", KILLED_OR_FROZEN)
def test_another_leads_when_the_leader_is(real: Controllers, number: signal.Signals):
    """Writes are taken again within seconds; every instance runs on; the old one does no harm."""
    real.apply(service("web", 6))
    before = real.await_running(6 + REAL)
    old = real.await_leader()

    began = time.monotonic()
    real.controllers[old].send_signal(number)
    if number == signal.SIGKILL:
        real.controllers[old].ended()
    real.apply(service("after", 2))
    took_s = time.monotonic() - began
    print(f"failover: {took_s:.2f} s")  # noqa: T201 - captured

    new = real.await_leader(old)
    after = real.await_running(8 + REAL)
    assert after.items() >= before.items()
    if number == signal.SIGSTOP:
        real.controllers[old].send_signal(signal.SIGCONT)
    else:
        real.controllers[old].start()
    # The old one follows: what it is asked it passes on, and nothing of what it knew is done.
    assert real.asked_at(old, "node.list")
    real.apply(service("web", 3))
    real.await_running(5 + REAL)
    assert real.leader() == new
    assert took_s < FAILOVER_S


@pytest.mark.parametrize(
    "number",
    [
        # The harder one of the two is enough every time.
        pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, id="frozen"),
    ],
)
def test_reads_do_not_fail_in_a_failover(controllers: Controllers, number: signal.Signals):
    """Commands and a connection that was there before are answered throughout; so is an apply."""
    controllers.apply(service("web", 2))
    controllers.await_running(2)
    old = controllers.await_leader()
    over = threading.Event()
    told: list[Ended] = []
    asked: list[int] = []

    def commands() -> None:
        # The context of one that stays: it knows all addresses, the old leader's among them.
        path = str(controllers.folder / f"c{(old + 1) % 3}" / "admin.context")
        while not over.is_set():
            for command in (["ps"], ["node", "ls"]):
                environment = controllers.base.environment
                told.append(run_swarmctl(environment, "--context", path, *command))

    def requests() -> None:
        spec = wire.encode_service(service("web", 2))
        with controllers.client_at(old) as client:
            client.context = evolve(client.context, addresses=controllers.addresses)
            while not over.is_set():
                asked.append(len(client.call("node.list", timeout_s=FAILOVER_S)))
                client.call("service.apply", {"services": [spec]}, timeout_s=FAILOVER_S)

    with ThreadPoolExecutor() as threads:
        users = [threads.submit(commands), threads.submit(requests)]
        try:
            until(lambda: told and asked, what="both ask")
            controllers.controllers[old].send_signal(number)
            controllers.await_leader(old)
            controllers.await_ready()
            seen = len(told), len(asked)
            until(lambda: len(told) > seen[0] + 1 and len(asked) > seen[1] + 1, what="more")
        finally:
            over.set()
        for user in users:
            user.result()
    assert [one for one in told if one.code] == []
    assert set(asked) == {2}


def test_any_controller_answers_by_the_leader(controllers: Controllers):
    """Reads, writes and streams at each of three, whoever's context is used."""
    for number in range(3):
        spec = wire.encode_service(service(f"s{number}", 2))
        controllers.asked_at(number, "service.apply", {"services": [spec]})
        with controllers.client_at(number) as client:
            params = {"names": [f"s{number}"], "for": "running", "timeout_s": FAILOVER_S}
            with client.stream("service.wait", params) as stream:
                for _ in stream:
                    pass
                assert stream.result is not None
    for number in range(3):
        services = controllers.asked_at(number, "service.list")
        assert {one["service"] for one in services} == {"s0", "s1", "s2"}


def test_the_cluster_outlives_who_made_it(controllers: Controllers, tmp_path: Path):
    """The first controller and its folder are gone for good: its token and context still work."""
    first = controllers.await_leader()
    folder = controllers.folder / f"c{first}"
    token, context = ((folder / name).read_text() for name in ("join.token", "admin.context"))
    controllers.controllers[first].kill()
    shutil.rmtree(folder)
    controllers.await_leader(first)

    (tmp_path / "kept.token").write_text(token)
    late = controllers.base.daemon(
        "late",
        *("agent", "--name", "late", "--data", str(tmp_path / "late"), "--drivers", "sim"),
        *("--join", str(tmp_path / "kept.token")),
    )
    late.start()
    controllers.agents.append(late)
    controllers.await_ready()
    with Client(parse_context(context, "kept")) as client:
        assert len(client.call("node.list")) == 3
    # An empty folder becomes a controller of the same cluster.
    controllers.controllers[first].start()
    again = parse_context((folder / "admin.context").read_text(), "again")
    assert again.public_key == parse_context(context, "kept").public_key


def test_a_node_learns_of_a_controller_that_came_later(tmp_path: Path, etcd: EtcdCluster):
    """It joined when there was one; that one goes, and it finds the other."""
    cluster = Controllers(tmp_path, etcd, 2, own_address(etcd))
    second = cluster.controllers.pop()
    try:
        cluster.start(nodes=1)
        cluster.controllers.append(second)
        second.start()
        known = tmp_path / "n0" / "node.json"
        until(lambda: str(cluster.ports[1]) in known.read_text(), FAILOVER_S, "it is known")
        cluster.controllers[0].kill()
        (tmp_path / "c0" / "admin.context").unlink()
        cluster.await_leader(0)
        cluster.await_ready()
    finally:
        print(cluster.base.logs())  # noqa: T201 - captured
        cluster.close()


@pytest.mark.parametrize("number", KILLED_OR_FROZEN)
def test_etcds_members_fail_one_then_two(
    real: Controllers, etcd: EtcdCluster, number: signal.Signals
):
    """One of three is not missed. Two: nothing stops, writes are refused by name, then it heals."""
    real.apply(service("web", 4))
    before = real.await_running(4 + REAL)

    etcd.members[0].send_signal(number)
    real.apply(service("one", 1))
    real.await_running(5 + REAL)

    etcd.members[1].send_signal(number)
    until(lambda: "majority" in str(real.refusal()), FAILOVER_S, "a refusal by name")
    for member in etcd.members[:2]:
        if number == signal.SIGSTOP:
            member.send_signal(signal.SIGCONT)
        else:
            member.kill()
            etcd.spawn(member)
    real.apply(service("two", 1))
    after = real.await_running(6 + REAL)
    assert after.items() >= before.items()


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_revoked_token_stays_revoked(tmp_path: Path, etcd: EtcdCluster, nodes: int):
    """Whoever leads next has a file with the token, and does not take it for news.

    Where there is nothing yet, not even a node, there is a new token: what else would let one in.
    """
    with started(Controllers(tmp_path, etcd, 2, own_address(etcd)), nodes=nodes) as controllers:
        (token,) = controllers.ask("token.list")
        controllers.ask("token.revoke", {"id": token["id"]})
        old = controllers.await_leader()
        controllers.controllers[old].kill()
        new = controllers.await_leader(old)
        later = [one["id"] for one in controllers.asked_at(new, "token.list")]
        assert token["id"] not in later
        assert len(later) == (nodes == 0)
        assert (tmp_path / f"c{new}" / "join.token").exists() is (nodes == 0)


def test_a_restored_store_begins_on_hold(tmp_path: Path):
    """Older than what runs: nothing is taken away before an operator has looked and said so."""
    cluster = Cluster(tmp_path)
    store, backup = f"sqlite:{cluster.data / 'store.db'}", tmp_path / "backup.db"
    try:
        cluster.agent("n0", drivers="sim")
        cluster.start()
        cluster.apply(service("web", 2))
        cluster.wait("web")
        assert cluster.swarmctl("store", "backup", store, str(backup)).code == 0
        cluster.apply(service("web", 4), service("new", 1))
        cluster.wait("web", "new")
        before = {name: one["runtime_id"] for name, one in cluster.ps().items()}
        assert len(before) == 5

        cluster.controller.kill()
        refused = cluster.swarmctl("store", "restore", str(backup), store)
        assert refused.code == 1
        assert "not empty" in refused.err
        for file in cluster.data.glob("store.db*"):
            file.unlink()
        restored = cluster.swarmctl("store", "restore", str(backup), store)
        assert restored.code == 0, restored.err
        cluster.controller.start()
        until(cluster.all_ready, what="the node")
        assert cluster.call("cluster.info")["hold"]

        def shown() -> bool:
            now = cluster.ps()
            runtime_ids = {name: one["runtime_id"] for name, one in now.items()}
            states = {one["state"] for one in now.values()}
            return runtime_ids == before and states == {"running", "quarantined"}

        until(shown, what="all of it in ps")

        assert "backup" in cluster.swarmctl("store", "release").out
        # What the store knows becomes true; what it does not know is still not touched.
        until(lambda: set(cluster.ps()) == {"web.1", "web.2", "new.1"}, what="the backup's truth")
        after = {name: one["runtime_id"] for name, one in cluster.ps().items()}
        assert after == {name: before[name] for name in after}
    finally:
        print(cluster.logs())  # noqa: T201 - captured
        for daemon in cluster.others:
            if daemon.process is not None:
                daemon.kill()
