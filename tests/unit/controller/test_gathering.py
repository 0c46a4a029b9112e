"""Cycles are few and large while requests stream in, and at once when none do."""

import pytest
import trio

from swarmctl.controller.convergence import gather
from swarmctl.spec.models import ContainerSpec, Resources, ServiceSpec, Template
from tests.unit.controller.requests_fixture import a_rig
from tests.unit.controller.test_applying import ask_all


def spec(name, cpu_millis):
    return ServiceSpec(name, Template(ContainerSpec("box"), resources=Resources(cpu_millis)))


async def at_once():
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("idle", "dirty", "most_s"),
    [
        (at_once, 0, 0.0),
        (at_once, 1, 0.0),
        (trio.sleep_forever, 1, 1.0),
        (trio.sleep_forever, 100, 0.0),
    ],
)
async def test_it_waits_for_more_for_a_second_at_the_most(
    autojump_clock, tmp_path, idle, dirty, most_s
):
    """Not when nothing else comes, nor when there is plenty for each node."""
    async with a_rig(tmp_path, None, "n1", "n2") as rig:
        rig.cluster.state.dirty_services.update(("default", f"s{n}") for n in range(dirty))
        began = trio.current_time()
        await gather(rig.cluster, idle)
        assert trio.current_time() - began == pytest.approx(most_s)


async def test_it_ends_when_the_stream_does(autojump_clock, tmp_path):
    """What was asked last does not wait for what does not come."""
    async with a_rig(tmp_path, None, "n1") as rig:
        done = trio.Event()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gather, rig.cluster, done.wait)
            await trio.sleep(0.3)
            done.set()
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
