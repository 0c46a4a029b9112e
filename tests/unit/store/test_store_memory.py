"""The store in memory: the contract, and the disk that obeys the test."""

from contextlib import aclosing

import pytest
import trio
import trio.testing

from swarmctl.controller.store.api import Put
from swarmctl.controller.store.memory import MemoryDisk, MemoryStore
from swarmctl.proto.errors import StorageFault
from tests.unit.store.contract import ChunkedHarness, Harness, LargeContract, StoreContract


class MemoryHarness(Harness):
    def __init__(self):
        self.disk = MemoryDisk()

    async def open(self, cluster_id="ab" * 16):
        return await MemoryStore.open(self.disk, new_cluster_id=lambda: cluster_id)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def harness(self):
        return MemoryHarness()

    async def test_failures_can_be_ordered(self, store):
        """The next commits fail as told, change nothing, and then it goes on."""
        store.fail_next(StorageFault("full"), count=2)
        for _ in range(2):
            with pytest.raises(StorageFault, match="full"):
                await store.commit([Put("a", b"")])
        await store.commit([Put("b", b"")])
        assert await store.read() == {"b": b""}

    async def test_a_held_disk_acknowledges_nothing(self, store, autojump_clock):
        """While the disk is held commits wait; released, they are done."""
        store.hold()
        started_s = autojump_clock.current_time()
        with trio.move_on_after(5):
            await store.commit([Put("a", b"")])
        assert autojump_clock.current_time() - started_s == pytest.approx(5)
        assert store.statistics().waiting == 1
        store.release()
        await store.commit([])
        assert await store.read() == {"a": b""}

    @pytest.mark.parametrize("keep", [0, 1, 3])
    async def test_a_crash_loses_what_was_not_synced(self, harness, keep):
        """Acknowledged commits survive, others do not, but for those that the test keeps."""
        store = await harness.open()
        await store.take_term()
        await store.commit([Put("acknowledged", b"")])
        store.hold()
        faults = []

        async def write(number):
            try:
                await store.commit([Put(f"k/{number}", b"")])
            except StorageFault as error:
                faults.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(write, number)
            await trio.testing.wait_all_tasks_blocked()
            store.crash(keep)
        assert len(faults) == 3
        async with aclosing(await harness.open()) as again:
            assert len(await again.read("k/")) == keep
            assert await again.read("acknowledged") == {"acknowledged": b""}

    async def test_the_disk_takes_virtual_time(self, autojump_clock):
        """``sync_s`` is what a commit costs, and those of many tasks cost it once."""
        async with aclosing(await MemoryStore.open(sync_s=0.01)) as store:
            await store.take_term()
            started_s = autojump_clock.current_time()
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(store.commit, [Put(f"k/{number}", b"")])
            assert autojump_clock.current_time() - started_s == pytest.approx(0.01)


class TestLargeMemoryStore(LargeContract):
    @pytest.fixture
    def harness(self):
        return ChunkedHarness(MemoryHarness())
