"""Copies of a store: between SQLite and etcd, into a file and back, and what they refuse."""

import sqlite3
from contextlib import aclosing, closing

import pytest
import trio

from swarmctl.controller import moving, transfer
from swarmctl.controller.holding import HOLD
from swarmctl.controller.store.api import Put
from swarmctl.controller.store.chunks import ChunkedStore
from swarmctl.controller.store.etcd import EtcdStore
from swarmctl.controller.store.sqlite import SqliteStore
from swarmctl.folder import DataFolder
from swarmctl.proto.errors import Conflict, NotFound, StaleTerm, StorageFault
from tests.integration.etcd_fixture import etcd, own_address
from tests.integration.test_store_etcd_faults import client, grant

__all__ = ["client", "etcd"]

# Most are small; the last ones take several of a store's own.
ENTRIES = {
    f"service/default/s{n:03}": bytes([n]) * (n * (100 if n < 57 else 40_000)) for n in range(60)
}

# As many, for what does not depend on how large they are.
SMALL = {key: value[:20] for key, value in ENTRIES.items()}


async def opened(address):
    if hasattr(address, "members"):
        inner = await EtcdStore.open(address, new_cluster_id=lambda: "ab" * 16)
    else:
        inner = await SqliteStore.open(address, new_cluster_id=lambda: "ab" * 16)
    return ChunkedStore(inner)


async def fill_small(address):
    """Small entries, in one commit."""
    store = await opened(address)
    await store.take_term(above=41)
    await store.commit([Put(key, value) for key, value in SMALL.items()])
    return store


async def fill(address):
    store = await opened(address)
    await store.take_term(above=41)
    puts = [Put(key, value) for key, value in ENTRIES.items()]
    await store.commit(puts[:-3])
    for put in puts[-3:]:
        await store.commit([put])
    return store


@pytest.mark.parametrize("way", ["to etcd", "to sqlite", "etcd to etcd"])
async def test_all_of_it_is_copied_and_the_old_one_is_behind(etcd, tmp_path, way):
    """Every entry, however large; the cluster's id; and a term that nodes take for newer."""
    file = tmp_path / "store" / "store.db"
    file.parent.mkdir()
    source, target = {
        "to etcd": lambda: (file, own_address(etcd)),
        "to sqlite": lambda: (own_address(etcd), file),
        "etcd to etcd": lambda: (own_address(etcd), own_address(etcd)),
    }[way]()
    async with aclosing(await fill(source)) as old:
        copied = await transfer.copy(source, target)
        assert copied.entries == len(ENTRIES)
        assert copied.cluster_id == "ab" * 16
        assert copied.term == old.term + 1
        # Its own store did not change: it goes on until it is stopped, with the older term.
        await old.commit([Put("later", b"")])
    async with aclosing(await opened(target)) as new:
        assert await new.read() == ENTRIES
        assert new.cluster_id == "ab" * 16
        assert await new.take_term() > copied.term


async def test_half_a_copy_is_on_hold(etcd, tmp_path, monkeypatch):
    """The command was killed on the way: what is there is not taken for all of it."""
    source, target = tmp_path / "store.db", own_address(etcd)
    async with aclosing(await fill_small(source)):
        pass
    commit, commits = ChunkedStore.commit, []

    async def killed(self, ops):
        commits.append(ops)
        if len(commits) == 3:
            raise KeyboardInterrupt
        return await commit(self, ops)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkedStore, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            await transfer.copy(source, target)
    async with aclosing(await opened(target)) as store:
        entries = await store.read()
        assert f"sqlite:{source} was not completed" in entries.pop(HOLD).decode()
        assert 0 < len(entries) < len(SMALL)


@pytest.mark.parametrize("way", ["to etcd", "to sqlite"])
async def test_a_store_that_was_moved_is_not_served_from(etcd, tmp_path, way):
    """It says where it went, when and by whom, and how to go back; the new one is in its place."""
    file, address = tmp_path / "store" / "store.db", own_address(etcd)
    file.parent.mkdir()
    source, target = (file, address) if way == "to etcd" else (address, file)
    async with aclosing(await fill_small(source)) as old:
        await transfer.migrate(source, target)
        # Whoever still had it open, unseen, writes nothing more that would be lost.
        with pytest.raises(StaleTerm):
            await old.commit([Put("later", b"")])
    async with aclosing(await opened(source)) as left, aclosing(await opened(target)) as new:
        with pytest.raises(Conflict) as refused:
            await moving.check(left, transfer.named(source))
        assert f"moved to {transfer.named(target)} at 2" in refused.value.what
        assert f"by {moving.whoever()}" in refused.value.what
        assert f"--store {transfer.named(target)};" in refused.value.hint
        assert f"swarmctl store reopen {transfer.named(source)}" in refused.value.hint
        await moving.check(new, transfer.named(target))
        assert await new.read() == SMALL
    with pytest.raises(Conflict, match="was moved"):
        await transfer.migrate(source, own_address(etcd))


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
async def test_a_moved_store_is_reopened_on_purpose(etcd, tmp_path, kind):
    """As it was at the move, on hold, and with a higher term than it had."""
    source = tmp_path / "store.db" if kind == "sqlite" else own_address(etcd)
    async with aclosing(await fill_small(source)):
        pass
    with pytest.raises(NotFound, match="not moved"):
        await transfer.reopen(source)
    target = own_address(etcd)
    copied = await transfer.migrate(source, target)
    moved = await transfer.reopen(source)
    assert moved.to == str(target)
    async with aclosing(await opened(source)) as store:
        await moving.check(store, transfer.named(source))
        entries = await store.read()
        assert f"moved to {target}" in entries.pop(HOLD).decode()
        assert entries == SMALL
        assert await store.take_term() > copied.term


async def test_a_move_that_fails_leaves_the_source_in_its_place(etcd, tmp_path, monkeypatch):
    """A target that breaks on the way, and one that is refused before."""
    source, target = tmp_path / "a" / "store.db", own_address(etcd)
    source.parent.mkdir()
    async with aclosing(await fill_small(source)):
        pass

    async def broken(*_):
        raise StorageFault("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_commit", broken)
        with pytest.raises(StorageFault, match="no space"):
            await transfer.migrate(source, target)
    with pytest.raises(Conflict, match="not empty"):
        await transfer.migrate(source, target)
    async with aclosing(await opened(source)) as store:
        await moving.check(store, "here")
        assert await store.read() == SMALL


async def test_a_store_in_use_is_not_moved(etcd, tmp_path, client):
    """Its controller has to be stopped first: a locked folder, or a leader."""
    file, address = tmp_path / "a" / "store.db", own_address(etcd)
    file.parent.mkdir()
    for source in (file, address):
        async with aclosing(await fill_small(source)):
            pass
    with DataFolder.open(file.parent, "controller"), pytest.raises(Conflict, match="in use"):
        await transfer.migrate(file, own_address(etcd))
    await trio.to_thread.run_sync(grant, client, address)
    with pytest.raises(Conflict, match="controller"):
        await transfer.migrate(address, tmp_path / "b" / "store.db")
    for source in (file, address):
        async with aclosing(await opened(source)) as store:
            assert await store.read() == SMALL


async def test_a_store_is_moved_within_a_folder(tmp_path):
    """Both files have one lock."""
    source, target = tmp_path / "store.db", tmp_path / "other.db"
    async with aclosing(await fill_small(source)):
        pass
    await transfer.migrate(source, target)
    async with aclosing(await opened(target)) as store:
        assert await store.read() == SMALL


async def test_a_backup_comes_back_on_hold(etcd, tmp_path):
    """From etcd into a file, and into another etcd: all of it, and the reason of the hold."""
    source, file, target = own_address(etcd), tmp_path / "backup.db", own_address(etcd)
    async with aclosing(await fill(source)):
        await transfer.copy(source, file)
    await transfer.copy(file, target, "restored")
    async with aclosing(await opened(target)) as store:
        entries = await store.read()
        assert entries.pop(HOLD) == b"restored"
        assert entries == ENTRIES


async def test_nothing_is_overwritten(etcd, tmp_path):
    """A target with something in it, of another cluster, or in use is left as it is."""
    source, target = tmp_path / "a" / "store.db", own_address(etcd)
    source.parent.mkdir()
    async with aclosing(await fill(source)):
        pass
    await transfer.copy(source, target)
    with pytest.raises(Conflict, match="not empty"):
        await transfer.copy(source, target)
    other = own_address(etcd)
    async with aclosing(await EtcdStore.open(other, new_cluster_id=lambda: "cd" * 16)):
        pass
    with pytest.raises(Conflict, match="another cluster"):
        await transfer.copy(source, other)
    with pytest.raises(NotFound):
        await transfer.copy(tmp_path / "none.db", own_address(etcd))


async def test_a_store_that_is_led_is_no_target(etcd, tmp_path, client):
    """A controller that runs there would not know what was written under it."""
    source, target = tmp_path / "store.db", own_address(etcd)
    async with aclosing(await fill(source)):
        pass
    await trio.to_thread.run_sync(grant, client, target)
    with pytest.raises(Conflict, match="controller"):
        await transfer.copy(source, target)


async def test_a_truncated_backup_is_refused(etcd, tmp_path):
    """Named as damaged, with what to do; nothing of it is restored, and it is left as it is."""
    source, target = tmp_path / "store.db", own_address(etcd)
    async with aclosing(await fill(source)):
        pass
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageFault, match="the backup is damaged") as caught:
        await transfer.copy(source, target, "restored")
    assert "another backup" in caught.value.hint
    assert "--rebuild" in caught.value.hint
    # What is to be done with a store that is in use would ruin what there is of the backup.
    assert "move this file" not in caught.value.hint
    assert source.read_bytes() == whole[: len(whole) // 2]
    async with aclosing(await opened(target)) as store:
        assert await store.read() == {}
    with pytest.raises(StorageFault, match="the controller's store is damaged") as caught:
        await transfer.copy(source, target)
    assert "move this file" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not a database, but a text" * 1000])
async def test_what_is_no_backup_is_named_so(etcd, tmp_path, content):
    """An empty file, or another program's."""
    source = tmp_path / "backup.db"
    source.write_bytes(content)
    with pytest.raises(StorageFault, match="the backup is damaged") as caught:
        await transfer.copy(source, own_address(etcd), "restored")
    assert "another backup" in caught.value.hint
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(StorageFault, match="this is not a backup") as caught:
        await transfer.copy(tmp_path / "other.db", own_address(etcd), "restored")
    assert "store backup" in caught.value.hint


async def test_the_old_store_cannot_come_back_over_the_new(etcd, tmp_path):
    """Once a controller on the copy has a term, the copier's own is stale."""
    source, target = tmp_path / "store.db", own_address(etcd)
    async with aclosing(await fill(source)):
        pass
    await transfer.copy(source, target)
    async with aclosing(await opened(target)) as first, aclosing(await opened(target)) as second:
        await first.take_term()
        await second.take_term()
        with pytest.raises(StaleTerm):
            await first.commit([Put("a", b"")])
