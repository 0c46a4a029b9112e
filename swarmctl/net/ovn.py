"""The northbound contract on a real OVN: transactions over an OVSDB connection.

Theory of operation. There is no copy of the database here: a read is one transaction that selects
our rows, a snapshot that the server makes. What is kept between calls is where our rows are (key to
UUID), which the answers to inserts bring up to date; after every new connection it is read anew. A
transaction begins with the comparison of the term, on the server.

Of several servers (a database with members) the one that leads is used, since others may be behind.
One transaction is under way at a time; each call has a deadline, in which a connection that was
lost may come back.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import trio

from swarmctl.net.diff import Operation
from swarmctl.net.ovsdb import OvsdbConnection, Remote, connect, parse_remote
from swarmctl.net.schema import Row
from swarmctl.net.tls import Credentials
from swarmctl.net.transact import (
    DATABASE,
    WHERE,
    Json,
    Known,
    Transaction,
    expect_term,
    rows_of,
    select_rows,
    select_terms,
    set_term,
    term_of,
)
from swarmctl.proto.errors import (
    Conflict,
    DeadlineExceeded,
    DriverUnavailable,
    EnvironmentFault,
    InternalError,
    InvalidSpec,
    ProtocolError,
    StaleTerm,
)

# A transaction of 1,000 rows takes a fraction of a second; a server that starts again takes some.
CALL_S: Final = 15.0
CONNECT_S: Final = 5.0
# First wait before a new connection, doubled up to the second.
RECONNECT_MIN_S: Final = 0.1
RECONNECT_MAX_S: Final = 2.0
# Two controllers that take terms at once, or one whose database was made anew: each of these ends
# at the second attempt.
TERM_ATTEMPTS: Final = 4


class OvnNorthbound:
    """See :class:`~swarmctl.net.northbound.Northbound`; :meth:`run` runs as long as it is used.

    Args:
        remotes: addresses of the database: ``unix:PATH``, ``tcp:HOST:PORT``, ``ssl:HOST:PORT``.
        cluster_id: whose rows.
        credentials: for ``ssl:``.

    Raises:
        InvalidSpec: an address is none.
    """

    def __init__(
        self, remotes: Sequence[str], cluster_id: str, credentials: Credentials | None = None
    ) -> None:
        self._remotes = [parse_remote(remote) for remote in remotes]
        self._cluster_id = cluster_id
        self._credentials = credentials
        self._term = 0
        self._connection: OvsdbConnection | None = None
        self._connections = 0
        self._changed = trio.Event()
        self._known: dict[str, Known] | None = None
        self._turn = trio.Lock()
        self._trouble = "it was not reached yet"

    # --- the contract -------------------------------------------------------------------------

    async def take_term(self, term: int) -> None:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        with self._deadline():
            async with self._turn:
                await self._take_term(term)
                self._term = term

    async def read(self) -> dict[str, Row]:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        with self._deadline():
            async with self._turn:
                return await self._read()

    async def apply(self, operations: Sequence[Operation]) -> None:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        if self._term == 0:
            raise InternalError("rows are to be written without a term")
        with self._deadline():
            async with self._turn:
                for _ in range(TERM_ATTEMPTS):
                    if await self._apply(operations):
                        return
                    await self._take_term(self._term)
                raise Conflict("the term in the database changes all the time", WHERE)

    async def wait_connected(self, seen: int) -> int:
        """See :class:`~swarmctl.net.northbound.Northbound`."""
        await trio.lowlevel.checkpoint()
        while self._connection is None or self._connections <= seen:
            await self._changed.wait()
        return self._connections

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        try:
            with trio.fail_after(CALL_S):
                yield
        except trio.TooSlowError as error:
            why = f": {self._trouble}" if self._connection is None else ""
            raise DeadlineExceeded(
                f"OVN's northbound database did not answer within {CALL_S:.0f} s{why}",
                WHERE,
                "see whether its ovsdb-server runs (ovn-ctl status_northd)",
            ) from error

    # --- transactions -------------------------------------------------------------------------

    async def _connected(self) -> OvsdbConnection:
        while self._connection is None or self._connection.is_lost:
            await self._changed.wait()
        return self._connection

    async def _transact(self, operations: Sequence[Json]) -> list[Any]:
        connection = await self._connected()
        return await connection.transact(DATABASE, operations)

    async def _read(self) -> dict[str, Row]:
        # One that led and leads no more passes writes on, but may itself be behind.
        while not await _leads(connection := await self._connected()):
            await connection.aclose()
        answers = await self._transact(select_rows(self._cluster_id))
        _raise_for(answers)
        rows, self._known = rows_of(answers)
        return rows

    async def _take_term(self, term: int) -> None:
        for _ in range(TERM_ATTEMPTS):
            [selected] = await self._transact([select_terms()])
            highest = term_of(self._cluster_id, selected)
            if highest > term:
                raise StaleTerm(
                    f"a controller with term {highest} writes to OVN; ours is {term}", WHERE
                )
            if highest == term:
                return
            answers = await self._transact(set_term(self._cluster_id, term, selected))
            if not any(_error(answer) for answer in answers):
                return
        raise Conflict("the term in the database changes all the time", WHERE)

    async def _apply(self, operations: Sequence[Operation]) -> bool:
        """Whether it was done; False when the term there is not ours."""
        if self._known is None:
            await self._read()
        known, self._known = self._known or {}, None
        transaction = Transaction(known)
        try:
            encoded = transaction.encode(operations)
        except Conflict:
            self._known = known
            raise
        # Until the answer is there nobody knows what rows there are; if it does not come, they are
        # looked for anew.
        answers = await self._transact([expect_term(self._cluster_id, self._term), *encoded])
        self._known = known
        if _error(answers[0]):
            return False
        _raise_for(answers)
        for key in transaction.deleted:
            known.pop(key, None)
        for insert, answer in zip(transaction.inserted, answers[1:], strict=False):
            row = insert.row
            known[row.key] = Known(answer["uuid"][1], row.table, row.parent)
        return True

    # --- the connection -----------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and again whenever the connection is lost."""
        wait_s = RECONNECT_MIN_S
        while True:
            for remote in self._remotes:
                try:
                    with trio.fail_after(CONNECT_S):
                        stream = await connect(remote, self._credentials)
                except (OSError, InvalidSpec, trio.TooSlowError) as error:
                    self._trouble = f"{remote}: {error or 'no answer'}"
                    continue
                if await self._use(OvsdbConnection(stream), remote):
                    wait_s = RECONNECT_MIN_S
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, RECONNECT_MAX_S)

    async def _use(self, connection: OvsdbConnection, remote: Remote) -> bool:
        """Serve a connection until it is lost; whether it was one that could be used."""
        was_used = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, connection, nursery.cancel_scope)
            try:
                with trio.move_on_after(CONNECT_S):
                    if await _leads(connection):
                        was_used = True
                        self._set(connection)
                    else:
                        self._trouble = f"{remote}: it does not lead the database's members"
            except (EnvironmentFault, ProtocolError) as error:
                self._trouble = f"{remote}: {error}"
            if not was_used:
                nursery.cancel_scope.cancel()
        return was_used

    async def _serve(self, connection: OvsdbConnection, scope: trio.CancelScope) -> None:
        try:
            await connection.serve()
        finally:
            if self._connection is connection:
                self._trouble = "the connection was lost"
                self._set(None)
        scope.cancel()

    def _set(self, connection: OvsdbConnection | None) -> None:
        self._connection = connection
        self._connections += connection is not None
        self._known = None
        self._changed.set()
        self._changed = trio.Event()

    @property
    def trouble(self) -> str:
        """Why there is no connection, for people."""
        return self._trouble


async def _leads(connection: OvsdbConnection) -> bool:
    """Whether the server may be used: it stands alone, or leads the members of a database."""
    where = [["name", "==", DATABASE]]
    select = {"op": "select", "table": "Database", "where": where, "columns": ["leader"]}
    [answer] = await connection.transact("_Server", [select])
    if not answer["rows"]:
        raise DriverUnavailable(f"the server has no database {DATABASE}")
    return bool(answer["rows"][0]["leader"])


def _error(answer: Any) -> str:
    """What an operation failed with; empty where it did not."""
    return str(answer.get("error") or "") if isinstance(answer, Mapping) else ""


def _raise_for(answers: Sequence[Any]) -> None:
    """Raise for the operation that failed; after it none was done, nor before it.

    Raises:
        Conflict: the rows are not as they were known, or a name is in use.
        EnvironmentFault: the server's disk refuses.
        InternalError: the server does not understand us.
    """
    for answer in answers:
        error = _error(answer)
        details = answer.get("details", "") if error else ""
        if error == "timed out":
            raise Conflict("a row that was to be changed is gone", WHERE, "read anew")
        if error == "constraint violation":
            raise Conflict(f"a name is in use: {details}", WHERE, "see whose it is (ovn-nbctl)")
        if error in ("I/O error", "resources exhausted"):
            raise EnvironmentFault(f"OVN's northbound database cannot write: {details}", WHERE)
        if error:
            raise InternalError(f"OVN's northbound database refuses: {error}: {details}", WHERE)
