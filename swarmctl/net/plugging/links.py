"""The kernel's side of a plug: veth pairs and taps, and what is inside, through netlink.

Everything here blocks and is called in threads.  Links are made by one message each, both ends of
a pair at once and the inner one in its namespace and under its final name: a crash leaves either
nothing or something that is found by its name.

A thread enters a namespace to work in it and goes back before it is used for anything else; the
process as a whole stays where it is.
"""

import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from pyroute2 import IPRoute, NetlinkError

from swarmctl.net.plugging.api import InNamespace
from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.messages import Attachment

# An open netlink socket; the library has no types.
Netlink: TypeAlias = Any

_CLONE_NEWNET: Final = 0x40000000
_IFA_F_NODAD: Final = 0x02
# RT_SCOPE_LINK: without a gateway, for what is all on this link.
_ON_LINK: Final = 253
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_STXCSUM: Final = 0x17
# What a port has whose network says nothing: Ethernet's own.
DEFAULT_MTU: Final = 1500


@contextmanager
def inside(namespace: str) -> Generator[None, None, None]:
    """This thread in the network namespace at ``namespace``; empty leaves it where it is.

    Raises:
        LaunchFailed: there is none.
    """
    if not namespace:
        yield
        return
    with opened("/proc/thread-self/ns/net") as back, opened(namespace) as there:
        _enter(there)
        try:
            yield
        finally:
            _enter(back)


@contextmanager
def opened(namespace: str) -> Generator[int, None, None]:
    """A descriptor of the network namespace at ``namespace``.

    Raises:
        LaunchFailed: there is none.
    """
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise LaunchFailed("its network namespace is gone", namespace) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(namespace: int) -> None:
    _checked(ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET), "enter")


class Namespace:
    """A network namespace without a name; it is there as long as the context, or what is in it."""

    def __enter__(self) -> "Namespace":
        self._descriptor = _new_namespace()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def path(self) -> str:
        """Where this process finds it."""
        return f"/proc/self/fd/{self._descriptor}"


def _new_namespace() -> int:
    with opened("/proc/thread-self/ns/net") as back:
        _checked(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET), "make")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _enter(back)


def _checked(result: int, doing: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {doing} a network namespace: {os.strerror(number)}")


@contextmanager
def explained(port: str) -> Generator[None, None, None]:
    """What the kernel refuses, as our error."""
    try:
        yield
    except NetlinkError as error:
        raise LaunchFailed(f"the kernel refused to plug it in: {error}", port) from error
    except OSError as error:
        hint = "the agent needs CAP_NET_ADMIN and CAP_SYS_ADMIN" if error.errno == 1 else ""
        raise LaunchFailed(f"could not plug it in: {error}", port, hint) from error


def plug_veth(
    device: str, attachment: Attachment, target: InNamespace, *, fill_checksums: bool
) -> None:
    """A veth pair, ``device`` here and ``target.name`` in the target's namespace.

    ``fill_checksums`` has the inner end's packets leave with their checksums, for who reads them
    from the outer one will not add them.
    """
    mtu = attachment.mtu or DEFAULT_MTU
    with IPRoute() as here, opened(target.path) as namespace:
        index = index_of(here, device)
        if index is not None and not _leads_to(index, target):
            unplug(
                device
            )  # It leads into a namespace that it had before, and may be going with it.
            index = None
        if index is None:
            peer = {
                "ifname": target.name,
                "net_ns_fd": namespace,
                "address": attachment.mac,
                "mtu": mtu,
            }
            here.link("add", ifname=device, kind="veth", mtu=mtu, peer=peer)
            index = index_of(here, device)
        here.link("set", index=index, state="up", mtu=mtu)
    configure(attachment, target, fill_checksums=fill_checksums)


def _leads_to(index: int, target: InNamespace) -> bool:
    """Whether the inner end of the pair whose outer end has ``index`` is the target's interface."""
    with inside(target.path), IPRoute() as there:
        inner = there.link_lookup(ifname=target.name)
        return bool(inner) and there.get_links(inner[0])[0].get("link") == index


def plug_tap(device: str, mtu: int) -> None:
    """A tap that stays when nobody has it open."""
    with IPRoute() as here:
        if index_of(here, device) is None:
            here.link("add", ifname=device, kind="tuntap", mode="tap")
        here.link("set", index=index_of(here, device), state="up", mtu=mtu or DEFAULT_MTU)


def configure(attachment: Attachment, target: InNamespace, *, fill_checksums: bool) -> None:
    """Addresses, routes, MTU and MAC of an interface in its namespace, whatever it had before."""
    addresses = [ipaddress.ip_interface(text) for text in attachment.addresses]
    with inside(target.path), IPRoute() as there:
        there.link("set", index=index_of(there, "lo"), state="up")
        index = index_of(there, target.name)
        if index is None:
            raise LaunchFailed(f"{target.name} has left its namespace", attachment.port)
        # Its routes are what it is told: routers are heard of on internal networks, too.
        _set_ipv6(target.name, "accept_ra", "0")
        if any(address.version == 6 for address in addresses):
            # Docker switches it off for containers that it gave no address of it.
            _set_ipv6(target.name, "disable_ipv6", "0")
        mtu = attachment.mtu or DEFAULT_MTU
        there.link("set", index=index, mtu=mtu, address=attachment.mac, state="up")
        if fill_checksums:
            _fill_checksums(target.name)
        for address in addresses:
            # That nobody else has it is OVN's to see to; the kernel would doubt it for a second.
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            there.addr(
                "replace",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **flags,
            )
        for destination, gateway in attachment.routes:
            _route(there, index, destination, gateway)


def _route(there: Netlink, index: int, destination: str, gateway: str) -> None:
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    if destination in ("0.0.0.0/0", "::/0"):
        destination = "default"
    hop = {"gateway": gateway} if gateway else {"scope": _ON_LINK}
    there.route("replace", dst=destination, oif=index, family=family, **hop)


def _set_ipv6(name: str, setting: str, value: str) -> None:
    """One of an interface's settings, in a kernel that has IPv6."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{name}/{setting}")
    if switch.exists():
        switch.write_text(value, encoding="ascii")


def _fill_checksums(name: str) -> None:
    """As ``ethtool -K NAME tx off``."""
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0), 8)
    request = struct.pack("16sP", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request.ljust(40, b"\0"))


def index_of(netlink: Netlink, name: str) -> int | None:
    """The index of the interface of that name; None when there is none."""
    found = netlink.link_lookup(ifname=name)
    return int(found[0]) if found else None


def unplug(device: str) -> None:
    """Remove a device, and with it its other end; nothing happens when it is not there."""
    with IPRoute() as here:
        index = index_of(here, device)
        if index is None:
            return
        try:
            here.link("del", index=index)
        except NetlinkError as error:
            if error.code != 19:  # ENODEV: it has just gone with the namespace of its other end
                raise


def devices(owns: Callable[[str], bool]) -> dict[str, int]:
    """The MTU of every device whose name is one of ours."""
    with IPRoute() as here:
        links = [(link.get("ifname"), link.get("mtu")) for link in here.get_links()]
    return {name: mtu for name, mtu in links if name and owns(name)}
