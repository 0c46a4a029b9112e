"""Copies of a store: a backup, a restore, a move from SQLite to etcd or back.

A backup is a SQLite store of its own. Whatever is copied, the target has to be empty, and gets a
higher term than the source ever had, so that whoever still writes to the source has an older one
than the nodes see next. A target that is restored begins on hold.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from swarmctl.controller import identity as identities
from swarmctl.controller.etcd import client as etcd
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.holding import HOLD
from swarmctl.controller.store.api import Op, Put, Store
from swarmctl.controller.store.chunks import ChunkedStore
from swarmctl.controller.store.etcd import EtcdStore
from swarmctl.controller.store.sqlite import SqliteStore
from swarmctl.folder import DataFolder
from swarmctl.proto.errors import Conflict, NotFound

# Entries in one commit, half of what one may have: each may come with pieces.
_AT_ONCE: Final = 50
_ASK_S: Final = 6.0

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
        source: is not changed; it may be in use.
        target: made where there is none; nobody may be using it.
        hold: if not empty, the target begins on hold for this reason.

    Raises:
        NotFound: there is no such source.
        Conflict: the target is not empty, is another cluster's, or in use.
        StorageFault: one of them does not work; the target may then be incomplete.
    """
    if isinstance(source, Path) and not source.exists():
        raise NotFound("there is no such file", str(source))
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(_opened(source, ""))
        entries = await origin.read()
        if not origin.cluster_id:
            raise NotFound("there is no store", str(source))
        await stack.enter_async_context(_unused(target))
        copied = await stack.enter_async_context(_opened(target, origin.cluster_id))
        if copied.cluster_id != origin.cluster_id:
            raise Conflict(
                f"it is the store of another cluster, {copied.cluster_id[:8]}", str(target)
            )
        if await copied.read():
            raise Conflict(
                "it is not empty", str(target), "nothing is overwritten: choose an empty one"
            )
        term = await copied.take_term(above=await _term_of(source))
        entries.pop(HOLD, None)
        puts: list[Op] = [Put(key, value) for key, value in entries.items()]
        if hold:
            puts.append(Put(HOLD, hold.encode()))
        await _commit(copied, puts)
        return Copied(origin.cluster_id, len(entries), term)


async def _commit(store: Store, puts: Sequence[Op]) -> None:
    for start in range(0, len(puts), _AT_ONCE):
        await store.commit(puts[start : start + _AT_ONCE])


@asynccontextmanager
async def _opened(address: StoreAddress, cluster_id: str) -> AsyncGenerator[Store, None]:
    if isinstance(address, Path):
        inner: Store = await SqliteStore.open(address, new_cluster_id=lambda: cluster_id)
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
