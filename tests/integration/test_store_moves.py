"""A cluster moves from SQLite to etcd and back; nobody leads it from the store that it left."""

from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, Daemon, until
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
    before = daemon.log.stat().st_size
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
