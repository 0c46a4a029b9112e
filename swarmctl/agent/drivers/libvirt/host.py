"""What this host can do for VMs, asked from libvirt and kept: they are facts, not states.

The exception is whether a network is active, which an administrator changes at any time; it is
asked at each create, and costs a fraction of a millisecond.
All methods block; the driver calls them in threads.
"""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from swarmctl.agent.drivers.libvirt import access, connection, hypervisor
from swarmctl.proto.errors import DriverUnavailable, InvalidSpec, LaunchFailed

DEFAULT_NETWORK: Final = "default"
# What a spec says to get no network card, in docker's word.
NO_NETWORK: Final = "none"
ARCHITECTURE: Final = "x86_64"
MACHINE: Final = "q35"
CGROUPS: Final = Path("/sys/fs/cgroup")


@frozen
class Facts:
    """What does not change while libvirtd lives.

    ``account`` is QEMU's user; None where libvirt labels no owners.
    """

    libvirt_version: str
    qemu_version: str
    domain_type: str
    domain_type_reason: str
    account: access.Account | None
    has_uefi: bool
    can_limit_cpu: bool


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1_000 % 1_000}.{version % 1_000}"


class Host:
    """Facts of the host that libvirt runs on."""

    def __init__(self, decision: hypervisor.Decision) -> None:
        self.decision = decision
        self._facts: Facts | None = None
        self._for: hypervisor.Verdict | None = None

    def facts(self, conn: Any) -> Facts:
        """Everything that is kept; the first call may take libvirt seconds.

        Raises:
            libvirtError: libvirtd did not answer.
            DriverUnavailable: its QEMU cannot make the machines we use.
        """
        verdict = self.decision.verdict()
        if self._facts is None or self._for is not verdict:
            self._facts = self._ask(conn, verdict)
            self._for = verdict
        return self._facts

    def forget(self) -> None:
        """Ask again next time: libvirtd was restarted, perhaps as another version."""
        self._facts = None

    def _ask(self, conn: Any, verdict: hypervisor.Verdict) -> Facts:
        libvirt = connection.load()
        domain_type, reason = verdict.domain_type, verdict.reason
        try:
            machine = conn.getDomainCapabilities(None, ARCHITECTURE, MACHINE, domain_type)
        except libvirt.libvirtError as error:
            if domain_type != "kvm":
                raise DriverUnavailable(
                    f"libvirt offers no {MACHINE} machines: {error.get_error_message()}",
                    hint="install qemu-system-x86 on the node",
                ) from error
            domain_type, reason = "qemu", f"libvirt refuses KVM: {error.get_error_message()}"
            machine = conn.getDomainCapabilities(None, ARCHITECTURE, MACHINE, domain_type)
        account = access.parse_account(conn.getCapabilities())
        return Facts(
            libvirt_version=_dotted(conn.getLibVersion()),
            qemu_version=_dotted(conn.getVersion()),
            domain_type=domain_type,
            domain_type_reason=reason,
            account=account,
            has_uefi=_offers_uefi(machine),
            # A libvirtd without owners to label is a user's own, which has no control groups.
            can_limit_cpu=account is not None and _has_cpu_controller(),
        )

    def network(self, conn: Any, wanted: str) -> str:
        """The libvirt network for a spec's ``network``; empty for no network card.

        Without a wish it is the network that libvirt itself brings, if that is active.

        Raises:
            InvalidSpec: there is no network of that name.
            LaunchFailed: it is there and not active.
        """
        if wanted == NO_NETWORK:
            return ""
        if not wanted:
            return DEFAULT_NETWORK if self.default_network_problem(conn) == "" else ""
        libvirt = connection.load()
        try:
            network = conn.networkLookupByName(wanted)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
            raise InvalidSpec(
                f"libvirt has no network {wanted!r} here",
                "vm.network",
                "`virsh net-list --all` on the node shows those it has",
            ) from error
        if not network.isActive():
            hint = f"virsh net-start {wanted}"
            raise LaunchFailed(f"the network {wanted!r} is not active", "vm.network", hint)
        return wanted

    def default_network_problem(self, conn: Any) -> str:
        """Why a VM without a wish gets no network card; empty if it gets one."""
        libvirt = connection.load()
        try:
            active = conn.networkLookupByName(DEFAULT_NETWORK).isActive()
        except libvirt.libvirtError as error:
            return f"none: {error.get_error_message()}"
        return "" if active else f"none: libvirt's network {DEFAULT_NETWORK!r} is not active"

    def addresses(self, conn: Any) -> dict[str, tuple[str, ...]]:
        """MAC address to the IP addresses that libvirt's networks leased to it."""
        libvirt = connection.load()
        found: dict[str, tuple[str, ...]] = {}
        try:
            for network in conn.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE):
                for lease in network.DHCPLeases():
                    mac = lease["mac"]
                    found[mac] = (*found.get(mac, ()), lease["ipaddr"])
        except libvirt.libvirtError as error:
            # Leases are a courtesy: without libvirt's network driver there are none.
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        return found


def _has_cpu_controller(root: Path = CGROUPS) -> bool:
    """Whether libvirt can bound a VM's share of the cpus here."""
    unified = root / "cgroup.controllers"
    if unified.exists():
        return "cpu" in unified.read_text().split()
    return (root / "cpu").is_dir()


def _offers_uefi(domain_capabilities: str) -> bool:
    # libvirtd wrote this XML, and it is trusted.
    root = ET.fromstring(domain_capabilities)  # noqa: S314
    values = root.iterfind("./os/enum[@name='firmware']/value")
    return any(value.text == "efi" for value in values)
