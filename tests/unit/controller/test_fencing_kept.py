"""What the next controller knows of fenced nodes that it does not hear: from the store alone."""

import pytest
import trio
from attrs import evolve

from swarmctl.controller import guardless
from swarmctl.proto.errors import Conflict
from tests.unit.controller.harness import FakeNode, spec
from tests.unit.controller.requests_fixture import a_rig

# Lease, drift and kill margin: 30 * 1.01 + 5.
WAIT_S = 35.3


class GuardedNode(FakeNode):
    """A node whose guard lives, or not."""

    guarded = True

    def hello(self):
        return evolve(super().hello(), guarded=self.guarded)

    def heartbeat(self):
        return evolve(super().heartbeat(), guarded=self.guarded)


def fenced(name="db"):
    made = spec(name)
    return evolve(made, template=evolve(made.template, fenced=True), fencing="lease")


async def begin(rig):
    """Two guarded nodes; the first of them has the fenced copy. Their names, that one's first."""
    for name in list(rig.nodes):
        rig.nodes[name] = GuardedNode(name)
        rig.connect(name)
    rig.run(3)
    await rig.apply(fenced())
    rig.run(3)
    [node] = [name for name, one in rig.nodes.items() if one.instances]
    [other] = set(rig.nodes) - {node}
    return node, other


async def says_its_guard(rig, name, *, lives):
    """A heartbeat of a node, and what is written because of it."""
    rig.nodes[name].guarded = lives
    node = rig.nodes[name]
    rig.cluster.sessions.on_message(node.peer, f"node:{name}", node.heartbeat())
    await guardless.write(rig.cluster)
    assert not rig.cluster.state.fences.unwritten


async def pass_s(rig, seconds, lost=()):
    """Time goes by; those that live say so."""
    for _ in range(int(seconds * 2)):
        await trio.sleep(0.5)
        await rig.cluster.listening.look()
        for name, node in rig.nodes.items():
            if node.peer and name not in lost:
                rig.cluster.sessions.on_message(node.peer, f"node:{name}", node.heartbeat())
        losses = rig.cluster.sessions.losses
        losses.check_lost(5.0)
        losses.settle(5.0)
        rig.cluster.state.capacity_changed = True
        rig.step()


def where(rig, name="db"):
    return [
        node.name
        for node in rig.nodes.values()
        if any(one.service == name for one in node.instances.values())
    ]


def why(rig, name="db"):
    return rig.cluster.state.services["default", name].unplaced.get(1, "")


async def test_a_node_without_a_guard_is_not_forgotten(autojump_clock, tmp_path):
    """Its silence proves nothing to the next controller either; its operator's word does."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await begin(rig)
        await says_its_guard(rig, node, lives=False)
        disk, survivor = rig.disk, rig.nodes[other]
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes = {other: survivor}
        rig.connect(other)
        await rig.apply(fenced("new"))
        await pass_s(rig, 60)
        assert where(rig) == []
        assert f"node fenced {node}" in why(rig)
        assert where(rig, "new") == [other]  # It was nowhere before.

        await rig.ask("node.fenced", names=[node])
        await pass_s(rig, 4)
        assert where(rig) == [other]
        assert not rig.cluster.state.nodes[node].record.unguarded
    async with a_rig(tmp_path, disk) as rig:
        assert not rig.cluster.state.nodes[node].record.unguarded


async def test_a_guard_that_lives_again_is_known_too(autojump_clock, tmp_path):
    """Then silence counts again, after the lease."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await begin(rig)
        await says_its_guard(rig, node, lives=False)
        assert rig.cluster.state.nodes[node].record.unguarded
        await says_its_guard(rig, node, lives=True)
        assert not rig.cluster.state.nodes[node].record.unguarded
        disk, survivor = rig.disk, rig.nodes[other]
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes = {other: survivor}
        rig.connect(other)
        await pass_s(rig, WAIT_S - 2)
        assert where(rig) == []
        await pass_s(rig, 6)
        assert where(rig) == [other]


async def test_nothing_is_written_of_nodes_with_nothing_fenced(autojump_clock, tmp_path):
    """Nor are they waited for."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        _, other = await begin(rig)
        await says_its_guard(rig, other, lives=False)
        assert not rig.cluster.state.nodes[other].record.unguarded


async def test_a_hello_without_a_guard_is_believed(autojump_clock, tmp_path):
    """Silence after it proves nothing, also when no heartbeat came in between."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, _ = await begin(rig)
        rig.nodes[node].guarded = False
        rig.connect(node)
        await guardless.write(rig.cluster)
        rig.disconnect(node)
        await pass_s(rig, 60)
        assert len(where(rig)) == 1
        assert f"node fenced {node}" in why(rig)


async def test_an_operator_is_asked_for_silent_nodes_only(autojump_clock, tmp_path):
    """One that is there, or was never waited for, cannot be off for sure."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, _ = await begin(rig)
        with pytest.raises(Conflict, match="is connected"):
            await rig.ask("node.fenced", names=[node])
        with pytest.raises(Conflict, match="is waited for"):
            await rig.ask("node.fenced", names=["nobody"])


async def test_a_node_that_was_removed_is_waited_for_by_the_next_controller(
    autojump_clock, tmp_path
):
    """All that it knows have reported, and the one that it does not know may run on."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await begin(rig)
        await rig.ask("node.remove", name=node, force=True)
        disk, survivor = rig.disk, rig.nodes[other]
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes = {other: survivor}
        rig.connect(other)
        await pass_s(rig, WAIT_S - 2)
        assert where(rig) == []
        assert f"{node} (removed) may run it still" in why(rig)
        await pass_s(rig, 6)
        assert where(rig) == [other]


async def test_a_removed_node_without_a_guard_needs_an_operators_word(autojump_clock, tmp_path):
    """Which is kept, too."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await begin(rig)
        await says_its_guard(rig, node, lives=False)
        await rig.ask("node.remove", name=node, force=True)
        disk, survivor = rig.disk, rig.nodes[other]
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes = {other: survivor}
        rig.connect(other)
        await pass_s(rig, 60)
        assert where(rig) == []
        assert f"node fenced {node}" in why(rig)
        await rig.ask("node.fenced", names=[node])
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes = {other: survivor}
        rig.connect(other)
        await pass_s(rig, WAIT_S + 4)
        assert where(rig) == [other]


async def test_who_is_off_by_an_operators_word_stays_so_when_it_is_removed(
    autojump_clock, tmp_path
):
    """It is not asked for a second time."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        node, other = await begin(rig)
        await says_its_guard(rig, node, lives=False)
        rig.disconnect(node)
        await rig.ask("node.fenced", names=[node])
        await rig.ask("node.remove", name=node)
        disk, survivor = rig.disk, rig.nodes[other]
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes = {other: survivor}
        rig.connect(other)
        await pass_s(rig, WAIT_S + 4)
        assert where(rig) == [other]
