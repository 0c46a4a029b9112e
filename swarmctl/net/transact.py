"""Operations and rows in OVSDB's own words (RFC 7047). Pure.

A transaction is: a comparison of the term, a look whether every row that is to be changed is still
there, then the changes. If one of them fails, the server does none. What lists rows (the ports of a
switch) is changed once for all rows that come and go, since each change of a long list is a copy.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from attrs import frozen

from swarmctl.net.diff import Change, Delete, Insert, Operation, Update
from swarmctl.net.schema import (
    CLUSTER_KEY,
    EMPTY_ROWS,
    ID_KEY,
    OUR_PREFIX,
    TABLES,
    TERM_KEY_PREFIX,
    Kind,
    Row,
    Value,
)
from swarmctl.proto.errors import Conflict

DATABASE: Final = "OVN_Northbound"
WHERE: Final = "the northbound database"

Json: TypeAlias = dict[str, Any]


@frozen
class Known:
    """Where a row of ours is: its UUID, its table, and the key of its parent."""

    uuid: str
    table: str
    parent: str


# --- the term -------------------------------------------------------------------------------------


def select_terms() -> Json:
    """Ask for what NB_Global has of everybody."""
    return {
        "op": "select",
        "table": "NB_Global",
        "where": [],
        "columns": ["_uuid", "external_ids"],
    }


def term_of(cluster_id: str, selected: Json) -> int:
    """The term in an answer to that; 0 where there is none."""
    for row in selected["rows"]:
        text = decode_map(row["external_ids"]).get(TERM_KEY_PREFIX + cluster_id, "")
        return int(text) if text.isascii() and text.isdecimal() else 0
    return 0


def expect_term(cluster_id: str, term: int) -> Json:
    """Fail unless the term is that."""
    pair = [[TERM_KEY_PREFIX + cluster_id, str(term)]]
    return {
        "op": "wait",
        "timeout": 0,
        "table": "NB_Global",
        "where": [["external_ids", "includes", ["map", pair]]],
        "columns": ["_uuid"],
        "until": "!=",
        "rows": [],
    }


def set_term(cluster_id: str, term: int, selected: Json) -> list[Json]:
    """Put the term there, unless what was selected has changed since."""
    key = TERM_KEY_PREFIX + cluster_id
    entry = ["map", [[key, str(term)]]]
    if not selected["rows"]:
        # Nobody has used the database. Of two who make this row one fails: it may be there once.
        return [{"op": "insert", "table": "NB_Global", "row": {"external_ids": entry}}]
    [row] = selected["rows"]
    where = [["_uuid", "==", row["_uuid"]]]
    return [
        {
            "op": "wait",
            "timeout": 0,
            "table": "NB_Global",
            "where": where,
            "columns": ["external_ids"],
            "until": "==",
            "rows": [{"external_ids": row["external_ids"]}],
        },
        {
            "op": "mutate",
            "table": "NB_Global",
            "where": where,
            "mutations": [
                ["external_ids", "delete", ["set", [key]]],
                ["external_ids", "insert", entry],
            ],
        },
    ]


# --- reading --------------------------------------------------------------------------------------


def listed_in(table: str) -> Sequence[str]:
    """The columns of a table in which it lists rows of other tables of ours."""
    return [each.parent[1] for each in TABLES.values() if each.parent and each.parent[0] == table]


def select_rows(cluster_id: str) -> list[Json]:
    """Ask for every row of a cluster, one answer a table."""
    ours = [["external_ids", "includes", ["map", [[CLUSTER_KEY, cluster_id]]]]]
    return [
        {
            "op": "select",
            "table": name,
            "where": ours,
            "columns": ["_uuid", *table.columns, *listed_in(name)],
        }
        for name, table in TABLES.items()
    ]


def rows_of(selected: Sequence[Json]) -> tuple[dict[str, Row], dict[str, Known]]:
    """The rows in the answers to that, and where they are."""
    key_of: dict[str, str] = {}
    parent_of: dict[str, str] = {}
    seen: set[str] = set()
    for name, answer in zip(TABLES, selected, strict=True):
        listing = listed_in(name)
        for row in answer["rows"]:
            uuid = row["_uuid"][1]
            key = dict(row["external_ids"][1]).get(ID_KEY, "")
            # Made twice, or without a key: it gets one that nobody wants.
            key_of[uuid] = key if key and key not in seen else f"{key}#{uuid}"
            seen.add(key)
            for column in listing:
                for child in decode_uuids(row[column]):
                    parent_of[child] = uuid
    rows: dict[str, Row] = {}
    known: dict[str, Known] = {}
    for (name, table), answer in zip(TABLES.items(), selected, strict=True):
        decoders = [(column, _DECODERS[kind]) for column, kind in table.columns.items()]
        for row in answer["rows"]:
            uuid = row["_uuid"][1]
            key, parent = key_of[uuid], key_of.get(parent_of.get(uuid, ""), "")
            columns = {column: decode(row[column], key_of) for column, decode in decoders}
            columns["external_ids"] = {
                note: text
                for note, text in decode_map(row["external_ids"]).items()
                if note.startswith(OUR_PREFIX)  # others may keep theirs beside ours
            }
            rows[key] = Row(name, key, columns, parent)
            known[key] = Known(uuid, name, parent)
    return rows, known


def decode_map(value: Any) -> dict[str, str]:
    """A map of texts."""
    return dict(value[1])


def decode_uuids(value: Any) -> Iterable[str]:
    """A set of UUIDs; one alone is not written as a set."""
    return (each[1] for each in value[1]) if value[0] == "set" else (value[1],)


def _decode_text(value: Any, _: Mapping[str, str]) -> Value:
    plain: Value = value
    return plain


def _decode_optional(value: Any, _: Mapping[str, str]) -> Value:
    return None if isinstance(value, list) else value


def _decode_texts(value: Any, _: Mapping[str, str]) -> Value:
    return frozenset(value[1] if isinstance(value, list) else (value,))


def _decode_map(value: Any, _: Mapping[str, str]) -> Value:
    return decode_map(value)


def _decode_references(value: Any, key_of: Mapping[str, str]) -> Value:
    return frozenset(key_of[uuid] for uuid in decode_uuids(value) if uuid in key_of)


def _decode_reference(value: Any, key_of: Mapping[str, str]) -> Value:
    return next((key_of[uuid] for uuid in decode_uuids(value) if uuid in key_of), None)


_DECODERS: Final[Mapping[Kind, Callable[[Any, Mapping[str, str]], Value]]] = {
    Kind.TEXT: _decode_text,
    Kind.NUMBER: _decode_text,
    Kind.OPTIONAL_TEXT: _decode_optional,
    Kind.OPTIONAL_NUMBER: _decode_optional,
    Kind.TEXTS: _decode_texts,
    Kind.MAP: _decode_map,
    Kind.REFERENCE: _decode_reference,
    Kind.REFERENCES: _decode_references,
}


# --- writing --------------------------------------------------------------------------------------


class Transaction:
    """Operations being put into OVSDB's words, against what is known to be there."""

    def __init__(self, known: Mapping[str, Known]) -> None:
        self._known = known
        self._named: dict[str, str] = {}
        self.inserted: list[Insert] = []
        self.deleted: list[str] = []
        self._touched: dict[str, None] = {}
        self._gone: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self._come: dict[tuple[str, str], list[Any]] = defaultdict(list)

    def encode(self, operations: Sequence[Operation]) -> list[Json]:
        """What the server has to do, without the comparison of the term.

        The rows that are made come first, in the order of :attr:`inserted`.

        Raises:
            Conflict: a row that is to be made is there, or one that is to be changed is not.
        """
        deleted = {each.key for each in operations if isinstance(each, Delete)}
        for each in operations:
            if isinstance(each, Insert):
                if each.key in self._named or (each.key in self._known and each.key not in deleted):
                    raise Conflict(f"{each.key} is there already", WHERE, "read anew")
                self._named[each.key] = f"row{len(self._named)}"
                self.inserted.append(each)
        inserts = [self._insert(each) for each in self.inserted]
        deletes = [
            json for each in operations if isinstance(each, Delete) for json in self._delete(each)
        ]
        changes = [self._change(each) for each in operations if isinstance(each, Update | Change)]
        lists = [
            *(self._list(*place, "delete", uuids) for place, uuids in self._gone.items()),
            *(self._list(*place, "insert", uuids) for place, uuids in self._come.items()),
        ]
        there = [self._expect(key) for key in self._touched]
        return [*inserts, *there, *lists, *deletes, *changes]

    def _uuid(self, key: str) -> list[str]:
        if key in self._named:
            return ["named-uuid", self._named[key]]
        if key not in self._known:
            raise Conflict(f"{key} is not there", WHERE, "read anew")
        return ["uuid", self._known[key].uuid]

    def _where(self, key: str) -> list[Any]:
        if key not in self._named:
            self._touched[key] = None
        return [["_uuid", "==", self._uuid(key)]]

    def _expect(self, key: str) -> Json:
        known = self._known[key]
        return {
            "op": "wait",
            "timeout": 0,
            "table": known.table,
            "where": [["_uuid", "==", ["uuid", known.uuid]]],
            "columns": ["_uuid"],
            "until": "!=",
            "rows": [],
        }

    def _insert(self, insert: Insert) -> Json:
        row = insert.row
        table, empty = TABLES[row.table], EMPTY_ROWS[row.table]
        if table.parent is not None:
            self._come[row.parent, row.table].append(self._uuid(row.key))
        return {
            "op": "insert",
            "table": row.table,
            "uuid-name": self._named[row.key],
            "row": {
                column: _encode(kind, row.columns[column], self._uuid)
                for column, kind in table.columns.items()
                if row.columns[column] != empty[column]
            },
        }

    def _delete(self, delete: Delete) -> list[Json]:
        known = self._known.get(delete.key)
        if known is None:
            return []
        self.deleted.append(delete.key)
        if TABLES[known.table].parent is None:
            where = [["_uuid", "==", ["uuid", known.uuid]]]
            return [{"op": "delete", "table": known.table, "where": where}]
        # It goes when nobody lists it any more. One that is listed by a row of others stays.
        if known.parent:
            self._gone[known.parent, known.table].append(["uuid", known.uuid])
        return []

    def _list(self, parent: str, child_table: str, mutator: str, uuids: list[Any]) -> Json:
        listing = TABLES[child_table].parent
        assert listing is not None, f"{child_table} has no parent"
        where = (
            self._where(parent)
            if mutator == "insert"
            # The parent may be gone as well, and then there is nothing to take from it.
            else [["_uuid", "==", ["uuid", self._known[parent].uuid]]]
        )
        return {
            "op": "mutate",
            "table": listing[0],
            "where": where,
            "mutations": [[listing[1], mutator, ["set", uuids]]],
        }

    def _change(self, change: Update | Change) -> Json:
        columns = TABLES[change.table].columns
        where = self._where(change.key)
        if isinstance(change, Update):
            row = {
                column: _encode(columns[column], value, self._uuid)
                for column, value in change.columns.items()
            }
            return {"op": "update", "table": change.table, "where": where, "row": row}
        mutations: list[Any] = []
        if isinstance(change.put, Mapping):
            # To insert what is there changes nothing, so it is taken out before.
            mutations.append([change.column, "delete", ["set", [*change.drop, *change.put]]])
            mutations.append([change.column, "insert", ["map", [*map(list, change.put.items())]]])
        else:
            gone = [self._uuid(key) for key in change.drop if key in self._known]
            mutations.append([change.column, "delete", ["set", gone]])
            come = [self._uuid(key) for key in change.put]
            mutations.append([change.column, "insert", ["set", come]])
        return {"op": "mutate", "table": change.table, "where": where, "mutations": mutations}


def _encode(kind: Kind, value: Value, uuid: Callable[[str], list[str]]) -> Any:
    if kind in (Kind.TEXT, Kind.NUMBER):
        return value
    if isinstance(value, Mapping):
        return ["map", [*map(list, value.items())]]
    if value is None:
        return ["set", []]
    if isinstance(value, frozenset):
        refers = kind is Kind.REFERENCES
        return ["set", [uuid(each) if refers else each for each in sorted(value)]]
    return uuid(str(value)) if kind is Kind.REFERENCE else value
