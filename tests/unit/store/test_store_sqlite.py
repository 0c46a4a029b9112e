"""The store in SQLite: the contract."""

import pytest

from swarmctl.controller.store.sqlite import SqliteStore
from tests.unit.store.contract import ChunkedHarness, Harness, LargeContract, StoreContract


class SqliteHarness(Harness):
    def __init__(self, folder):
        self.path = folder / "store.db"

    async def open(self, cluster_id="ab" * 16):
        return await SqliteStore.open(self.path, new_cluster_id=lambda: cluster_id)


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def harness(self, tmp_path):
        return SqliteHarness(tmp_path)


class TestLargeSqliteStore(LargeContract):
    @pytest.fixture
    def harness(self, tmp_path):
        return ChunkedHarness(SqliteHarness(tmp_path))
