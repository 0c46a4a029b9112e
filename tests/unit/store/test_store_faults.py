"""The SQLite store on disks and files that misbehave: clear faults, nothing acknowledged lost."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import aclosing, closing

import attrs
import pytest
import trio

from swarmctl.controller.store.api import Put
from swarmctl.controller.store.sqlite import SCHEMA, SqliteStore
from swarmctl.database import Migration
from swarmctl.proto.errors import StorageFault
from tests.unit.store.disks import as_nobody, fill, remount, small_disk

DEADLINE_S = 30


async def open_store(path, schema=SCHEMA):
    return await SqliteStore.open(path, new_cluster_id=lambda: "ab" * 16, schema=schema)


@pytest.fixture
async def path(tmp_path):
    """A store with a hundred entries, closed."""
    path = tmp_path / "store.db"
    async with aclosing(await open_store(path)) as store:
        await store.take_term()
        await store.commit([Put(f"k/{n:02}", os.urandom(2000)) for n in range(100)])
    return path


async def refused(path, schema=SCHEMA):
    """The fault with which the file is refused; that leaves it byte for byte as it was."""
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(StorageFault) as caught:
        await open_store(path, schema)
    assert (path.read_bytes() if path.exists() else None) == before
    assert str(path) in caught.value.where
    assert caught.value.hint
    return caught.value


# --- files that are not what they should be -------------------------------------------------------


async def test_a_store_is_private_and_leaves_no_litter(path):
    """Mode 0600, and one file once it is closed."""
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["store.db"]


async def test_every_commit_is_synced(path):
    """The writer's connection writes ahead and syncs each commit, not only each checkpoint."""
    async with aclosing(await open_store(path)) as store:
        settings = await store._committer.call(
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ]
        )
    assert settings == ["wal", 2]


async def test_an_empty_file_is_damage(path):
    """A file cut to nothing is not taken for a first start."""
    os.truncate(path, 0)
    fault = await refused(path)
    assert "empty" in fault.what
    assert "backup" in fault.hint


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
async def test_a_truncated_file_is_damage(path, keep):
    """A file that lost its end is refused, and left for whoever repairs it."""
    os.truncate(path, int(path.stat().st_size * keep))
    fault = await refused(path)
    assert "damaged" in fault.what
    assert "backup" in fault.hint


async def test_garbage_is_damage(path):
    """A file of other bytes is refused."""
    path.write_bytes(os.urandom(20_000))
    assert "damaged" in (await refused(path)).what


async def test_a_page_of_garbage_is_damage(path):
    """The check at the start looks at every page of a small file."""
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    assert "damaged" in (await refused(path)).what


async def test_a_log_without_its_file_is_damage(path):
    """Half of a store is not taken for none."""
    path.with_name("store.db-wal").write_bytes(b"log")
    path.unlink()
    fault = await refused(path)
    assert "missing" in fault.what
    assert path.with_name("store.db-wal").read_bytes() == b"log"


async def test_a_database_of_another_program_is_refused(tmp_path):
    """Somebody else's SQLite file is not touched."""
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    assert "not a controller's store" in (await refused(path)).what


async def test_a_start_that_was_killed_is_repeated(tmp_path):
    """A half-made draft does not hinder the next start."""
    path = tmp_path / "store.db"
    path.with_name("store.db.new").write_bytes(b"half")
    path.with_name("store.db.new-wal").write_bytes(b"half")
    async with aclosing(await open_store(path)) as store:
        assert await store.take_term() == 1
    assert [each.name for each in tmp_path.iterdir()] == ["store.db"]


async def test_a_lock_held_by_another_program_is_named(path, monkeypatch):
    """A transaction left open in a shell is an error that says so, after a while."""
    monkeypatch.setattr("swarmctl.database.STORE_LOCK_S", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        assert "locked by another process" in (await refused(path)).what


# --- migrations -----------------------------------------------------------------------------------

VERSION_2 = attrs.evolve(
    SCHEMA,
    migrations=(
        *SCHEMA.migrations,
        Migration(
            "remember who wrote",
            (
                "ALTER TABLE entries ADD COLUMN author TEXT NOT NULL DEFAULT 'nobody'",
                "UPDATE entries SET author = 'version 1'",
            ),
        ),
    ),
)


async def test_a_file_of_version_1_is_migrated(path):
    """Entries, term and cluster survive a migration, which is done once."""
    for _ in range(2):
        async with aclosing(await open_store(path, VERSION_2)) as store:
            assert len(await store.read("k/")) == 100
            assert store.cluster_id == "ab" * 16
            assert await store.take_term() > 1
            await store.commit([Put("new", b"")])
    with closing(sqlite3.connect(path)) as connection:
        authors = connection.execute("SELECT author, count(*) FROM entries GROUP BY 1").fetchall()
        versions = connection.execute("SELECT * FROM schema_version").fetchall()
    assert dict(authors) == {"version 1": 100, "nobody": 1}
    assert versions == [(1, "entries and facts"), (2, "remember who wrote")]


async def test_a_newer_file_is_refused(path):
    """An old release does not touch what a newer one wrote."""
    async with aclosing(await open_store(path, VERSION_2)):
        pass
    fault = await refused(path)
    assert "version 2" in fault.what
    assert "up to 1" in fault.what
    assert "newer" in fault.hint


async def test_a_migration_that_fails_leaves_the_version_before(path):
    """A step is done whole or not at all."""
    broken = attrs.evolve(
        VERSION_2,
        migrations=(*VERSION_2.migrations, Migration("bad", ("DROP TABLE entries", "NONSENSE"))),
    )
    with pytest.raises(Exception, match="NONSENSE"):
        await open_store(path, broken)
    async with aclosing(await open_store(path, VERSION_2)) as store:
        assert len(await store.read("k/")) == 100


# --- disks ----------------------------------------------------------------------------------------


async def test_no_permission_is_a_fault_with_a_hint(path):
    """A folder or a file of another user is named, and what to do about it."""
    path.parent.chmod(0o000)
    try:
        with as_nobody(), pytest.raises(StorageFault) as caught:
            await open_store(path)
    finally:
        path.parent.chmod(0o700)
    assert str(path) in str(caught.value)
    assert "user" in caught.value.hint


async def test_a_file_without_write_permission_is_a_fault(tmp_path, path):
    """A file that can only be read is refused at the start, not at the first commit."""
    if os.geteuid() == 0:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.samefile(tempfile.gettempdir()):
                break
            folder.chmod(0o755)
    path.chmod(0o444)
    with as_nobody():
        fault = await refused(path)
    assert "read-only" in fault.what or "opened" in fault.what
    assert "access" in fault.hint or "read and write" in fault.hint


async def test_a_read_only_disk_is_a_fault(tmp_path):
    """A store on a file system that became read-only is refused at the start."""
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        async with aclosing(await open_store(disk / "store.db")) as store:
            await store.take_term()
        remount(disk, "ro")
        fault = await refused(disk / "store.db")
        assert "read-only" in fault.what or "cannot be opened" in fault.what
        with pytest.raises(StorageFault, match="read-only"):
            await open_store(disk / "new.db")


async def test_a_full_disk_loses_nothing_and_work_goes_on(tmp_path):
    """Full: a fault that names the file; what was acknowledged is there; with room, on it goes."""
    with trio.fail_after(DEADLINE_S), small_disk(tmp_path / "disk", 4 << 20) as disk:
        path = disk / "store.db"
        acknowledged = set()
        faults = []

        async def write(store, number):
            try:
                await store.commit([Put(f"k/{number}/{n}", bytes(5000)) for n in range(4)])
            except StorageFault as error:
                faults.append(error)
            else:
                acknowledged.add(number)

        async with aclosing(await open_store(path)) as store:
            await store.take_term()
            number = 0
            while not faults:
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        number += 1
                        nursery.start_soon(write, store, number)
            assert acknowledged
            assert str(path) == faults[0].where
            assert "full" in faults[0].what
            assert "space" in faults[0].hint
            await check_whole(store, acknowledged)

            ballast = fill(disk)
            seen = len(faults)
            while len(faults) == seen:  # The log may still have room that is its own.
                number += 1
                await write(store, number)
            assert number not in acknowledged
            # A process that dies now finds the same after its start on another disk.
            shutil.copytree(disk, tmp_path / "copy")
            ballast.unlink()
            remount(disk, "size=16m")
            await write(store, -2)
            assert -2 in acknowledged
            await check_whole(store, acknowledged)
        async with aclosing(await open_store(path)) as store:
            await check_whole(store, acknowledged)
        async with aclosing(await open_store(tmp_path / "copy" / "store.db")) as store:
            await check_whole(store, acknowledged - {-2})


async def check_whole(store, acknowledged):
    """What was acknowledged is there, and nothing is there by half."""
    found = {}
    for key in await store.read("k/"):
        number = int(key.split("/")[1])
        found[number] = found.get(number, 0) + 1
    assert set(found.values()) == {4}
    assert acknowledged <= set(found)


async def test_a_full_disk_at_the_start_is_a_fault(tmp_path):
    """A first start on a full disk says so; with room, the next one works."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        ballast = fill(disk)
        with pytest.raises(StorageFault, match="full"):
            await open_store(disk / "store.db")
        ballast.unlink()
        async with aclosing(await open_store(disk / "store.db")) as store:
            assert await store.take_term() == 1


# --- crashes --------------------------------------------------------------------------------------

WRITER = """
import os, sys, trio
from pathlib import Path
from swarmctl.controller.store.api import Put
from swarmctl.controller.store.sqlite import SqliteStore

async def write(store, task):
    number = 0
    while True:
        number += 1
        name = f"{store.term}-{task}-{number}"
        await store.commit([Put(f"k/{name}/{part}", bytes(300)) for part in range(3)])
        os.write(1, f"{name}\\n".encode())

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), new_cluster_id=lambda: "ab" * 16)
    await store.take_term()
    async with trio.open_nursery() as nursery:
        for task in range(20):
            nursery.start_soon(write, store, task)

trio.run(main)
"""


def write_and_kill(path):
    """Let a process write, kill it in the middle; what it had acknowledged until then."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        lines = [writer.stdout.readline() for _ in range(400)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
    return {line.decode().strip() for line in lines if line.endswith(b"\n")}


async def test_what_was_acknowledged_survives_kill_9(tmp_path):
    """Killed in the middle of groups, again and again: all that was acknowledged is there."""
    path = tmp_path / "store.db"
    acknowledged = set()
    for _ in range(3):
        acknowledged |= await trio.to_thread.run_sync(write_and_kill, path)
    async with aclosing(await open_store(path)) as store:
        parts = {}
        for key in await store.read("k/"):
            parts.setdefault(key.split("/")[1], []).append(key)
        assert await store.take_term() == 4
    assert acknowledged <= set(parts)
    assert {len(keys) for keys in parts.values()} == {3}


async def test_an_open_that_is_cancelled_leaves_the_file_free(tmp_path):
    """Whoever gives up while it opens can open again."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await open_store(tmp_path / "store.db")
    assert scope.cancelled_caught
    async with aclosing(await open_store(tmp_path / "store.db")) as store:
        assert await store.take_term() == 1
