"""A store that is lost or damaged is refused, and rebuilt only when that is asked for."""

from contextlib import aclosing
from datetime import UTC, datetime

import pytest

from swarmctl.controller import holding, rebuilding, records
from swarmctl.controller.store.api import Delete, Put
from swarmctl.proto.errors import Conflict, StorageDamaged
from tests.unit.controller.harness import CLUSTER, spec

RECORD = records.encode(records.ServiceRecord(spec(), 0.0, 0.0))
KEY = records.service_key("default", "web")


@pytest.fixture
async def path(tmp_path):
    """A store that knows one service."""
    path = tmp_path / "store.db"
    async with aclosing(await rebuilding.open_store(path, CLUSTER)) as store:
        await store.take_term()
        await store.commit([Put(KEY, RECORD)])
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def overwrite(path):
    path.write_bytes(b"\0" * 8192)


def empty(path):
    path.write_bytes(b"")


def only_its_log(path):
    path.rename(path.with_name("store.db-wal"))


@pytest.mark.parametrize("damage", [truncate, overwrite, empty, only_its_log])
async def test_damage_is_refused_and_kept_aside(path, damage):
    """The refusal names both ways on; --rebuild deletes nothing and begins on hold."""
    damage(path)
    held = {one.read_bytes() for one in path.parent.iterdir()}
    with pytest.raises(StorageDamaged) as caught:
        await rebuilding.open_store(path, CLUSTER)
    assert "store restore" in caught.value.hint
    assert "--rebuild" in caught.value.hint

    async with aclosing(await rebuilding.begin(path, CLUSTER)) as store:
        assert await holding.read(store) == holding.REBUILT
        assert store.cluster_id == CLUSTER
        assert not await store.read(records.SERVICE)
    kept = {one.read_bytes() for one in path.parent.glob("*.damaged-*")}
    assert held <= kept
    async with aclosing(await rebuilding.begin(path, CLUSTER)) as store:
        assert await holding.read(store) == holding.REBUILT
    assert len(list(path.parent.glob("*.damaged-*"))) == len(kept)


async def test_a_record_that_cannot_be_read_is_damage(path):
    """Though the file is sound."""
    async with aclosing(await rebuilding.open_store(path, CLUSTER)) as store:
        await store.take_term()
        await store.commit([Put(KEY, b"\xc1")])
    async with aclosing(await rebuilding.begin(path, CLUSTER)) as store:
        assert not await store.read(records.SERVICE)


async def test_a_sound_store_is_not_rebuilt(path):
    """It is left as it is; one that is empty may begin on hold."""
    with pytest.raises(Conflict, match="sound"):
        await rebuilding.begin(path, CLUSTER)
    async with aclosing(await rebuilding.open_store(path, CLUSTER)) as store:
        assert await store.read(KEY) == {KEY: RECORD}
        await store.take_term()
        await store.commit([Delete(KEY)])
    async with aclosing(await rebuilding.begin(path, CLUSTER)) as store:
        assert await holding.read(store) == holding.REBUILT
        # Services that are made meanwhile do not keep it from starting again with --rebuild.
        await store.commit([Put(KEY, RECORD)])
    async with aclosing(await rebuilding.begin(path, CLUSTER)) as store:
        assert await store.read(KEY) == {KEY: RECORD}


async def test_a_lost_store_is_refused(path):
    """Where a controller has served before; a first start makes one."""
    rebuilding.check_not_lost(path, path.parent)
    path.unlink()
    rebuilding.check_not_lost(path, path.parent)
    (path.parent / "admin.context").touch()
    with pytest.raises(StorageDamaged) as caught:
        rebuilding.check_not_lost(path, path.parent)
    assert "store restore" in caught.value.hint
    assert "--rebuild" in caught.value.hint


async def test_without_the_clusters_key_nothing_is_rebuilt(tmp_path):
    """To the nodes it would be another cluster."""
    with pytest.raises(Conflict, match=r"cluster\.key"):
        rebuilding.check_identity(tmp_path)


async def test_what_was_kept_aside_before_is_kept(path):
    """Two in one second have two names."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    first = rebuilding.set_aside(path, now)
    path.write_bytes(b"again")
    second = rebuilding.set_aside(path, now)
    assert first != second
    assert second.read_bytes() == b"again"
