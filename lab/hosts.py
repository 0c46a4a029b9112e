"""Several hosts on one machine: network namespaces, each with Open vSwitch and OVN of its own.

Theory of operation. One namespace is the network between the hosts (a Linux bridge) and has OVN's
databases; each host is another, whose interface sits on an OVS bridge that carries the host's
address, since tunnels of a switch in user space begin and end on one. Nothing leaves these
namespaces but Unix sockets in the lab's folder.

Everything is found again by name: namespaces are called ``swl-LAB-…``, and what is in one of them
belongs to the lab, processes included. So :func:`remove` needs no records, and takes away what a
killed program has left as well.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from lab import ovn, procs
from lab.faults import LabFault
from lab.ovs import START_S, Place, Switch, run

HOSTS_DIR = Path("/run/swarmctl-lab")
NAMESPACES_DIR = Path("/run/netns")
PREFIX = "swl"
UNDERLAY = "172.31.255"  # of a network that exists in the lab's namespaces alone
CENTRAL_ADDRESS = f"{UNDERLAY}.1"
NAME_MAX = 12  # of a lab: it is part of the paths of sockets, and of names of namespaces
HOSTS_MAX = 200  # addresses of that network
PHYSICAL_BRIDGE = "br-phys"
PHYSICAL_NETWORK = "physical"  # what the agents of a swarm call the network between the hosts
MTU = 1500
CHASSIS_S = 60.0  # measured: 4 s on an idle machine
GONE_S = 30.0


class Host:
    """One host: its namespace, its switch, its address between the hosts."""

    def __init__(self, lab: str, number: int) -> None:
        self.name = f"h{number}"
        self.address = f"{UNDERLAY}.{10 + number}"
        self.place = Place(namespace_name(lab, self.name), HOSTS_DIR / lab / self.name)
        self.switch = Switch(self.place)

    def start(self, central: ovn.Central, bridge_namespace: str, mtu: int) -> None:
        """Make the namespace, and start what runs in it.

        Raises:
            LabFault: something of it fails.
        """
        run(["ip", "netns", "add", self.place.namespace])
        self.place.run("ip", "link", "set", "lo", "up")
        # Both ends are made where they belong; neither is ever seen on the machine itself.
        self.place.run(
            *("ip", "link", "add", "eth0", "mtu", str(mtu), "type", "veth"),
            *("peer", "name", self.name, "mtu", str(mtu), "netns", bridge_namespace),
        )
        # A switch in user space does not fill in checksums that a sender leaves to hardware.
        self.place.run("ethtool", "-K", "eth0", "tx", "off")
        self.place.run("ip", "link", "set", "eth0", "up")
        self.switch.start(self.name)
        self.switch.add_bridge(PHYSICAL_BRIDGE)
        self.switch.vsctl("add-port", PHYSICAL_BRIDGE, "eth0")
        self._set_address(mtu)
        ovn.join(self.switch, central, self.address)

    def restart_switch(self, mtu: int = MTU) -> None:
        """Start a switch that was killed; its bridges' interfaces went with it, and are made anew.

        Raises:
            LabFault: it does not start.
        """
        self.switch.start_switch()
        interface = ["ip", "link", "show", PHYSICAL_BRIDGE]
        there = procs.wait_until(lambda: _succeeds(self.place.inside(*interface)), START_S)
        if not there:
            raise LabFault(f"the switch of {self.name} does not make its bridges")
        self._set_address(mtu)

    def _set_address(self, mtu: int) -> None:
        self.place.run("ip", "link", "set", PHYSICAL_BRIDGE, "up", "mtu", str(mtu))
        self.place.run("ip", "address", "replace", f"{self.address}/24", "dev", PHYSICAL_BRIDGE)


class Hosts:
    """A lab of hosts; a context manager.

    Args:
        lab: its name, a few characters; there is one of a name on a machine.
        count: how many hosts.
        mtu: of the network between them.
    """

    def __init__(self, lab: str, count: int = 2, mtu: int = MTU) -> None:
        assert 0 < count <= HOSTS_MAX, count
        self.lab = lab
        self.mtu = mtu
        self.central = ovn.Central(
            Place(namespace_name(lab, "net"), HOSTS_DIR / lab / "net"), CENTRAL_ADDRESS
        )
        self.hosts = [Host(lab, number) for number in range(1, count + 1)]

    @property
    def northbound(self) -> str:
        """The address of OVN's northbound database."""
        return self.central.northbound

    def start(self) -> Hosts:
        """Make all of it anew, and wait until every host has joined.

        Raises:
            LabFault: something of it fails; nothing of it is left.
        """
        require()
        remove(self.lab)
        try:
            self._start_central()
            for host in self.hosts:
                host.start(self.central, self.central.place.namespace, self.mtu)
                self._connect(host)
            self._await_chassis()
        except BaseException:
            self.close()
            raise
        return self

    def _start_central(self) -> None:
        place = self.central.place
        run(["ip", "netns", "add", place.namespace])
        place.run("ip", "link", "set", "lo", "up")
        place.run("ip", "link", "add", "br0", "mtu", str(self.mtu), "type", "bridge")
        place.run("ip", "address", "add", f"{CENTRAL_ADDRESS}/24", "dev", "br0")
        place.run("ethtool", "-K", "br0", "tx", "off")
        place.run("ip", "link", "set", "br0", "up")
        self.central.start()

    def _connect(self, host: Host) -> None:
        place = self.central.place
        place.run("ethtool", "-K", host.name, "tx", "off")
        place.run("ip", "link", "set", host.name, "master", "br0", "up")

    def _await_chassis(self) -> None:
        if not procs.wait_until(self.is_complete, CHASSIS_S):
            last = procs.last_lines(self.hosts[0].place.log("controller"))
            raise LabFault(f"only {sorted(self.chassis())} of the hosts have joined OVN: {last}")

    def chassis(self) -> set[str]:
        """The hosts that have joined, as the southbound database knows them."""
        listed = run([
            *("ovn-sbctl", f"--db=unix:{self.central.place.folder}/sb.sock", "--bare"),
            *("--columns=name", "list", "Chassis"),
        ])  # fmt: skip
        return set(listed.split())

    def is_complete(self) -> bool:
        """Whether every host has joined, and has its integration bridge."""
        return self.chassis() >= {host.name for host in self.hosts} and all(
            ovn.INTEGRATION_BRIDGE in host.switch.vsctl("list-br").split() for host in self.hosts
        )

    def close(self) -> None:
        """Take all of it away."""
        remove(self.lab)
        for place in (self.central.place, *(host.place for host in self.hosts)):
            for process in place.running.values():
                process.wait(GONE_S)
            place.running.clear()

    def __enter__(self) -> Hosts:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _succeeds(command: Sequence[str]) -> bool:
    try:
        run(command)
    except LabFault:
        return False
    return True


def namespace_name(lab: str, part: str) -> str:
    """The namespace of a part of a lab."""
    return f"{PREFIX}-{lab}-{part}"


def require() -> None:
    """See to it that hosts can be made here.

    Raises:
        LabFault: they cannot, and why.
    """
    if os.geteuid() != 0:
        raise LabFault("network namespaces need root", "run the same as root")
    missing = [
        program
        for program in ("ovs-vswitchd", "ovsdb-server", "ovn-northd", "ovn-controller", "ethtool")
        if procs.which(program) is None
    ]
    if missing:
        raise LabFault(f"{', '.join(missing)} missing", "python3 -m lab up --only ovn")


def namespaces(lab: str) -> list[str]:
    """The namespaces of a lab that are there."""
    if not NAMESPACES_DIR.exists():
        return []
    return sorted(each.name for each in NAMESPACES_DIR.glob(f"{PREFIX}-{lab}-*"))


def labs() -> set[str]:
    """The labs of hosts that are there, or were not taken away whole."""
    found = {each.name.split("-")[1] for each in NAMESPACES_DIR.glob(f"{PREFIX}-*-*")}
    return found | {each.name for each in HOSTS_DIR.glob("*/") if each.is_dir()}


def remove_orphans() -> None:
    """Take away the labs of test programs that were killed: their names are ``t`` and the pid."""
    for lab in labs():
        pid = lab.removeprefix("t")
        if pid != lab and pid.isdecimal() and procs.read_stat(int(pid)) is None:
            remove(lab)


def remove(lab: str) -> None:
    """Take a lab away: its processes, its namespaces, its folder. What is not there is no error.

    Raises:
        LabFault: a process does not end.
    """
    names = namespaces(lab)
    if not procs.wait_until(lambda: not _kill_inside(names), GONE_S):
        raise LabFault(f"processes in {', '.join(names)} do not end")
    for name in names:
        run(["ip", "netns", "delete", name])
    shutil.rmtree(HOSTS_DIR / lab, ignore_errors=True)


def _kill_inside(names: Sequence[str]) -> list[int]:
    """Send SIGKILL to every process whose network is one of these; those that there were."""
    found = list(processes_in(names))
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return found


def processes_in(names: Sequence[str]) -> Iterator[int]:
    """The live processes whose network namespace is one of these."""
    inodes = set()
    for name in names:
        try:
            inodes.add((NAMESPACES_DIR / name).stat().st_ino)
        except FileNotFoundError:
            continue
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and procs.read_stat(int(entry.name)) is not None:
            try:
                inode = (entry / "ns/net").stat().st_ino
            except OSError:
                continue  # it ended, or may not be looked at
            if inode in inodes:
                yield int(entry.name)
