"""What a node is and has to give, and what is wrong with it.

Capacity is the machine's, less what the configuration holds back; labels describe the machine;
drivers are probed.  Everything is asked again every few seconds and compared, so a daemon that
comes back, or a disk that fills, is known without a restart.
"""

import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import trio
from attrs import field, frozen

import swarmctl
from swarmctl.agent.drivers.api import Driver, Health
from swarmctl.proto.errors import DriverUnavailable
from swarmctl.proto.messages import DriverFacts, NodeFacts

# Between two looks: well below the time in which an operator would wonder.
PROBE_EVERY_S: Final = 10.0
# While something that was well is not: a node heals soon after what ails it has ended.
PROBE_SICK_S: Final = 2.0
# And at the least between two, whatever happens.
PROBE_PAUSE_S: Final = 0.5
# A daemon answers a ping within milliseconds; drivers bound themselves below this.
PROBE_DEADLINE_S: Final = 8.0
# A driver that asks a daemon gives up by itself, and says so, within this.
_ANSWER_S: Final = 3.0
# So late, it is this process that was kept from running; and how often it asks then.
_OWN_DELAY_S: Final = 0.5
_PROBE_TRIES: Final = 3
# Less than this free on the data folder's disk, and the journal will soon be refused.
DISK_FREE_MIN_BYTES: Final = 128 * 1024 * 1024
# Less than this part of the memory available, and the kernel will soon kill something.
MEMORY_FREE_MIN: Final = 0.02

# So many times that has to be free again, so that a node does not fall sick and heal in turns.
PRESSURE_RELIEF: Final = 1.5

_NO_NETWORK: Final[Mapping[str, str]] = {}

MEMINFO: Final = Path("/proc/meminfo")


@frozen
class Machine:
    """The machine at one moment. Sizes are bytes."""

    cpus: int
    memory_bytes: int
    memory_available_bytes: int
    disk_bytes: int
    disk_free_bytes: int


@frozen
class FactsSettings:
    """What the configuration says about them.

    ``capacity`` replaces amounts by name (and adds named resources), ``reserve`` is held back.
    """

    labels: dict[str, str] = field(factory=dict)
    capacity: dict[str, int] = field(factory=dict)
    reserve: dict[str, int] = field(factory=dict)
    address: str = ""
    parent: str = ""


def look(data: Path) -> Machine:
    """Look at the machine; ``data`` is on the disk that counts."""
    memory = _meminfo(MEMINFO.read_text(encoding="ascii"))
    disk = os.statvfs(data)
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=memory["MemTotal"],
        memory_available_bytes=memory.get("MemAvailable", memory["MemFree"]),
        disk_bytes=disk.f_blocks * disk.f_frsize,
        disk_free_bytes=disk.f_bavail * disk.f_frsize,
    )


def _meminfo(text: str) -> dict[str, int]:
    """Name to bytes, of the lines that are given in kB."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        amount, _, unit = rest.strip().partition(" ")
        if unit == "kB":
            found[name] = int(amount) * 1024
    return found


def process_name() -> str:
    """This process, for an operator who looks for it."""
    return f"process {os.getpid()} on {os.uname().nodename}"


def machine_labels() -> dict[str, str]:
    """Labels that every node has."""
    kernel = platform.release()
    return {
        "hostname": platform.node(),
        "arch": platform.machine(),
        "os": platform.system().lower(),
        "kernel": kernel,
    }


def node_facts(
    settings: FactsSettings,
    machine: Machine,
    health: Mapping[str, Health],
    process: str,
    network: Mapping[str, str] = _NO_NETWORK,
) -> NodeFacts:
    """The facts of a hello.

    ``process`` names this process for operators; ``network`` is what instances are plugged into, or
    why they cannot be, and what OVN calls the node.
    """
    capacity = {
        "cpu_millis": machine.cpus * 1000,
        "memory_bytes": machine.memory_bytes,
        "disk_bytes": machine.disk_bytes,
    }
    for one in health.values():
        capacity.update(one.resources)
    capacity.update(settings.capacity)
    for name, amount in settings.reserve.items():
        capacity[name] = max(0, capacity.get(name, 0) - amount)
    return NodeFacts(
        labels=machine_labels() | settings.labels,
        capacity=capacity,
        drivers=tuple(
            DriverFacts(name, one.available, one.version, one.reason, one.facts)
            for name, one in health.items()
        ),
        release=swarmctl.__version__,
        parent=settings.parent,
        address=settings.address,
        facts={"process": process, **network},
    )


async def probe_all(drivers: Mapping[str, Driver]) -> dict[str, Health]:
    """Ask every driver how it is, at the same time.

    On a machine that is overrun the answer and the deadline are seen at once, long after both: a
    delay of our own says nothing of a driver, and it is asked again.
    """
    late = {
        name: Health(available=False, reason=f"{name} did not answer within {PROBE_DEADLINE_S:g} s")
        for name in drivers
    }
    found: dict[str, Health] = {}
    for _ in range(_PROBE_TRIES):
        began = trio.current_time()
        with trio.move_on_after(PROBE_DEADLINE_S):
            await _probe_each(drivers, found)
        if len(found) == len(drivers) and all(one.available for one in found.values()):
            break
        usual_s = _ANSWER_S if len(found) == len(drivers) else PROBE_DEADLINE_S
        if trio.current_time() - began < usual_s + _OWN_DELAY_S:
            break
    return late | found


async def _probe_each(drivers: Mapping[str, Driver], found: dict[str, Health]) -> None:
    """Put into ``found`` what each of ``drivers`` answers."""

    async def probe(name: str, driver: Driver) -> None:
        try:
            found[name] = await driver.probe()
        except DriverUnavailable as error:
            found[name] = Health(available=False, reason=str(error))

    if len(drivers) == 1:  # Most of the time: a task for one costs more than the question.
        await probe(*next(iter(drivers.items())))
        return
    async with trio.open_nursery() as nursery:
        for name, driver in drivers.items():
            nursery.start_soon(probe, name, driver)


def pressure(machine: Machine, data: Path, before: Collection[str] = ()) -> list[str]:
    """What the machine itself is short of, in words.

    Args:
        machine: as it is now.
        data: the folder whose disk counts.
        before: what was said last: the end of a shortage takes a little more than its absence.
    """
    reasons = []
    if machine.disk_free_bytes < DISK_FREE_MIN_BYTES * _relief(before, "disk:"):
        reasons.append(f"disk: {machine.disk_free_bytes // 2**20} MiB free under {data}")
    least = machine.memory_bytes * MEMORY_FREE_MIN * _relief(before, "memory:")
    if machine.memory_available_bytes < least:
        reasons.append(f"memory: {machine.memory_available_bytes // 2**20} MiB available")
    return reasons


def _relief(before: Collection[str], kind: str) -> float:
    return PRESSURE_RELIEF if any(one.startswith(kind) for one in before) else 1.0
