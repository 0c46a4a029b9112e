"""Copies of a store: a backup, a restore, a move from SQLite to etcd or back.

A backup is a SQLite store of its own. Whatever is copied, the target has to be empty, and gets a
higher term than the source ever had, so that whoever still writes to the source has an older one
than the nodes see next. A target that is restored begins on hold; a source that was moved is marked
(:mod:`swarmctl.controller.moving`).
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from time import time as wall_clock
from typing import Final

import trio
from attrs import evolve, frozen

from swarmctl.controller import identity as identities
from swarmctl.controller import moving, records
from swarmctl.controller.etcd import client as etcd
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.holding import HOLD
from swarmctl.controller.moving import MOVED, Moved
from swarmctl.controller.store.api import Delete, Op, Put, Store
from swarmctl.controller.store.chunks import ChunkedStore
from swarmctl.controller.store.etcd import EtcdStore
from swarmctl.controller.store.sqlite import SCHEMA, SqliteStore
from swarmctl.database import Schema
from swarmctl.folder import DataFolder
from swarmctl.proto.errors import Conflict, NotFound

# Entries in one commit, half of what one may have: each may come with pieces.
_AT_ONCE: Final = 50
_ASK_S: Final = 6.0

# What is said of a file that is to be restored from.
BACKUP: Final = evolve(
    SCHEMA,
    title="backup",
    recovery=(
        "restore from another backup; without one 'swarmctl controller --rebuild' takes in what "
        "the nodes run; nothing that runs is stopped meanwhile"
    ),
    foreign="give a file that 'swarmctl store backup' has made",
)

StoreAddress = Path | EtcdAddress


@frozen
class Copied:
    """What was copied."""

    cluster_id: str
    entries: int
    term: int


async def copy(source: StoreAddress, target: StoreAddress, hold: str = "") -> Copied:
    """Copy all entries.

    Args:
        source: is not changed; it may be in use. With ``hold`` it is a backup.
        target: made where there is none; nobody may be using it.
        hold: if not empty, the target begins on hold for this reason.

    Raises:
        NotFound: there is no such source.
        Conflict: the target is not empty, is another cluster's, or in use.
        StorageFault: one of them does not work; the target may then be incomplete.
    """
    schema = BACKUP if hold else SCHEMA
    async with _both(source, target, unused=(target,), schema=schema) as (origin, copied):
        return await _copy(origin, source, copied, hold)


async def migrate(source: StoreAddress, target: StoreAddress) -> Copied:
    """Move a store: copy all entries, and mark the source, so that nobody serves from it again.

    It is marked first, by a term of its own: a controller that still runs on it, unseen, writes
    nothing more that would be missing in the target.  When the copy fails the mark is taken back.

    Raises:
        NotFound: there is no such source.
        Conflict: one of them is in use, the source was moved before, or the target is not empty or
            another cluster's.
        StorageFault: one of them does not work; the target may then be incomplete.
    """
    async with _both(source, target, unused=(source, target)) as (origin, copied):
        await moving.check(origin, named(source))
        await origin.take_term()
        moved = Moved(named(target), wall_clock(), moving.whoever())
        await origin.commit([Put(MOVED, records.encode(moved))])
        try:
            return await _copy(origin, source, copied, "")
        except BaseException:
            with trio.CancelScope(shield=True):
                await origin.commit([Delete(MOVED)])
            raise


async def reopen(address: StoreAddress) -> Moved:
    """Make a store that was moved one to serve from again, on hold; where it had gone.

    Raises:
        NotFound: there is no such store, or it was not moved.
        Conflict: it is in use.
        StorageFault: it does not work.
    """
    if isinstance(address, Path) and not address.exists():
        raise NotFound("there is no such file", str(address))
    async with _unused(address), _opened(address, "") as store:
        moved = await moving.read(store)
        if moved is None:
            raise NotFound("this store was not moved", named(address))
        await store.take_term()
        hold = f"it is as it was when it was {moved}"
        await store.commit([Delete(MOVED), Put(HOLD, hold.encode())])
        return moved


def named(address: StoreAddress) -> str:
    """As ``--store`` takes it."""
    return f"sqlite:{address}" if isinstance(address, Path) else str(address)


@asynccontextmanager
async def _both(
    source: StoreAddress,
    target: StoreAddress,
    *,
    unused: Sequence[StoreAddress],
    schema: Schema = SCHEMA,
) -> AsyncGenerator[tuple[Store, Store], None]:
    """Both stores open, the target empty and of the same cluster, and those in ``unused`` so."""
    if isinstance(source, Path) and not source.exists():
        raise NotFound("there is no such file", str(source))
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(_opened(source, "", schema))
        if not origin.cluster_id:
            raise NotFound("there is no store", str(source))
        # Two files of one folder have one lock.
        places = {one.parent if isinstance(one, Path) else one: one for one in unused}
        for one in places.values():
            await stack.enter_async_context(_unused(one))
        copied = await stack.enter_async_context(_opened(target, origin.cluster_id))
        if copied.cluster_id != origin.cluster_id:
            raise Conflict(
                f"it is the store of another cluster, {copied.cluster_id[:8]}", str(target)
            )
        if await copied.read():
            raise Conflict(
                "it is not empty", str(target), "nothing is overwritten: choose an empty one"
            )
        yield origin, copied


async def _copy(origin: Store, source: StoreAddress, copied: Store, hold: str) -> Copied:
    entries = await origin.read()
    term = await copied.take_term(above=await _term_of(source))
    for own in (HOLD, MOVED):
        entries.pop(own, None)
    # On hold first: half a copy, of a command that was killed, is not served from unnoticed.
    incomplete = f"its copy from {named(source)} was not completed"
    await copied.commit([Put(HOLD, (hold or incomplete).encode())])
    await _commit(copied, [Put(key, value) for key, value in entries.items()])
    if not hold:
        await copied.commit([Delete(HOLD)])
    return Copied(origin.cluster_id, len(entries), term)


async def _commit(store: Store, puts: Sequence[Op]) -> None:
    for start in range(0, len(puts), _AT_ONCE):
        await store.commit(puts[start : start + _AT_ONCE])


@asynccontextmanager
async def _opened(
    address: StoreAddress, cluster_id: str, schema: Schema = SCHEMA
) -> AsyncGenerator[Store, None]:
    if isinstance(address, Path):
        inner: Store = await SqliteStore.open(
            address, new_cluster_id=lambda: cluster_id, schema=schema
        )
    else:
        inner = await EtcdStore.open(address, new_cluster_id=lambda: cluster_id)
    async with aclosing(ChunkedStore(inner)) as store:
        yield store


async def _term_of(address: StoreAddress) -> int:
    """The highest term that a store ever gave."""
    if isinstance(address, Path):
        return await trio.to_thread.run_sync(SqliteStore.stored_term, address)
    return await trio.to_thread.run_sync(_term_in_etcd, address)


def _term_in_etcd(address: EtcdAddress) -> int:
    client = etcd.EtcdClient(address)
    try:
        found = etcd.entries(client.range(address.key("fact/term"), deadline_s=_ASK_S))
    finally:
        client.close()
    return int(found[0][1].split()[0]) if found else 0


@asynccontextmanager
async def _unused(address: StoreAddress) -> AsyncGenerator[None, None]:
    """Nobody may use the target: a controller's folder is locked, an etcd's has a leader."""
    if isinstance(address, Path):
        with DataFolder.open(address.parent, "store"):
            yield
        return
    if await trio.to_thread.run_sync(_is_led, address):
        raise Conflict("a controller uses it now", str(address), "stop the controllers on it first")
    yield


def _is_led(address: EtcdAddress) -> bool:
    client = etcd.EtcdClient(address)
    try:
        return bool(etcd.entries(client.range(address.key("leader"), deadline_s=_ASK_S)))
    finally:
        client.close()


def check_identity(folder: Path, cluster_id: str) -> None:
    """A restored store is of no use without the key of its cluster.

    Raises:
        Conflict: the folder is another cluster's.
    """
    if (folder / identities.CLUSTER_KEY).exists():
        mine = identities.load_or_make(folder).cluster_id
        if mine != cluster_id:
            raise Conflict(
                f"the key there is of cluster {mine[:8]}, the store of {cluster_id[:8]}",
                str(folder / identities.CLUSTER_KEY),
                "restore both from the same backup",
            )
