"""A VM's spec as libvirt's domain XML: a pure function.

The machine is a q35 with virtio devices and nothing that a server does not need (no video, USB,
sound, balloon), since every device costs start time.  The seed is a virtio disk as well: the
kernels made for clouds have no driver for a SATA CD drive.

Ownership goes into ``<metadata>`` under our own namespace; what is read back from there
(:func:`read_metadata`) is all that an agent has to know to adopt a domain.
"""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

from attrs import field, frozen

from swarmctl.agent.drivers.api import Launch, Owner, resource_name
from swarmctl.agent.drivers.libvirt import identity
from swarmctl.spec.models import HealthKind

NAMESPACE: Final = "urn:swarmctl:instance:1"
_TAG: Final = f"{{{NAMESPACE}}}instance"
# What a VM gets that reserves no memory: enough for a small Linux, too little to be missed.
DEFAULT_MEMORY_BYTES: Final = 128 * 1024 * 1024
DEFAULT_CMDLINE: Final = "console=ttyS0"
# The kernel's default scheduling period; the quota is counted in it.
_PERIOD_US: Final = 100_000
# libvirt refuses a quota below this.
_QUOTA_MIN_US: Final = 1_000


@frozen
class Disk:
    """A file that becomes a virtio disk; ``kind`` is its format."""

    path: Path
    kind: str
    read_only: bool = False


@frozen
class Port:
    """A network card on a tap that is there already; ``device`` is the tap."""

    device: str
    mac: str
    mtu: int = 0


@frozen
class Machine:
    """Everything about one domain that is not in the spec: what this host decides.

    ``domain_type`` is ``kvm`` or ``qemu`` (TCG); ``network`` is a libvirt network or empty for
    no network card; ``run_as`` is a DAC label such as ``+64055:+64055``, empty where libvirt has
    no such security driver; ``limit_cpu`` is off on hosts without a cpu controller.
    ``ports`` are network cards on tenant networks, in place of ``network``; ``offload`` is off
    where nobody fills in the checksums that a guest leaves to its card.
    """

    domain_type: str
    console_log: Path
    kernel: Path | None = None
    initrd: Path | None = None
    disks: tuple[Disk, ...] = field(default=())
    network: str = ""
    run_as: str = ""
    limit_cpu: bool = True
    ports: tuple[Port, ...] = ()
    offload: bool = True


@frozen
class Metadata:
    """Whose a domain is and what it runs."""

    cluster_id: str
    node: str
    service: str
    slot: int
    incarnation: int
    tenant: str

    @property
    def owner(self) -> Owner:
        """The agent that made it."""
        return Owner(self.cluster_id, self.node)


def memory_bytes(launch: Launch) -> int:
    """What the VM gets: its reservation, or :data:`DEFAULT_MEMORY_BYTES`."""
    return launch.template.resources.memory_bytes or DEFAULT_MEMORY_BYTES


def vcpus(cpu_millis: int) -> int:
    """Whole virtual cpus for a reservation in thousandths of a core; at least one."""
    return max(1, math.ceil(cpu_millis / 1000))


def build(owner: Owner, launch: Launch, machine: Machine) -> str:
    """The domain XML of ``launch`` on ``machine``."""
    vm = launch.template.vm
    assert vm is not None, "a domain is made from a VM's template"
    uuid = identity.domain_uuid(owner, launch.incarnation)
    cpu_millis = launch.template.resources.cpu_millis
    domain = ET.Element("domain", type=machine.domain_type)
    _text(domain, "name", resource_name(owner, launch))
    _text(domain, "uuid", uuid)
    _metadata(domain, owner, launch)
    # libvirt keeps KiB; rounded up so that a guest never has less than was asked for.
    _text(domain, "memory", str(math.ceil(memory_bytes(launch) / 1024)), unit="KiB")
    _text(domain, "vcpu", str(vcpus(cpu_millis)))
    if machine.limit_cpu and cpu_millis % 1000:
        _cpu_quota(domain, cpu_millis)
    _boot(domain, vm.firmware, vm.cmdline, machine)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if machine.domain_type == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough", check="none")
    ET.SubElement(domain, "clock", offset="utc")
    # A reboot is the guest's own business; every other end is the agent's, by restart policy.
    for name, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(domain, f"on_{name}", action)
    _devices(domain, uuid, machine)
    check = launch.template.checked
    if check is not None and check.kind is HealthKind.GUEST_AGENT:
        _guest_agent(domain)
    if machine.run_as:
        # No relabelling: files that are not ours keep their owner, and a start is shorter.
        label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel="no")
        _text(label, "label", machine.run_as)
    return ET.tostring(domain, encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _metadata(domain: ET.Element, owner: Owner, launch: Launch) -> None:
    ET.register_namespace("swarmctl", NAMESPACE)
    ET.SubElement(
        ET.SubElement(domain, "metadata"),
        _TAG,
        {
            "cluster": owner.cluster_id,
            "node": owner.node,
            "service": launch.service,
            "slot": str(launch.slot),
            "incarnation": str(launch.incarnation),
            "tenant": launch.tenant,
        },
    )


def _cpu_quota(domain: ET.Element, cpu_millis: int) -> None:
    """A bound for the whole process: with emulated cpus the emulator's threads do the work."""
    tune = ET.SubElement(domain, "cputune")
    _text(tune, "global_period", str(_PERIOD_US))
    quota = max(cpu_millis * _PERIOD_US // 1000, _QUOTA_MIN_US)
    _text(tune, "global_quota", str(quota))


def _boot(domain: ET.Element, firmware: str, cmdline: str, machine: Machine) -> None:
    system = ET.SubElement(domain, "os")
    if firmware == "uefi":
        system.set("firmware", "efi")
    _text(system, "type", "hvm", arch="x86_64", machine="q35")
    if firmware == "uefi":
        # Keys enrolled for secure boot would refuse most kernels given directly.
        choice = ET.SubElement(system, "firmware")
        ET.SubElement(choice, "feature", enabled="no", name="secure-boot")
    if machine.kernel is not None:
        _text(system, "kernel", str(machine.kernel))
        if machine.initrd is not None:
            _text(system, "initrd", str(machine.initrd))
        _text(system, "cmdline", cmdline or DEFAULT_CMDLINE)
    else:
        ET.SubElement(system, "boot", dev="hd")


def _devices(domain: ET.Element, uuid: str, machine: Machine) -> None:
    devices = ET.SubElement(domain, "devices")
    for index, disk in enumerate(machine.disks):
        _disk(devices, disk, f"vd{chr(ord('a') + index)}")
    ET.SubElement(devices, "controller", type="usb", model="none")
    if machine.network:
        card = ET.SubElement(devices, "interface", type="network")
        ET.SubElement(card, "mac", address=identity.mac_address(uuid))
        ET.SubElement(card, "source", network=machine.network)
        ET.SubElement(card, "model", type="virtio")
    for port in machine.ports:
        _port(devices, port, offload=machine.offload)
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "log", file=str(machine.console_log), append="on")
    ET.SubElement(serial, "target", port="0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    # Lets a kernel's panic end the domain as "crashed"; without it a panic looks like running.
    ET.SubElement(devices, "panic", model="isa")
    ET.SubElement(devices, "memballoon", model="none")
    ET.SubElement(devices, "audio", id="1", type="none")


def _port(devices: ET.Element, port: Port, *, offload: bool) -> None:
    """A card on a tap of ours: libvirt opens it, and neither makes nor removes it."""
    card = ET.SubElement(devices, "interface", type="ethernet")
    ET.SubElement(card, "mac", address=port.mac)
    ET.SubElement(card, "target", dev=port.device, managed="no")
    ET.SubElement(card, "model", type="virtio")
    if port.mtu:
        ET.SubElement(card, "mtu", size=str(port.mtu))
    if not offload:
        driver = ET.SubElement(card, "driver")
        for side in ("host", "guest"):
            features = dict.fromkeys(("csum", "tso4", "tso6", "ecn", "ufo"), "off")
            ET.SubElement(driver, side, features | ({"gso": "off"} if side == "host" else {}))


def _guest_agent(domain: ET.Element) -> None:
    """The port on which an agent in the guest is spoken to; libvirt chooses the host's end."""
    devices = domain.find("devices")
    assert devices is not None, "made before"
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")


def _disk(devices: ET.Element, disk: Disk, target: str) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    driver = ET.SubElement(element, "driver", name="qemu", type=disk.kind)
    if not disk.read_only:
        driver.set("discard", "unmap")
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=target, bus="virtio")
    if disk.read_only:
        ET.SubElement(element, "readonly")


def read_metadata(xml: str) -> Metadata:
    """What :func:`build` wrote, from the element that libvirt gives back.

    Raises:
        ValueError: it is not that element.
    """
    try:
        element = ET.fromstring(xml)  # noqa: S314 - libvirtd validated it, and it is trusted
        return Metadata(
            cluster_id=element.attrib["cluster"],
            node=element.attrib["node"],
            service=element.attrib["service"],
            slot=int(element.attrib["slot"]),
            incarnation=int(element.attrib["incarnation"]),
            tenant=element.attrib["tenant"],
        )
    except (ET.ParseError, KeyError) as error:
        raise ValueError(f"not an instance's metadata: {error}") from error
