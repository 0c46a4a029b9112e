"""Values larger than a backend takes, over any backend: the same contract for all of them.

A value beyond ``VALUE_MAX_BYTES``, and the largest ones of a commit beyond
``TRANSACTION_BYTES_MAX``, are cut into pieces that are committed first, under keys of their own
(``~chunk/TERM-NUMBER/INDEX``); the commit itself then sets a small *head* that names them. So what
a caller commits is still all or nothing: a head is there with all of its pieces, or is not there.
Pieces that no head names (of a crash in between, of a value that was replaced) are swept.

A head is told from a value by its first bytes; a value that begins with those is stored in pieces,
however small.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgpack
import structlog
import trio
from attrs import evolve, frozen

from swarmctl.controller.store.api import Delete, Entry, Op, Put, Statistics, Store
from swarmctl.controller.store.commits import validate, validate_key
from swarmctl.proto.errors import Busy, InternalError, InvalidSpec, StorageFault
from swarmctl.proto.limits import (
    KEY_MAX_BYTES,
    RECORD_MAX_BYTES,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_OPS_MAX,
    VALUE_MAX_BYTES,
)

_log = structlog.get_logger(__name__)

# "~" sorts after every letter, so that pieces come last in a dump; records begin with a letter.
PIECES: Final = "~chunk/"
# No msgpack value begins with this byte, so none of our records is ever taken for a head.
MARK: Final = b"\xc1swarmctl-pieces\x00"
# A commit with every value in pieces takes this much for each: its head, and room to spare.
_HEAD_BYTES: Final = 256
# Commits that wait while a large one is written: as many as requests may be under way.
_WAITING_MAX: Final = 20_000


@frozen
class _Head:
    """What stands in place of a value: where its pieces are, and a digest of the whole."""

    id: str
    count: int
    size_bytes: int
    digest: bytes

    def to_bytes(self) -> bytes:
        packed: bytes = msgpack.packb([self.id, self.count, self.size_bytes, self.digest])
        return MARK + packed

    def piece_keys(self) -> list[str]:
        return [_piece_key(self.id, index) for index in range(self.count)]


def _piece_key(head: str, index: int) -> str:
    return f"{PIECES}{head}/{index:04}"


def _head_of(value: bytes, key: str) -> _Head | None:
    if not value.startswith(MARK):
        return None
    try:
        name, count, size_bytes, digest = msgpack.unpackb(value[len(MARK) :])
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise _damaged(key) from error
    return _Head(name, count, size_bytes, digest)


def _damaged(key: str) -> StorageFault:
    return StorageFault(
        "the pieces of a large value do not make it up", key, "restore the store from a backup"
    )


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=16).digest()


class ChunkedStore:
    """A :class:`~swarmctl.controller.store.api.Store` over another, for values of any size.

    Values may have ``RECORD_MAX_BYTES``; the rest of the contract is the inner store's.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._number = 0
        # Keys whose value is in pieces, as far as was read or written here.
        self._heads: dict[str, _Head] = {}
        # Pieces that nothing names any more, to be deleted with the next large commit.
        self._loose: list[str] = []
        # Held while pieces are written, so that commits stay in the order of their calls.
        self._order = trio.StrictFIFOLock()

    @property
    def cluster_id(self) -> str:
        """See Store."""
        return self._inner.cluster_id

    @property
    def term(self) -> int:
        """See Store."""
        return self._inner.term

    def statistics(self) -> Statistics:
        """See Store; pieces count as operations of their own."""
        return self._inner.statistics()

    async def aclose(self) -> None:
        """See Store."""
        await self._inner.aclose()

    async def take_term(self, above: int = 0) -> int:
        """See Store; the first time it also looks for large values, and sweeps loose pieces."""
        first = not self._inner.term
        term = await self._inner.take_term(above)
        if first:
            pieces = list(await self._inner.read(PIECES))
            if pieces:
                await self.read_entries()  # which notes the heads there are
                self._loose += pieces
                await self._sweep_loose()
        return term

    # --- reading ------------------------------------------------------------------------------

    async def read(self, prefix: str = "") -> dict[str, bytes]:
        """See Store."""
        return {key: entry.value for key, entry in (await self.read_entries(prefix)).items()}

    async def read_entries(self, prefix: str = "") -> dict[str, Entry]:
        """See Store."""
        while True:
            entries = await self._inner.read_entries(prefix)
            whole: dict[str, Entry] = {}
            for key, entry in entries.items():
                if key.startswith(PIECES):
                    continue
                head = _head_of(entry.value, key)
                if head is None:
                    whole[key] = entry
                    continue
                value = await self._whole(head, key)
                if value is None:
                    break  # It was replaced since: what was read is of the past.
                self._heads[key] = head
                whole[key] = evolve(entry, value=value)
            else:
                return whole

    async def _whole(self, head: _Head, key: str) -> bytes | None:
        """The value of a head; None when the head is not the key's any more."""
        pieces = await self._inner.read(f"{PIECES}{head.id}/")
        value = b"".join(pieces.values())
        if len(value) == head.size_bytes and _digest(value) == head.digest:
            return value
        now = (await self._inner.read(key)).get(key)
        if now is None or _head_of(now, key) != head:
            return None
        raise _damaged(key)

    # --- writing ------------------------------------------------------------------------------

    async def commit(self, ops: Sequence[Op]) -> int:
        """See Store."""
        ops = tuple(ops)
        large = _too_large(ops)
        replaced = any(op.key in self._heads for op in ops) if self._heads else False
        if not large and not replaced and not self._order.locked():
            return await self._inner.commit(ops)
        if self._order.statistics().tasks_waiting >= _WAITING_MAX:
            raise Busy("too many commits wait for a large one")
        if not large and not replaced:
            # Queued by the inner store before the next in line gets its turn.
            async with self._order:
                pass
            return await self._inner.commit(ops)
        async with self._order:
            return await self._commit_large(ops, large)

    async def _commit_large(self, ops: Sequence[Op], large: set[str]) -> int:
        """Pieces first, then the commit, then what nobody needs any more."""
        heads: dict[str, _Head] = {}
        replaced: list[Op] = []
        for op in ops:
            if isinstance(op, Put) and op.key in large:
                heads[op.key] = await self._write_pieces(op.value)
                replaced.append(evolve(op, value=heads[op.key].to_bytes()))
            else:
                replaced.append(op)
        # If it fails here, whether it was done cannot always be told: the pieces stay until the
        # sweep of the next start, which sees what the store names.
        revision = await self._inner.commit(replaced)
        for op in ops:
            old = self._heads.pop(op.key, None)
            if old is not None:
                self._loose += old.piece_keys()
        self._heads.update(heads)
        await self._sweep_loose()
        return revision

    async def _write_pieces(self, value: bytes) -> _Head:
        self._number += 1
        name = f"{self._inner.term}-{self._number}"
        starts = range(0, max(1, len(value)), VALUE_MAX_BYTES)
        head = _Head(name, len(starts), len(value), _digest(value))
        for index, start in enumerate(starts):
            piece = value[start : start + VALUE_MAX_BYTES]
            await self._inner.commit([Put(_piece_key(name, index), piece)])
        return head

    async def _sweep_loose(self) -> None:
        """Delete pieces that nothing names; what fails is left for the sweep of the next start."""
        named = {key for head in self._heads.values() for key in head.piece_keys()}
        loose, self._loose = [key for key in self._loose if key not in named], []
        try:
            for first in range(0, len(loose), TRANSACTION_OPS_MAX):
                part = loose[first : first + TRANSACTION_OPS_MAX]
                await self._inner.commit([Delete(key) for key in part])
        except StorageFault as error:
            _log.warning("pieces of old values are left for later", error=str(error))


def _too_large(ops: Sequence[Op]) -> set[str]:
    """The keys whose values go in pieces; checks the commit against the contract.

    Raises:
        InvalidSpec: a value is beyond ``RECORD_MAX_BYTES``.
        InternalError: the caller's mistake.
    """
    large: set[str] = set()
    for op in ops:
        if op.key.startswith(PIECES):
            raise InternalError("a key in the place of pieces", where=op.key)
        if not isinstance(op, Put) or type(op.value) is not bytes:
            continue
        if len(op.value) > RECORD_MAX_BYTES:
            raise InvalidSpec(
                f"it takes {len(op.value) / 1024:.0f} KiB to store; "
                f"{RECORD_MAX_BYTES // 1024} KiB are the most",
                where=op.key,
                hint="make it smaller: keep large files in an image or on a volume",
            )
        if len(op.value) > VALUE_MAX_BYTES or op.value.startswith(MARK):
            large.add(op.key)
    inline = [op for op in ops if isinstance(op, Put) and op.key not in large]
    room = TRANSACTION_BYTES_MAX - len(ops) * (KEY_MAX_BYTES + _HEAD_BYTES)
    total = sum(len(op.value) for op in inline)
    for op in sorted(inline, key=lambda one: -len(one.value)):
        if total <= room or len(op.value) <= _HEAD_BYTES:
            break
        total -= len(op.value)
        large.add(op.key)
    validate([Put(op.key, b"", op.expect) if op.key in large else op for op in ops])
    for key in large:
        validate_key(key)
    return large
