"""What a node says of itself."""

from pathlib import Path

import pytest
import trio

from swarmctl.agent import facts
from swarmctl.agent.drivers.api import Health
from swarmctl.agent.facts import FactsSettings, Machine

GIB = 2**30
MACHINE = Machine(4, 8 * GIB, 4 * GIB, 100 * GIB, 50 * GIB)


def test_machine_is_looked_at(tmp_path):
    """Real amounts of this machine, in bytes."""
    machine = facts.look(tmp_path)

    assert machine.cpus >= 1
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    assert 0 <= machine.disk_free_bytes <= machine.disk_bytes


def test_capacity_follows_machine_drivers_and_configuration():
    """Drivers add resources, the configuration replaces, and reserves are held back."""
    settings = FactsSettings(
        labels={"zone": "eu-1", "arch": "mine"},
        capacity={"memory_bytes": 2 * GIB, "licence/matlab": 1},
        reserve={"cpu_millis": 500, "disk_bytes": 1000 * GIB},
    )
    health = {"docker": Health(available=True, version="28", resources={"gpu": 2})}
    found = facts.node_facts(settings, MACHINE, health, "process 1")

    assert found.capacity == {
        "cpu_millis": 3500,
        "memory_bytes": 2 * GIB,
        "disk_bytes": 0,
        "gpu": 2,
        "licence/matlab": 1,
    }
    assert found.labels["zone"] == "eu-1"
    assert found.labels["arch"] == "mine"
    assert found.labels["os"] == "linux"
    assert found.facts == {"process": "process 1"}
    assert [(one.name, one.available, one.version) for one in found.drivers] == [
        ("docker", True, "28")
    ]


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (MACHINE, []),
        (Machine(4, 8 * GIB, 4 * GIB, 100 * GIB, 2**20), ["disk: 1 MiB free under data"]),
        (Machine(4, 8 * GIB, 2**20, 100 * GIB, GIB), ["memory: 1 MiB available"]),
    ],
)
def test_pressure_is_named(machine, said):
    """A full disk and exhausted memory are said, with the amount left."""
    assert facts.pressure(machine, Path("data")) == said


async def test_driver_that_never_answers_is_not_available(autojump_clock):
    """A probe is bounded, and does not hold up the others."""

    class Hung:
        async def probe(self):
            await trio.sleep_forever()

    class Good:
        async def probe(self):
            return Health(available=True)

    found = await facts.probe_all({"a": Hung(), "b": Good()})

    assert not found["a"].available
    assert "did not answer" in found["a"].reason
    assert found["b"].available


async def test_a_driver_is_not_late_when_it_was_the_agent_that_did_not_run(autojump_clock):
    """What was kept from running sees the answer and the deadline at once, and asks again."""

    class Overtaken:
        """Its answer comes while nothing runs here, for a minute; from the second time at once."""

        asked = 0

        async def probe(self):
            self.asked += 1
            if self.asked == 1:
                autojump_clock.jump(60)
            await trio.lowlevel.checkpoint()
            return Health(available=True, version="1")

    driver = Overtaken()
    assert (await facts.probe_all({"a": driver}))["a"].available
    assert driver.asked == 2


@pytest.mark.parametrize(("kept_s", "asked"), [(60, 2), (2.5, 1)])
async def test_a_driver_that_gave_its_daemon_up_while_the_agent_did_not_run_asks_again(
    autojump_clock, kept_s, asked
):
    """Drivers have bounds of their own; what took longer than those was our own delay."""

    class GivesUp:
        asked = 0

        async def probe(self):
            self.asked += 1
            if self.asked == 1:
                autojump_clock.jump(kept_s)
            await trio.lowlevel.cancel_shielded_checkpoint()
            return Health(available=self.asked > 1, reason="no answer within 2.5 s")

    driver = GivesUp()
    assert (await facts.probe_all({"a": driver}))["a"].available is (asked > 1)
    assert driver.asked == asked


async def test_a_machine_that_is_overrun_for_ever_does_not_hide_a_driver_that_hangs(autojump_clock):
    """After some times it is believed."""
    asked = []

    class Hung:
        async def probe(self):
            asked.append(trio.current_time())
            autojump_clock.jump(60)
            await trio.sleep_forever()

    assert not (await facts.probe_all({"a": Hung()}))["a"].available
    assert len(asked) == 3
