"""The lab on real daemons: status, idempotence, crashes, and a guest that boots and powers off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from lab import kvm, procs
from lab.config import GUEST_CMDLINE, GUEST_MEMORY_MIB, GUEST_READY_LINE, paths_from
from tests.integration.lab_sandbox import ROOT, Sandbox

BOOT_S = 120.0  # 3 s on an idle machine; others test beside us
POWER_OFF_S = 60.0
DAEMON_S = 60.0


def missing() -> str | None:
    """Why these tests cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root: namespaces, and libvirt's system daemon"
    for program in ("dockerd", "libvirtd", "virsh", "qemu-system-x86_64", "xorrisofs"):
        if procs.which(program) is None:
            return f"{program} is not installed: run `python3 -m lab up`"
    return None


@pytest.fixture(autouse=True)
def _possible():
    reason = missing()
    if reason:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def lab(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.alone
def test_up_changes_nothing_where_all_is_up_and_takes_a_moment():
    """Daemons that run keep their pids, whoever started them."""
    assert lab("up").returncode == 0
    before = json.loads(lab("status", "--json").stdout)
    started = time.monotonic()

    again = lab("up")

    assert again.returncode == 0, again.stdout + again.stderr
    assert time.monotonic() - started < 2.0
    after = json.loads(lab("status", "--json").stdout)
    assert after == before
    assert after["ok"]
    assert after["parts"]["docker"]["pid"]


def test_status_tells_the_daemons_versions_as_a_table():
    """A person sees each part, and 0 says that all is up."""
    assert lab("up").returncode == 0

    done = lab("status")

    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "running" in lines["docker"]
    assert "QEMU" in lines["libvirt"]
    assert "present" in lines["image"]


def test_wrong_usage_is_refused_with_the_choices():
    """A part that does not exist is named, with those that do."""
    done = lab("up", "--only", "dokcer")

    assert done.returncode == 2
    assert "dokcer: choose from docker, libvirt" in done.stderr


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(tmp_path) as machine:
        yield machine


def test_every_daemon_may_crash_and_up_mends_it_and_down_leaves_nothing(sandbox):
    """Kill -9 of each and of all, stale pidfiles, then down: the machine is as it was."""
    sandbox.run("iptables", "-S")  # makes the empty built-in chains, which iptables leaves behind
    sandbox.run("iptables", "-t", "nat", "-S")
    network = sandbox.network()
    sandbox.lab("up", "--only", "docker,libvirt,image")
    pidfiles = {
        "dockerd": "/run/docker.pid",
        "libvirtd": "/run/libvirtd.pid",
        "virtlogd": "/run/virtlogd.pid",
        "containerd": "/run/docker/containerd/containerd.pid",
    }
    assert sandbox.network() != network

    for victims in (["dockerd"], ["libvirtd"], ["virtlogd"], list(pidfiles)):
        pids = [sandbox.pid_of(pidfiles[name]) for name in victims]
        sandbox.run("kill", "-9", *pids, check=False)  # containerd may follow its dockerd by itself
        gone = procs.wait_until(lambda pids=pids: not sandbox.any_alive(pids), DAEMON_S)
        assert gone, victims
        sandbox.lab("up", "--only", "docker,libvirt,image")
        found = sandbox.status()
        assert found["docker"]["ours"], victims
        assert found["libvirt"]["ours"], victims
        assert found["image"]["up"], victims

    # A reused pid in the pidfile: process 1 lives, and is no dockerd.
    sandbox.run("sh", "-c", "kill -9 $(cat /run/docker.pid); echo 1 >/run/docker.pid")
    sandbox.lab("up", "--only", "docker")

    sandbox.lab("down")

    found = sandbox.status()
    assert (found["docker"]["up"], found["libvirt"]["up"]) == (False, False)
    # The kernel takes interfaces away a moment after whoever had them.
    procs.wait_until(lambda: sandbox.network() == network, DAEMON_S)
    assert sandbox.network() == network
    names = sandbox.run("sh", "-c", "cat /proc/[0-9]*/comm", check=False).stdout.split()
    assert not {"dockerd", "containerd", "libvirtd", "virtlogd"} & set(names)


def test_a_kvm_node_that_runs_no_guest_is_put_aside_and_given_back(sandbox):
    """The sandbox's node is the null device: present, openable, and no KVM."""
    sandbox.lab("up", "--only", "libvirt")
    assert sandbox.status()["kvm"]["verdict"] == "aside"
    assert sandbox.run("ls", "/dev/kvm", check=False).returncode != 0

    sandbox.lab("down")

    assert sandbox.run("stat", "-c", "%t,%T", "/dev/kvm").stdout.strip() == "1,3"
    assert sandbox.status()["kvm"]["verdict"] == "unknown"


def test_a_daemon_that_ran_before_is_used_and_never_stopped(sandbox):
    """Up takes it as it is; down says that it is not ours."""
    log = "/run/foreign.log"
    sandbox.run("sh", "-c", f"setsid dockerd >{log} 2>&1 </dev/null &")

    def running():
        return sandbox.status()["docker"]["up"]

    assert procs.wait_until(running, DAEMON_S), sandbox.run("cat", log).stdout
    pid = sandbox.pid_of("/run/docker.pid")

    assert "not ours, left alone" in sandbox.lab("up", "--only", "docker,image")
    assert "not ours, left alone" in sandbox.lab("down")

    assert running()
    assert sandbox.pid_of("/run/docker.pid") == pid


def test_guest_code_runs_under_emulation():
    """The KVM probe's boot sector does what it claims, shown where it can only be the code."""
    assert kvm.probe("tcg", deadline_s=90.0) == (True, "ran a guest")


DOMAIN = """<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='{kind}'/>
      <source file='{disk}'/><target dev='vda' bus='virtio'/>{readonly}</disk>
    <serial type='file'><source path='{serial}'/><target port='0'/></serial>
  </devices>
</domain>"""


@pytest.fixture
def domain():
    """Starts a transient domain and gives its name and serial log; it is gone afterwards."""
    name = f"swarmctl-lab-test-{uuid.uuid4().hex[:8]}"
    # Not under pytest's own folder, which QEMU's user may not enter.
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir="/var/tmp") as text:
        folder = Path(text)
        folder.chmod(0o755)
        serial = folder / "serial.log"

        def start(**fields):
            xml = folder / "domain.xml"
            xml.write_text(
                DOMAIN.format(name=name, memory=GUEST_MEMORY_MIB, serial=serial, **fields)
            )
            virsh("create", str(xml))
            return name, serial

        start.folder = folder
        yield start
        virsh("destroy", name, check=False)


def virsh(*arguments, check=True):
    done = subprocess.run(
        ["virsh", "-c", "qemu:///system", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def boots_and_powers_off(name, serial, *expected):
    def text():
        return serial.read_text(errors="replace") if serial.exists() else ""

    assert procs.wait_until(lambda: GUEST_READY_LINE in text(), BOOT_S), text()
    for words in expected:
        assert words in text()
    virsh("shutdown", name)
    gone = procs.wait_until(lambda: name not in virsh("list", "--name"), POWER_OFF_S)
    assert gone, text()
    assert "swarmctl guest powering off" in text()


@pytest.fixture(scope="module")
def guest():
    done = lab("up", "--only", "libvirt,guest")
    assert done.returncode == 0, done.stdout + done.stderr
    return paths_from()


def test_the_guest_boots_from_its_kernel_reads_its_seed_and_powers_off_by_acpi(guest, domain):
    """Direct kernel boot under libvirt, a NoCloud seed on virtio, then libvirt's shutdown."""
    seed = domain.folder / "seed"
    seed.mkdir()
    (seed / "meta-data").write_text("instance-id: i-7\nlocal-hostname: web-7\n")
    (seed / "user-data").write_text("#!/bin/sh\necho user-data says hello\n")
    image = domain.folder / "seed.iso"
    subprocess.run(
        ["xorrisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", str(image), str(seed)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    boot = (
        f"<kernel>{guest.kernel}</kernel><initrd>{guest.initrd}</initrd>"
        f"<cmdline>{GUEST_CMDLINE}</cmdline>"
    )

    name, serial = domain(machine="q35", boot=boot, kind="raw", disk=image, readonly="<readonly/>")

    boots_and_powers_off(
        name, serial, "instance-id=i-7", "user-data says hello", "ready: hostname=web-7"
    )


@pytest.mark.slow  # Two boots under emulation; every run boots the same guest from its kernel.
def test_the_test_disk_boots_by_itself_and_counts_its_boots(guest, domain):
    """Firmware, boot loader, kernel, all from the image; what the guest writes is kept."""
    disk = domain.folder / "disk.qcow2"
    shutil.copy(guest.testdisk, disk)
    for boots in (1, 2):
        name, serial = domain(
            machine="q35", boot="<boot dev='hd'/>", kind="qcow2", disk=disk, readonly=""
        )
        boots_and_powers_off(name, serial, f"boots={boots}")
        Path(serial).unlink()
