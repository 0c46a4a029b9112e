"""Faults of controllers and of etcd: three of each, simulated instances, and users who write on."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

from attrs import define, field

from bench.faults.rows import PATIENCE_S, Row, Watch
from lab.etcd import EtcdCluster
from swarmctl.client import Client
from swarmctl.credentials import Context, parse_context
from swarmctl.proto.errors import SwarmError
from swarmctl.spec import wire
from tests.e2e.cluster import until
from tests.integration.test_controllers import Controllers, service

NODES: Final = 4
INSTANCES: Final = 200
USERS: Final = 4
# Of load before the fault.
LOAD_S: Final = 3.0
# Of one request of a user; a failover has to fit.
REQUEST_S: Final = 30.0


@contextmanager
def on_etcd(folder: Path, count: int) -> Iterator[tuple[Controllers, EtcdCluster]]:
    """So many controllers, not started, on three members of etcd; what they said, if it fails."""
    with EtcdCluster(folder / "etcd", 3) as etcd:
        made = Controllers(folder, etcd, count)
        try:
            yield made, etcd
        except BaseException:
            print(made.base.logs())
            raise
        finally:
            made.close()


@contextmanager
def three(folder: Path) -> Iterator[tuple[Controllers, EtcdCluster]]:
    """Three controllers on three members of etcd, nodes, and instances that run."""
    with on_etcd(folder, 3) as (made, etcd):
        made.start(nodes=NODES)
        made.apply(service("web", INSTANCES))
        made.await_running(INSTANCES)
        yield made, etcd


def context_of(controllers: Controllers) -> Context:
    """A way in that knows all controllers."""
    path = next(controllers.folder.glob("c*/admin.context"))
    found = parse_context(path.read_text(encoding="utf-8"), str(path))
    assert len(found.addresses) == 3, found.addresses
    return found


@define
class Users:
    """Threads that apply one service after the other, each over one connection of its own."""

    context: Context
    acknowledged: list[tuple[float, str]] = field(factory=list)
    slowest_s: float = 0.0
    failures: list[str] = field(factory=list)
    _over: threading.Event = field(factory=threading.Event)
    _threads: list[threading.Thread] = field(factory=list)

    def __enter__(self) -> "Users":
        self._threads = [
            threading.Thread(target=partial(self._live, number)) for number in range(USERS)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(REQUEST_S * 2)

    def _live(self, number: int) -> None:
        count = 0
        with Client(self.context) as client:
            while not self._over.is_set():
                count += 1
                name = f"u{number}-{count}"
                encoded = wire.encode_service(service(name, 0))
                began = time.monotonic()
                try:
                    client.call("service.apply", {"services": [encoded]}, timeout_s=REQUEST_S)
                except SwarmError as error:
                    self.failures.append(f"{name}: {error}")
                    continue
                now = time.monotonic()
                self.slowest_s = max(self.slowest_s, now - began)
                self.acknowledged.append((now, name))

    def acknowledged_since(self, began: float) -> bool:
        """Whether a write that was answered since then is durable."""
        return any(at > began for at, _ in self.acknowledged[-USERS:])

    def pause_s(self) -> float:
        """The longest time in which no write was acknowledged to anybody."""
        times = sorted(at for at, _ in self.acknowledged)
        return max(b - a for a, b in pairwise(times))


def _judge(controllers: Controllers, users: Users, before: dict[str, tuple[str, str, int]]) -> None:
    """Nothing that was acknowledged is lost, and no instance has restarted."""
    there = {one["service"] for one in controllers.ask("service.list", timeout_s=REQUEST_S)}
    lost = {name for _, name in users.acknowledged} - there
    assert not lost, f"acknowledged, and lost: {sorted(lost)[:5]}"
    assert not users.failures, users.failures[:3]
    assert controllers.runs() == before


def leader_fails(number: signal.Signals, folder: Path) -> Row:
    """The leader is killed or frozen while users write."""
    with three(folder) as (controllers, _):
        before = controllers.runs()
        old = controllers.await_leader()
        with Users(context_of(controllers)) as users:
            time.sleep(LOAD_S)
            watch = Watch()
            controllers.controllers[old].send_signal(number)
            noticed_s = watch.until(
                lambda: controllers.leader() not in (None, old), "another leader"
            )
            controllers.await_ready()
            healed_s = watch.passed_s
            time.sleep(LOAD_S)
        _judge(controllers, users, before)
    name = {signal.SIGKILL: "kill -9", signal.SIGSTOP: "SIGSTOP"}[number]
    return Row(
        f"leader of three controllers, under load: {name}",
        f"{USERS} users write on, no request fails, nothing acknowledged is lost, "
        "no instance restarts",
        healed_s,
        "the fault, until every node has a session",
        noticed_s,
        {"longest pause of writes": users.pause_s()},
    )


def a_member_fails(number: signal.Signals, folder: Path) -> Row:
    """One member of three is not missed."""
    with three(folder) as (controllers, etcd):
        before = controllers.runs()
        with Users(context_of(controllers)) as users:
            time.sleep(LOAD_S)
            watch = Watch()
            etcd.members[0].send_signal(number)
            healed_s = watch.until(lambda: users.acknowledged_since(watch.began), "a write")
            time.sleep(LOAD_S * 2)
        etcd.members[0].send_signal(signal.SIGCONT)
        _judge(controllers, users, before)
    name = {signal.SIGKILL: "kill -9", signal.SIGSTOP: "SIGSTOP"}[number]
    return Row(
        f"one of three etcd members, under load: {name}",
        f"{USERS} users write on, no request fails",
        healed_s,
        "the fault, until the next write",
        None,
        {"longest pause of writes": users.pause_s()},
    )


def two_members_fail(number: signal.Signals, folder: Path) -> Row:
    """Without a majority writes are refused by name, and what runs runs on."""
    with three(folder) as (controllers, etcd):
        before = controllers.runs()
        watch = Watch()
        for member in etcd.members[:2]:
            member.send_signal(number)
        noticed_s = watch.until(lambda: "majority" in str(controllers.refusal()), "refusal")
        watch = Watch()
        for member in etcd.members[:2]:
            if number == signal.SIGSTOP:
                member.send_signal(signal.SIGCONT)
            else:
                member.kill()
                etcd.spawn(member)
        controllers.apply(service("after", 0))
        controllers.await_ready()
        healed_s = watch.passed_s
        until(lambda: controllers.runs() == before, PATIENCE_S, "the same instances")
    name = {signal.SIGKILL: "kill -9", signal.SIGSTOP: "SIGSTOP"}[number]
    return Row(
        f"two of three etcd members: {name}",
        "writes are refused by name, no instance restarts",
        healed_s,
        "their return, until a write and all sessions",
        noticed_s,
    )


FAULTS: Final[dict[str, Callable[[Path], Row]]] = {
    "leader-killed": partial(leader_fails, signal.SIGKILL),
    "leader-frozen": partial(leader_fails, signal.SIGSTOP),
    "etcd-member-killed": partial(a_member_fails, signal.SIGKILL),
    "etcd-member-frozen": partial(a_member_fails, signal.SIGSTOP),
    "etcd-members-killed": partial(two_members_fail, signal.SIGKILL),
    "etcd-members-frozen": partial(two_members_fail, signal.SIGSTOP),
}
