"""Requests that change intent, on a real cluster over a store in memory."""

import pytest
import trio
from attrs import evolve
from trio.testing import wait_all_tasks_blocked

from swarmctl.controller import records
from swarmctl.controller.records import SlotOverride, SlotWish
from swarmctl.proto import limits
from swarmctl.proto.errors import (
    Conflict,
    InvalidSpec,
    LaunchFailed,
    NotFound,
    NothingFits,
    ProtocolError,
    Refused,
    StaleTerm,
    StorageFault,
    WaitExpired,
)
from swarmctl.proto.messages import InstanceReport, Report
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import AffinityTerm, Placement, Resources
from tests.unit.controller.harness import FakeNode, spec
from tests.unit.controller.requests_fixture import a_rig

KEY = ("default", "web")


def on_disk(rig):
    """The services that are durable, by name."""
    return {
        key.rpartition("/")[2]: records.decode(entry.value, records.ServiceRecord, key)
        for key, entry in rig.disk.entries.items()
        if key.startswith("service/")
    }


# --- apply -----------------------------------------------------------------------------------


async def test_apply_says_what_it_did_with_each_service(autojump_clock, tmp_path):
    """Created, then unchanged, then updated with what differs; each change is a revision."""
    async with a_rig(tmp_path, None, "a") as rig:
        actions = [
            (await rig.apply(one))["services"][0]
            for one in (spec(), spec(), spec(replicas=3), spec(replicas=3, image="new"))
        ]

        assert [one["action"] for one in actions] == ["created", "unchanged", "updated", "updated"]
        assert [change[3] for change in actions[2]["changes"]] == [False]
        assert [change[3] for change in actions[3]["changes"]] == [True]
        assert rig.record().revision == 3
        assert rig.record().previous == spec(replicas=3)
        assert on_disk(rig) == {"web": rig.record()}


async def test_a_dry_run_changes_nothing(autojump_clock, tmp_path):
    """Neither on the disk nor in memory."""
    async with a_rig(tmp_path) as rig:
        result = await rig.apply(spec(), dry_run=True)

        assert result["services"][0]["action"] == "created"
        assert on_disk(rig) == rig.cluster.state.services == {}


async def test_create_only_refuses_a_name_in_use(autojump_clock, tmp_path):
    """As `run` does; nothing of the request is carried out."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec())
        with pytest.raises(Conflict, match="exists already"):
            await rig.apply(spec("db"), spec(replicas=9), create_only=True)

        assert set(on_disk(rig)) == {"web"}


async def test_prune_removes_the_rest_of_the_stack_and_nothing_else(autojump_clock, tmp_path):
    """Other stacks, and services of none, stay."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(
            evolve(spec("a"), stack="s"), evolve(spec("b"), stack="s"), spec("c"),
            evolve(spec("d"), stack="other"),
        )  # fmt: skip
        result = await rig.apply(evolve(spec("a"), stack="s"), prune="s")

        assert {one["service"]: one["action"] for one in result["services"]} == {
            "a": "unchanged",
            "b": "removed",
        }
        assert set(on_disk(rig)) == {"a", "c", "d"}
        assert ("default", "b") in rig.cluster.state.tombstones


async def test_a_hundred_and_fifty_services_are_applied_in_one_request(autojump_clock, tmp_path):
    """More than one transaction takes."""
    many = [spec(f"s{number}") for number in range(150)]
    async with a_rig(tmp_path) as rig:
        await rig.apply(*many)
        await rig.ask("service.remove", names=[one.name for one in many])

        assert on_disk(rig) == {}
        assert len(rig.cluster.state.tombstones) == 150


@pytest.mark.parametrize(
    "bad",
    [
        spec("Not A Name"),
        evolve(spec(), tenant="a/b"),
        spec(replicas=-1),
        spec(replicas=limits.REPLICAS_MAX + 1),
        spec(cpu_millis=-5),
        spec(cpu_millis=1 << 62),
        spec(placement=Placement(constraints=("node labels zone",))),
        spec(placement=Placement(affinity=(AffinityTerm("db", weight=0),))),
        spec(placement=Placement(spread=("rack",))),
        evolve(
            spec(),
            template=evolve(spec().template, resources=Resources(named={"gpu": -1})),
        ),
    ],
    ids=lambda one: one.name,
)
async def test_what_the_scheduler_would_refuse_is_refused_now(autojump_clock, tmp_path, bad):
    """In the user's request, not later in a cycle of the controller."""
    async with a_rig(tmp_path) as rig:
        with pytest.raises(InvalidSpec):
            await rig.apply(bad)

        assert on_disk(rig) == {}
        rig.step()


@pytest.mark.parametrize("params", [{}, {"services": "x"}, {"services": [1]}, {"services": [b"x"]}])
async def test_malformed_parameters_are_answered(autojump_clock, tmp_path, params):
    """They are the client's fault, and said to be."""
    async with a_rig(tmp_path) as rig:
        with pytest.raises(ProtocolError):
            await rig.ask("service.apply", **params)


# --- durability ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [StorageFault("disk full"), StaleTerm("taken over")])
async def test_a_store_that_refuses_leaves_everything_as_it_was(autojump_clock, tmp_path, fault):
    """Memory follows the disk, never the other way round; and the user is told."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=2))
        rig.run()
        for method, params in [
            ("service.scale", {"replicas": {"web": 5}}),
            ("service.stop", {"names": ["web"]}),
            ("service.restart", {"names": ["web.1"]}),
            ("service.remove", {"names": ["web"]}),
            ("node.change", {"names": ["a"], "cordoned": True}),
            ("node.remove", {"name": "a", "force": True}),
            ("token.create", {}),
            ("token.revoke", {"id": next(iter(rig.cluster.tokens))}),
        ]:
            before = (rig.record(), dict(rig.cluster.tokens), set(rig.cluster.state.nodes))
            rig.store.fail_next(fault)
            with pytest.raises(type(fault)):
                await rig.ask(method, **params)
            rig.run(3)

            assert before == (rig.record(), rig.cluster.tokens, set(rig.cluster.state.nodes))
            assert rig.running() == [1, 2]
            assert not rig.cluster.state.nodes["a"].record.cordoned
            assert not rig.cluster.locks
        assert (rig.cluster.deposed is not None) == isinstance(fault, StaleTerm)


async def test_nothing_is_told_before_it_is_durable(autojump_clock, tmp_path):
    """While the disk works, memory is as before."""
    async with a_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        rig.store.hold()
        nursery.start_soon(rig.apply, spec())
        await wait_all_tasks_blocked()
        assert rig.cluster.state.services == {}
        rig.store.release()
        await wait_all_tasks_blocked()

        assert KEY in rig.cluster.state.services


async def test_a_change_whose_asker_went_away_is_not_half_done(autojump_clock, tmp_path):
    """Cancelled while the disk works: what becomes durable is known in memory, too."""
    async with a_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        rig.store.hold()
        with trio.move_on_after(1):
            nursery.start_soon(rig.apply, spec())
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            rig.store.release()
            await wait_all_tasks_blocked()
            assert set(on_disk(rig)) == {"web"}
            assert KEY in rig.cluster.state.services
            assert not rig.cluster.locks


async def test_a_controller_that_ends_does_not_wait_for_the_disk(autojump_clock, tmp_path):
    """A disk that hangs for ever must not keep the process."""
    async with a_rig(tmp_path) as rig:
        rig.store.hold()
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.apply, spec())
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                rig.cluster.stop()


async def test_two_changes_of_one_service_at_once_both_count(autojump_clock, tmp_path):
    """Neither overwrites what the other did."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec(replicas=9))
        rig.store.hold()
        async with trio.open_nursery() as nursery:
            for slot in (1, 2, 3):
                nursery.start_soon(lambda slot=slot: rig.ask("service.stop", names=[f"web.{slot}"]))
            nursery.start_soon(lambda: rig.ask("service.restart", names=["web", "web.9"]))
            await wait_all_tasks_blocked()
            rig.store.release()

        record = on_disk(rig)["web"]
        assert record == rig.record()
        assert record.generation == 1
        assert {slot: one.wish for slot, one in record.overrides.items()} == {
            1: SlotWish.STOPPED, 2: SlotWish.STOPPED, 3: SlotWish.STOPPED, 9: None,
        }  # fmt: skip
        assert not rig.cluster.locks


async def test_changes_of_several_services_hold_all_of_their_locks(autojump_clock, tmp_path):
    """Also one that was free, taken and thrown away while another of them was waited for."""
    async with a_rig(tmp_path) as rig:
        inside = []

        async def change(keys, name):
            async with rig.cluster.changing([("t", key) for key in keys]):
                inside.append((name, keys))
                held = [key for _, keys in inside for key in keys]
                assert len(held) == len(set(held)), inside
                await trio.sleep(1)
                inside.remove((name, keys))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, "a", 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(change, "ab", 2)
            nursery.start_soon(change, "b", 3)
            await trio.sleep(0.5)
            nursery.start_soon(change, "ba", 4)
            await trio.sleep(0.6)
            nursery.start_soon(change, "b", 5)
        assert not rig.cluster.locks


# --- scale, stop, start, restart, rm ---------------------------------------------------------


async def test_scale_changes_replicas_and_forgets_what_is_beyond(autojump_clock, tmp_path):
    """A slot that comes back comes back without its old exception."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=5))
        await rig.ask("service.stop", names=["web.5"])
        await rig.ask("service.scale", replicas={"web": 3})
        rig.run()
        assert rig.running() == [1, 2, 3]
        await rig.ask("service.scale", replicas={"web": 5})
        rig.run()

        assert rig.running() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("replicas", "error"),
    [
        ({"web": -1}, InvalidSpec),
        ({"web": 10**9}, InvalidSpec),
        ({"web.1": 2}, InvalidSpec),
        ({"wbe": 2}, NotFound),
        ({"web": True}, ProtocolError),
        ({"web": "2"}, ProtocolError),
        ("web=2", ProtocolError),
    ],
)
async def test_a_scale_that_makes_no_sense_is_refused(autojump_clock, tmp_path, replicas, error):
    """And changes nothing."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec(replicas=2))
        with pytest.raises(error):
            await rig.ask("service.scale", replicas=replicas)

        assert rig.record().spec.replicas == 2


async def test_stop_and_start_of_services_and_instances(autojump_clock, tmp_path):
    """An instance is the exception; the whole service's stop or start ends exceptions."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=3))
        rig.run()
        for method, name, left in [
            ("stop", "web.2", [1, 3]),
            ("start", "web.2", [1, 2, 3]),
            ("stop", "web", []),
            ("start", "web.1", [1]),
            ("stop", "web.1", []),
            ("start", "web", [1, 2, 3]),
        ]:
            await rig.ask(f"service.{method}", names=[name])
            rig.run()
            assert rig.running() == left
        assert rig.record().overrides == {}


async def test_rm_of_an_instance_leaves_a_gap_until_it_is_started(autojump_clock, tmp_path):
    """Across a restart of the controller, too: it is in the record."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=3))
        rig.run()
        await rig.ask("service.remove", names=["web.2"])
        rig.run()
        assert rig.running() == [1, 3]
        assert on_disk(rig)["web"].overrides == {2: SlotOverride(SlotWish.REMOVED)}
        await rig.ask("service.start", names=["web.2"])
        rig.run()

        assert rig.running() == [1, 2, 3]


async def test_gone_waits_for_a_node_that_is_only_away_for_a_moment(autojump_clock, tmp_path):
    """An agent that restarts still has the instances: they are not gone before it says so."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec())
        rig.run()
        node = rig.nodes["a"]
        peer, node.peer = node.peer, b""
        rig.cluster.sessions.peer_departed(peer)
        await rig.ask("service.remove", names=["web"])
        with pytest.raises(WaitExpired):
            await rig.ask("service.wait", names=["web"], timeout_s=1.0, **{"for": "gone"})
        rig.connect("a")
        rig.run()

        await rig.ask("service.wait", names=["web"], timeout_s=1.0, **{"for": "gone"})


async def test_rm_of_a_service_on_a_lost_node_is_done_when_it_returns(autojump_clock, tmp_path):
    """It succeeds at once; nobody waits for the node."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=2))
        rig.run()
        rig.disconnect("a")
        await rig.ask("service.remove", names=["web"])
        rig.run()
        await rig.ask("service.wait", names=["web"], **{"for": "gone"})
        assert rig.running() == [1, 2]
        rig.connect("a")
        rig.run()

        assert rig.running() == []
        assert not rig.cluster.state.leaving
        assert rig.cluster.fleet.snapshot.allocated("a").get("cpu_millis", 0) == 0


async def test_names_that_do_not_exist_are_refused_with_a_suggestion(autojump_clock, tmp_path):
    """And what else the request names is left alone."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec(replicas=2))
        with pytest.raises(NotFound) as caught:
            await rig.ask("service.remove", names=["web", "wbe"])
        assert 'did you mean "web"' in caught.value.hint
        with pytest.raises(NotFound, match=r"web\.3"):
            await rig.ask("service.stop", names=["web.3"])

        assert KEY in rig.cluster.state.services


# --- wait and explain ------------------------------------------------------------------------


async def test_wait_ends_when_all_run_and_shows_the_way(autojump_clock, tmp_path):
    """Counts are streamed as they change."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: rig.ask("service.wait", names=["web"]))
            await trio.sleep(1)
            rig.run()

        assert rig.progress[-1] == {"web": {"running": 3, "wanted": 3}}
        assert len(rig.progress) >= 2


async def test_wait_runs_out_of_time(autojump_clock, tmp_path):
    """With what it had come to."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=3))
        rig.step(deliver=False)
        began = trio.current_time()
        with pytest.raises(WaitExpired, match="3 assigned of 3"):
            await rig.ask("service.wait", names=["web"], timeout_s=7)

        assert 7 <= trio.current_time() - began < 8


async def test_wait_that_runs_out_of_time_says_what_fits_nowhere(autojump_clock, tmp_path):
    """While something leaves, room may come: but who gave little time is told what is lacking."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(cpu_millis=5000))
        rig.step()
        rig.cluster.reconciler.settled = False
        with pytest.raises(WaitExpired, match=r"1 pending of 1; web\.1 cannot be placed: .*lack"):
            await rig.ask("service.wait", names=["web"], timeout_s=2)


async def test_wait_says_at_once_that_nothing_fits(autojump_clock, tmp_path):
    """With the scheduler's reason."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(cpu_millis=5000))
        rig.step()
        with pytest.raises(NothingFits, match="lack"):
            await rig.ask("service.wait", names=["web"])


async def test_what_is_on_a_lost_node_keeps_nobody_from_saying_that_nothing_fits(
    autojump_clock, tmp_path
):
    """It leaves when that node returns, which may be never."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec(replicas=2))
        rig.run()
        rig.disconnect("a")
        await rig.ask("service.remove", names=["web"])
        rig.run()
        assert rig.cluster.state.leaving
        await rig.apply(spec(cpu_millis=5000))
        rig.step()
        with trio.fail_after(5), pytest.raises(NothingFits, match="lack"):
            await rig.ask("service.wait", names=["web"])


async def test_wait_says_at_once_that_a_launch_failed(autojump_clock, tmp_path):
    """For a reason that waiting does not mend."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec())
        rig.step()
        [report] = rig.nodes["a"].instances.values()
        failed = evolve(report, state=int(InstanceState.FAILED), reason="no such image")
        rig.cluster.sessions.on_message(rig.nodes["a"].peer, "node:a", Report(9, (failed,)))
        with pytest.raises(LaunchFailed, match="no such image"):
            await rig.ask("service.wait", names=["web"])


@pytest.mark.parametrize("timeout", ["soon", [], {}])
async def test_wait_with_a_timeout_that_is_none_is_refused(autojump_clock, tmp_path, timeout):
    """It is the client's fault."""
    async with a_rig(tmp_path) as rig:
        await rig.apply(spec(replicas=0))
        with pytest.raises(ProtocolError):
            await rig.ask("service.wait", names=["web"], timeout_s=timeout)


async def test_explain_says_why_it_is_there_and_why_it_is_nowhere(autojump_clock, tmp_path):
    """One line a slot, and what one more copy would meet."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=5, cpu_millis=1000))
        rig.run()
        await rig.ask("service.stop", names=["web.1"])
        await rig.ask("service.remove", names=["web.2"])
        rig.run()
        lines = (await rig.ask("instance.explain", name="web"))["lines"]

        assert "web.1 is stopped on a" in lines[0]
        assert "nowhere: a user removed it" in lines[1]
        assert "web.3 is running on a: the least allocated node" in lines[2]
        assert len(lines) == 6
        assert lines[5].startswith("one more copy now:")

        await rig.ask("service.scale", replicas={"web": 2_000_000})
        lines = (await rig.ask("instance.explain", name="web"))["lines"]
        assert len(lines) == limits.HISTORY_MAX + 2


# --- quarantine ------------------------------------------------------------------------------


async def _with_strangers(rig, generation=0):
    """Node ``a`` has two instances of a service that the store does not know."""
    await rig.apply(spec(replicas=2))
    rig.run()
    if generation:
        await rig.ask("service.restart", names=["web"])
        await rig.ask("service.restart", names=["web.2"])
        rig.run()
    return rig.nodes["a"], {
        key: one for key, one in rig.disk.entries.items() if "service" not in key
    }


@pytest.mark.parametrize("generation", [0, 1])
async def test_quarantined_instances_are_adopted_by_apply(autojump_clock, tmp_path, generation):
    """As they run, however often they were restarted before the store was lost."""
    async with a_rig(tmp_path, None, "a") as rig:
        node, entries = await _with_strangers(rig, generation)
        disk = rig.disk
    disk.entries = entries
    before = dict(node.instances)
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes["a"] = node
        rig.connect("a")
        rig.run()
        assert rig.cluster.fleet.snapshot.allocated("a")["cpu_millis"] == 200
        listed = await rig.ask("instance.list")
        assert [one["state"] for one in listed] == ["quarantined"] * 2
        with pytest.raises(Conflict, match="quarantined"):
            await rig.ask("service.stop", names=["web"])
        await rig.apply(spec(replicas=2))
        rig.run()

        assert node.instances == before
        assert len(rig.cluster.state.services[KEY].holders) == 2
        assert rig.cluster.fleet.snapshot.allocated("a")["cpu_millis"] == 200


@pytest.mark.parametrize(("names", "left"), [(["web"], []), (["web.1"], [2])])
async def test_quarantined_instances_are_taken_away_by_rm(autojump_clock, tmp_path, names, left):
    """The whole name with a tombstone, so that what returns later goes as well."""
    async with a_rig(tmp_path, None, "a") as rig:
        node, entries = await _with_strangers(rig)
        disk = rig.disk
    disk.entries = entries
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes["a"] = node
        rig.connect("a")
        rig.run()
        await rig.ask("service.remove", names=names)
        rig.run()

        assert rig.running() == left
        assert (KEY in rig.cluster.state.tombstones) == (not left)
        assert any(key.startswith("tombstone/") for key in disk.entries) == (not left)


async def test_tombstones_and_templates_are_bounded(autojump_clock, tmp_path, monkeypatch):
    """The oldest go; a cluster that makes and deletes for years does not grow."""
    monkeypatch.setattr(limits, "TOMBSTONES_MAX", 10)
    monkeypatch.setattr(limits, "TEMPLATES_SPARE", 5)
    async with a_rig(tmp_path, None, "a") as rig:
        rig.cluster._templates_max = 5
        await rig.apply(spec("stays", image="kept"))
        for number in range(30):
            await rig.apply(spec(f"s{number}", image=f"i{number}"))
            rig.run(2)
            await rig.ask("service.remove", names=[f"s{number}"])
            rig.run(2)
        kept = [key for key in rig.disk.entries if key.startswith("tombstone/")]

        assert sorted(kept) == sorted(f"tombstone/default/s{n}" for n in range(20, 30))
        assert len(rig.cluster.state.tombstones) == 10
        assert len(rig.cluster.state.templates) <= 11
        assert rig.cluster.state.services[("default", "stays")].template in (
            rig.cluster.state.templates
        )


# --- access ----------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["node:a", "token:t1", "", "admins:x", "controller"])
async def test_only_administrators_may_ask(autojump_clock, tmp_path, user):
    """A node's or token's key opens its own door only."""
    async with a_rig(tmp_path) as rig:
        for method in ("service.apply", "token.create", "node.remove", "instance.exec"):
            with pytest.raises(Refused, match="may not call"):
                await rig.ask(method, user)


# --- what nodes may say ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        InstanceReport(5, 99, service="web", slot=1),
        InstanceReport(5, -1, service="web", slot=1),
        InstanceReport(0, 4, service="web", slot=1),
        InstanceReport(-5, 4, service="web", slot=1),
        InstanceReport(1 << 63, 4, service="web", slot=1),
        InstanceReport(5, 4, service="web", slot=0),
        InstanceReport(5, 4, service="web", slot=-1),
        InstanceReport(5, 4, -1, service="web", slot=1),
    ],
)
async def test_a_report_that_no_agent_makes_is_refused_whole(autojump_clock, tmp_path, report):
    """Nothing of the message that contains it is taken in."""
    fine = InstanceReport(7, 4, service="web", slot=2)
    async with a_rig(tmp_path, None, "a") as rig:
        with pytest.raises(ProtocolError):
            rig.cluster.sessions.on_message(
                rig.nodes["a"].peer, "node:a", Report(1, (fine, report))
            )
        hello = evolve(rig.nodes["a"].hello(), inventory=(fine, report))
        with pytest.raises(ProtocolError):
            rig.cluster.sessions.on_message(rig.nodes["a"].peer, "node:a", hello)

        assert rig.cluster.state.nodes["a"].instances == {}


@pytest.mark.parametrize("amount", [-1, 1 << 62])
async def test_facts_that_cannot_be_counted_with_are_refused(autojump_clock, tmp_path, amount):
    """A node's nonsense must not reach the scheduler."""
    async with a_rig(tmp_path, None, "a") as rig:
        with pytest.raises(ProtocolError, match="cpu_millis"):
            rig.cluster.sessions.on_message(
                b"x", "node:a", FakeNode("a", cpu_millis=amount).hello()
            )


async def test_a_term_beyond_reason_is_refused(autojump_clock, tmp_path):
    """One damaged journal must not use up the cluster's terms."""
    async with a_rig(tmp_path, None, "a") as rig:
        hello = evolve(rig.nodes["a"].hello(), term=1 << 40)
        with pytest.raises(ProtocolError, match="damaged"):
            rig.cluster.sessions.on_message(b"x", "node:a", hello)

        assert rig.cluster.sessions.term_seen == 0


async def test_a_template_has_to_be_what_it_is_called(autojump_clock, tmp_path):
    """One node cannot change what another's instances are made from."""
    async with a_rig(tmp_path, None, "a") as rig:
        before = dict(rig.cluster.state.templates)
        hello = evolve(rig.nodes["a"].hello(), templates={b"x" * 8: b"y", b"": b""})
        rig.cluster.sessions.on_message(rig.nodes["a"].peer, "node:a", hello)

        assert rig.cluster.state.templates == before


async def test_a_completion_that_the_controller_before_did_not_commit_is_taken_in(
    autojump_clock, tmp_path
):
    """It is in the inventory with which the node greets the next one."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(job=True))
        rig.run()
        node, disk = rig.nodes["a"], rig.disk
    [(number, report)] = node.instances.items()
    node.instances[number] = evolve(report, state=int(InstanceState.SUCCEEDED), exit_code=0)
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes["a"] = node
        rig.connect("a")

        assert [one.instance.slot for one in rig.cluster.sessions.completions] == [1]
        assert rig.cluster.fleet.snapshot.allocated("a").get("cpu_millis", 0) == 0


def test_completions_are_kept_packed():
    """A million of them are one pair of numbers, and any set of them comes back."""
    full = records.ServiceRecord(spec(job=True), 0.0, 0.0, completed=tuple(range(1, 1_000_001)))
    assert len(records.encode(full)) < 200
    some = evolve(full, completed=(1, 2, 3, 7, 9, 10, 4_000_000))
    for one in (full, some, evolve(full, completed=())):
        assert records.decode(records.encode(one), records.ServiceRecord, "k") == one


async def test_gone_is_not_said_before_every_node_has_reported(autojump_clock, tmp_path):
    """After a takeover a node that is on its way back may still have what was removed."""
    async with a_rig(tmp_path, None, "n1") as rig:
        rig.cluster.reconciler.settled = False
        with pytest.raises(WaitExpired):
            await rig.ask("service.wait", names=["web"], **{"for": "gone", "timeout_s": 1.0})
        rig.cluster.reconciler.settle()

        await rig.ask("service.wait", names=["web"], **{"for": "gone", "timeout_s": 1.0})
