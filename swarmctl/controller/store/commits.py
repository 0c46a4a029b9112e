"""The rules of a commit, apart from any backend: what is valid, what holds, what remains.

:func:`fold` turns a group of commits into the net change of the keys that they touch. A backend
gives it the revisions of the keys that the group asks about, and writes what remains in one
transaction; a commit whose expectation does not hold drops out alone.
"""

from collections.abc import Iterable, Mapping, Sequence

import attrs
import outcome

from swarmctl.controller.store.api import Entry, Op, Put
from swarmctl.proto.errors import Conflict, InternalError, InvalidSpec, StaleTerm
from swarmctl.proto.limits import (
    KEY_MAX_BYTES,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_OPS_MAX,
    VALUE_MAX_BYTES,
)


def validate(ops: Sequence[Op]) -> int:
    """Check a commit against the store's contract.

    Returns:
        Its size in bytes.

    Raises:
        InvalidSpec: a value is too large: what a user stored is.
        InternalError: anything else: the caller's mistake.
    """
    if len(ops) > TRANSACTION_OPS_MAX:
        raise InternalError(
            f"a commit of {len(ops)} operations; {TRANSACTION_OPS_MAX} are the most"
        )
    size_bytes = 0
    seen = set()
    for op in ops:
        validate_key(op.key)
        if op.key in seen:
            raise InternalError("a commit names one key twice", where=op.key)
        seen.add(op.key)
        size_bytes += len(op.key)
        if isinstance(op, Put):
            _validate_value(op)
            size_bytes += len(op.value)
    if size_bytes > TRANSACTION_BYTES_MAX:
        raise InternalError(f"a commit of {size_bytes} bytes; {TRANSACTION_BYTES_MAX} are the most")
    return size_bytes


def validate_key(key: str) -> None:
    """Refuse what is not a path of printable names.

    Raises:
        InternalError: keys are made by code, from names that were checked before.
    """
    if not key or not key.isprintable() or len(key.encode()) > KEY_MAX_BYTES:
        raise InternalError(
            f"a key must be printable and of 1 to {KEY_MAX_BYTES} bytes", where=repr(key[:80])
        )


def _validate_value(put: Put) -> None:
    if type(put.value) is not bytes:
        raise InternalError(f"a value must be bytes, not {type(put.value).__name__}", where=put.key)
    if len(put.value) > VALUE_MAX_BYTES:
        raise InvalidSpec(
            f"it takes {len(put.value) / 1024:.0f} KiB to store; "
            f"{VALUE_MAX_BYTES // 1024} KiB are the most",
            where=put.key,
            hint="make it smaller: keep large files in an image or on a volume",
        )


def check_term(own: int, stored: int) -> None:
    """Compare the writer's term with the store's.

    Raises:
        StaleTerm: the store's is higher.
        InternalError: the writer has none, or one that the store never gave.
    """
    if own == stored and own > 0:
        return
    if own == 0:
        raise InternalError("a commit before a term was taken")
    if own > stored:
        raise InternalError(f"term {own} was never committed; the store is at {stored}")
    raise StaleTerm(
        f"another controller has taken over (term {stored}, ours is {own})",
        hint="this one must stop; the other one serves",
    )


def expected_keys(commits: Iterable[Sequence[Op]]) -> list[str]:
    """The keys whose revisions :func:`fold` must know."""
    return sorted({op.key for ops in commits for op in ops if op.expect is not None})


@attrs.frozen
class Fold:
    """The net change of a group.

    Args:
        changes: by key: the new entry, or None where it is removed.
        revision: the store's revision afterwards.
        outcomes: for each commit, in order: its revision, or the Conflict that refused it.
    """

    changes: Mapping[str, Entry | None]
    revision: int
    outcomes: Sequence[outcome.Outcome[int]]


def fold(commits: Sequence[Sequence[Op]], revisions: Mapping[str, int], revision: int) -> Fold:
    """Apply ``commits`` one after the other, in thought.

    Args:
        commits: each valid by itself.
        revisions: of those :func:`expected_keys` that exist.
        revision: the store's so far.
    """
    changes: dict[str, Entry | None] = {}
    outcomes: list[outcome.Outcome[int]] = []
    for ops in commits:
        conflict = _conflict(ops, changes, revisions)
        if conflict is not None:
            outcomes.append(outcome.Error(conflict))
            continue
        if ops:
            revision += 1
        for op in ops:
            changes[op.key] = Entry(op.value, revision) if isinstance(op, Put) else None
        outcomes.append(outcome.Value(revision))
    return Fold(changes, revision, outcomes)


def _conflict(
    ops: Sequence[Op], changes: Mapping[str, Entry | None], revisions: Mapping[str, int]
) -> Conflict | None:
    for op in ops:
        if op.expect is None:
            continue
        if op.key in changes:
            entry = changes[op.key]
            actual = entry.revision if entry is not None else 0
        else:
            actual = revisions.get(op.key, 0)
        if actual != op.expect:
            return Conflict(
                f"it was changed meanwhile (revision {actual}, expected {op.expect})",
                where=op.key,
                hint="look at it again and repeat",
            )
    return None
