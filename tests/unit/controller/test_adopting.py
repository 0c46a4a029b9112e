"""Services made from what runs, where the store forgot them."""

import pytest

from swarmctl.controller.handlers import adopting
from swarmctl.controller.holding import REBUILT
from swarmctl.controller.records import SlotWish
from tests.unit.controller.harness import spec
from tests.unit.controller.requests_fixture import a_rig

KEY = ("default", "web")


async def forgetting(rig):
    """What was on the disk, without the services."""
    return {key: one for key, one in rig.disk.entries.items() if "service" not in key}


@pytest.fixture
async def forgotten(autojump_clock, tmp_path):
    """A controller whose store knows the nodes alone; they have web.1 to web.5, two stopped."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec(replicas=5))
        rig.run()
        await rig.ask("service.restart", names=["web.4"])
        await rig.ask("service.stop", names=["web.2", "web.3"])
        rig.run()
        fleet, disk = rig.nodes, rig.disk
        disk.entries = await forgetting(rig)
    async with a_rig(tmp_path, disk) as rig:
        rig.nodes = fleet
        for name in fleet:
            rig.connect(name)
        yield rig


def runs(rig):
    return {one for node in rig.nodes.values() for one in node.instances.values()}


async def test_adopted_as_it_is(forgotten):
    """Nothing is started, stopped or restarted; what was stopped stays so."""
    before = runs(forgotten)
    [view] = (await forgotten.ask("service.adopt"))["services"]
    forgotten.run()

    assert view["adopted"]
    assert (view["found"], view["replicas"], view["missing"]) == (5, 5, [])
    assert runs(forgotten) == before
    record = forgotten.record()
    assert record.spec == spec(replicas=5)
    assert {slot: record.wish(slot) for slot in (2, 3)} == {
        2: SlotWish.STOPPED,
        3: SlotWish.STOPPED,
    }
    assert not forgotten.cluster.state.quarantine


async def test_a_dry_run_only_shows(forgotten):
    """The same answer, and all is as it was."""
    entries = dict(forgotten.disk.entries)
    [shown] = (await forgotten.ask("service.adopt", dry_run=True))["services"]
    assert forgotten.disk.entries == entries
    assert KEY in forgotten.cluster.state.quarantine
    assert (await forgotten.ask("service.adopt", names=["web"]))["services"] == [shown]


async def test_a_slot_that_nobody_has_is_said_and_placed(forgotten):
    """Below the highest: it was somewhere that is not there any more."""
    gone = forgotten.cluster.quarantined(KEY, 1)[0]
    forgotten.nodes[gone.node].instances.pop(gone.incarnation)
    forgotten.connect(gone.node)
    [view] = (await forgotten.ask("service.adopt"))["services"]
    forgotten.run()

    assert view["missing"] == [1]
    assert forgotten.running() == [1, 4, 5]


async def test_without_its_template_it_is_not_adopted(forgotten):
    """And says what to do."""
    forgotten.cluster.state.templates.clear()
    [view] = (await forgotten.ask("service.adopt"))["services"]
    assert not view["adopted"]
    assert "apply its stack" in view["why"]
    assert KEY in forgotten.cluster.state.quarantine


async def test_the_release_of_a_rebuilt_store_adopts(forgotten):
    """Of any other it only ends the hold."""
    handlers = adopting.handlers(forgotten.cluster)
    assert set(handlers) == {"service.adopt", "store.release"}
    forgotten.cluster.hold = "restored from a backup"
    assert (await forgotten.ask("store.release"))["services"] == []
    assert KEY in forgotten.cluster.state.quarantine
    forgotten.cluster.hold = REBUILT
    shown = await forgotten.ask("store.release", dry_run=True)
    assert forgotten.cluster.hold == REBUILT
    assert await forgotten.ask("store.release") == shown
    assert forgotten.cluster.hold == ""
    assert len(forgotten.cluster.state.services[KEY].holders) == 5
