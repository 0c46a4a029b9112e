"""Real etcd clusters for tests: one that many tests share, or one that a test may ruin."""

import itertools
from pathlib import Path

import pytest

from lab.etcd import EtcdCluster
from swarmctl.controller.etcd.address import EtcdAddress

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory):
    """One member, shared by the tests of a module: each takes a prefix of its own."""
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def three(tmp_path: Path):
    """Three members, for a test that kills and freezes them."""
    with EtcdCluster(tmp_path / "etcd", 3) as cluster:
        yield cluster


def own_address(cluster: EtcdCluster) -> EtcdAddress:
    """An address with a prefix that nobody else has."""
    return EtcdAddress(tuple(cluster.addresses), f"test-{next(_numbers)}")
