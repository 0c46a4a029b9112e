"""The agent's journal: one contract in a file and in memory, and what only a file goes through."""

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel

from swarmctl.agent.journal import MemoryJournal, open_journal
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import InternalError, StorageFault
from swarmctl.proto.limits import RECORD_MAX_BYTES
from tests.unit.store.disks import fill, small_disk

HIGHEST = incarnations.make(incarnations.TERM_MAX, incarnations.SEQUENCE_MAX)


class Contract:
    """What every journal does; ``opening`` opens one on the test's one disk."""

    async def test_a_new_journal_is_empty(self, opening):
        """No records, no named values."""
        async with opening() as journal:
            assert journal.load() == {}
            assert journal.meta("term") is None

    async def test_what_was_recorded_is_there_at_once_and_later(self, opening):
        """A record is replaced by a later one, and survives a reopening."""
        async with opening() as journal:
            await journal.record(HIGHEST, b"last")
            await journal.record(incarnations.make(1, 1), b"first")
            await journal.record(incarnations.make(1, 1), b"again")
            await journal.set_meta("term", b"7")
            await journal.set_meta("cluster", bytes(range(256)))
            await journal.set_meta("term", b"8")
            assert journal.meta("term") == b"8"
            assert len(journal.load()) == 2
        async with opening() as journal:
            assert list(journal.load().items()) == [
                (incarnations.make(1, 1), b"again"),
                (HIGHEST, b"last"),
            ]
            assert journal.meta("term") == b"8"
            assert journal.meta("cluster") == bytes(range(256))

    async def test_what_is_forgotten_is_gone(self, opening):
        """Forgetting is for good, and of what is not there no error."""
        async with opening() as journal:
            await journal.record(1, b"x")
            await journal.forget(1)
            await journal.forget(1)
        async with opening() as journal:
            assert journal.load() == {}

    async def test_a_batch_is_one_change(self, opening):
        """Thousands of records are written and removed together."""
        async with opening() as journal:
            await journal.apply({n: b"%d" % n for n in range(1, 3001)})
            await journal.apply({5000: b"new"}, range(1, 3001, 2))
            await journal.apply()
            expected = {n: b"%d" % n for n in range(2, 3001, 2)} | {5000: b"new"}
            assert journal.load() == expected

    async def test_calls_are_applied_in_order(self, opening):
        """Of two tasks that write one record, the one that called later wins."""
        order = []

        async with opening() as journal:

            async def write(number):
                order.append(number)
                await journal.record(1, b"%d" % number)

            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(write, number)
            assert journal.load() == {1: b"%d" % order[-1]}

    async def test_a_cancelled_write_is_whole_or_absent(self, opening):
        """A batch whose writer was cancelled is there or not, never by half."""
        async with opening() as journal:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(journal.apply, dict.fromkeys(range(1, 1001), b"x"))
                    await trio.lowlevel.checkpoint()
                    scope.cancel()
            await journal.record(5000, b"y")
            assert len(journal.load()) in (1, 1001)

    @pytest.mark.parametrize(
        ("puts", "deletes"),
        [
            ({0: b""}, ()),
            ({1 << 63: b""}, ()),
            ({1: b"x" * (RECORD_MAX_BYTES + 1)}, ()),
            ({1: "text"}, ()),
            ({1: b""}, (1,)),
            ({}, (-1,)),
        ],
    )
    async def test_mistakes_are_refused(self, opening, puts, deletes):
        """What cannot be kept is the agent's defect, and changes nothing."""
        async with opening() as journal:
            with pytest.raises(InternalError):
                await journal.apply(puts, deletes)
            assert journal.load() == {}


class TestMemoryJournal(Contract):
    @pytest.fixture
    def opening(self):
        journal = MemoryJournal()

        @asynccontextmanager
        async def opening():
            yield journal

        return opening

    async def test_a_fault_can_be_ordered(self):
        """While ``fault`` is set nothing is written."""
        journal = MemoryJournal(fault=StorageFault("full"))
        with pytest.raises(StorageFault, match="full"):
            await journal.record(1, b"")
        journal.fault = None
        await journal.record(2, b"")
        assert journal.load() == {2: b""}

    async def test_the_disk_takes_virtual_time(self, autojump_clock):
        """``sync_s`` is what a write costs."""
        started_s = autojump_clock.current_time()
        await MemoryJournal(sync_s=2.5).record(1, b"")
        assert autojump_clock.current_time() - started_s == pytest.approx(2.5)


class TestFileJournal(Contract):
    @pytest.fixture
    def opening(self, tmp_path):
        return lambda: open_journal(tmp_path / "journal.db")


async def test_writes_of_many_tasks_share_their_syncs(tmp_path):
    """Two hundred records at once take far fewer than two hundred transactions."""
    async with open_journal(tmp_path / "journal.db") as journal:
        async with trio.open_nursery() as nursery:
            for number in range(1, 201):
                nursery.start_soon(journal.record, number, b"x" * 500)
        statistics = journal.statistics()
    assert statistics.commits == 200
    assert statistics.groups <= 100


async def test_damage_is_named_and_nothing_is_emptied(tmp_path):
    """A damaged journal is refused, with what to do and what that costs."""
    path = tmp_path / "journal.db"
    async with open_journal(path) as journal:
        await journal.apply({n: bytes(500) for n in range(1, 101)})
    os.truncate(path, path.stat().st_size // 2)
    size_bytes = path.stat().st_size
    with pytest.raises(StorageFault) as caught:
        async with open_journal(path):
            pass
    assert caught.value.where == str(path)
    assert "damaged" in caught.value.what
    assert "adopts" in caught.value.hint
    assert path.stat().st_size == size_bytes


async def test_a_full_disk_refuses_and_then_goes_on(tmp_path):
    """Records written before are there; with room, the next is written."""
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        async with open_journal(disk / "journal.db") as journal:
            await journal.record(1, b"before")
            ballast = fill(disk)
            with pytest.raises(StorageFault, match="full"):
                await journal.apply({n: bytes(5000) for n in range(2, 20)})
            assert journal.load() == {1: b"before"}
            ballast.unlink()
            await journal.record(2, b"after")
            assert journal.load() == {1: b"before", 2: b"after"}


WRITER = """
import os, sys, trio
from pathlib import Path
from swarmctl.agent.journal import open_journal

async def main():
    async with open_journal(Path(sys.argv[1])) as journal:
        async def write(task):
            for number in range(task, 1_000_000, 8):
                await journal.record(number, b"x" * 200)
                os.write(1, b"%d\\n" % number)
        async with trio.open_nursery() as nursery:
            for task in range(1, 9):
                nursery.start_soon(write, task)

trio.run(main)
"""


def write_and_kill(path):
    """Let a process write records, kill it in the middle; what it had acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        lines = [writer.stdout.readline() for _ in range(200)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
    return {int(line) for line in lines if line.endswith(b"\n")}


async def test_what_was_recorded_survives_kill_9(tmp_path):
    """Every record that was acknowledged before the kill is there after it."""
    path = tmp_path / "journal.db"
    acknowledged = await trio.to_thread.run_sync(write_and_kill, path)
    async with open_journal(path) as journal:
        assert acknowledged <= set(journal.load())
