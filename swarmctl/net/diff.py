"""From rows wanted and rows found to what has to be done. Pure; the answer is empty when all is so.

Theory of operation. Rows are compared by key. What is found and not wanted is deleted: only rows
that carry our cluster's id are ever among those found, so nothing of others' can be. Columns that
hold many things (members of a group, names, external ids) are changed by what is added and removed,
not written whole: one port more in a group of 10,000 is one small operation.

:func:`transactions` cuts a long list into pieces that each make sense alone: a row comes in one
piece with its parent and with its memberships, so that a port is never there without the groups
that close it. What is deleted goes first, since what is made may have the same name.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, TypeAlias

from attrs import evolve, frozen

from swarmctl.net.schema import TABLES, Kind, Row, Value

# One transaction holds up everybody else's for as long as the database works on it: 1,000 ports
# take a fraction of a second.
TRANSACTION_MAX: Final = 1_000


@frozen
class Insert:
    """Make a row, and list it with its parent."""

    row: Row

    @property
    def key(self) -> str:
        """Of which row."""
        return self.row.key


@frozen
class Update:
    """Set columns of a row to these values."""

    table: str
    key: str
    columns: Mapping[str, Value]


@frozen
class Change:
    """Add to a column that holds many things, and take from it.

    Of a map, ``put`` are the entries to set and ``drop`` the keys to remove; of a set, both are
    members.
    """

    table: str
    key: str
    column: str
    put: frozenset[str] | Mapping[str, str]
    drop: frozenset[str]


@frozen
class Delete:
    """Remove a row; one that is gone already, with its parent, is no error."""

    table: str
    key: str


Operation: TypeAlias = Insert | Update | Change | Delete

_ORDER: Final = {table: place for place, table in enumerate(TABLES)}


def difference(found: Mapping[str, Row], wanted: Mapping[str, Row]) -> list[Operation]:
    """What turns the rows found into those wanted, in an order in which it can be done."""
    replaced = {
        key
        for key in wanted.keys() & found.keys()
        if (found[key].table, found[key].parent) != (wanted[key].table, wanted[key].parent)
    }
    gone = [found[key] for key in found if key not in wanted or key in replaced]
    new = [wanted[key] for key in wanted if key not in found or key in replaced]
    operations: list[Operation] = [
        Delete(row.table, row.key) for row in sorted(gone, key=_children_first)
    ]
    operations += [Insert(row) for row in sorted(new, key=_parents_first)]
    for key, row in wanted.items():
        if key in found and key not in replaced:
            operations += _changes(found[key], row, replaced)
    return operations


def _parents_first(row: Row) -> int:
    return _ORDER[row.table]


def _children_first(row: Row) -> int:
    return -_ORDER[row.table]


def _changes(found: Row, wanted: Row, replaced: Set[str]) -> Iterator[Operation]:
    if found.columns == wanted.columns and not replaced:
        return
    whole: dict[str, Value] = {}
    for column, kind in TABLES[wanted.table].columns.items():
        old, new = found.columns[column], wanted.columns[column]
        if replaced and kind is Kind.REFERENCES and isinstance(old, frozenset):
            old -= replaced  # the database forgets the row that was; the new one is another
        elif kind is Kind.REFERENCE and old in replaced:
            old = None
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            put = {key: text for key, text in new.items() if old.get(key) != text}
            drop = frozenset(old.keys() - new.keys())
            yield Change(wanted.table, wanted.key, column, put, drop)
        elif kind is Kind.REFERENCES and isinstance(old, frozenset) and isinstance(new, frozenset):
            yield Change(wanted.table, wanted.key, column, new - old, old - new)
        else:
            whole[column] = new
    if whole:
        yield Update(wanted.table, wanted.key, whole)


# --- pieces ---------------------------------------------------------------------------------------


def transactions(
    operations: Sequence[Operation], limit: int = TRANSACTION_MAX
) -> Iterator[list[Operation]]:
    """Pieces to be applied one after the other, each of about ``limit`` rows.

    Args:
        operations: as :func:`difference` gives them.
        limit: how many rows a piece makes or deletes, or how many operations it has besides.
    """
    deletes = [each for each in operations if isinstance(each, Delete)]
    inserts = [each for each in operations if isinstance(each, Insert)]
    changes = [each for each in operations if isinstance(each, Update | Change)]
    yield from _chunks(deletes, limit)
    piece_of = {each.key: place // limit for place, each in enumerate(inserts)}
    pieces: list[list[Operation]] = [list(chunk) for chunk in _chunks(inserts, limit)]
    for piece in pieces:
        for place, insert in enumerate(piece):
            if isinstance(insert, Insert):
                piece[place], later = _without_later(insert, piece_of)
                for change in later:
                    pieces[_piece(change, piece_of)].append(change)
    rest: list[Operation] = []
    for each in changes:
        if isinstance(each, Change) and _is_references(each.table, each.column):
            for part in _by_piece(each, piece_of):
                where = _piece(part, piece_of)
                (rest if where < 0 else pieces[where]).append(part)
        else:
            rest.append(each)
    yield from pieces
    yield from _chunks(rest, limit)


def _chunks(operations: Sequence[Operation], limit: int) -> Iterator[list[Operation]]:
    for start in range(0, len(operations), limit):
        yield list(operations[start : start + limit])


def _is_references(table: str, column: str) -> bool:
    return TABLES[table].columns[column] is Kind.REFERENCES


def _piece(change: Change, piece_of: Mapping[str, int]) -> int:
    """In which piece the rows are made that a part of a change adds; -1 where they are there."""
    return max((piece_of.get(key, -1) for key in change.put), default=-1)


def _without_later(insert: Insert, piece_of: Mapping[str, int]) -> tuple[Insert, Iterable[Change]]:
    """The row without what it refers to in later pieces, and that as changes to it."""
    row, own = insert.row, piece_of[insert.key]
    columns, later = dict(row.columns), list[Change]()
    for column, value in row.columns.items():
        if _is_references(row.table, column) and isinstance(value, frozenset):
            soon = frozenset(key for key in value if piece_of.get(key, -1) <= own)
            if soon != value:
                columns[column] = soon
                late = Change(row.table, row.key, column, value - soon, frozenset())
                later += _by_piece(late, piece_of)
    return Insert(evolve(row, columns=columns)) if later else insert, later


def _by_piece(change: Change, piece_of: Mapping[str, int]) -> Iterator[Change]:
    """A change of references, in parts by the piece in which what is added is made."""
    by_piece: dict[int, set[str]] = defaultdict(set)
    for key in change.put:
        by_piece[piece_of.get(key, -1)].add(key)
    if change.drop:
        by_piece[-1] |= set()
    for where in sorted(by_piece):
        drop = change.drop if where == -1 else frozenset[str]()
        yield evolve(change, put=frozenset(by_piece[where]), drop=drop)
