"""Real etcd clusters for tests: one that many tests share, or one that a test may ruin.

Their folders are in memory where that can be had: etcd syncs every write, and on a machine whose
disk many share a sync can take seconds, after which whoever waits takes etcd for dead.  What a test
kills comes back from there all the same.
"""

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.etcd import EtcdCluster
from swarmctl.controller.etcd.address import EtcdAddress

_numbers = itertools.count(1)


@contextmanager
def etcd_of(members: int) -> Iterator[EtcdCluster]:
    """So many members, in memory."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(
            prefix="swarmctl-etcd-", dir=memory if memory.is_dir() else None
        ) as folder,
        EtcdCluster(Path(folder), members) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def etcd():
    """One member, shared by the tests of a module: each takes a prefix of its own."""
    with etcd_of(1) as cluster:
        yield cluster


@pytest.fixture
def three():
    """Three members, for a test that kills and freezes them."""
    with etcd_of(3) as cluster:
        yield cluster


def own_address(cluster: EtcdCluster) -> EtcdAddress:
    """An address with a prefix that nobody else has."""
    return EtcdAddress(tuple(cluster.addresses), f"test-{next(_numbers)}")
