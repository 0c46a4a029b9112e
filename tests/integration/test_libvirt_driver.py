"""The libvirt driver against a real libvirtd, with the lab's guest."""

import contextlib
import os
import signal
import subprocess
import xml.etree.ElementTree as ET
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from attrs import evolve

from lab.config import GUEST_CMDLINE
from swarmctl.agent.drivers.api import EventKind, Found, Launch, Owner, Phase
from swarmctl.agent.drivers.libvirt import LibvirtDriver, hypervisor, states
from swarmctl.agent.drivers.libvirt.connection import load
from swarmctl.agent.drivers.libvirt.driver import PROBE_TIMEOUT_S
from swarmctl.proto.errors import (
    Conflict,
    DriverUnavailable,
    InvalidSpec,
    LaunchFailed,
    NotFound,
    UserError,
)
from swarmctl.spec import wire
from swarmctl.spec.models import CloudInit, DiskSpec, Resources, Template, VmSpec
from tests.integration.driver_contract import (
    Behaviour,
    DriverContract,
    Harness,
    eventually,
    ignore,
    next_event,
)

GUEST = Path(os.environ.get("SWARMCTL_LAB_CACHE", "/var/cache/swarmctl-lab")) / "guest"
KERNEL = GUEST / "vmlinuz"
INITRD = GUEST / "initrd.img"
TESTDISK = GUEST / "testdisk.qcow2"
READY = b"swarmctl guest ready"
MIB = 1 << 20
MEMORY = Resources(memory_bytes=96 * MIB)


def guest(**changes) -> VmSpec:
    """The lab's guest: ready in about two seconds."""
    spec = VmSpec(kernel=str(KERNEL), initrd=str(INITRD), cmdline=GUEST_CMDLINE, network="none")
    return evolve(spec, **changes)


def virsh(*arguments: str) -> str:
    """What an administrator would do behind our back."""
    done = subprocess.run(
        ["virsh", "-c", "qemu:///system", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class LibvirtHarness(Harness):
    """VMs in a folder of the test's own."""

    # A guest boots in three seconds on a free machine, and in forty on a full one.
    deadline_s = 120.0
    # None has booted so far then that it heeds its power button; one that does has a test below.
    grace_s = 0.5

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drivers: list[LibvirtDriver] = []
        folder.mkdir(exist_ok=True)
        self.empty_disk = folder / "empty.raw"
        with self.empty_disk.open("wb") as file:
            file.truncate(MIB)
        super().__init__()

    def driver_for(self, owner: Owner) -> LibvirtDriver:
        driver = LibvirtDriver(owner, self.folder / "data", images=self.folder)
        self.drivers.append(driver)
        return driver

    def template(self, behaviour: Behaviour) -> Template:
        scripts = {
            Behaviour.ENDS: "#!/bin/sh\npoweroff -f\n",
            Behaviour.TALKS: "#!/bin/sh\nfor i in 1 2 3; do echo out $i; done\n",
            Behaviour.TALKS_AND_ENDS: "#!/bin/sh\nfor i in 1 2 3; do echo out $i; done\n"
            "sync; usleep 300000; poweroff -f\n",
        }
        if behaviour is Behaviour.NO_IMAGE:
            vm = VmSpec(disk=DiskSpec(image="nowhere.qcow2"), network="none")
        elif behaviour is Behaviour.STUBBORN:
            # Firmware without anything to boot does not know of power buttons.
            vm = VmSpec(disk=DiskSpec(image="empty.raw"), network="none")
        elif behaviour in scripts:
            vm = guest(cloud_init=CloudInit(user_data=scripts[behaviour]))
        else:
            vm = guest()
        return Template(vm=vm, resources=MEMORY)

    async def kill(self, found: Found) -> None:
        await trio.to_thread.run_sync(virsh, "destroy", found.runtime_id)

    async def vanish(self, found: Found) -> None:
        await trio.to_thread.run_sync(virsh, "destroy", found.runtime_id)
        await trio.to_thread.run_sync(virsh, "undefine", found.runtime_id)

    async def clean_up(self) -> None:
        for driver in self.drivers:
            with trio.fail_after(self.deadline_s * 2):
                async with trio.open_nursery() as nursery:
                    for found in await driver.list():
                        nursery.start_soon(driver.remove, found.incarnation)
        for driver in self.drivers:
            await driver.aclose()

    def vm(self, spec: VmSpec, resources: Resources = MEMORY, slot: int = 1) -> Launch:
        """A launch of exactly that VM."""
        return evolve(self.launch(slot=slot), template=Template(vm=spec, resources=resources))

    async def console_has(self, launch: Launch, text: bytes) -> bytes:
        """Wait until the console printed ``text``; all that it printed."""
        seen = b""
        with trio.fail_after(self.deadline_s):
            output = self.driver.logs(launch.incarnation, follow=True, tail=None, timestamps=False)
            async with aclosing(output):
                async for chunk in output:
                    seen += chunk.data
                    if text in seen:
                        return seen
        raise AssertionError(f"the console ended without {text!r}: {seen[-2000:]!r}")


@pytest.fixture
async def harness(tmp_path: Path):
    missing = [str(path) for path in (KERNEL, INITRD, TESTDISK) if not path.exists()]
    assert not missing, f"the lab's guest is not there (`python3 -m lab up`): {missing}"
    harness = LibvirtHarness(tmp_path / "vm")
    yield harness
    await harness.clean_up()


class TestLibvirtDriver(DriverContract):
    """The contract of all drivers."""


def test_the_tables_number_as_libvirt_does():
    """The numbers written out in the state tables are those of the library."""
    libvirt = load()
    prefixes = {
        states.DomainState: "VIR_DOMAIN_",
        states.ShutoffReason: "VIR_DOMAIN_SHUTOFF_",
        states.EventType: "VIR_DOMAIN_EVENT_",
        states.StoppedDetail: "VIR_DOMAIN_EVENT_STOPPED_",
    }
    for table, prefix in prefixes.items():
        for member in table:
            assert getattr(libvirt, prefix + member.name) == member


async def stopped(harness: LibvirtHarness, launch: Launch) -> Found:
    """Stop it politely; as it is listed then."""
    with trio.fail_after(harness.deadline_s):
        await harness.driver.stop(launch.incarnation, harness.deadline_s)
    found = await harness.find(launch.incarnation)
    assert found is not None
    return found


def domain_xml(found: Found) -> ET.Element:
    return ET.fromstring(virsh("dumpxml", found.runtime_id))


# --- machines ---------------------------------------------------------------------------------


async def test_guest_gets_its_cpus_memory_seed_and_ends_politely(harness: LibvirtHarness):
    """Reservations and seed arrive in the guest; the power button is a clean end, code 0."""
    spec = guest(cloud_init=CloudInit(user_data="#!/bin/sh\necho hello from user-data\n"))
    launch = harness.vm(spec, Resources(cpu_millis=1500, memory_bytes=128 * MIB))
    found = await harness.run(launch)
    printed = await harness.console_has(launch, READY)
    ended = await stopped(harness, launch)

    assert b"cpus=2" in printed
    assert b"hello from user-data" in printed
    assert b"local-hostname=web-1" in printed
    assert b"web.1-" in printed.split(b"instance-id=")[1].split()[0]
    xml = domain_xml(found)
    assert xml.findtext("currentMemory") == str(128 * 1024)
    assert xml.findtext("cputune/global_quota") == "150000"
    assert (ended.phase, ended.exit_code) == (Phase.EXITED, 0)
    assert "shut down" in ended.reason


@pytest.mark.slow
async def test_uefi_boots(harness: LibvirtHarness):
    """The firmware is libvirt's choice; its variables go with the instance."""
    health = await harness.driver.probe()
    assert "uefi" in health.facts["firmware"], "the lab installs ovmf"
    launch = harness.vm(guest(firmware="uefi"), Resources(memory_bytes=192 * MIB))
    found = await harness.run(launch)
    await harness.console_has(launch, READY)
    variables = trio.Path(domain_xml(found).findtext("os/nvram") or "")
    assert await variables.is_file()
    await harness.driver.remove(launch.incarnation)

    assert not await variables.exists()


async def test_network_card_and_address(harness: LibvirtHarness):
    """On a network of libvirt the guest gets a card, and the list shows its leased address."""
    name = f"swt{os.getpid()}"
    definition = harness.folder / "network.xml"
    definition.write_text(
        f"<network><name>{name}</name><bridge name='{name}'/>"
        "<ip address='192.168.219.1' netmask='255.255.255.0'>"
        "<dhcp><range start='192.168.219.10' end='192.168.219.20'/></dhcp></ip></network>"
    )
    launch = harness.vm(guest(network=name))
    virsh("net-define", str(definition))
    try:
        with pytest.raises(LaunchFailed, match="not active"):
            await harness.driver.prepare(launch, ignore)
        virsh("net-start", name)
        await harness.run(launch)

        async def has_address() -> bool:
            found = await harness.find(launch.incarnation)
            return found is not None and bool(found.addresses)

        await eventually(has_address, harness.deadline_s)
        found = await harness.find(launch.incarnation)
        assert found is not None
        assert found.addresses[0].startswith("192.168.219.")
        [link] = await harness.driver.links(launch.incarnation)
        assert (link.network, link.bridge, link.gateway) == (name, name, "192.168.219.1")
        assert (link.device.startswith("vnet"), link.nat) == (True, False)
        await harness.driver.remove(launch.incarnation)
    finally:
        with contextlib.suppress(AssertionError):
            virsh("net-destroy", name)
        virsh("net-undefine", name)


# --- disks ------------------------------------------------------------------------------------


async def boots(harness: LibvirtHarness, launch: Launch) -> int:
    """How often the guest's disk was booted from, as the guest counts."""
    printed = await harness.console_has(launch, READY)
    return int(printed.split(b"boots=")[-1].split()[0])


@pytest.mark.slow
async def test_each_instance_has_an_overlay_of_its_own(harness: LibvirtHarness):
    """Disks start as the image, live through a restart, and leave the image as it was."""
    before = TESTDISK.stat()
    spec = guest(disk=DiskSpec(str(TESTDISK), size_bytes=64 * MIB))
    first, second = harness.vm(spec), harness.vm(spec, slot=2)
    await harness.run(first)
    printed = await harness.console_has(first, READY)
    assert await boots(harness, first) == 1
    assert b"vda:%d" % (64 * MIB) in printed
    await stopped(harness, first)
    log = harness.driver._places.console_log(first.incarnation)
    log.write_bytes(b"")
    await harness.driver.start(first)
    assert await boots(harness, first) == 2
    await harness.run(second)
    assert await boots(harness, second) == 1

    after = TESTDISK.stat()
    assert (before.st_mtime_ns, before.st_uid, before.st_size) == (
        after.st_mtime_ns,
        after.st_uid,
        after.st_size,
    )


@pytest.mark.slow
async def test_persistent_disk_waits_for_the_replacement(harness: LibvirtHarness):
    """Remove keeps it, the slot's next incarnation goes on with it, grown; another slot not."""
    spec = guest(disk=DiskSpec(str(TESTDISK), persistent=True))
    first = harness.vm(spec)
    await harness.run(first)
    assert await boots(harness, first) == 1
    await stopped(harness, first)
    await harness.driver.remove(first.incarnation)
    bigger = evolve(spec, disk=DiskSpec(str(TESTDISK), size_bytes=96 * MIB, persistent=True))
    replacement, other = harness.vm(bigger), harness.vm(bigger, slot=2)
    await harness.run(replacement)
    assert await boots(harness, replacement) == 2
    assert b"vda:%d" % (96 * MIB) in await harness.console_has(replacement, READY)
    await harness.run(other)
    assert await boots(harness, other) == 1

    third = harness.vm(bigger)
    with pytest.raises(LaunchFailed, match="in use"):
        await harness.run(third)
    moved = evolve(spec, disk=DiskSpec("empty.raw", persistent=True))
    with pytest.raises(InvalidSpec, match="was made from"):
        await harness.driver.prepare(harness.vm(moved), ignore)


def corrupt(path: Path) -> None:
    """A qcow2 whose tables are noise."""
    path.write_bytes(TESTDISK.read_bytes())
    with path.open("r+b") as file:
        file.seek(65536)
        file.write(b"\xa7" * 65536 * 3)


def make_bad_images(folder: Path) -> None:
    corrupt(folder / "corrupt.qcow2")
    (folder / "short.qcow2").write_bytes(TESTDISK.read_bytes()[:200_000])
    (folder / "misnamed.qcow2").write_text("not an image")
    (folder / "folder.qcow2").mkdir()
    command = ["qemu-img", "create", "-q", "-f", "vmdk", str(folder / "other.vmdk"), "1M"]
    subprocess.run(command, check=True)
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/nowhere/base"]
    subprocess.run([*command, str(folder / "orphan.qcow2"), "1M"], check=True)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (VmSpec(disk=DiskSpec("corrupt.qcow2")), "corrupt"),
        (VmSpec(disk=DiskSpec("short.qcow2")), "corrupt"),
        (VmSpec(disk=DiskSpec("misnamed.qcow2")), "misnamed"),
        (VmSpec(disk=DiskSpec("other.vmdk")), "vmdk"),
        (VmSpec(disk=DiskSpec("orphan.qcow2")), "/nowhere/base"),
        (VmSpec(disk=DiskSpec("folder.qcow2")), "is a folder"),
        (VmSpec(disk=DiskSpec("missing.qcow2")), "missing.qcow2"),
        (VmSpec(disk=DiskSpec("../vm/empty.raw/../../x")), "image folder"),
        (VmSpec(disk=DiskSpec("empty.raw", size_bytes=MIB // 2)), "smaller"),
        (VmSpec(kernel="/nowhere/vmlinuz"), "/nowhere/vmlinuz"),
        (VmSpec(kernel=str(KERNEL), initrd="/nowhere/initrd"), "/nowhere/initrd"),
        (VmSpec(), "disk image or a kernel"),
        (VmSpec(disk=DiskSpec("empty.raw"), cmdline="quiet"), "needs a kernel"),
        (guest(network="nowhere"), "nowhere"),
        (guest(firmware="coreboot"), "coreboot"),
        (guest(trunk=True), "trunk"),
        (guest(cloud_init=CloudInit(user_data="echo hi")), "ignore"),
    ],
)
async def test_a_spec_that_cannot_work_is_refused_before_anything_is_made(
    harness: LibvirtHarness, spec: VmSpec, words: str
):
    """Each fault is the user's, says where it is, and leaves neither a domain nor a file."""
    make_bad_images(harness.folder)
    launch = harness.vm(spec)
    for attempt in (harness.driver.prepare(launch, ignore), harness.driver.create(launch)):
        with pytest.raises(UserError) as raised:
            await attempt
        assert words in str(raised.value)
        assert raised.value.where

    assert await harness.driver.list() == []
    assert not (harness.folder / "data").exists() or not list(
        (harness.folder / "data").rglob("*.qcow2")
    )


async def test_remove_leaves_no_file(harness: LibvirtHarness):
    """Overlay, seed and log go with the instance, also when it was only prepared."""
    spec = VmSpec(disk=DiskSpec("empty.raw"), cloud_init=CloudInit(), network="none")
    prepared, created = harness.vm(spec), harness.vm(spec, slot=2)
    notes: list[str] = []
    await harness.driver.prepare(evolve(prepared, template=Template(vm=spec)), notes.append)
    await harness.run(created)
    assert any("128 MiB" in note for note in notes)
    for launch in (prepared, created):
        await harness.driver.remove(launch.incarnation)

    assert [path for path in (harness.folder / "data").rglob("*") if path.is_file()] == []


async def test_what_it_was_made_of_is_for_the_agent_alone(harness: LibvirtHarness):
    """User-data holds secrets, and everybody may read a domain's metadata."""
    spec = VmSpec(
        disk=DiskSpec("empty.raw"), cloud_init=CloudInit("#cloud-config hunter2"), network="none"
    )
    launch = harness.vm(spec)
    await harness.driver.prepare(launch, lambda _: None)
    await harness.driver.create(launch)
    found = await harness.find(launch.incarnation)
    assert found is not None
    assert wire.decode_template(found.template) == launch.template
    (kept,) = (harness.folder / "data").rglob("template")

    assert kept.stat().st_mode & 0o077 == 0
    metadata = ET.fromstring(virsh("dumpxml", found.runtime_id)).find("metadata")
    assert metadata is not None
    assert set(metadata[0].attrib) == {
        "cluster", "node", "service", "slot", "incarnation", "tenant"
    }  # fmt: skip


# --- ends behind our back ----------------------------------------------------------------------


async def test_killed_qemu_is_a_crash(harness: LibvirtHarness):
    """A QEMU process that dies is told and listed as crashed, code 1."""
    launch = harness.launch(Behaviour.STUBBORN)
    async with harness.driver.events() as channel:
        found = await harness.run(launch)
        name = virsh("domname", found.runtime_id).strip()
        pid = await trio.Path(f"/run/libvirt/qemu/{name}.pid").read_text()
        os.kill(int(pid), signal.SIGKILL)
        event = await next_event(channel, EventKind.EXITED, launch.incarnation, harness.deadline_s)
    listed = await harness.find(launch.incarnation)

    assert listed is not None
    assert (event.exit_code, listed.exit_code) == (1, 1)
    assert "crashed" in event.reason
    assert "crashed" in listed.reason
    assert listed.finished_at == event.at


async def test_destroyed_by_somebody_is_a_failure(harness: LibvirtHarness):
    """It ended with 1, by force."""
    launch = harness.launch(Behaviour.STUBBORN)
    async with harness.driver.events() as channel:
        await harness.kill(await harness.run(launch))
        event = await next_event(channel, EventKind.EXITED, launch.incarnation, harness.deadline_s)
    assert event.exit_code == 1
    assert "force" in event.reason


# --- console and logs --------------------------------------------------------------------------


async def typed(terminal, text: bytes, answer: bytes, deadline_s: float) -> None:
    """Type ``text`` until ``answer`` comes."""
    seen = b""
    with trio.fail_after(deadline_s):
        await terminal.send(text)
        while answer not in seen:
            chunk = await terminal.receive()
            assert chunk is not None
            seen += chunk.data


async def test_console_is_interactive_while_it_is_logged(harness: LibvirtHarness):
    """Typing works, a second one is refused, detaching leaves it running, the log has it all."""
    launch = harness.launch()
    with pytest.raises(NotFound):
        async with harness.driver.console(launch.incarnation):
            pass
    await harness.run(launch)
    await harness.console_has(launch, READY)
    async with harness.driver.console(launch.incarnation) as terminal:
        await typed(terminal, b"echo $((6 * 7))-first\n", b"42-first", harness.deadline_s)
        await terminal.resize(24, 80)
        await terminal.send_eof()
        with pytest.raises(Conflict, match="attached"):
            async with harness.driver_for(harness.owner).console(launch.incarnation):
                pass
        await typed(terminal, b"echo $((6 * 7))-still\n", b"42-still", harness.deadline_s)
    async with harness.driver.console(launch.incarnation) as terminal:
        await typed(terminal, b"echo $((6 * 7))-again\n", b"42-again", harness.deadline_s)
        await terminal.send(b"poweroff -f\n")
        with trio.fail_after(harness.deadline_s):
            while await terminal.receive() is not None:
                pass
        assert await terminal.exit_code() is None
    printed = await harness.console_has(launch, b"42-again")
    assert b"42-first" in printed
    await harness.await_phase(launch.incarnation, Phase.EXITED)
    with pytest.raises(Conflict, match="not running"):
        async with harness.driver.console(launch.incarnation):
            pass


async def test_a_guest_powers_itself_off_and_its_logs_follow_to_the_end(harness: LibvirtHarness):
    """It ended with 0, and following with it; a tail is that many lines; times begin each line."""
    launch = harness.launch(Behaviour.TALKS_AND_ENDS)

    async def read(**options) -> bytes:
        options = {"follow": False, "tail": None, "timestamps": False} | options
        with trio.fail_after(harness.deadline_s):
            async with aclosing(harness.driver.logs(launch.incarnation, **options)) as chunks:
                return b"".join([chunk.data async for chunk in chunks])

    async with harness.driver.events() as channel:
        await harness.run(launch)
        followed = await read(follow=True)
        event = await next_event(channel, EventKind.EXITED, launch.incarnation, harness.deadline_s)
    assert event.exit_code == 0
    assert b"out 1\r\nout 2\r\nout 3\r\n" in followed
    assert followed == await read()
    assert await read(tail=2) == b"".join(followed.splitlines(keepends=True)[-2:])
    stamped = await read(timestamps=True)
    assert all(line[10:11] == b"T" for line in stamped.splitlines())
    with pytest.raises(NotFound):
        async with aclosing(
            harness.driver.logs(
                launch.incarnation + 10**6, follow=False, tail=None, timestamps=False
            )
        ) as nothing:
            await anext(nothing)


# --- libvirtd that is away ---------------------------------------------------------------------


class Relay:
    """A socket in front of libvirtd's, that can hang and hang up."""

    TARGET = "/run/libvirt/libvirt-sock"

    def __init__(self, path: Path) -> None:
        self.uri = f"qemu+unix:///system?socket={path}"
        self.open = trio.Event()
        self.open.set()
        self._path = path
        self._scopes: list[trio.CancelScope] = []

    async def run(self, task_status) -> None:
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(self._path))
        listener.listen()
        with listener:
            async with trio.open_nursery() as nursery:
                task_status.started(nursery.cancel_scope)
                while True:
                    near, _ = await listener.accept()
                    nursery.start_soon(self._relay, trio.SocketStream(near))

    async def _relay(self, near: trio.SocketStream) -> None:
        far = await trio.open_unix_socket(self.TARGET)
        async with near, far, trio.open_nursery() as nursery:
            self._scopes.append(nursery.cancel_scope)
            nursery.start_soon(self._copy, near, far, nursery.cancel_scope)
            nursery.start_soon(self._copy, far, near, nursery.cancel_scope)

    async def _copy(self, source, sink, scope) -> None:
        async for data in source:
            await self.open.wait()
            await sink.send_all(data)
        scope.cancel()

    def hang(self) -> None:
        self.open = trio.Event()

    def hang_up(self) -> None:
        for scope in self._scopes:
            scope.cancel()
        self._scopes.clear()


@pytest.fixture
async def relay(tmp_path: Path, nursery):
    relay = Relay(tmp_path / "sock")
    await nursery.start(relay.run)
    return relay


async def test_a_libvirtd_that_hangs_is_named_in_time(harness: LibvirtHarness, relay: Relay):
    """Probe answers within its bound, before and after the connection is there, and heals."""
    driver = LibvirtDriver(harness.owner, harness.folder / "data", uri=relay.uri)
    relay.hang()
    for _ in range(2):
        began = trio.current_time()
        health = await driver.probe()
        # Its bound, and as much again for a machine that is busy; else it would not come at all.
        assert trio.current_time() - began < 2 * PROBE_TIMEOUT_S
        assert not health.available
        assert "does not answer within 3 s" in health.reason
        if driver._queries._connection is None:
            relay.open.set()
            assert (await driver.probe()).available
            relay.hang()
    relay.open.set()
    assert (await driver.probe()).available
    await driver.aclose()


async def test_a_lost_connection_is_told_and_ends_in_a_resync(
    harness: LibvirtHarness, relay: Relay
):
    """The stream says so at once, and when libvirtd is there again; and events go on."""
    driver = LibvirtDriver(harness.owner, harness.folder / "data", uri=relay.uri)
    launch = harness.launch(Behaviour.STUBBORN)
    async with driver.events() as channel:
        relay.hang_up()
        with trio.fail_after(harness.deadline_s):
            assert (await channel.receive()).kind is EventKind.INTERRUPTED
            assert (await channel.receive()).kind is EventKind.RESYNC
        await harness.run(launch)
        await next_event(channel, EventKind.STARTED, launch.incarnation, harness.deadline_s)
    await driver.aclose()


async def test_no_libvirtd_is_unavailable(tmp_path: Path):
    """Nothing at the socket: probe says what and what to do, calls raise it."""
    driver = LibvirtDriver(
        Owner("c", "n"), tmp_path, uri=f"qemu+unix:///system?socket={tmp_path}/none"
    )
    health = await driver.probe()

    assert not health.available
    assert "is libvirtd running" in health.reason
    with pytest.raises(DriverUnavailable):
        await driver.list()


def test_the_proof_runs_a_guest():
    """Under emulation, which works everywhere, the proof's guest answers."""
    assert hypervisor.prove("tcg", timeout_s=90.0) == ""
