"""Services applied one by one, many at a time."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from swarmctl.controller import records
from swarmctl.controller.handlers import applying, services
from swarmctl.controller.records import ServiceRecord
from swarmctl.controller.state import Service
from swarmctl.controller.store.memory import MemoryStore
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, Conflict, InvalidSpec, StaleTerm, StorageFault, from_wire
from swarmctl.proto.messages import Reply, Request
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Placement, Resources, ServiceSpec, Template
from swarmctl.transport.bulk import BulkServer
from swarmctl.transport.rpc import RpcServer
from tests.unit.controller.requests_fixture import ADMIN, a_rig


def spec(name, cpu_millis=100, **others):
    template = Template(container=ContainerSpec("box"), resources=Resources(cpu_millis))
    return ServiceSpec(name, template, driver="sim", **others)


async def ask_all(rig, specs, outcomes, **params):
    """Each in a request of its own, all over one connection at once; what becomes of each."""
    all_answered = trio.Event()

    def answer(message):
        if isinstance(message, Reply):
            outcomes[message.id] = message.result["services"][0]["action"]
        else:
            outcomes[message.id] = from_wire(
                message.code, message.what, message.where, message.hint, message.retry_ms
            )
        if len(outcomes) == len(specs):
            all_answered.set()

    async with trio.open_nursery() as nursery:
        others = RpcServer(services.handlers(rig.cluster), nursery)
        server = BulkServer(others, applying.bulk(rig.cluster), nursery)
        for number, one in enumerate(specs):
            asked = {"services": (wire.encode_service(one),)} | params
            request = Request(number, "service.apply", asked, 0)
            server.on_message(b"c", ADMIN, request, answer, 100)
        await all_answered.wait()
        nursery.cancel_scope.cancel()


async def test_what_is_unchanged_is_so_only_where_nobody_else_has_taken_over(
    autojump_clock, tmp_path
):
    """Another may have removed it: one that was deposed and does not know it must not say so."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec("web"))
        assert (await rig.apply(spec("web")))["services"][0]["action"] == "unchanged"
        other = await MemoryStore.open(rig.disk)
        await other.take_term(rig.cluster.state.term)

        with pytest.raises(StaleTerm):
            await rig.apply(spec("web"))
        assert rig.cluster.deposed is not None


def on_disk(rig):
    return {
        key: records.decode(entry.value, ServiceRecord, key)
        for key, entry in rig.disk.entries.items()
        if key.startswith(records.SERVICE)
    }


async def test_each_is_answered_and_all_are_durable(autojump_clock, tmp_path):
    """What is in memory is what is on the disk."""
    async with a_rig(tmp_path) as rig:
        outcomes = {}
        await ask_all(rig, [spec(f"s{n}") for n in range(250)], outcomes)

        assert set(outcomes.values()) == {"created"}
        assert rig.store.statistics().groups == 3
        assert len(on_disk(rig)) == 250
        for key, service in rig.cluster.state.services.items():
            assert on_disk(rig)[records.service_key(*key)] == service.record
        assert not rig.cluster.locks


async def test_one_that_is_wrong_fails_alone(autojump_clock, tmp_path):
    """A bad name, a bad wish, a name in use, twice the same at once."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec("used"))
        outcomes = {}
        wishes = Placement(constraints=("nonsense",))
        specs = [
            *(spec("used"), spec("Bad"), spec("bad", placement=wishes), spec("many", replicas=-1)),
            *(spec("good"), spec("twice"), spec("twice")),
        ]
        await ask_all(rig, specs, outcomes, create_only=True)

        assert isinstance(outcomes[0], Conflict)
        assert all(isinstance(outcomes[n], InvalidSpec) for n in (1, 2, 3)), outcomes
        assert outcomes[4] == "created"
        twice = sorted([outcomes[5], outcomes[6]], key=str)
        assert isinstance(twice[0], Conflict)
        assert twice[1] == "created"
        assert not rig.cluster.locks


async def test_a_second_change_waits_for_the_first(autojump_clock, tmp_path):
    """Neither is lost: the later one sees the earlier."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec("web"))
        rig.store.hold()
        outcomes = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_all, rig, [spec("web", 200), spec("web", 300)], outcomes)
            await wait_all_tasks_blocked()
            assert not outcomes
            rig.store.release()

        assert outcomes == {0: "updated", 1: "updated"}
        assert rig.record().revision == 3
        assert on_disk(rig)["service/default/web"] == rig.record()


@pytest.mark.parametrize("fault", [StorageFault("full"), Busy("much")])
async def test_a_disk_that_refuses_fails_all_and_changes_nothing(autojump_clock, tmp_path, fault):
    """Each is told; who was refused as busy is told when to come again."""
    async with a_rig(tmp_path) as rig:
        rig.store.fail_next(fault, 10)
        outcomes = {}
        await ask_all(rig, [spec(f"s{n}") for n in range(10)], outcomes)

        assert {type(one) for one in outcomes.values()} == {type(fault)}
        if isinstance(fault, Busy):
            assert {one.retry_ms for one in outcomes.values()} == {limits.BUSY_RETRY_MS}
        assert not rig.cluster.state.services
        assert not rig.cluster.locks


async def test_what_was_made_on_the_fast_way_is_what_the_slow_way_makes():
    """The same bytes for the store, and the same template."""
    for one in (spec("a"), spec("b", placement=Placement(spread=("node.labels.rack",)))):
        record = ServiceRecord(one, 1.0, 2.0)
        encoded, template = records.encode_new(record)

        assert encoded == records.encode(record)
        assert template == wire.encode_template(one.template)
        assert Service(record, encoded_template=template).template == Service(record).template


async def test_records_too_large_to_share_a_transaction_are_committed_apart(
    autojump_clock, tmp_path
):
    """The store's bound for a transaction holds however many requests come at once."""
    async with a_rig(tmp_path) as rig:
        sizes = []
        commit = rig.store.commit

        async def watched(ops):
            sizes.append(sum(len(op.value) for op in ops))
            return await commit(ops)

        rig.store.commit = watched
        large = Template(container=ContainerSpec("box", environment={"A": "x" * 200_000}))
        outcomes = {}
        await ask_all(rig, [ServiceSpec(f"s{n}", large) for n in range(9)], outcomes)

        assert set(outcomes.values()) == {"created"}
        assert max(sizes) <= limits.BULK_COMMIT_BYTES
        assert len(sizes) == 5
