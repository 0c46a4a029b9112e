"""Plugging in inside a VM, on a real kernel with VLANs: the lab's guest, with this Python in it.

The machine that tests run on may have no VLANs, and no right to load them; a guest has.
"""

import importlib.util
import os
import py_compile
import re
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from pyroute2 import IPRoute

from lab.cpio import Archive
from swarmctl.net.plugging import links, vlans
from swarmctl.net.plugging.api import InNamespace, Tap
from swarmctl.net.plugging.trunk import TrunkPlugs
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed
from tests.integration.plugging_contract import attachment
from tests.integration.test_libvirt_driver import INITRD, KERNEL

ROOT = Path(__file__).resolve().parents[2]
# An emulated machine, and one that others share.
GUEST_S = 240
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in $(cat /lib/modules/order); do insmod /lib/modules/$module.ko; done
ip link set lo up
mkdir -p /run /tmp
cd {root} && PYTHONPATH={root}:{packages} PYTHONDONTWRITEBYTECODE=1 {python} -u \\
  tests/integration/trunk_in_guest.py
sync
poweroff -f
"""


def libraries(program: str) -> set[str]:
    """The shared libraries that a program or module is linked with."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return set(re.findall(r"(/\S+) \(0x", done.stdout))


def bytecode(path: Path) -> bytes:
    """A module compiled so that it is taken without a look at its source: that is slow there."""
    with tempfile.NamedTemporaryFile() as file:
        py_compile.compile(
            str(path), file.name, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        return Path(file.name).read_bytes()


def python_archive() -> bytes:
    """This Python and what the suite imports, at the paths that they have here."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/integration/trunk_in_guest.py", "dry"]
    listed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    python = os.path.realpath(sys.executable)
    files = {python, *listed.stdout.split("\n")}
    for native in [name for name in files if name == python or ".so" in name]:
        files |= libraries(native)
    archive = Archive()
    for name in sorted(files):
        path = Path(name)
        archive.file(name.lstrip("/"), path.read_bytes(), 0o755)
        if path.suffix == ".py":
            compiled = importlib.util.cache_from_source(name)
            archive.file(compiled.lstrip("/"), bytecode(path))
    packages = sysconfig.get_path("purelib")
    init = INIT.format(root=ROOT, packages=packages, python=python)
    archive.file("trunk-init", init.encode(), 0o755)
    return archive.finish()


@pytest.mark.slow  # A minute of an emulated guest; every run has nested pods on real VLANs.
def test_the_contract_holds_in_a_vm(tmp_path: Path) -> None:
    """The whole suite, with real VLANs, in a guest's own namespaces."""
    missing = [str(path) for path in (KERNEL, INITRD) if not path.exists()]
    assert not missing, f"the lab's guest is not there (`python3 -m lab up`): {missing}"
    initrd = tmp_path / "initrd"
    base = INITRD.read_bytes()
    initrd.write_bytes(base + b"\0" * (-len(base) % 512) + python_archive())
    command = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "512", "-nographic",
               "-no-reboot", "-nic", "none", "-kernel", str(KERNEL), "-initrd", str(initrd),
               "-append", "console=ttyS0 quiet panic=-1 rdinit=/trunk-init"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=GUEST_S, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip

    assert "trunk: done, 0 failed of" in done.stdout, done.stdout[-8000:]
    assert "trunk: ok test_another_pods_vlan_is_not_taken" in done.stdout
    assert "trunk: ok test_a_trunk_may_be_called_as_a_pods_interface" in done.stdout


async def test_a_trunk_that_is_not_there() -> None:
    """The agent's facts say so, by the name that it was given."""
    with pytest.raises(DriverUnavailable, match="trunk swt-none0 is not there"):
        await TrunkPlugs("c0c0c0c0", "vm", "swt-none0").probe()


@pytest.mark.parametrize("target", [Tap(), InNamespace("/nowhere", "eth0")])
async def test_a_port_without_a_vlan_is_refused(target: Tap | InNamespace) -> None:
    """A VM has no switch: what is not on its trunk cannot be plugged in."""
    with pytest.raises(LaunchFailed, match="has no VLAN on this VM's trunk"):
        await TrunkPlugs("c0c0c0c0", "vm", "lo").plug(attachment(), target, 1)


async def test_a_kernel_without_vlans_says_so() -> None:
    """Where there are none the reason is given; where there are, it is the missing trunk."""
    with trio.fail_after(30), pytest.raises(LaunchFailed, match=r"no VLANs|is not there"):
        await TrunkPlugs("c0c0c0c0", "vm", "swt-none0").plug(
            attachment(vlan=100), InNamespace("/proc/self/ns/net", "swt-none1"), 1
        )


async def test_a_vlan_that_goes_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's end takes its VLAN along at any moment: to unplug it then is no error."""
    plugs = TrunkPlugs("c0c0c0c0", "vm", "lo")
    device = plugs.device("port")
    monkeypatch.setattr(vlans, "_namespaced", lambda: iter([("eth0gone", f"{device} 7 port", 0)]))

    await plugs.unplug((device,))
    [found] = await plugs.list()

    assert (found.port, found.mtu) == ("port", 0)


def a_pods_side(stack: ExitStack) -> links.Namespace:
    """A namespace with an interface as a pod's, whose other end is nobody's."""
    pod = stack.enter_context(links.Namespace())
    with links.inside(pod.path), IPRoute() as there:
        there.link("add", ifname="eth0", kind="veth", peer={"ifname": "far"})
        for name in ("eth0", "far"):
            there.link("set", index=links.index_of(there, name), state="up")
        there.addr("add", index=links.index_of(there, "eth0"), address="10.20.0.7", prefixlen=24)
    return pod


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
async def test_waiting_looks_into_the_pods_namespace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many a VM has: the gateway is asked for, and seen, where the port was plugged in."""
    plugs, one = TrunkPlugs("c0c0c0c0", "vm", "lo"), attachment(vlan=100, routes=())
    monkeypatch.setattr(vlans, "plug", lambda *_: None)
    monkeypatch.setattr(vlans, "_namespaces", lambda: pytest.fail("looked into all namespaces"))
    with ExitStack() as stack:
        pod = a_pods_side(stack)
        await plugs.plug(one, InNamespace(pod.path, "eth0"), 1)
        with pytest.raises(LaunchFailed, match="did not come up within"):
            await plugs.wait_installed(one, 0.1)
        with links.inside(pod.path), IPRoute() as there:
            index = links.index_of(there, "eth0")
            known = {"dst": "10.20.0.1", "lladdr": "02:00:00:00:00:99", "ifindex": index}
            there.neigh("replace", **known, state="permanent")
        await plugs.wait_installed(one, 5.0)


async def test_waiting_for_what_is_not_plugged_in() -> None:
    """It fails at once, with the port's name."""
    with pytest.raises(LaunchFailed, match="is not plugged in"):
        await TrunkPlugs("c0c0c0c0", "vm", "lo").wait_installed(attachment(vlan=100), 30.0)
