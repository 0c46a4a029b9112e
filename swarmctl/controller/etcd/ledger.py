"""What a store is in etcd: its keys, and the transactions that change them. Blocking; for a thread.

Below the prefix are ``fact/cluster`` (the cluster's id), ``fact/term``, ``fact/revision``, and
``data/KEY`` for every entry, whose value begins with its revision in eight bytes.

Every transaction compares the term *and* the revision, and sets the next revision. That makes it
repeatable: when the answer of one was lost, the same transaction sent again either does its work,
or finds the revision that it would have set, and so was done before; an echo that comes late finds
neither. With a *guard* it compares the leader's lease, too: once etcd has let that run out, nothing
is written, whatever the process believes that was stopped meanwhile (DESIGN 8.1).
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import outcome
import structlog

from swarmctl.controller.etcd import client as etcd
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.client import EtcdClient, Json
from swarmctl.controller.etcd.faults import EtcdRefused, NoEtcd
from swarmctl.controller.store.api import Entry, Op
from swarmctl.controller.store.commits import check_term, expected_keys, fold
from swarmctl.proto.errors import InternalError, StaleTerm, StorageFault
from swarmctl.proto.incarnation import TERM_MAX
from swarmctl.proto.limits import TRANSACTION_OPS_MAX

_log = structlog.get_logger(__name__)

# How long a transaction is tried before its callers hear of it: longer than an election of etcd's,
# and than the leader's lease, so that nobody leads on without knowing what was done.
GIVE_UP_S: Final = 6.0
# Keys in one answer: at the largest value they are 32 MiB.
PAGE_KEYS: Final = 64
# Nobody here looks into the past; each transaction makes a revision of it. Some are kept for a
# reader that is in the middle of its pages.
COMPACT_EVERY: Final = 10_000
COMPACT_KEEP: Final = 1_000
_REVISION_BYTES: Final = 8


@attrs.frozen
class LeaseGuard:
    """A key on a lease: no write happens once the lease has run out."""

    key: bytes
    lease: int


class Ledger:
    """See the module's docstring.

    Args:
        address: where, and the prefix.
        guard: the leader's lease; none for who writes only while nobody leads.
    """

    def __init__(self, address: EtcdAddress, guard: LeaseGuard | None = None) -> None:
        self._address = address
        self._client = EtcdClient(address)
        self._guard = guard
        self._term_key = address.key("fact/term")
        self._revision_key = address.key("fact/revision")
        self._data = address.key("data/")
        self._term_value = b""
        self._revision: int | None = None
        self._compacted_at = 0
        self.term = 0

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    # --- identity and term --------------------------------------------------------------------

    def settle_cluster_id(self, new: Callable[[], str]) -> str:
        """The cluster's id, made if there is none."""
        key = self._address.key("fact/cluster")
        answer = self._client.transact(
            [etcd.is_absent(key)],
            [etcd.put(key, new().encode()), etcd.get(key)],
            [etcd.get(key)],
            deadline_s=GIVE_UP_S,
        )
        found = etcd.values_read(answer)[0]
        assert found is not None, "it was made, or was there"
        return found.decode()

    def take_term(self, above: int = 0) -> int:
        """See Store."""
        while True:
            raw, revision, held = self._facts()
            stored = _term_of(raw)
            if self.term:
                check_term(self.term, stored)
            self._check_guard(held)
            term = max(stored, above) + 1
            if term > TERM_MAX:
                raise InternalError(f"this cluster has used up its {TERM_MAX} terms")
            # Whose attempt it was can be told even when its answer is lost.
            value = f"{term} {secrets.token_hex(8)}".encode()
            compare = [etcd.is_absent(self._term_key)]
            if raw is not None:
                compare = [etcd.value_is(self._term_key, raw)]
            success = [etcd.put(self._term_key, value)]
            if revision is None:
                success.append(etcd.put(self._revision_key, b"0"))
            answer = self._client.transact(
                compare + self._guarded(), success, self._get_facts(), deadline_s=GIVE_UP_S
            )
            if not answer.get("succeeded"):
                raw, revision, _ = _three(etcd.values_read(answer))
            if answer.get("succeeded") or raw == value:
                self.term, self._term_value = term, value
                self._revision = int(revision or b"0")
                self._compacted_at = self._compacted_at or _revision_of(answer)
                return term

    def _get_facts(self) -> list[Json]:
        leader = self._guard.key if self._guard is not None else self._address.key("leader")
        return [etcd.get(self._term_key), etcd.get(self._revision_key), etcd.get(leader)]

    def _facts(self) -> tuple[bytes | None, bytes | None, bool]:
        """The term's value, the revision's, and whether the guard holds."""
        answer = self._client.transact(
            self._guarded(), self._get_facts(), self._get_facts(), deadline_s=GIVE_UP_S
        )
        raw, revision, _ = _three(etcd.values_read(answer))
        return raw, revision, bool(answer.get("succeeded"))

    def _guarded(self) -> list[Json]:
        if self._guard is None:
            return []
        return [etcd.has_lease(self._guard.key, self._guard.lease)]

    def _check_guard(self, held: bool) -> None:  # noqa: FBT001 - a fact
        if self._guard is not None and not held:
            raise StaleTerm(
                "this controller's lease in etcd has run out",
                hint="another one takes over; this one follows it",
            )

    # --- reading ------------------------------------------------------------------------------

    def read(self, prefix: str) -> dict[str, Entry]:
        """All entries whose keys begin with ``prefix``, as of one moment."""
        while True:
            try:
                return self._read_pages(prefix)
            except EtcdRefused as error:
                if not error.is_compacted:
                    raise
                _log.info("etcd was compacted while it was read, beginning again")

    def _read_pages(self, prefix: str) -> dict[str, Entry]:
        start = self._data + prefix.encode()
        end = etcd.after_prefix(start)
        found: dict[str, Entry] = {}
        revision = 0
        while True:
            answer = self._client.range(
                start, end, limit=PAGE_KEYS, revision=revision, deadline_s=GIVE_UP_S
            )
            revision = revision or _revision_of(answer)
            page = etcd.entries(answer)
            for key, value in page:
                found[key[len(self._data) :].decode()] = _entry(value, key)
            if not answer.get("more"):
                return found
            start = page[-1][0] + b"\0"

    def _revisions(self, keys: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for first in range(0, len(keys), TRANSACTION_OPS_MAX):
            part = keys[first : first + TRANSACTION_OPS_MAX]
            gets = [etcd.get(self._data + key.encode()) for key in part]
            answer = self._client.transact([], gets, [], deadline_s=GIVE_UP_S)
            for key, value in zip(part, etcd.values_read(answer), strict=True):
                if value is not None:
                    found[key] = _entry(value, key.encode()).revision
        return found

    # --- writing ------------------------------------------------------------------------------

    def apply(self, commits: Sequence[Sequence[Op]]) -> Sequence[outcome.Outcome[int]]:
        """Commit a group that fits one transaction; an outcome for each.

        Raises:
            StaleTerm: another controller has taken over, or what was done cannot be told.
            StorageFault: etcd does not serve, or refuses.
        """
        if not self.term:
            check_term(0, 0)
        while True:
            if self._revision is None:
                self._reload()
            assert self._revision is not None, "it was loaded"
            expected = self._revisions(expected_keys(commits))
            folded = fold(commits, expected, self._revision)
            if self._write(folded.changes, self._revision, folded.revision):
                return folded.outcomes

    def _write(self, changes: Mapping[str, Entry | None], before: int, after: int) -> bool:
        """One transaction; False when the revision was not ``before`` (an echo of an earlier)."""
        doubts: list[bool] = []
        compare = [
            etcd.value_is(self._term_key, self._term_value),
            etcd.value_is(self._revision_key, b"%d" % before),
            *self._guarded(),
        ]
        success = [self._change(key, entry) for key, entry in changes.items()]
        if after != before:
            success.append(etcd.put(self._revision_key, b"%d" % after))
        try:
            answer = self._client.transact(
                compare,
                success,
                self._get_facts(),
                deadline_s=GIVE_UP_S,
                note_doubt=lambda: doubts.append(True),
            )
        except (NoEtcd, EtcdRefused) as error:
            if doubts and changes:
                raise self._in_doubt(error) from error
            raise
        if answer.get("succeeded"):
            self._revision = after
            self._compact_if_due(_revision_of(answer))
            return True
        raw, revision, _ = _three(etcd.values_read(answer))
        if raw != self._term_value:
            check_term(self.term, max(_term_of(raw), self.term + 1))
        if doubts and revision == b"%d" % after and after != before:
            self._revision = after
            return True
        if revision == b"%d" % before:
            self._check_guard(held=False)
        self._revision = int(revision or b"0")
        return False

    def _change(self, key: str, entry: Entry | None) -> Json:
        at = self._data + key.encode()
        if entry is None:
            return etcd.delete(at)
        return etcd.put(at, entry.revision.to_bytes(_REVISION_BYTES, "big") + entry.value)

    def _in_doubt(self, error: StorageFault) -> StorageFault | StaleTerm:
        """Whether it was done cannot be told now; memory must be read from etcd again."""
        self._revision = None
        if self._guard is None:
            return StorageFault(
                f"it is not known whether the write was done: {error.what}", error.where, error.hint
            )
        return StaleTerm(
            f"it is not known whether a write was done: {error.what}",
            error.where,
            "this controller reads everything again, if none has taken over",
        )

    def _reload(self) -> None:
        raw, revision, held = self._facts()
        if raw != self._term_value:
            check_term(self.term, max(_term_of(raw), self.term + 1))
        self._check_guard(held)
        self._revision = int(revision or b"0")

    def _compact_if_due(self, revision: int) -> None:
        if revision - self._compacted_at < COMPACT_EVERY:
            return
        self._compacted_at = revision
        body = {"revision": str(revision - COMPACT_KEEP)}
        try:
            self._client.call("/v3/kv/compaction", body, deadline_s=GIVE_UP_S)
        except StorageFault as error:
            # Somebody else has, or etcd has other worries: it only takes space until next time.
            _log.warning("etcd was not compacted", error=str(error))


def _three(
    values: Sequence[bytes | None],
) -> tuple[bytes | None, bytes | None, bytes | None]:
    term, revision, leader = values
    return term, revision, leader


def _term_of(raw: bytes | None) -> int:
    return int(raw.split()[0]) if raw else 0


def _revision_of(answer: Json) -> int:
    """The revision of etcd itself, which has nothing to do with ours."""
    return int(answer.get("header", {}).get("revision", "0"))


def _entry(value: bytes, key: bytes) -> Entry:
    if len(value) < _REVISION_BYTES:
        raise StorageFault(
            "a value in etcd is not one of ours",
            key.decode(errors="replace"),
            "something else writes below this prefix: choose another, or remove the key",
        )
    return Entry(value[_REVISION_BYTES:], int.from_bytes(value[:_REVISION_BYTES], "big"))
