"""A store that is lost or damaged is never silently begun anew; ``controller --rebuild`` does it.

The file is checked before anything is served.  One that is missing where a controller has served
before, or that is damaged, is refused, and the refusal says what to do.  With ``--rebuild`` the
damaged file is kept aside under another name, and a new store begins on hold, with the identity in
the data folder: to nodes and administrators it is the cluster that they know.  Nodes enrol again
with the tokens that they kept, and tell in their hellos what they run and from which templates
(ADR 10).  All of it is in quarantine until the hold is released, and becomes services then
(:mod:`swarmctl.controller.handlers.adopting`).
"""

from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from swarmctl.controller import holding, networks, pasts, records, victims
from swarmctl.controller.identity import ADMIN_CONTEXT, CLUSTER_KEY
from swarmctl.controller.store.api import Put, Store
from swarmctl.controller.store.chunks import ChunkedStore
from swarmctl.controller.store.sqlite import SCHEMA, SqliteStore
from swarmctl.folder import storage_fault, sync_folder
from swarmctl.proto.errors import Conflict, StorageDamaged

_log = structlog.get_logger(__name__)

_KINDS: Final[dict[str, type[Any]]] = {
    records.SERVICE: records.ServiceRecord,
    records.TOMBSTONE: records.Tombstone,
    records.NODE: records.NodeRecord,
    records.TOKEN: records.TokenRecord,
    records.ADMIN: records.AdminRecord,
    records.REVOKED: records.RevokedKey,
    records.NETWORK: networks.NetworkRecord,
    records.SECURITY: networks.GroupRecord,
    records.PREEMPTED: victims.PreemptedRecord,
    records.PAST: pasts.PastRecord,
}
# The store's own file first: without its log it could pass for sound, a log without it cannot.
_SUFFIXES: Final = ("", "-wal", "-shm")


def check_identity(folder: Path) -> None:
    """A store can be made anew, the key by which nodes know the cluster cannot.

    Raises:
        Conflict: the key is not in the folder.
    """
    if not (folder / CLUSTER_KEY).exists():
        raise Conflict(
            "there is no cluster.key here: a new one would be another cluster to every node",
            str(folder),
            "give the cluster's --data, or put its cluster.key there; a new cluster needs no "
            "--rebuild",
        )


def check_not_lost(path: Path, folder: Path) -> None:
    """A folder whose controller has served before has a store.

    Raises:
        StorageDamaged: it has none.
    """
    if path.exists() or not (folder / ADMIN_CONTEXT).exists():
        return
    raise StorageDamaged(
        f"the {SCHEMA.title} is not there, and a controller has served from this folder before",
        str(path),
        f"with a backup: swarmctl store restore BACKUP sqlite:{path}; without one: "
        "'swarmctl controller --rebuild' takes in what the nodes run; nothing that runs is "
        "stopped meanwhile",
    )


async def open_store(path: Path, cluster_id: str) -> ChunkedStore:
    """The store in ``path``, made where there is none.

    Raises:
        StorageFault: see :meth:`SqliteStore.open`.
    """
    return ChunkedStore(await SqliteStore.open(path, new_cluster_id=lambda: cluster_id))


async def begin(path: Path, cluster_id: str) -> ChunkedStore:
    """A new store on hold in place of the one in ``path``, which is lost, damaged or empty.

    Begun before and not released yet, it goes on.

    Raises:
        Conflict: the store there is sound, and knows services.
        StorageFault: the folder cannot be written.
    """
    try:
        known = await _services_in(path, cluster_id)
    except StorageDamaged as error:
        kept = set_aside(path, datetime.now(UTC))
        _log.warning("damaged store kept aside", why=error.what, file=str(kept))
        known = []
    store = await open_store(path, cluster_id)
    try:
        if known:
            await _check_begun(store, path, len(known))
        await store.take_term()  # Nothing is written without one.
        await store.commit([Put(holding.HOLD, holding.REBUILT.encode())])
    except BaseException:
        await store.aclose()
        raise
    return store


async def _check_begun(store: Store, path: Path, services: int) -> None:
    if (await store.read(holding.HOLD)).get(holding.HOLD, b"").decode() != holding.REBUILT:
        raise Conflict(
            f"the store is sound and knows {services} services: there is nothing to rebuild",
            str(path),
            "start without --rebuild",
        )


async def _services_in(path: Path, cluster_id: str) -> list[str]:
    """The services that the store knows, all of whose records can be read; none without a file.

    Raises:
        StorageDamaged: something in it cannot.
    """
    if not _is_there(path):
        return []
    async with aclosing(await open_store(path, cluster_id)) as store:
        return await _checked(store)


def _is_there(path: Path) -> bool:
    if path.exists():
        return True
    if any(path.with_name(path.name + suffix).exists() for suffix in _SUFFIXES):
        raise StorageDamaged("only its log is left", str(path))
    return False


async def _checked(store: Store) -> list[str]:
    services: list[str] = []
    for prefix, kind in _KINDS.items():
        for key, value in (await store.read(prefix)).items():
            records.decode(value, kind, key)
            if prefix == records.SERVICE:
                services.append(key)
    return services


def set_aside(path: Path, now: datetime) -> Path:
    """Rename the store's file and its logs; nothing is deleted, and nothing overwritten.

    Raises:
        StorageFault: the folder cannot be written.
    """
    stem = f"{path.name}.damaged-{now:%Y%m%dT%H%M%SZ}"
    kept, number = path.with_name(stem), 1
    while any(kept.with_name(kept.name + suffix).exists() for suffix in _SUFFIXES):
        number += 1
        kept = path.with_name(f"{stem}-{number}")
    try:
        for suffix in _SUFFIXES:
            file = path.with_name(path.name + suffix)
            if file.exists():
                file.rename(kept.with_name(kept.name + suffix))
        sync_folder(path.parent)
    except OSError as error:
        raise storage_fault(error, path, "the damaged store cannot be kept aside") from error
    return kept
