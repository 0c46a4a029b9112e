"""The northbound database in memory: the twin of ``net/ovn``, for tests and simulations.

:func:`applied` is what a transaction does to rows, as the real database does it: all or nothing,
rows without a parent fall away, references to what is gone are forgotten, names are unique.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import trio
from attrs import evolve

from swarmctl.net.diff import Change, Delete, Insert, Operation, Update
from swarmctl.net.schema import TABLES, Kind, Row, Value
from swarmctl.proto.errors import Conflict, DeadlineExceeded, InternalError, StaleTerm

# Indexes of the schema: no two rows have one name, whosever they are.
UNIQUE_NAMES: Final = frozenset(
    ("Logical_Switch_Port", "Logical_Router_Port", "Port_Group", "Gateway_Chassis")
)


def applied(rows: Mapping[str, Row], operations: Sequence[Operation]) -> dict[str, Row]:
    """The rows after a transaction.

    Raises:
        Conflict: it cannot be done.
    """
    after = dict(rows)
    for operation in operations:
        if isinstance(operation, Insert):
            if operation.key in after:
                raise Conflict(f"{operation.key} is there already", "the northbound database")
            after[operation.key] = operation.row
        elif isinstance(operation, Delete):
            if after.pop(operation.key, None) is not None:
                after = _settled(after)
        else:
            if operation.key not in after:
                raise Conflict(f"{operation.key} is not there", "the northbound database")
            row = after[operation.key]
            after[operation.key] = evolve(row, columns={**row.columns, **_changed(row, operation)})
    for operation in operations:
        if isinstance(operation, Insert) and operation.key in after:
            _check_references(after, operation.row)
    return _settled(after)


def _changed(row: Row, operation: Update | Change) -> Mapping[str, Value]:
    if isinstance(operation, Update):
        return operation.columns
    old = row.columns[operation.column]
    if isinstance(old, Mapping):
        assert isinstance(operation.put, Mapping)
        kept = {key: text for key, text in old.items() if key not in operation.drop}
        return {operation.column: {**kept, **operation.put}}
    assert isinstance(old, frozenset)
    return {operation.column: (old - operation.drop) | frozenset(operation.put)}


def _references(row: Row) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for column, kind in TABLES[row.table].columns.items():
        value = row.columns[column]
        if kind is Kind.REFERENCES and isinstance(value, frozenset):
            found |= value
        elif kind is Kind.REFERENCE and isinstance(value, str):
            found |= {value}
    return found


def _check_references(after: Mapping[str, Row], row: Row) -> None:
    needed = _references(row) | ({row.parent} if row.parent else set())
    if missing := needed - after.keys():
        raise Conflict(
            f"{row.key} refers to {min(missing)}, which is not there", "the northbound database"
        )


def _settled(after: dict[str, Row]) -> dict[str, Row]:
    """Without rows whose parents are gone, and without references to such."""
    alive = dict(after)
    while orphans := [key for key, row in alive.items() if row.parent and row.parent not in alive]:
        for key in orphans:
            del alive[key]
    return {
        key: row if _references(row) <= alive.keys() else _without(row, alive)
        for key, row in alive.items()
    }


def _without(row: Row, alive: Mapping[str, Row]) -> Row:
    columns = dict(row.columns)
    for column, kind in TABLES[row.table].columns.items():
        value = columns[column]
        if kind is Kind.REFERENCES and isinstance(value, frozenset):
            columns[column] = frozenset(value & alive.keys())
        elif kind is Kind.REFERENCE and value not in alive:
            columns[column] = None
    return evolve(row, columns=columns)


class MemoryDatabase:
    """What a northbound database keeps, for all clusters on it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {}
        self.terms: dict[str, int] = {}
        self.connections = 1
        self.is_away = False
        self.changed = trio.Event()

    def go_away(self) -> None:
        """From now on nothing answers."""
        self.is_away = True

    def come_back(self) -> None:
        """It answers again, to a new connection."""
        self.is_away = False
        self.connections += 1
        self.changed.set()
        self.changed = trio.Event()


class MemoryNorthbound:
    """One cluster's northbound on a database in memory."""

    def __init__(self, database: MemoryDatabase, cluster_id: str) -> None:
        self._database = database
        self._cluster_id = cluster_id
        self._term = 0

    async def take_term(self, term: int) -> None:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        await self._reach()
        self._check_term(term)
        self._term = term
        self._database.terms[self._cluster_id] = term

    async def read(self) -> dict[str, Row]:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        await self._reach()
        return dict(self._database.rows.get(self._cluster_id, {}))

    async def apply(self, operations: Sequence[Operation]) -> None:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        if self._term == 0:
            raise InternalError("rows are to be written without a term")
        await self._reach()
        self._check_term(self._term)
        after = applied(self._database.rows.get(self._cluster_id, {}), operations)
        self._check_names(after)
        self._database.rows[self._cluster_id] = after
        self._database.terms[self._cluster_id] = self._term

    async def wait_connected(self, seen: int) -> int:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        await trio.lowlevel.checkpoint()
        while self._database.is_away or self._database.connections <= seen:
            await self._database.changed.wait()
        return self._database.connections

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._database.is_away:
            raise DeadlineExceeded("OVN's northbound database does not answer")

    def _check_term(self, term: int) -> None:
        highest = self._database.terms.get(self._cluster_id, 0)
        if highest > term:
            raise StaleTerm(
                f"a controller with term {highest} writes to OVN; ours is {term}",
                "the northbound database",
            )

    def _check_names(self, after: Mapping[str, Row]) -> None:
        seen: set[tuple[str, Value]] = set()
        every = {**self._database.rows, self._cluster_id: after}
        for rows in every.values():
            for row in rows.values():
                if row.table in UNIQUE_NAMES:
                    name = (row.table, row.columns["name"])
                    if name in seen:
                        raise Conflict(
                            f"the name {name[1]} is in use in {row.table}",
                            "the northbound database",
                        )
                    seen.add(name)
