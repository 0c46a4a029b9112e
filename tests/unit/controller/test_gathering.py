"""Cycles are few and large while requests stream in, and at once when none do."""

import pytest
import trio
from attrs import define, field

from swarmctl.controller.convergence import gather
from swarmctl.spec.models import ContainerSpec, Resources, ServiceSpec, Template
from tests.unit.controller.requests_fixture import a_rig
from tests.unit.controller.test_applying import ask_all


def spec(name, cpu_millis):
    return ServiceSpec(name, Template(ContainerSpec("box"), resources=Resources(cpu_millis)))


@define
class Stream:
    """Requests as a server has them: under way until it is set."""

    ended: trio.Event = field(factory=trio.Event)

    @property
    def is_idle(self) -> bool:
        return self.ended.is_set()

    async def wait_idle(self) -> None:
        await self.ended.wait()


@pytest.mark.parametrize(
    ("under_way", "dirty", "most_s"),
    [(False, 0, 0.0), (False, 1, 0.0), (True, 1, 1.0), (True, 100, 0.0)],
)
async def test_it_waits_for_more_for_a_second_at_the_most(
    autojump_clock, tmp_path, under_way, dirty, most_s
):
    """Not when nothing else comes, nor when there is plenty for each node."""
    async with a_rig(tmp_path, None, "n1", "n2") as rig:
        rig.cluster.state.dirty_services.update(("default", f"s{n}") for n in range(dirty))
        stream = Stream()
        if not under_way:
            stream.ended.set()
        began = trio.current_time()
        await gather(rig.cluster, stream)
        assert trio.current_time() - began == pytest.approx(most_s)


async def test_it_ends_when_the_stream_does(autojump_clock, tmp_path):
    """What was asked last does not wait for what does not come."""
    async with a_rig(tmp_path, None, "n1") as rig:
        stream = Stream()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gather, rig.cluster, stream)
            await trio.sleep(0.3)
            stream.ended.set()
        assert trio.current_time() - began == pytest.approx(0.3)


async def test_a_service_that_was_changed_meanwhile_is_placed_as_it_is_now(
    autojump_clock, tmp_path
):
    """What the scheduler is asked is kept from the check on, until the service changes."""
    async with a_rig(tmp_path, None, "n1") as rig:
        outcomes = {}
        await ask_all(rig, [spec("kept", 100), spec("changed", 100)], outcomes)
        await ask_all(rig, [spec("changed", 5_000)], {})
        rig.run()
        assert set(outcomes.values()) == {"created"}
        assert rig.running("kept") == [1]
        assert rig.running("changed") == []
        changed = rig.cluster.state.services["default", "changed"]
        assert "cpu" in changed.unplaced[1]
        kept = rig.cluster.state.services["default", "kept"]
        assert kept.request is None
