"""Plugging in with a real OVN: it is OVN that says when a port is installed, and passes packets."""

import secrets
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from swarmctl.agent.relays import Relays
from swarmctl.net import relays
from swarmctl.net.plugging.api import InNamespace
from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.messages import Attachment
from tests.integration.driver_contract import eventually
from tests.integration.ovn_sandbox import OvnSandbox, need_ovn, ovn
from tests.integration.plugging_contract import DEADLINE_S, INCARNATION, attachment
from tests.integration.test_plugging_ovs import SINK, SOURCE, OvsBench, in_namespace


@pytest.fixture(scope="module")
def host() -> Iterator[OvnSandbox]:
    """A host of OVN, for the tests of this module."""
    need_ovn()
    with ovn(f"swt-ovn-{secrets.token_hex(3)}") as sandbox:
        for name in ("front", "left", "right"):
            sandbox.nbctl("ls-add", name)
        yield sandbox


@pytest.fixture
async def bench(host: OvnSandbox):
    """Plugs on that host."""
    one = OvsBench(host.switch)
    yield one
    with trio.CancelScope(shield=True):
        await one.close()


def port(address: str, mac: str) -> Attachment:
    """A port that no other test has."""
    return attachment(addresses=(f"{address}/24",), mac=mac, routes=(("169.254.0.0/16", ""),))


async def known(host: OvnSandbox, one: Attachment, network: str, *options: str) -> None:
    """Have the port in OVN, with port security."""
    addresses = f"{one.mac} {one.addresses[0].partition('/')[0]}"
    await trio.to_thread.run_sync(
        partial(
            host.nbctl, "lsp-add", network, one.port, "--", "lsp-set-addresses", one.port,
            addresses, "--", "lsp-set-port-security", one.port, addresses, *options,
        )
    )  # fmt: skip


async def test_ovn_says_when_ports_are_installed(host: OvnSandbox, bench: OvsBench) -> None:
    """A row that comes after its plug, as assignments do not wait for rows; then TCP flows."""
    ports = port("10.20.0.7", "02:00:00:00:01:07"), port("10.20.0.8", "02:00:00:00:01:08")
    paths = bench.new_namespace(), bench.new_namespace()
    for one, path in zip(ports, paths, strict=True):
        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)
    for one in ports:
        with pytest.raises(LaunchFailed, match="OVN has not installed it"):
            await bench.plugs.wait_installed(one, 0.5)
        await known(host, one, "front")
        await bench.plugs.wait_installed(one, DEADLINE_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_namespace, paths[1], SOURCE)
        received = await in_namespace(paths[0], SINK)
    assert received.strip() == "1000000"


@pytest.mark.parametrize("anew", [False, True], ids=["the same namespace", "another"])
async def test_what_is_plugged_in_again_is_installed(
    host: OvnSandbox, bench: OvsBench, *, anew: bool
) -> None:
    """As with each restart on the spot: OVN says it once, and is not made to take it back."""
    last = 11 if anew else 10
    one = port(f"10.20.0.{last}", f"02:00:00:00:01:{last}")
    await known(host, one, "front")
    path = bench.new_namespace()
    await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)
    await bench.plugs.wait_installed(one, DEADLINE_S)
    if anew:
        path = bench.new_namespace()
    await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)
    await trio.to_thread.run_sync(host.nbctl, "--wait=hv", "sync")  # All that was to come has come.
    await bench.plugs.wait_installed(one, DEADLINE_S)
    assert [each.installed for each in await bench.plugs.list() if each.port == one.port] == [True]


async def test_a_trunk_is_plugged_in_again_after_its_pods(
    host: OvnSandbox, bench: OvsBench
) -> None:
    """A VM that starts again: OVN takes "installed" back with a pod's port, and says it anew."""
    trunk = port("10.20.0.12", "02:00:00:00:01:12")
    await known(host, trunk, "front")
    path = bench.new_namespace()
    await bench.plugs.plug(trunk, InNamespace(path, "eth0"), INCARNATION)
    await bench.plugs.wait_installed(trunk, DEADLINE_S)
    pod = f"{trunk.port}-v5"
    for change in (("lsp-add", "left", pod, trunk.port, "5"), ("lsp-del", pod)):
        await trio.to_thread.run_sync(partial(host.nbctl, "--wait=hv", *change))

    await bench.plugs.plug(trunk, InNamespace(path, "eth0"), INCARNATION)
    await trio.to_thread.run_sync(host.nbctl, "--wait=hv", "sync")
    await bench.plugs.wait_installed(trunk, DEADLINE_S)


async def test_the_relay_is_a_localport(host: OvnSandbox, bench: OvsBench) -> None:
    """From a port of a tenant's network through OVN to the relay, and to the controller."""
    guest = port("10.20.0.9", "02:00:00:00:01:09")
    place = relays.relay("c0c0c0c0", "acme/front", 1400)
    await known(host, guest, "front")
    await known(host, place, "front", "--", "lsp-set-type", place.port, "localport")
    path = bench.new_namespace()
    await bench.plugs.plug(guest, InNamespace(path, "eth0"), INCARNATION)
    await bench.plugs.wait_installed(guest, DEADLINE_S)

    async def controller(stream: trio.SocketStream) -> None:
        await stream.send_all((await stream.receive_some()).upper())

    async def answered() -> bool:
        try:
            return await in_namespace(path, client) == "HELLO\n"
        except (BaseExceptionGroup, subprocess.CalledProcessError):
            return False  # The relay does not listen yet.

    client = f"import socket; s = socket.create_connection(({relays.ADDRESS!r}, 7077), 3);"
    client += "s.sendall(b'hello'); print(s.recv(100).decode())"
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, controller, 0, host="127.0.0.1"))
        address = f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}"
        relay = Relays(bench.plugs, "c0c0c0c0", lambda: (address,))
        relay.want({"acme/front": 1400})
        nursery.start_soon(relay.run)
        await eventually(answered, DEADLINE_S, 0.5)
        nursery.cancel_scope.cancel()


async def test_another_network_is_another_world(host: OvnSandbox, bench: OvsBench) -> None:
    """The same plug in another network reaches nobody of this one."""
    ports = port("10.20.0.8", "02:00:00:00:02:08"), port("10.20.0.7", "02:00:00:00:02:07")
    paths = bench.new_namespace(), bench.new_namespace()
    for one, path, network in zip(ports, paths, ("left", "right"), strict=True):
        await known(host, one, network)
        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)
        await bench.plugs.wait_installed(one, DEADLINE_S)
    attempt = "import socket\ntry:\n    socket.create_connection(('10.20.0.8', 9), 2)\n"
    attempt += "except OSError as error:\n    print(error)\n"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_namespace, paths[0], SOURCE)
        said = await in_namespace(paths[1], attempt)
        nursery.cancel_scope.cancel()
    assert "timed out" in said or "No route to host" in said
