"""What everything that plugs in does, as tests that each implementation's module inherits.

A module gives a fixture ``bench`` (a :class:`Bench`), made afresh for each test.
"""

import secrets
from abc import ABC, abstractmethod

import pytest
import trio
from attrs import frozen

from swarmctl.net.plugging.api import InNamespace, Plugs, Tap
from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.messages import Attachment

INCARNATION = (3 << 40) + 7
DEADLINE_S = 60.0


@frozen
class Seen:
    """An interface as it is inside: what its process sees."""

    mac: str
    mtu: int
    addresses: tuple[str, ...]
    routes: tuple[tuple[str, str], ...]


class Bench(ABC):
    """What the suite needs to know of an implementation."""

    plugs: Plugs

    @abstractmethod
    def new_namespace(self) -> str:
        """The path of a network namespace in which nothing is."""

    @abstractmethod
    def drop_namespace(self, path: str) -> None:
        """Let that namespace be no more."""

    @abstractmethod
    def see(self, path: str) -> dict[str, Seen]:
        """The interfaces in it by name, without the loopback."""

    @abstractmethod
    def install(self, one: Attachment) -> None:
        """Have OVN say that the port is installed."""

    def attachment(self, index: int = 0) -> Attachment:
        """A port that no other test has."""
        return attachment(index)


def attachment(index: int = 0, **changes: object) -> Attachment:
    """A port that no other test has."""
    values: dict[str, object] = {
        "port": f"c0c0c0c0-3-{secrets.token_hex(4)}-{index}",
        "network": "acme/front",
        "mac": f"02:00:00:00:00:1{index}",
        "addresses": (f"10.2{index}.0.7/24", f"fd00:a{index}::7/64"),
        "mtu": 1400,
        "routes": (("0.0.0.0/0", "10.20.0.1"), ("192.168.9.0/24", "10.20.0.2"))
        if index == 0
        else (),
        "gateway": f"10.2{index}.0.1",
    }
    return Attachment(**(values | changes))  # type: ignore[arg-type]


class PlugsContract:
    """The suite."""

    async def test_a_switch_says_what_it_is(self, bench: Bench) -> None:
        """A probe of one that lives has a label for people."""
        switch = await bench.plugs.probe()

        assert switch.bridge
        assert switch.bridge in switch.label

    async def test_a_plug_is_there_as_it_was_asked_for(self, bench: Bench) -> None:
        """MAC, MTU, addresses and routes are those of the attachment, under the name asked for."""
        path, one = bench.new_namespace(), bench.attachment()

        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)

        seen = bench.see(path)
        assert set(seen) == {"eth0"}
        assert seen["eth0"].mac == one.mac
        assert seen["eth0"].mtu == 1400
        assert set(seen["eth0"].addresses) >= set(one.addresses)
        assert set(seen["eth0"].routes) >= {
            ("default", "10.20.0.1"),
            ("192.168.9.0/24", "10.20.0.2"),
        }

    async def test_several_plugs_of_one_instance(self, bench: Bench) -> None:
        """Each has its interface, and the list has both with their incarnation."""
        path, ports = bench.new_namespace(), (bench.attachment(0), bench.attachment(1))

        for index, one in enumerate(ports):
            await bench.plugs.plug(one, InNamespace(path, f"eth{index}"), INCARNATION)

        assert set(bench.see(path)) == {"eth0", "eth1"}
        listed = await bench.plugs.list()
        assert {(each.port, each.incarnation, each.mtu) for each in listed} == {
            (one.port, INCARNATION, 1400) for one in ports
        }
        assert {each.device for each in listed} == {bench.plugs.device(one.port) for one in ports}

    async def test_a_repeated_plug_is_the_same_plug(self, bench: Bench) -> None:
        """Nothing is made twice, and what is there works on."""
        path, one = bench.new_namespace(), bench.attachment()
        for _ in range(3):
            await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)

        assert set(bench.see(path)) == {"eth0"}
        assert len(await bench.plugs.list()) == 1

    async def test_a_plug_follows_its_instance_into_another_namespace(self, bench: Bench) -> None:
        """A container that was made anew has its port again, and the old one has it no more."""
        old, new, one = bench.new_namespace(), bench.new_namespace(), bench.attachment()
        await bench.plugs.plug(one, InNamespace(old, "eth0"), INCARNATION)

        await bench.plugs.plug(one, InNamespace(new, "eth0"), INCARNATION)

        assert set(bench.see(new)) == {"eth0"}
        assert set(bench.see(old)) == set()
        assert len(await bench.plugs.list()) == 1

    async def test_a_namespace_that_went_takes_no_port_with_it(self, bench: Bench) -> None:
        """After its namespace ended a port can be plugged in anew."""
        old, one = bench.new_namespace(), bench.attachment()
        await bench.plugs.plug(one, InNamespace(old, "eth0"), INCARNATION)
        bench.drop_namespace(old)

        new = bench.new_namespace()
        await bench.plugs.plug(one, InNamespace(new, "eth0"), INCARNATION)

        assert set(bench.see(new)) == {"eth0"}

    async def test_a_namespace_that_is_not_there(self, bench: Bench) -> None:
        """The failure says so, and nothing is left of the attempt."""
        path = bench.new_namespace()
        bench.drop_namespace(path)

        with pytest.raises(LaunchFailed, match="namespace is gone"):
            await bench.plugs.plug(bench.attachment(), InNamespace(path, "eth0"), INCARNATION)

        assert await bench.plugs.list() == ()

    async def test_waiting_ends_when_the_port_is_installed(self, bench: Bench) -> None:
        """One that waits is told, whether it came before or after."""
        path, one = bench.new_namespace(), bench.attachment()
        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.plugs.wait_installed, one, DEADLINE_S)
                await trio.lowlevel.checkpoint()
                bench.install(one)
            await bench.plugs.wait_installed(one, DEADLINE_S)

    async def test_a_port_that_does_not_come_up(self, bench: Bench) -> None:
        """The failure names the port, its network and the time."""
        path, one = bench.new_namespace(), bench.attachment()
        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)

        with pytest.raises(LaunchFailed, match="did not come up within") as failed:
            await bench.plugs.wait_installed(one, 0.2)

        assert one.port in failed.value.what
        assert failed.value.where == one.network

    async def test_unplugging_leaves_nothing(self, bench: Bench) -> None:
        """The interface and its name are gone; doing it again is no error."""
        path, one, other = bench.new_namespace(), bench.attachment(0), bench.attachment(1)
        for index, each in enumerate((one, other)):
            await bench.plugs.plug(each, InNamespace(path, f"eth{index}"), INCARNATION)

        for _ in range(2):
            await bench.plugs.unplug((bench.plugs.device(one.port),))

        assert set(bench.see(path)) == {"eth1"}
        assert [each.port for each in await bench.plugs.list()] == [other.port]


class HalfBench(Bench):
    """An implementation of which a crash may leave half a plug."""

    @abstractmethod
    def leave_half(self, port: str) -> None:
        """Leave what a crash in the middle of a plug of that port leaves."""


class SwitchContract:
    """Further tests, for implementations on a switch of this node."""

    async def test_the_list_says_what_is_installed(self, bench: HalfBench) -> None:
        """What OVN says of a port is in the list as well."""
        path, one = bench.new_namespace(), bench.attachment()
        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)
        bench.install(one)
        await bench.plugs.wait_installed(one, DEADLINE_S)

        assert [each.installed for each in await bench.plugs.list()] == [True]

    async def test_what_a_crash_left_is_found_and_removed(self, bench: HalfBench) -> None:
        """Half a plug is listed by its device, and can be taken away by that name."""
        one = bench.attachment()
        bench.leave_half(one.port)

        found = await bench.plugs.list()
        await bench.plugs.unplug(tuple(each.device for each in found))

        assert [each.device for each in found] == [bench.plugs.device(one.port)]
        assert await bench.plugs.list() == ()

    async def test_half_a_plug_is_made_whole(self, bench: HalfBench) -> None:
        """A launch after the crash finds what was left in its way, and comes through."""
        path, one = bench.new_namespace(), bench.attachment()
        bench.leave_half(one.port)

        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)

        assert set(bench.see(path)) == {"eth0"}
        assert [each.port for each in await bench.plugs.list()] == [one.port]


class TapContract:
    """Further tests, for implementations that serve VMs."""

    async def test_a_tap_is_made_for_a_hypervisor(self, bench: Bench) -> None:
        """It is listed with its MTU under the name that the hypervisor is told, and goes again."""
        one = bench.attachment()
        for _ in range(2):
            await bench.plugs.plug(one, Tap(), INCARNATION)

        found = await bench.plugs.list()
        await bench.plugs.unplug((bench.plugs.device(one.port),))

        assert [(each.device, each.mtu) for each in found] == [(bench.plugs.device(one.port), 1400)]
        assert await bench.plugs.list() == ()
