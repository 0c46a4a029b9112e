"""Clusters for the tests of this folder."""

import pytest

from tests.e2e.cluster import Cluster


def _tell(cluster: Cluster) -> None:
    """The daemons' logs: pytest shows them beside the test that has failed."""
    print(cluster.logs())  # noqa: T201 - captured


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    """Two agents on this machine, one of them with VMs too: for tests that leave it as it was."""
    cluster = Cluster(tmp_path_factory.mktemp("pair"))
    cluster.agent("n1", "--label", "seat=first", drivers="docker,libvirt")
    cluster.agent("n2", "--label", "seat=second")
    try:
        yield cluster.start()
    finally:
        _tell(cluster)
        cluster.close()


@pytest.fixture
def cluster(pair: Cluster):
    """The module's cluster, whole and empty again after each test."""
    pair.start()
    try:
        yield pair
    finally:
        _tell(pair)
    pair.start()
    pair.remove_all()


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory):
    """A cluster that the test starts, and may ruin."""
    cluster = Cluster(tmp_path_factory.mktemp("own"))
    try:
        yield cluster
    finally:
        _tell(cluster)
        cluster.close()
