"""Plugs in memory keep the contract; names of devices."""

import pytest

from swarmctl.net.plugging.api import InNamespace
from swarmctl.net.plugging.devices import DEVICE_MAX_CHARS, Devices
from swarmctl.net.plugging.memory import MemoryPlugs
from swarmctl.proto.errors import DriverUnavailable
from swarmctl.proto.messages import Attachment
from tests.integration.plugging_contract import (
    HalfBench,
    PlugsContract,
    Seen,
    SwitchContract,
    TapContract,
)


class MemoryBench(HalfBench):
    """Namespaces are names."""

    def __init__(self) -> None:
        self.plugs = self._memory = MemoryPlugs("c0c0c0c0", "n1", installs=False)
        self._count = 0

    def new_namespace(self) -> str:
        """A name."""
        self._count += 1
        return f"/run/netns/{self._count}"

    def drop_namespace(self, path: str) -> None:
        """It is gone, with what was in it."""
        self._memory.gone.add(path)

    def see(self, path: str) -> dict[str, Seen]:
        """What was plugged in there last."""
        return {
            one.target.name: Seen(
                one.attachment.mac,
                one.attachment.mtu,
                one.attachment.addresses,
                tuple(
                    ("default" if destination == "0.0.0.0/0" else destination, gateway)
                    for destination, gateway in one.attachment.routes
                ),
            )
            for one in self._memory.made.values()
            if isinstance(one.target, InNamespace) and one.target.path == path
        }

    def install(self, one: Attachment) -> None:
        """OVN is what the test says."""
        self._memory.install(one.port)

    def leave_half(self, port: str) -> None:
        """A device of which nothing more is known."""
        self._memory.leftover.add(self.plugs.device(port))


@pytest.fixture
def bench() -> MemoryBench:
    """Fresh for each test."""
    return MemoryBench()


class TestMemoryPlugs(PlugsContract, SwitchContract, TapContract):
    """The suite on memory."""


async def test_a_switch_that_is_away_says_why():
    """Every call fails with the reason, as a driver's daemon that is away."""
    plugs = MemoryPlugs("c0c0c0c0", "n1", away="no Open vSwitch runs on this node")

    with pytest.raises(DriverUnavailable, match="no Open vSwitch"):
        await plugs.probe()
    with pytest.raises(DriverUnavailable, match="no Open vSwitch"):
        await plugs.list()


def test_devices_are_named_for_their_node_and_port():
    """Names fit the kernel, repeat themselves, and tell nodes and ports apart."""
    here, there = Devices("c0c0c0c0", "n1"), Devices("c0c0c0c0", "n2")
    names = {each.name(f"port-{index}") for each in (here, there) for index in range(1000)}

    assert len(names) == 2000
    assert all(len(name) == DEVICE_MAX_CHARS for name in names)
    assert here.name("port-1") == Devices("c0c0c0c0", "n1").name("port-1")
    assert here.owns(here.name("port-1"))
    assert not here.owns(there.name("port-1"))
    assert not here.owns("docker0")
