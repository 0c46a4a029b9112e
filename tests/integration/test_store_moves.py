"""A cluster moves from SQLite to etcd and back; nobody leads it from the store that it left."""

from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.client import EtcdClient, after_prefix, encode, entries
from tests.e2e.cluster import Cluster, Daemon, free_port, until
from tests.integration.etcd_fixture import etcd, own_address
from tests.integration.test_controllers import service

__all__ = ["etcd"]


@pytest.fixture
def cluster(tmp_path: Path):
    """A controller on SQLite, and a node."""
    made = Cluster(tmp_path)
    try:
        made.agent("n0", drivers="sim")
        made.start()
        yield made
    finally:
        print(made.logs())  # noqa: T201 - captured
        for daemon in (made.controller, *made.others):
            if daemon.process is not None:
                daemon.kill()


def refused(daemon: Daemon) -> str:
    """What a daemon says that does not start."""
    before = daemon.log.stat().st_size if daemon.log.exists() else 0
    daemon.spawn()
    assert daemon.ended() == 1
    return daemon.log.read_bytes()[before:].decode()


def test_a_cluster_moves_and_its_old_controller_refuses_to_start(cluster: Cluster, etcd):
    """Each way; what runs goes on, and a controller on the store that was left has no say."""
    file, address = f"sqlite:{cluster.data / 'store.db'}", str(own_address(etcd))
    back = f"sqlite:{cluster.data / 'back.db'}"
    on_file = cluster.controller
    on_etcd = cluster.daemon("on-etcd", *on_file.arguments, "--store", address)
    on_back = cluster.daemon("on-back", *on_file.arguments, "--store", back)
    cluster.apply(service("web", 3))
    cluster.wait("web")
    before = {name: one["runtime_id"] for name, one in cluster.ps().items()}

    def goes_on() -> bool:
        shown = cluster.ps()
        return {name: one["runtime_id"] for name, one in shown.items()} == before and {
            one["state"] for one in shown.values()
        } == {"running"}

    for left, old, new, taken in (
        (file, on_file, on_etcd, address),
        (address, on_etcd, on_back, back),
    ):
        assert old.stop() == 0
        moved = cluster.swarmctl("store", "migrate", left, taken)
        assert moved.code == 0, moved.err
        assert f"--store {taken}" in moved.out
        said = refused(old)
        assert f"moved to {taken}" in said
        assert f"swarmctl store reopen {left}" in said
        new.start()
        until(cluster.all_ready, what="the node")
        until(goes_on, what="what ran before")
    assert on_back.stop() == 0
    reopened = cluster.swarmctl("store", "reopen", file)
    assert reopened.code == 0, reopened.err
    assert f"moved to {address}" in reopened.out
    on_file.start()
    until(cluster.all_ready, what="the node")
    assert f"moved to {address}" in cluster.call("cluster.info")["hold"]
    until(goes_on, what="what ran before")


@pytest.fixture
def on_etcd(tmp_path: Path, etcd):
    """A controller on etcd, a node, and three copies; with the address."""
    made, address = Cluster(tmp_path), own_address(etcd)
    made.controller.arguments += ["--store", str(address)]
    try:
        made.agent("n0", drivers="sim")
        made.start()
        made.apply(service("web", 3))
        made.wait("web")
        yield made, address
    finally:
        print(made.logs())  # noqa: T201 - captured
        for daemon in (made.controller, *made.others):
            if daemon.process is not None:
                daemon.kill()


def keys_below(client: EtcdClient, address: EtcdAddress) -> int:
    """How many there are."""
    prefix = address.key("")
    return len(entries(client.range(prefix, after_prefix(prefix), deadline_s=30)))


def test_another_prefix_is_not_begun_anew(on_etcd):
    """By one that has served, or that joins one that has; a new cluster begins there as ever."""
    cluster, address = on_etcd
    wrong = evolve(address, prefix=address.prefix + "-mistyped")
    begins = ("controller", "--listen", f"tcp://127.0.0.1:{free_port()}", "--store", str(wrong))
    fresh = ("--data", str(cluster.folder / "fresh"))
    served = cluster.daemon("served", *cluster.controller.arguments, "--store", str(wrong))
    joining = cluster.daemon(
        "joining", *begins, *fresh, "--join", str(cluster.data / "cluster.key")
    )
    with closing(EtcdClient(wrong)) as client:
        assert cluster.controller.stop() == 0
        said = refused(served)
        assert "there is no store in etcd, and a controller has served" in said
        assert f"swarmctl store restore BACKUP {wrong}" in said
        assert "and --join was given" in refused(joining)
        assert not keys_below(client, wrong)

        cluster.controller.start()
        until(cluster.all_ready, what="the node")
        new = cluster.daemon("new", *begins, "--data", str(cluster.folder / "new"))
        new.start()
        assert keys_below(client, wrong)


def test_an_etcd_that_was_emptied_is_rebuilt_by_way_of_a_file(on_etcd):
    """As the refusal says; nothing restarts."""
    cluster, address = on_etcd
    before = {name: one["runtime_id"] for name, one in cluster.ps().items()}
    file = f"sqlite:{cluster.folder / 'rebuilt.db'}"
    rebuilding = cluster.daemon(
        "rebuilding", *cluster.controller.arguments, "--store", file, "--rebuild"
    )
    assert cluster.controller.stop() == 0
    with closing(EtcdClient(address)) as client:
        prefix = address.key("")
        span = {"key": encode(prefix), "range_end": encode(after_prefix(prefix))}
        client.call("/v3/kv/deleterange", span, deadline_s=30)
    assert "store migrate sqlite:FILE" in refused(cluster.controller)

    rebuilding.start()
    until(cluster.all_ready, what="the node")
    assert cluster.swarmctl("store", "release").code == 0
    until(lambda: set(cluster.states().values()) == {"running"}, what="what was adopted")
    assert rebuilding.stop() == 0
    moved = cluster.swarmctl("store", "migrate", file, str(address))
    assert moved.code == 0, moved.err
    cluster.controller.start()
    until(cluster.all_ready, what="the node")
    until(lambda: set(cluster.states().values()) == {"running"}, what="what ran before")
    assert {name: one["runtime_id"] for name, one in cluster.ps().items()} == before
