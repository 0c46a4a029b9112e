"""A large launch is told in few messages: the first soon, each other as large as all before."""

from swarmctl.controller import convergence
from swarmctl.proto.messages import Assign
from tests.unit.controller.harness import spec
from tests.unit.controller.requests_fixture import a_rig


async def test_messages_of_one_launch_double(autojump_clock, tmp_path, monkeypatch):
    """The node has its first work soon, and 80 instances cost four messages in place of eight."""
    monkeypatch.setattr(convergence, "_SLOTS_A_TURN", 10)
    monkeypatch.setattr(convergence, "_DISPATCH_A_NODE", 10)
    async with a_rig(tmp_path, None, "n1") as rig:
        await rig.apply(spec("web", 80, cpu_millis=10))
        rig.sent.clear()
        await convergence.converge(rig.cluster)

        assigned = [message for _, message in rig.sent if isinstance(message, Assign)]
        told = [sum(len(group.entries) for group in one.groups) for one in assigned]
        assert told == [10, 10, 20, 40]


async def test_a_second_launch_is_told_as_soon_as_the_first(autojump_clock, tmp_path, monkeypatch):
    """What was told before it does not count."""
    monkeypatch.setattr(convergence, "_SLOTS_A_TURN", 10)
    monkeypatch.setattr(convergence, "_DISPATCH_A_NODE", 10)
    async with a_rig(tmp_path, None, "n1") as rig:
        for name in ("first", "second"):
            await rig.apply(spec(name, 40, cpu_millis=10))
            rig.sent.clear()
            await convergence.converge(rig.cluster)
            assigned = [message for _, message in rig.sent if isinstance(message, Assign)]
            assert sum(len(group.entries) for group in assigned[0].groups) == 10
