"""The northbound in memory: the contract."""

import pytest

from swarmctl.net.memory import MemoryDatabase, MemoryNorthbound
from tests.unit.net.northbound_contract import Harness, NorthboundContract
from tests.unit.net.wishes import CLUSTER


class MemoryHarness(Harness):
    def __init__(self):
        self.database = MemoryDatabase()

    async def open(self, cluster_id=CLUSTER):
        return MemoryNorthbound(self.database, cluster_id)

    async def go_away(self):
        self.database.go_away()

    async def come_back(self):
        self.database.come_back()


class TestMemoryNorthbound(NorthboundContract):
    @pytest.fixture
    def harness(self):
        return MemoryHarness()
