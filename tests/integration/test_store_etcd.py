"""The store in a real etcd: the contract that every store keeps."""

import pytest

from swarmctl.controller.store.etcd import EtcdStore
from tests.integration.etcd_fixture import etcd, own_address
from tests.unit.store.contract import ChunkedHarness, Harness, LargeContract, StoreContract

__all__ = ["etcd"]


class EtcdHarness(Harness):
    def __init__(self, address):
        self.address = address

    async def open(self, cluster_id="ab" * 16):
        return await EtcdStore.open(self.address, new_cluster_id=lambda: cluster_id)


class TestEtcdStore(StoreContract):
    @pytest.fixture
    def harness(self, etcd):
        return EtcdHarness(own_address(etcd))


class TestLargeEtcdStore(LargeContract):
    @pytest.fixture
    def harness(self, etcd):
        return ChunkedHarness(EtcdHarness(own_address(etcd)))
