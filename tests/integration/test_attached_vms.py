"""A VM on a tenant network: real libvirt, a real guest, a real Open vSwitch."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from swarmctl.agent.attaching import Attaching
from swarmctl.agent.drivers.api import Launch, Phase
from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.net.plugging.api import InNamespace
from swarmctl.net.plugging.ovs import OvsPlugs
from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.messages import Attachment
from swarmctl.spec.models import CloudInit
from tests.integration.ovs_sandbox import (
    OvsSandbox,
    namespace,
    need_ovs,
    ovs_beside_libvirt,
    run,
)
from tests.integration.test_libvirt_driver import INITRD, KERNEL, LibvirtHarness, guest

# A guest without DHCP sets its address itself, and then sends more than one packet by TCP.
SCRIPT = """#!/bin/sh
ip addr add 10.20.0.9/24 dev eth0
ip link set eth0 up
ip link show eth0
until nc 10.20.0.8 9 </dev/null >/tmp/got; do usleep 200000; done
echo "got $(wc -c </tmp/got) bytes, seed $(grep -c swarmctl-join-secret /seed/swarmctl.json)"
"""
SERVER = """
import socket
listener = socket.create_server(("10.20.0.8", 9))
while True:
    connection = listener.accept()[0]
    connection.sendall(b"x" * 100000)
    connection.close()
"""


@pytest.fixture(scope="module")
def switch() -> Iterator[OvsSandbox]:
    """A switch where libvirtd is."""
    need_ovs()
    with ovs_beside_libvirt(f"br-{secrets.token_hex(3)}") as sandbox:
        yield sandbox


@pytest.fixture
async def harness(tmp_path: Path):
    """VMs in a folder of the test's own."""
    missing = [str(path) for path in (KERNEL, INITRD) if not path.exists()]
    assert not missing, f"the lab's guest is not there (`python3 -m lab up`): {missing}"
    one = LibvirtHarness(tmp_path / "vm")
    yield one
    await one.clean_up()


def attached(launch: Launch, mac: str, address: str) -> Launch:
    """The launch with one port."""
    port = Attachment(
        f"c0c0c0c0-{secrets.token_hex(4)}-0", "acme/front", mac, (f"{address}/24",), 1400
    )
    return evolve(launch, attachments=(port,))


async def test_a_guest_speaks_over_its_tap(harness: LibvirtHarness, switch: OvsSandbox) -> None:
    """Its card has the port's MAC and MTU, TCP flows to a container's port, and all goes again."""
    driver = harness.driver
    owner = harness.owner
    plugs = OvsPlugs(owner.cluster_id, owner.node, switch.remote)
    attaching = Attaching(plugs, {"libvirt": driver}, Supervisor(["libvirt"]))
    await attaching.look()
    # A network of libvirt's that is not there: with a port of its own nobody asks for it.
    spec = guest(network="not-there", trunk=True, cloud_init=CloudInit(user_data=SCRIPT))
    launch = attached(harness.vm(spec), "02:00:00:00:00:09", "10.20.0.9")
    with pytest.raises(LaunchFailed, match="the token for the agent in this VM has not come yet"):
        await harness.driver.prepare(launch, lambda _: None)
    launch = evolve(launch, token="swarmctl-join-secret")
    peer = attached(launch, "02:00:00:00:00:08", "10.20.0.8").attachments[0]
    name = f"swt-{secrets.token_hex(3)}"
    with namespace(name) as path:
        await plugs.plug(peer, InNamespace(path, "eth0"), launch.incarnation + 1)
        try:
            async with trio.open_nursery() as nursery:
                command = ["nsenter", f"--net={path}", "python3", "-c", SERVER]
                nursery.start_soon(trio.run_process, command)
                await driver.prepare(launch, lambda _: None)
                await attaching.plug(launch, driver)
                await driver.create(launch)
                device = plugs.device(launch.attachments[0].port)
                await trio.to_thread.run_sync(switch.install, device)
                await attaching.wait_installed(launch)
                found = await driver.start(launch)
                printed = await harness.console_has(launch, b"got 100000 bytes, seed 1")
                nursery.cancel_scope.cancel()
            assert found.phase is Phase.RUNNING
            assert b"02:00:00:00:00:09" in printed
            assert b"mtu 1400" in printed

            instance = Instance(
                launch.incarnation, "web", 1, driver="libvirt", attachments=launch.attachments
            )
            await driver.remove(launch.incarnation)
            await attaching.unplug(instance, driver)
            assert [one.port for one in await plugs.list()] == [peer.port]
            assert device not in await trio.to_thread.run_sync(run, "ip", "link")
        finally:
            with trio.CancelScope(shield=True):
                await plugs.unplug(tuple(one.device for one in await plugs.list()))
                plugs.close()
