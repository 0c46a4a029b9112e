"""What an instance went through counts for the next one in its slot, wherever that runs."""

import pytest
import trio
from attrs import evolve

from swarmctl.controller import records
from swarmctl.controller.instance import Instance
from swarmctl.controller.pasts import PASTS_MAX, PastRecord, Pasts
from swarmctl.proto import limits
from swarmctl.proto.messages import Assign, Report
from swarmctl.proto.states import InstanceState
from tests.unit.controller.harness import spec
from tests.unit.controller.requests_fixture import a_rig

KEY = ("default", "web")
WAITING = {"state": int(InstanceState.FAILED), "exit_code": 1, "retrying": True}


def say(rig, name, **changes):
    """A node says of what it has that it is so."""
    node = rig.nodes[name]
    told = tuple(evolve(one, **changes) for one in node.instances.values())
    node.instances = {one.incarnation: one for one in told}
    node.sequence += 1
    rig.cluster.sessions.on_message(node.peer, f"node:{name}", Report(node.sequence + 100, told))


async def placed(rig):
    """A service's only copy; the name of its node, and that of the other one."""
    await rig.apply(spec())
    rig.run()
    [node] = [name for name, one in rig.nodes.items() if one.instances]
    [other] = set(rig.nodes) - {node}
    return node, other


async def drain(rig, node):
    await rig.ask("node.change", names=[node], draining=True)
    await trio.sleep(0.2)
    rig.cluster.relocate(trio.current_time())


def carried(rig, name):
    """Restarts and failures, as a node is told of them with its next instance."""
    rig.cluster.reconciler.cycle()
    rig.cluster.sessions.flush()
    sent = [m for node, m in rig.sent if node.name == name and isinstance(m, Assign)]
    [group] = [group for message in sent for group in message.groups]
    [(_, incarnation, _, _, restarts)] = group.entries
    return restarts, group.failures.get(incarnation, 0)


async def test_a_crash_loop_goes_on_where_it_is_moved(autojump_clock, tmp_path):
    """Its backoff and its count do not begin anew."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await placed(rig)
        say(rig, node, restarts=7, failures=5, **WAITING)
        await drain(rig, node)
        assert carried(rig, other) == (7, 5)


async def test_it_goes_on_where_its_node_is_lost(autojump_clock, tmp_path):
    """Also when the one after it was lost before it could say anything."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await placed(rig)
        say(rig, node, restarts=7, failures=5, **WAITING)
        rig.disconnect(node)
        assert carried(rig, other) == (7, 5)
        rig.disconnect(other)
        rig.connect(node)
        rig.sent.clear()
        rig.nodes[node].instances.clear()
        assert carried(rig, node) == (7, 5)


@pytest.mark.parametrize(("ran_s", "failures"), [(1.0, 5), (limits.RESTART_RESET_S + 1, 0)])
async def test_a_long_run_ends_a_loop_here_as_on_the_node(
    autojump_clock, tmp_path, ran_s, failures
):
    """The node would have begun to count anew at the next end."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await placed(rig)
        since = rig.cluster.wall() - ran_s
        say(rig, node, restarts=7, failures=5, since=since)
        await drain(rig, node)
        assert carried(rig, other) == (7, failures)


async def test_a_launch_that_failed_on_one_node_is_not_held_against_the_next(
    autojump_clock, tmp_path
):
    """It may have been the node's fault."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await placed(rig)
        say(rig, node, restarts=2, failures=5, state=int(InstanceState.FAILED), retrying=True)
        await drain(rig, node)
        assert carried(rig, other) == (2, 0)


@pytest.mark.parametrize("how", ["changed", "restarted"])
async def test_what_a_user_asked_for_begins_anew(autojump_clock, tmp_path, how):
    """A changed template counts from nothing, a restart has no wait before it."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await placed(rig)
        say(rig, node, restarts=7, failures=5, **WAITING)
        await drain(rig, node)
        if how == "changed":
            await rig.apply(spec(image="newer"))
        else:
            await rig.ask("service.restart", names=["web"])
        assert carried(rig, other) == ((0, 0) if how == "changed" else (7, 0))


# --- the book ---------------------------------------------------------------------------------


def noted(rig):
    """What the book says of the only slot, after a look; and whether it is to be written."""
    state = rig.cluster.state
    state.pasts.look(state.services, rig.cluster.wall())
    past = state.pasts.get(KEY, 1, state.services[KEY].template)
    return past and (past.restarts, past.failures), bool(state.pasts.unwritten)


async def test_a_loop_is_noted_while_it_goes_on(autojump_clock, tmp_path):
    """Each end that makes the next wait longer, and later only the doublings."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, _ = await placed(rig)
        pasts = rig.cluster.state.pasts
        assert noted(rig) == (None, False)
        say(rig, node, restarts=3, failures=3, **WAITING)
        assert noted(rig) == ((3, 3), True)
        await pasts.unwritten.write(rig.cluster)
        assert noted(rig) == ((3, 3), False)
        say(rig, node, restarts=4, failures=4, **WAITING)
        assert noted(rig) == ((4, 4), True)
        say(rig, node, restarts=20, failures=20, **WAITING)
        assert noted(rig) == ((20, 20), True)
        await pasts.unwritten.write(rig.cluster)
        say(rig, node, restarts=31, failures=31, **WAITING)
        assert noted(rig) == ((20, 20), False)
        say(rig, node, restarts=32, failures=32, **WAITING)
        assert noted(rig) == ((32, 32), True)


@pytest.mark.parametrize("how", ["long run", "restart", "launch failed", "scaled"])
async def test_it_is_let_go_when_it_counts_no_more(autojump_clock, tmp_path, how):
    """And so is its record in the store."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, _ = await placed(rig)
        say(rig, node, restarts=7, failures=5, **WAITING)
        assert noted(rig) == ((7, 5), True)
        await rig.cluster.state.pasts.unwritten.write(rig.cluster)
        assert list(await rig.cluster.store.read(records.PAST)) == ["past/default/web"]
        running = int(InstanceState.RUNNING)
        if how == "long run":
            began = rig.cluster.wall() - limits.RESTART_RESET_S
            say(rig, node, restarts=7, failures=5, state=running, since=began)
        elif how == "restart":
            say(rig, node, restarts=8, failures=0, state=running)
        elif how == "launch failed":
            say(rig, node, restarts=7, failures=6, state=int(InstanceState.FAILED), exit_code=None)
        else:
            await rig.apply(spec(replicas=0))
            rig.cluster.reconciler.cycle()
        assert noted(rig) == (None, True)
        await rig.cluster.state.pasts.unwritten.write(rig.cluster)
        assert not await rig.cluster.store.read(records.PAST)
        assert noted(rig) == (None, False)


def test_the_record_is_bounded_and_reads_as_it_was_written():
    """The last ones are kept, and fit into the store."""
    book = Pasts()
    for slot in range(1, PASTS_MAX + 6):
        one = Instance(KEY, slot, 2**60 + slot, "n", b"t" * 32, "docker", generation=2**40)
        one.restarts = one.failures = 10**6 + slot
        one.reported = True
        book.leave(one, InstanceState.RUNNING, 1e10 / 3)
    encoded = book.encoded(KEY)
    assert len(encoded) < limits.VALUE_MAX_BYTES
    again = Pasts()
    again.know(records.decode(encoded, PastRecord, "past/default/web"))
    assert again.get(KEY, 5, b"t" * 32) is None
    for slot in range(6, PASTS_MAX + 6):
        assert again.get(KEY, slot, b"t" * 32) == book.get(KEY, slot, b"t" * 32)
    assert not again.unwritten
