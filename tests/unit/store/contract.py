"""The store's contract: every backend's tests inherit from it.

A backend's test class gives a ``harness`` fixture: something with ``open()``, which opens a store
on the one disk of the test, again and again.
"""

import random
from abc import ABC, abstractmethod
from contextlib import aclosing

import attrs
import pytest
import trio
import trio.lowlevel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmctl.controller.store.api import Delete, Entry, Put, Store
from swarmctl.controller.store.chunks import MARK, PIECES, ChunkedStore
from swarmctl.proto.errors import (
    Busy,
    Conflict,
    InternalError,
    InvalidSpec,
    StaleTerm,
    StorageFault,
)
from swarmctl.proto.limits import (
    COMMIT_QUEUE_MAX,
    KEY_MAX_BYTES,
    RECORD_MAX_BYTES,
    TRANSACTION_OPS_MAX,
    VALUE_MAX_BYTES,
)

DEADLINE_S = 120  # of a test; the longest ones take four seconds on an idle machine


class Harness(ABC):
    """One disk, and stores on it."""

    @abstractmethod
    async def open(self, cluster_id: str = "ab" * 16) -> Store:
        """Open a store; ``cluster_id`` is what it makes if it needs a new one."""


class ChunkedHarness(Harness):
    """Stores that cut large values into pieces, over those of another harness."""

    def __init__(self, inner):
        self.inner = inner

    async def open(self, cluster_id="ab" * 16):
        return ChunkedStore(await self.inner.open(cluster_id))

    async def pieces(self):
        """The keys of all pieces on the disk."""
        async with aclosing(await self.inner.open()) as store:
            return list(await store.read(PIECES))

    async def lose_a_piece(self):
        """Delete one behind the store's back."""
        (piece, *_) = await self.pieces()
        async with aclosing(await self.inner.open()) as store:
            await store.take_term()
            await store.commit([Delete(piece)])


@attrs.define
class Model:
    """What a store should hold, in ten lines."""

    entries: dict[str, bytes] = attrs.Factory(dict)

    def commit(self, ops):
        for op in ops:
            if isinstance(op, Put):
                self.entries[op.key] = op.value
            else:
                self.entries.pop(op.key, None)


KEYS = st.sampled_from(
    ["node/n1", "service/a/web", "service/a/web2", "service/b/db", "tombstone/x"]
)
OPS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=9)),
    st.builds(Delete, KEYS),
)
COMMITS = st.lists(st.lists(OPS, max_size=4, unique_by=lambda op: op.key), min_size=1, max_size=12)


class StoreContract:
    """What every store does."""

    value_max = VALUE_MAX_BYTES

    @pytest.fixture
    async def store(self, harness):
        with trio.fail_after(DEADLINE_S):
            async with aclosing(await harness.open()) as store:
                await store.take_term()
                yield store

    async def test_a_new_store_is_empty(self, harness):
        """A new store holds nothing, has no term, and its statistics are zero."""
        async with aclosing(await harness.open()) as store:
            assert await store.read() == {}
            assert store.term == 0
            assert store.statistics().commits == 0

    async def test_what_is_put_is_read_by_prefix(self, store):
        """Values come back by the prefix of their keys, in order, and only those."""
        await store.commit([Put("service/b", b"2"), Put("service/a", b"1"), Put("services", b"3")])

        assert list((await store.read("service/")).items()) == [
            ("service/a", b"1"),
            ("service/b", b"2"),
        ]
        assert await store.read("service/a") == {"service/a": b"1"}
        assert await store.read("node/") == {}
        assert len(await store.read()) == 3

    async def test_values_are_any_bytes_and_keys_any_text(self, store):
        """No byte and no letter is special."""
        value = bytes(range(256)) * 4
        keys = ["tenant/größe", "tenant/日本", "tenant/%_'\"?*", "tenant/\U0001f600", "tenant/a b"]
        await store.commit([Put(key, value) for key in keys] + [Put("empty", b"")])

        assert await store.read("tenant/") == dict.fromkeys(sorted(keys), value)
        assert await store.read("empty") == {"empty": b""}

    async def test_what_was_committed_survives_a_reopening(self, harness):
        """Entries, the cluster's id and the term outlive the process."""
        async with aclosing(await harness.open("11" * 16)) as store:
            assert await store.take_term() == 1
            revision = await store.commit([Put("node/n1", b"x"), Put("node/n2", b"y")])
            await store.commit([Delete("node/n2")])
        async with aclosing(await harness.open("22" * 16)) as store:
            assert store.cluster_id == "11" * 16
            assert await store.read_entries() == {"node/n1": Entry(b"x", revision)}
            assert await store.take_term() == 2
            assert store.term == 2

    async def test_a_cluster_id_that_looks_like_a_number_is_kept_as_it_is(self, harness):
        """Hex digits such as 12e3 are text."""
        for _ in range(2):
            async with aclosing(await harness.open("0012e3")) as store:
                assert store.cluster_id == "0012e3"

    async def test_removing_what_is_not_there_is_no_error(self, store):
        """Deletes are idempotent."""
        await store.commit([Delete("node/n1")])
        await store.commit([Put("node/n1", b"x")])
        await store.commit([Delete("node/n1")])
        await store.commit([Delete("node/n1")])

        assert await store.read() == {}

    # --- terms ----------------------------------------------------------------------------------

    async def test_a_commit_without_a_term_is_a_mistake(self, harness):
        """Nobody writes before taking a term."""
        async with aclosing(await harness.open()) as store:
            with pytest.raises(InternalError, match="before a term"):
                await store.commit([Put("a", b"")])
            assert await store.read() == {}

    async def test_an_old_leader_can_do_nothing(self, harness, store):
        """Once another has taken a term, every commit of the first fails, and changes nothing."""
        await store.commit([Put("a", b"first")])
        async with aclosing(await harness.open()) as second:
            assert await second.take_term() == 2
            with pytest.raises(StaleTerm) as caught:
                await store.commit([Put("a", b"stale")])
            with pytest.raises(StaleTerm):
                await store.commit([])
            assert "term 2" in caught.value.what
            assert caught.value.hint
            await second.commit([Put("b", b"second")])
            assert await store.read() == {"a": b"first", "b": b"second"}

    async def test_an_old_leader_does_not_come_back_by_taking_a_term(self, harness, store):
        """Once deposed, a store object cannot take a term again; one that is opened anew can."""
        async with aclosing(await harness.open()) as second:
            await second.take_term()
            for above in (0, 10):
                with pytest.raises(StaleTerm):
                    await store.take_term(above)
            await second.commit([Put("a", b"")])
            async with aclosing(await harness.open()) as third:
                assert await third.take_term() == 3

    async def test_commits_go_on_while_a_term_is_taken(self, store):
        """Who raises its own term does not make its own commits stale."""

        async def write(number):
            for step in range(10):
                await store.commit([Put(f"k/{number}", b"%d" % step)])

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(write, number)
            for above in range(10, 110, 10):
                assert await store.take_term(above) == above + 1

    async def test_a_term_can_be_taken_above_another(self, store):
        """For a restored store whose agents have seen a higher term than it remembers."""
        assert await store.take_term(above=41) == 42
        assert await store.take_term(above=7) == 43
        assert store.term == 43
        await store.commit([Put("a", b"")])

    async def test_of_many_who_take_a_term_each_gets_another(self, harness):
        """Terms are unique and rise."""
        terms = []
        for _ in range(5):
            async with aclosing(await harness.open()) as store:
                terms += [await store.take_term(), await store.take_term()]

        assert terms == list(range(1, 11))

    # --- expectations -----------------------------------------------------------------------------

    async def test_expectations_decide(self, store):
        """A commit with ``expect`` happens only at that revision; 0 means that there is none."""
        first = await store.commit([Put("a", b"1", expect=0)])
        with pytest.raises(Conflict) as caught:
            await store.commit([Put("a", b"2", expect=0)])
        assert caught.value.where == "a"
        second = await store.commit([Put("a", b"2", expect=first)])
        assert second > first
        with pytest.raises(Conflict):
            await store.commit([Delete("a", expect=first)])
        await store.commit([Delete("a", expect=second)])
        with pytest.raises(Conflict):
            await store.commit([Put("a", b"3", expect=second)])
        assert await store.commit([Put("a", b"4", expect=0)]) > second

    async def test_a_refused_commit_changes_nothing_at_all(self, store):
        """One expectation that fails takes the whole commit with it."""
        revision = await store.commit([Put("a", b"1"), Put("b", b"1")])
        with pytest.raises(Conflict):
            await store.commit(
                [Put("a", b"2", expect=revision), Delete("b"), Put("c", b"2", expect=7)]
            )

        assert await store.read() == {"a": b"1", "b": b"1"}

    async def test_of_many_at_once_with_one_expectation_one_wins(self, store):
        """Compare-and-set decides within a group as it does between groups."""
        winners = []

        async def claim(number):
            try:
                await store.commit([Put("lock", b"%d" % number, expect=0)])
            except Conflict:
                return
            winners.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(claim, number)
        assert len(winners) == 1
        assert await store.read("lock") == {"lock": b"%d" % winners[0]}

    async def test_a_bad_commit_fails_alone(self, store):
        """Neighbours in the same group are committed."""
        failed = []

        async def write(number):
            expect = 99 if number % 10 == 0 else None
            try:
                await store.commit([Put(f"k/{number:03}", b"x", expect=expect)])
            except Conflict:
                failed.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(write, number)
        assert sorted(failed) == list(range(0, 100, 10))
        assert len(await store.read("k/")) == 90
        assert store.statistics().refused == 10
        assert store.statistics().commits == 90

    # --- bounds -----------------------------------------------------------------------------------

    async def test_the_largest_commit_is_taken(self, store):
        """A hundred operations, and half a MiB, and a long key are within the contract."""
        await store.commit([Put(f"k/{n}", b"") for n in range(TRANSACTION_OPS_MAX)])
        key = "k/" + "x" * (KEY_MAX_BYTES - 2)
        await store.commit([Put(key, b"x" * VALUE_MAX_BYTES)])

        assert len((await store.read(key))[key]) == VALUE_MAX_BYTES

    @pytest.mark.parametrize(
        ("ops", "error"),
        [
            ([Put(f"k/{n}", b"") for n in range(TRANSACTION_OPS_MAX + 1)], InternalError),
            ([Put("a", b""), Delete("a")], InternalError),
            ([Put("", b"")], InternalError),
            ([Put("a\nb", b"")], InternalError),
            ([Put("a\ud800", b"")], InternalError),
            ([Put("x" * (KEY_MAX_BYTES + 1), b"")], InternalError),
            ([Put("a", "text")], InternalError),
        ],
        ids=["ops", "twice", "empty", "newline", "surrogate", "long", "text"],
    )
    async def test_what_no_backend_can_keep_is_refused(self, store, ops, error):
        """The bounds are checked before anything is queued."""
        with pytest.raises(error):
            await store.commit(ops)
        assert await store.read() == {}

    async def test_a_value_beyond_the_bound_is_refused(self, store):
        """It is the user's to make smaller; nothing was done."""
        with pytest.raises(InvalidSpec) as caught:
            await store.commit([Put("b", b""), Put("a", b"x" * (self.value_max + 1))])
        assert caught.value.where == "a"
        assert caught.value.hint
        assert await store.read() == {}

    async def test_values_are_not_shown(self):
        """A value may be a secret: an operation's and an entry's text do not have it."""
        assert "hunter2" not in repr([Put("a", b"hunter2"), Entry(b"hunter2", 1)])

    # --- many at once -----------------------------------------------------------------------------

    async def test_many_tasks_commit_at_once(self, store):
        """Every acknowledged commit is readable at once; all are, in the end."""

        async def write(number):
            for step in range(5):
                await store.commit([Put(f"k/{number}", b"%d" % step)])
                if number % 20 == 0:
                    assert (await store.read(f"k/{number}"))[f"k/{number}"] == b"%d" % step

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(write, number)
        assert await store.read("k/") == {f"k/{n}": b"4" for n in sorted(range(100), key=str)}
        statistics = store.statistics()
        assert statistics.commits == statistics.ops == 500
        assert statistics.waiting == 0
        assert 0 < statistics.groups <= 500

    async def test_calls_are_applied_in_order(self, store):
        """Of two tasks that write one key, the one that called later wins."""
        order = []

        async def write(number):
            order.append(number)
            await store.commit([Put("a", b"%d" % number), Put(f"b/{number}", b"")])

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(write, number)
        assert await store.read("a") == {"a": b"%d" % order[-1]}

    async def test_too_much_waiting_is_answered_busy(self, store):
        """The queue has a bound; past it the answer comes at once, and those queued go through."""
        busy = []

        async def write(number):
            try:
                await store.commit([Put(f"k/{number}/{n}", b"") for n in range(100)])
            except Busy as error:
                busy.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(COMMIT_QUEUE_MAX // 100 + 5):
                nursery.start_soon(write, number)
        assert 1 <= len(busy) <= 5
        assert busy[0].temporary
        assert len(await store.read("k/")) == COMMIT_QUEUE_MAX + 500 - 100 * len(busy)

    async def test_a_cancelled_commit_is_done_whole_or_not_at_all(self, store):
        """Whoever is cancelled does not know; but never is half of it there."""

        async def write(number, scope):
            with scope:
                await store.commit([Put(f"k/{number}/{n}", b"") for n in range(20)])

        scopes = [trio.CancelScope() for _ in range(200)]
        async with trio.open_nursery() as nursery:
            for number, scope in enumerate(scopes):
                nursery.start_soon(write, number, scope)
            await trio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
        await store.commit([])
        counts = {}
        for key in await store.read("k/"):
            counts[key.split("/")[1]] = counts.get(key.split("/")[1], 0) + 1
        assert set(counts.values()) == {20}
        assert {str(n) for n in range(1, 200, 2)} <= set(counts)

    async def test_a_commit_in_a_cancelled_scope_is_not_begun(self, store):
        """Who is cancelled already changes nothing."""
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.commit([Put("a", b"")])
        assert scope.cancelled_caught
        await store.commit([])
        assert await store.read() == {}

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(commits=COMMITS, seed=st.integers(0, 3))
    async def test_it_holds_what_the_model_holds(self, harness, commits, seed):
        """Any commits, one after the other or together, leave what a dictionary would hold."""
        async with aclosing(await harness.open()) as store:
            await store.take_term()
            await store.commit([Delete(key) for key in await store.read()])
            await self.check_model(store, commits, random.Random(seed))

    async def check_model(self, store, commits, generator):
        model = Model()

        async def commit(ops):
            model.commit(ops)
            await store.commit(ops)

        while commits:
            count = generator.randint(1, len(commits))
            async with trio.open_nursery() as nursery:
                for ops in commits[:count]:
                    nursery.start_soon(commit, ops)
            commits = commits[count:]
            assert await store.read() == dict(sorted(model.entries.items()))

    # --- closing ----------------------------------------------------------------------------------

    async def test_closing_commits_what_waits(self, harness):
        """Close after a call: the caller gets its answer, and the next store has the value."""
        store = await harness.open()
        await store.take_term()
        done = []

        async def write(number):
            await store.commit([Put(f"k/{number}", b"")])
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(write, number)
            while store.statistics().waiting < 20:
                await trio.lowlevel.checkpoint()
                if done:
                    break
            await store.aclose()
        assert sorted(done) == list(range(20))
        async with aclosing(await harness.open()) as again:
            assert len(await again.read("k/")) == 20

    async def test_a_closed_store_says_so(self, harness):
        """Nothing can be done with a closed store; closing it again does nothing."""
        store = await harness.open()
        await store.take_term()
        await store.aclose()
        await store.aclose()
        for use in (lambda: store.commit([]), store.read, store.take_term):
            with pytest.raises(StorageFault, match="closed"):
                await use()


def large(seed, size_bytes=3 * VALUE_MAX_BYTES + 17):
    """A value in several pieces, each of which is another."""
    return random.Random(seed).randbytes(size_bytes)


class LargeContract(StoreContract):
    """What every store does that cuts large values into pieces, and all of the rest."""

    value_max = RECORD_MAX_BYTES

    async def test_a_large_value_comes_back_whole(self, harness, store):
        """As large as a record may be, now and after a reopening; its pieces are not shown."""
        values = {"a": large(1, RECORD_MAX_BYTES), "b": large(2), "c": b"small"}
        await store.commit([Put(key, value) for key, value in values.items()])

        assert await store.read() == values
        assert await store.read("b") == {"b": values["b"]}
        async with aclosing(await harness.open()) as again:
            assert await again.read() == values

    async def test_many_values_that_are_too_much_together_are_one_commit(self, harness, store):
        """A hundred of the largest that need no pieces: all of them, or none."""
        values = {f"k/{n:03}": bytes([n]) * 100_000 for n in range(TRANSACTION_OPS_MAX)}
        await store.commit([Put(key, value) for key, value in values.items()])
        assert await store.read() == values
        with pytest.raises(Conflict):
            await store.commit(
                [Put("k/000", b"", expect=0), *(Put(key, b"y" * 100_000) for key in [*values][1:])]
            )
        assert await store.read() == values
        async with aclosing(await harness.open()) as again:
            await again.take_term()
            assert await again.read() == values

    async def test_a_value_that_looks_like_a_head_is_a_value(self, store):
        """Whatever bytes a caller stores, it gets back those."""
        await store.commit([Put("a", MARK), Put("b", MARK + b"\x94"), Put("c", MARK[:-1])])
        assert await store.read() == {"a": MARK, "b": MARK + b"\x94", "c": MARK[:-1]}

    async def test_what_is_replaced_leaves_nothing(self, harness, store):
        """Large by large, large by small, and deleted: no piece is left over."""
        for _ in range(3):
            for seed in range(3):
                await store.commit([Put("a", large(seed)), Put("b", large(seed + 1))])
            await store.commit([Put("a", b"small"), Delete("b")])
            assert await store.read() == {"a": b"small"}
        assert await harness.pieces() == []

    async def test_what_a_crash_left_is_swept(self, harness, store):
        """Pieces without a head go when the next controller takes its term; others stay."""
        await store.commit([Put("a", large(1))])
        kept = await harness.pieces()
        with pytest.raises(Conflict):
            await store.commit([Put("a", large(2), expect=99)])
        assert len(await harness.pieces()) > len(kept)
        async with aclosing(await harness.open()) as again:
            await again.take_term()
            assert await again.read() == {"a": large(1)}
        assert await harness.pieces() == kept

    async def test_large_and_small_keep_their_order(self, store):
        """Of many who write one key, large or small, the one that called last wins."""
        order = []

        async def write(number):
            value = large(number) if number % 5 == 0 else b"%d" % number
            order.append(value)
            await store.commit([Put("a", value)])

        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(11):
                    nursery.start_soon(write, number)
            assert (await store.read("a"))["a"] == order[-1]

    async def test_a_damaged_large_value_is_named(self, harness, store):
        """A piece that is missing is damage, and not a shorter value."""
        await store.commit([Put("a", large(1))])
        await harness.lose_a_piece()
        with pytest.raises(StorageFault, match="pieces") as caught:
            await store.read()
        assert caught.value.where == "a"
