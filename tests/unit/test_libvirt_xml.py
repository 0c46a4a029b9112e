"""Domain XML, names, states and the KVM proof's decision: all without a daemon."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.agent.drivers.api import EventKind, Launch, NodeLink, Owner, Phase, resource_name
from swarmctl.agent.drivers.libvirt import (
    access,
    cards,
    domain_xml,
    hypervisor,
    identity,
    logs,
    states,
)
from swarmctl.agent.drivers.libvirt.domain_xml import Disk, Machine, Metadata, Port
from swarmctl.proto import incarnation as incarnations
from swarmctl.spec.models import Resources, Template, VmSpec

OWNER = Owner("c1a5732e90b1", "node-a")
INCARNATION = incarnations.make(7, 42)
LOG = Path("/data/console.log")
MIB = 1 << 20


def launch(vm: VmSpec | None = None, **resources: int) -> Launch:
    template = Template(vm=vm or VmSpec(kernel="/k"), resources=Resources(**resources))
    return Launch("db", 2, INCARNATION, template, tenant="acme")


def built(one: Launch | None = None, **machine) -> ET.Element:
    settings = {"domain_type": "qemu", "console_log": LOG, "kernel": Path("/k")} | machine
    return ET.fromstring(domain_xml.build(OWNER, one or launch(), Machine(**settings)))


def test_the_whole_text():
    """The XML of a small VM is exactly this."""
    machine = Machine("qemu", LOG, kernel=Path("/k"), initrd=Path("/i"))

    text = domain_xml.build(OWNER, launch(memory_bytes=96 * MIB, cpu_millis=2000), machine)

    assert text == (
        '<domain xmlns:swarmctl="urn:swarmctl:instance:1" type="qemu">'
        "<name>swarmctl-c1a5732e-node-a-db.2-7-42</name>"
        f"<uuid>{identity.domain_uuid(OWNER, INCARNATION)}</uuid>"
        '<metadata><swarmctl:instance cluster="c1a5732e90b1" node="node-a" service="db" '
        f'slot="2" incarnation="{INCARNATION}" tenant="acme" /></metadata>'
        '<memory unit="KiB">98304</memory><vcpu>2</vcpu>'
        '<os><type arch="x86_64" machine="q35">hvm</type><kernel>/k</kernel>'
        "<initrd>/i</initrd><cmdline>console=ttyS0</cmdline></os>"
        '<features><acpi /><apic /></features><clock offset="utc" />'
        "<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>"
        "<on_crash>destroy</on_crash>"
        '<devices><controller type="usb" model="none" />'
        '<serial type="pty"><log file="/data/console.log" append="on" />'
        '<target port="0" /></serial>'
        '<rng model="virtio"><backend model="random">/dev/urandom</backend></rng>'
        '<panic model="isa" /><memballoon model="none" /><audio id="1" type="none" />'
        "</devices></domain>"
    )


def test_metadata_is_read_back():
    """What is written into the metadata is what an adopting agent reads."""
    element = built().find(f"metadata/{{{domain_xml.NAMESPACE}}}instance")
    assert element is not None

    meta = domain_xml.read_metadata(ET.tostring(element, encoding="unicode"))

    assert meta == Metadata("c1a5732e90b1", "node-a", "db", 2, INCARNATION, "acme")
    assert meta.owner == OWNER


@pytest.mark.parametrize("text", ["", "<a/>", "<a cluster='x'", "<instance slot='x'/>"])
def test_strange_metadata_is_refused(text):
    """Something else in its place is an error, not a guess."""
    with pytest.raises(ValueError, match=r"metadata|literal"):
        domain_xml.read_metadata(text)


def test_special_characters_are_escaped():
    """A command line with markup in it stays a command line."""
    cmdline = "console=ttyS0 x=\"<a>&'b'\""

    assert built(launch(VmSpec(kernel="/k", cmdline=cmdline))).findtext("os/cmdline") == cmdline


@pytest.mark.parametrize(
    ("cpu_millis", "vcpus", "quota"),
    [
        (0, "1", None),
        (1000, "1", None),
        (250, "1", "25000"),
        (1500, "2", "150000"),
        (4000, "4", None),
        (1, "1", "1000"),
    ],
)
def test_cpus(cpu_millis, vcpus, quota):
    """Whole virtual cpus, rounded up, and a quota for what is not whole."""
    domain = built(launch(cpu_millis=cpu_millis))

    assert domain.findtext("vcpu") == vcpus
    assert domain.findtext("cputune/global_quota") == quota


def test_no_quota_where_the_host_has_no_cpu_controller():
    """A host that cannot limit cpus starts the VM all the same."""
    assert built(launch(cpu_millis=500), limit_cpu=False).find("cputune") is None


def test_memory_defaults_to_128_mib_and_is_never_rounded_down():
    """Nothing reserved is 128 MiB; a byte more than a KiB is another KiB."""
    assert built(launch()).findtext("memory") == str(128 * 1024)
    assert built(launch(memory_bytes=64 * MIB + 1)).findtext("memory") == str(64 * 1024 + 1)


def test_disks_are_virtio_in_order_and_boot():
    """An overlay, then the seed read-only; without a kernel the machine boots from disk."""
    vm = VmSpec()
    disks = (Disk(Path("/d/disk.qcow2"), "qcow2"), Disk(Path("/d/seed"), "raw", read_only=True))

    domain = built(launch(vm), kernel=None, disks=disks)

    found = [
        (
            disk.find("source").get("file"),
            disk.find("driver").get("type"),
            disk.find("target").get("dev"),
            disk.find("target").get("bus"),
            disk.find("readonly") is not None,
        )
        for disk in domain.iterfind("devices/disk")
    ]
    assert found == [
        ("/d/disk.qcow2", "qcow2", "vda", "virtio", False),
        ("/d/seed", "raw", "vdb", "virtio", True),
    ]
    assert domain.find("os/boot").get("dev") == "hd"
    assert domain.find("os/kernel") is None


def test_uefi_asks_libvirt_for_firmware_without_secure_boot():
    """Firmware is libvirt's choice, by its own descriptions."""
    system = built(launch(VmSpec(kernel="/k", firmware="uefi"))).find("os")

    assert system.get("firmware") == "efi"
    assert system.find("firmware/feature").attrib == {"enabled": "no", "name": "secure-boot"}


def test_network_card_only_where_there_is_a_network():
    """No network, no card; with one, the card has the MAC address of this incarnation."""
    assert built().find("devices/interface") is None

    card = built(network="default").find("devices/interface")

    assert card.find("source").get("network") == "default"
    uuid = identity.domain_uuid(OWNER, INCARNATION)
    assert card.find("mac").get("address") == identity.mac_address(uuid)


@pytest.mark.parametrize("offload", [True, False])
def test_cards_on_tenant_networks_open_taps_that_are_there(offload):
    """Each has the port's MAC and MTU; offload is off where the switch fills in no checksums."""
    ports = (Port("s1", "02:00:00:00:00:01", 1400), Port("s2", "02:00:00:00:00:02"))
    cards = built(ports=ports, offload=offload).findall("devices/interface")

    assert [card.get("type") for card in cards] == ["ethernet", "ethernet"]
    assert [card.find("target").attrib for card in cards] == [
        {"dev": "s1", "managed": "no"},
        {"dev": "s2", "managed": "no"},
    ]
    assert [card.find("mac").get("address") for card in cards] == [port.mac for port in ports]
    assert cards[0].find("mtu").get("size") == "1400"
    assert cards[1].find("mtu") is None
    assert (cards[0].find("driver/host") is None) == offload


def test_kvm_passes_the_hosts_cpu():
    """Only KVM can; under emulation the default is right."""
    assert built(domain_type="kvm").find("cpu").get("mode") == "host-passthrough"
    assert built().find("cpu") is None


def test_label_is_given_and_nothing_relabelled():
    """Files of the domain keep their owners."""
    label = built(run_as="+64055:+64055").find("seclabel")

    assert label.attrib == {"type": "static", "model": "dac", "relabel": "no"}
    assert label.findtext("label") == "+64055:+64055"


incarnation_numbers = st.builds(
    incarnations.make,
    st.integers(1, incarnations.TERM_MAX),
    st.integers(0, incarnations.SEQUENCE_MAX),
)
names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)


@given(names, names, names, st.integers(1, 9999), incarnation_numbers)
def test_a_domains_name_proves_whose_it_is(cluster, node, service, slot, incarnation):
    """Name and UUID give the incarnation back to its owner, and nothing to anybody else."""
    owner = Owner(cluster, node)
    one = evolve(launch(), service=service, slot=slot, incarnation=incarnation)
    name, uuid = resource_name(owner, one), identity.domain_uuid(owner, incarnation)

    assert identity.incarnation_of(owner, name, uuid) == incarnation
    assert identity.incarnation_of(Owner(cluster + "x", node), name, uuid) is None
    assert identity.incarnation_of(Owner(cluster, node + "-x"), name, uuid) is None
    assert identity.incarnation_of(owner, name + "1", uuid) is None


@pytest.mark.parametrize(
    "name", ["", "web", "swarmctl-c1a5732e-node-a-", "swarmctl-c1a5732e-node-a-x-y-z"]
)
def test_strangers_names_are_nobodys(name):
    """A name that only looks like ours is not ours."""
    assert identity.incarnation_of(OWNER, name, "6f1d0a34-2f0c-5b1e-9a53-0d7c5e1b8f42") is None


def test_files_of_two_slots_and_tenants_never_meet():
    """Kept disks are told apart by tenant, service and slot."""
    places = identity.Places(Path("/data"))

    paths = {
        places.persistent_disk(tenant, service, slot)
        for tenant in ("a", "b")
        for service in ("x", "y")
        for slot in (1, 11)
    }

    assert len(paths) == 8


@pytest.mark.parametrize(
    ("state", "reason", "was_started", "phase", "exit_code"),
    [
        (states.DomainState.RUNNING, 1, True, Phase.RUNNING, None),
        (states.DomainState.SHUTDOWN, 0, True, Phase.STOPPING, None),
        (states.DomainState.SHUTOFF, states.ShutoffReason.UNKNOWN, False, Phase.CREATED, None),
        (states.DomainState.SHUTOFF, states.ShutoffReason.UNKNOWN, True, Phase.EXITED, 1),
        (states.DomainState.SHUTOFF, states.ShutoffReason.SHUTDOWN, True, Phase.EXITED, 0),
        (states.DomainState.SHUTOFF, states.ShutoffReason.DESTROYED, True, Phase.EXITED, 1),
        (states.DomainState.SHUTOFF, states.ShutoffReason.CRASHED, True, Phase.EXITED, 1),
        (states.DomainState.SHUTOFF, states.ShutoffReason.FAILED, False, Phase.EXITED, 1),
        (states.DomainState.SHUTOFF, 99, True, Phase.EXITED, 1),
        (states.DomainState.CRASHED, 1, True, Phase.EXITED, 1),
        (states.DomainState.PAUSED, 5, True, Phase.RUNNING, None),
        (99, 0, True, Phase.RUNNING, None),
    ],
)
def test_states_have_a_meaning(state, reason, was_started, phase, exit_code):
    """Each state is a phase, and each end has an exit code and says why."""
    found = states.condition(state, reason, was_started=was_started)

    assert (found.phase, found.exit_code) == (phase, exit_code)
    assert bool(found.reason) == (phase is Phase.EXITED or state == states.DomainState.PAUSED)


def test_each_combination_of_state_and_reason_is_known():
    """No state that libvirt may report is without an answer."""
    for state in range(10):
        for reason in range(20):
            found = states.condition(state, reason, was_started=True)
            assert (found.exit_code is not None) == (found.phase is Phase.EXITED)


@pytest.mark.parametrize(
    ("event", "detail", "kind", "exit_code"),
    [
        (states.EventType.STARTED, 0, EventKind.STARTED, None),
        (states.EventType.STOPPED, states.StoppedDetail.SHUTDOWN, EventKind.EXITED, 0),
        (states.EventType.STOPPED, states.StoppedDetail.DESTROYED, EventKind.EXITED, 1),
        (states.EventType.STOPPED, states.StoppedDetail.FAILED, EventKind.EXITED, 1),
        (states.EventType.STOPPED, 77, EventKind.EXITED, 1),
        (states.EventType.UNDEFINED, 0, EventKind.REMOVED, None),
    ],
)
def test_events_have_a_meaning(event, detail, kind, exit_code):
    """A start, each kind of end, and a removal are told."""
    told = states.driver_event(INCARNATION, event, detail, 12.5)

    assert told is not None
    assert (told.kind, told.incarnation, told.at, told.exit_code) == (
        kind,
        INCARNATION,
        12.5,
        exit_code,
    )
    assert bool(told.reason) == (kind is EventKind.EXITED)


@pytest.mark.parametrize(
    ("event", "detail"),
    [
        (states.EventType.DEFINED, 0),
        (states.EventType.UNDEFINED, 1),
        (states.EventType.SUSPENDED, 0),
        (states.EventType.SHUTDOWN, 0),
        (states.EventType.CRASHED, 0),
        (42, 0),
    ],
)
def test_other_events_are_not_told(event, detail):
    """What changes nothing for the agent is left out."""
    assert states.driver_event(INCARNATION, event, detail, 0.0) is None


CAPABILITIES = """<capabilities><host><secmodel><model>apparmor</model></secmodel>
<secmodel><model>dac</model><baselabel type='kvm'>+64055:+108</baselabel></secmodel>
</host></capabilities>"""


def test_qemus_account_is_read_from_the_capabilities():
    """Number by number; without the security driver there is none."""
    assert access.parse_account(CAPABILITIES) == access.Account(64055, 108)
    assert access.parse_account("<capabilities><host/></capabilities>") is None
    assert access.Account(64055, 108).label == "+64055:+108"


def test_a_private_folder_keeps_the_account_out(tmp_path):
    """The folder that blocks is named, and so is a file that may not be read."""
    stranger = access.Account(64055, 64055)
    outer = Path(tmp_path)
    if access.impassable(stranger, outer) is None:
        outer = tmp_path / "private"
        outer.mkdir(mode=0o700)
    file = outer / "image"
    file.touch(mode=0o644)

    blocked = access.unreadable(stranger, [file])

    assert blocked is not None
    assert file.is_relative_to(blocked)
    assert access.unreadable(access.Account(0, 0), [file]) is None


def test_no_node_is_emulation_at_once(tmp_path):
    """Without the device there is nothing to prove."""
    verdict = hypervisor.decide(tmp_path / "kvm")

    assert verdict.domain_type == "qemu"
    assert not verdict.broken_node


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("", hypervisor.Verdict("kvm", "a guest ran under it")),
        (hypervisor.NO_QEMU, hypervisor.Verdict("qemu", hypervisor.NO_QEMU, final=False)),
    ],
)
def test_a_node_is_trusted_only_with_a_proof(tmp_path, monkeypatch, problem, expected):
    """The proof decides, not the node's presence."""
    node = tmp_path / "kvm"
    node.touch()
    monkeypatch.setattr(hypervisor, "prove", lambda _accelerator, _timeout_s: problem)

    assert hypervisor.decide(node) == expected


def test_a_node_that_cannot_run_a_guest_is_called_broken(tmp_path, monkeypatch):
    """Its reason is kept, and the proof repeated only if it ran out of time."""
    node = tmp_path / "kvm"
    node.touch()
    calls = []

    def prove(accelerator, _timeout_s):
        calls.append(accelerator)
        return "ioctl says no"

    monkeypatch.setattr(hypervisor, "prove", prove)
    decision = hypervisor.Decision(node)

    assert decision.known() is None
    first, again = decision.verdict(), decision.verdict()
    assert (first.domain_type, first.broken_node) == ("qemu", True)
    assert "ioctl says no" in first.reason
    assert first is again
    assert calls == ["kvm"]

    node.unlink()
    assert not decision.verdict().broken_node


def test_a_proof_that_hangs_ends_by_its_deadline(tmp_path, monkeypatch):
    """An emulator that never ends is killed, and that is the reason given."""
    emulator = tmp_path / "emulator"
    emulator.write_text("#!/bin/sh\nexec sleep 60\n")
    emulator.chmod(0o755)
    monkeypatch.setattr(hypervisor, "EMULATORS", (str(emulator),))

    assert hypervisor.prove("kvm", timeout_s=0.2) == "a guest did not run within 0.2 s"


def test_an_emulator_that_ends_otherwise_proves_nothing(tmp_path, monkeypatch):
    """Only the exit code that the guest chose is a proof."""
    emulator = tmp_path / "emulator"
    emulator.write_text("#!/bin/sh\necho no such accelerator >&2\n")
    emulator.chmod(0o755)
    monkeypatch.setattr(hypervisor, "EMULATORS", (str(emulator),))

    assert hypervisor.prove("kvm") == "no such accelerator"


def test_history_spans_rotated_files(tmp_path):
    """Older parts come first, and a tail reaches back over them."""
    log = tmp_path / "console.log"
    (tmp_path / "console.log.1").write_bytes(b"1\n2\n")
    (tmp_path / "console.log.0").write_bytes(b"3\n4\n")
    log.write_bytes(b"5\n6")

    assert logs.history(log, None)[0] == b"1\n2\n3\n4\n5\n6"
    assert logs.history(log, 3)[0] == b"4\n5\n6"
    assert logs.history(log, 0)[0] == b""


def test_growth_is_followed_over_a_rotation(tmp_path):
    """What was written before, during and after a rotation arrives once and in order."""
    log = tmp_path / "console.log"
    log.write_bytes(b"a")
    seen, inode, offset = logs.history(log, None)
    with log.open("ab") as file:
        file.write(b"b")
    log.rename(tmp_path / "console.log.0")
    log.write_bytes(b"c")

    for _ in range(4):
        data, inode, offset = logs.grown(log, inode, offset)
        seen += data

    assert seen == b"abc"


def test_no_log_yet_is_no_output(tmp_path):
    """A console that has printed nothing has no file, and that is no error."""
    assert logs.history(tmp_path / "none", None) == (b"", 0, 0)
    assert logs.grown(tmp_path / "none", 0, 0) == (b"", 0, 0)


def test_the_driver_is_imported_without_libvirt():
    """An agent without VMs needs neither libvirt nor pycdlib."""
    code = (
        "import sys; sys.modules['libvirt'] = None; sys.modules['pycdlib'] = None\n"
        "import trio\n"
        "from pathlib import Path\n"
        "from swarmctl.agent.drivers.api import Owner\n"
        "from swarmctl.agent.drivers.libvirt import LibvirtDriver\n"
        "driver = LibvirtDriver(Owner('c', 'n'), Path('/nowhere'))\n"
        "health = trio.run(driver.probe)\n"
        "print(health.available, health.reason)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False libvirt's Python binding cannot be loaded")
    assert "swarmctl[libvirt]" in done.stdout


def test_a_vms_card_is_on_its_networks_bridge():
    """As a running domain has it; cards on taps of ours are not libvirt's to tell of."""
    running = (
        "<domain><devices><interface type='network'><mac address='52:54:00:00:00:01'/>"
        "<source network='default' portid='p' bridge='virbr0'/><target dev='vnet3'/></interface>"
        "<interface type='ethernet'><mac address='52:54:00:00:00:02'/></interface>"
        "</devices></domain>"
    )
    network = (
        "<network><name>default</name><forward mode='nat'/><bridge name='virbr0'/>"
        "<ip address='192.168.122.1' netmask='255.255.255.0'/></network>"
    )
    assert list(cards.links_of(running, {"default": network}.__getitem__)) == [
        NodeLink(
            "default",
            "52:54:00:00:00:01",
            gateway="192.168.122.1",
            bridge="virbr0",
            device="vnet3",
            nat=True,
        )
    ]
