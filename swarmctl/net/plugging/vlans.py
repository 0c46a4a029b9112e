"""The kernel's side of a pod's plug in a VM: VLAN subinterfaces of its trunk, through netlink.

As :mod:`.links`: it blocks, and is called in threads.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute, NetlinkError

from swarmctl.net.plugging import links
from swarmctl.net.plugging.api import InNamespace, Plugged
from swarmctl.net.plugging.devices import Devices
from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.messages import Attachment

_NO_VLANS: Final = 95  # EOPNOTSUPP: the kernel has no such kind of link
_TAKEN: Final = 17  # EEXIST
# Where namespaces are held by name, and by processes.
_NAMED: Final = Path("/run/netns")
_PROCESSES: Final = Path("/proc")
# NUD_*: states in which a neighbour's address is known.
_ANSWERED: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
_DISCARD_PORT: Final = 9
# OVN's answer takes about a millisecond, where its flows are there.
_LOOK_EVERY_S: Final = 0.002


def plug(trunk: str, attachment: Attachment, target: InNamespace, whose: str) -> None:
    """The trunk's subinterface of the attachment's VLAN, in the target's namespace.

    ``whose`` is its alias: the device's name and the incarnation.  It is made under the device's
    name: the kernel refuses the final one where the trunk itself is called so (``eth0``).
    """
    device = whose.partition(" ")[0]
    if not _is_present(target, device) and not _make(trunk, attachment, target, device):
        # Its own, in a namespace that it had before; another pod's stays.
        unplug((device,))
        if not _make(trunk, attachment, target, device):
            raise LaunchFailed(
                f"VLAN {attachment.vlan} of {trunk} is in use by another pod", attachment.port
            )
    with links.inside(target.path), IPRoute() as there:
        half = links.index_of(there, device)
        if half is not None:
            there.link("set", index=half, ifname=target.name)
        alias = f"{whose} {attachment.port}"
        there.link("set", index=links.index_of(there, target.name), ifalias=alias)
    links.configure(attachment, target, fill_checksums=False)


def _is_present(target: InNamespace, device: str) -> bool:
    """Whether the subinterface is made already, under its final name or half way."""
    with links.inside(target.path), IPRoute() as there:
        return any(links.index_of(there, name) is not None for name in (target.name, device))


def _make(trunk: str, attachment: Attachment, target: InNamespace, device: str) -> bool:
    """Whether it is made; not when the trunk has such a VLAN somewhere."""
    with IPRoute() as here, links.opened(target.path) as namespace:
        parent = links.index_of(here, trunk)
        if parent is None:
            raise LaunchFailed(f"the trunk {trunk} is not there", attachment.port)
        here.link("set", index=parent, state="up")
        try:
            here.link(
                "add",
                ifname=device,
                kind="vlan",
                link=parent,
                vlan_id=attachment.vlan,
                net_ns_fd=namespace,
                address=attachment.mac,
                mtu=attachment.mtu or links.DEFAULT_MTU,
            )
        except NetlinkError as error:
            if error.code == _TAKEN:
                return False
            if error.code == _NO_VLANS:
                raise LaunchFailed(
                    "this kernel has no VLANs", attachment.port, "load the module 8021q"
                ) from error
            raise
        return True


def gateway_answers(target: InNamespace, gateway: str, within_s: float) -> bool:
    """Whether the gateway's link address comes to be known to the plug's interface in that time.

    It is asked for once; the kernel repeats that each second.

    Raises:
        LaunchFailed: the namespace is gone, or the interface has left it.
    """
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    until = time.monotonic() + within_s
    with links.inside(target.path), IPRoute() as there:
        index = links.index_of(there, target.name)
        if index is None:
            raise LaunchFailed("it has left its namespace", target.name)
        _ask(target.name, gateway, family)
        while not _is_known(there, index, gateway, family):
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_EVERY_S)
    return True


def _ask(name: str, gateway: str, family: int) -> None:
    """Have the kernel look for a neighbour, by sending it something."""
    with socket.socket(family, socket.SOCK_DGRAM) as asking, suppress(OSError):
        asking.settimeout(0)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        asking.sendto(b"", (gateway, _DISCARD_PORT))


def _is_known(there: links.Netlink, index: int, gateway: str, family: int) -> bool:
    found = there.get_neighbours(family=family, ifindex=index)
    return any(one.get("dst") == gateway and one.get("state", 0) & _ANSWERED for one in found)


def unplug(devices: tuple[str, ...]) -> None:
    """Remove the plugs of these names, wherever they are."""
    for name, alias, _ in _namespaced():
        if name in devices or alias.partition(" ")[0] in devices:
            links.unplug(name)


def plugged(devices: Devices) -> tuple[Plugged, ...]:
    """All plugs of this node."""
    found = []
    for _, alias, mtu in _namespaced():
        words = alias.split(" ")
        if len(words) == 3 and devices.owns(words[0]) and words[1].isdecimal():
            found.append(Plugged(words[0], int(words[1]), words[2], mtu))
    return tuple(found)


def _namespaced() -> Iterator[tuple[str, str, int]]:
    """Name, alias and MTU of every VLAN; while one is handed out, the thread is beside it.

    It may go at any moment, as its namespace may.
    """
    for path in _namespaces():
        with suppress(LaunchFailed), links.inside(path):
            with IPRoute() as there:
                every = [
                    (one.get("ifname"), one.get("ifalias") or "", one.get("mtu") or 0)
                    for one in there.get_links()
                    if _kind(one) == "vlan"
                ]
            yield from every


def _kind(link: object) -> str:
    information = link.get("linkinfo")  # type: ignore[attr-defined]  # the library has no types
    return str(information.get("kind")) if information else ""


def _namespaces() -> list[str]:
    """A path to each network namespace of this machine but our own, held by a process or a name."""
    paths = [path / "ns/net" for path in _PROCESSES.iterdir() if path.name.isdecimal()]
    paths += _NAMED.iterdir() if _NAMED.is_dir() else []
    seen = {Path("/proc/self/ns/net").stat().st_ino}
    found = []
    for path in paths:
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            number = path.stat().st_ino
            if number not in seen:
                seen.add(number)
                found.append(str(path))
    return found
