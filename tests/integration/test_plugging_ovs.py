"""Plugging in on a real Open vSwitch and a real kernel, in namespaces of the test's own."""

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
import trio

from swarmctl.agent.relays import Relays
from swarmctl.net import relays
from swarmctl.net.plugging.api import InNamespace
from swarmctl.net.plugging.ovs import OvsPlugs
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed
from swarmctl.proto.messages import Attachment
from tests.integration.driver_contract import eventually
from tests.integration.ovs_sandbox import OvsSandbox, need_ovs, ovs, run
from tests.integration.plugging_contract import (
    DEADLINE_S,
    INCARNATION,
    HalfBench,
    PlugsContract,
    Seen,
    SwitchContract,
    TapContract,
    attachment,
)


@pytest.fixture(scope="module")
def switch() -> Iterator[OvsSandbox]:
    """A switch for the tests of this module."""
    need_ovs()
    with ovs(f"swt-ovs-{secrets.token_hex(3)}") as sandbox:
        yield sandbox


class OvsBench(HalfBench):
    """Real namespaces."""

    def __init__(self, switch: OvsSandbox) -> None:
        self.switch = switch
        node = f"n{secrets.token_hex(3)}"
        self.plugs = OvsPlugs("c0c0c0c0", node, switch.remote, switch.namespace)
        self._names: set[str] = set()

    def new_namespace(self) -> str:
        """One that the test's end removes."""
        name = f"swt-{secrets.token_hex(4)}"
        run("ip", "netns", "add", name)
        self._names.add(name)
        return f"/run/netns/{name}"

    def drop_namespace(self, path: str) -> None:
        """Remove it."""
        name = path.rpartition("/")[2]
        self._names.discard(name)
        run("ip", "netns", "del", name)

    def see(self, path: str) -> dict[str, Seen]:
        """Ask iproute2, not the code under test."""
        name = path.rpartition("/")[2]
        links = json.loads(run("ip", "-n", name, "-j", "addr"))
        routes = [
            *json.loads(run("ip", "-n", name, "-j", "route")),
            *json.loads(run("ip", "-n", name, "-6", "-j", "route")),
        ]
        return {
            link["ifname"]: Seen(
                link["address"],
                link["mtu"],
                tuple(f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]),
                tuple(
                    (each["dst"], each["gateway"])
                    for each in routes
                    if each.get("dev") == link["ifname"] and "gateway" in each
                ),
            )
            for link in links
            if link["ifname"] != "lo"
        }

    def install(self, one: Attachment) -> None:
        """As ovn-controller does."""
        self.switch.install(self.plugs.device(one.port))

    def leave_half(self, port: str) -> None:
        """The link is made, and the switch does not know it yet."""
        name = self.switch.namespace.rpartition("/")[2]
        run("ip", "-n", name, "link", "add", self.plugs.device(port), "type", "veth")

    async def close(self) -> None:
        """Leave the switch as it was."""
        with suppress(DriverUnavailable):
            await self.plugs.unplug(tuple(each.device for each in await self.plugs.list()))
        self.plugs.close()
        for name in self._names:
            run("ip", "netns", "del", name)


@pytest.fixture
async def bench(switch: OvsSandbox):
    """Fresh for each test, on the one switch."""
    one = OvsBench(switch)
    yield one
    with trio.CancelScope(shield=True):
        await one.close()


class TestOvsPlugs(PlugsContract, SwitchContract, TapContract):
    """The suite on Open vSwitch."""


SOURCE = """
import socket
connection = socket.create_server(("10.20.0.8", 9)).accept()[0]
connection.sendall(b"x" * 1000000)
"""
SINK = """
import socket, time
for _ in range(600):
    try:
        connection = socket.create_connection(("10.20.0.8", 9), 5)
        break
    except OSError:
        time.sleep(0.1)
count = 0
while data := connection.recv(65536):
    count += len(data)
print(count)
"""


async def in_namespace(path: str, script: str) -> str:
    """Run a script of Python in a network namespace; what it prints."""
    with trio.fail_after(DEADLINE_S):
        done = await trio.run_process(
            ["nsenter", f"--net={path}", sys.executable, "-c", script], capture_stdout=True
        )
    return done.stdout.decode()


async def two_plugs(bench: OvsBench) -> tuple[str, str]:
    """10.20.0.7 and 10.20.0.8; their namespaces."""
    paths = bench.new_namespace(), bench.new_namespace()
    for index, path in enumerate(paths):
        one = attachment(
            addresses=(f"10.20.0.{index + 7}/24",), mac=f"02:00:00:00:00:2{index}", routes=()
        )
        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION + index)
    return paths


async def test_two_plugs_reach_each_other_by_tcp(bench: OvsBench) -> None:
    """Packets flow through the userspace datapath, with checksums, at the MTU of the network."""
    paths = await two_plugs(bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_namespace, paths[1], SOURCE)
        received = await in_namespace(paths[0], SINK)

    assert received.strip() == "1000000"


async def test_a_relay_leads_from_a_tenant_network_to_a_controller(bench: OvsBench) -> None:
    """A guest that has only its network's routes reaches the controller on the host's loopback."""
    path = bench.new_namespace()
    guest = attachment(addresses=("10.20.0.9/24",), routes=(("169.254.0.0/16", ""),))
    await bench.plugs.plug(guest, InNamespace(path, "eth0"), INCARNATION)
    client = f"import socket; s = socket.create_connection(({relays.ADDRESS!r}, 7077), 10);"
    client += "s.sendall(b'hello'); print(s.recv(100).decode())"

    async def controller(stream: trio.SocketStream) -> None:
        await stream.send_all((await stream.receive_some()).upper())

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, controller, 0, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        address = f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}"
        relay = Relays(bench.plugs, "c0c0c0c0", lambda: (address,))
        relay.want({"acme/front": 1400})
        nursery.start_soon(relay.run)

        async def plugged() -> bool:
            return len(await bench.plugs.list()) == 2

        await eventually(plugged, DEADLINE_S)
        answer = await in_namespace(path, client)
        devices = {one.device for one in await bench.plugs.list()}
        nursery.cancel_scope.cancel()

    assert answer == "HELLO\n"
    assert relay.devices < devices


async def test_the_switch_learns_whose_a_port_is(bench: OvsBench) -> None:
    """The interface carries the logical port's name, its MAC and the owner."""
    one = attachment()
    await bench.plugs.plug(one, InNamespace(bench.new_namespace(), "eth0"), INCARNATION)

    device = bench.plugs.device(one.port)
    ids = bench.switch.vsctl("get", "Interface", device, "external_ids").replace('"', "")

    assert f"iface-id={one.port}" in ids
    assert f"attached-mac={one.mac}" in ids
    assert f"swarmctl-incarnation={INCARNATION}" in ids


async def test_a_database_that_was_restarted_is_found_again(bench: OvsBench) -> None:
    """Plugs go on after ovsdb-server ended and began anew, without a new connection of ours."""
    one, other = attachment(0), attachment(1)
    path = bench.new_namespace()
    await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)

    await trio.to_thread.run_sync(bench.switch.end_database)

    async def away() -> bool:
        try:
            await bench.plugs.probe()
        except DriverUnavailable as error:
            return "database is away" in error.what
        return False

    await eventually(away, DEADLINE_S)
    await trio.to_thread.run_sync(bench.switch.start_database)

    with trio.fail_after(DEADLINE_S):
        while True:
            with suppress(DriverUnavailable):
                await bench.plugs.plug(other, InNamespace(path, "eth1"), INCARNATION)
                break
    assert {each.port for each in await bench.plugs.list()} == {one.port, other.port}


async def test_a_switch_that_was_killed_carries_the_same_plugs_again(bench: OvsBench) -> None:
    """Nobody plugs anything in anew: the switch finds its ports, and TCP flows."""
    paths = await two_plugs(bench)
    before = await bench.plugs.list()
    await trio.to_thread.run_sync(bench.switch.kill_switch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_namespace, paths[1], SOURCE)
        received = await in_namespace(paths[0], SINK)

    assert received.strip() == "1000000"
    assert await bench.plugs.list() == before


async def test_no_switch_on_the_node() -> None:
    """It is said at once, and not after a deadline."""
    plugs = OvsPlugs("c0c0c0c0", "n1", "unix:/nowhere/db.sock")

    with pytest.raises(DriverUnavailable, match="no Open vSwitch runs"):
        await plugs.probe()


async def test_a_gateway_that_is_nowhere_is_refused(bench: OvsBench) -> None:
    """What the kernel does not take is a launch's failure, in the kernel's words."""
    one = attachment(addresses=("10.20.0.7/24",), routes=(("0.0.0.0/0", "10.99.0.1"),))

    with pytest.raises(LaunchFailed, match="kernel refused"):
        await bench.plugs.plug(one, InNamespace(bench.new_namespace(), "eth0"), INCARNATION)
