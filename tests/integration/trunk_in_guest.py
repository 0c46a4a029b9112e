"""Run inside a VM: the contract of plugs on a trunk, on a kernel that has VLANs.

The trunk is one end of a veth pair; at the other end, in a namespace of its own, is what OVN is on
the host: a gateway on each VLAN that was "installed".  Run with ``dry``, it goes through the suite
on memory, so that every module that the suite needs has been imported.
"""

import ctypes
import encodings.ascii  # not imported by name, but looked for when a text is written
import encodings.latin_1
import os
import sys
import traceback
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import attrs
import pytest
import trio
from pyroute2 import IPRoute

from swarmctl.net.plugging import links, vlans
from swarmctl.net.plugging.api import InNamespace
from swarmctl.net.plugging.trunk import TrunkPlugs
from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.messages import Attachment
from tests.integration.plugging_contract import INCARNATION, Bench, PlugsContract, Seen, attachment

NAMED = Path("/run/netns")
OUTSIDE = "outside"
_MS_BIND, _MNT_DETACH = 0x1000, 2
_numbers = count(1)


class TrunkBench(Bench):
    """A trunk, the host at its other end, and namespaces by name."""

    def __init__(self, stack: ExitStack) -> None:
        # Another name each time: a pair whose other namespace ended goes a moment later.
        self.trunk = trunk = f"trunk{next(_numbers)}"
        self.plugs = TrunkPlugs("c0c0c0c0", "vm", trunk)
        self._stack = stack
        self._host = stack.enter_context(links.Namespace())
        with IPRoute() as here, links.opened(self._host.path) as host:
            peer = {"ifname": OUTSIDE, "net_ns_fd": host}
            here.link("add", ifname=trunk, kind="veth", peer=peer)
            here.link("set", ifname=trunk, state="up")
        with links.inside(self._host.path), IPRoute() as host:
            host.link("set", ifname=OUTSIDE, state="up")

    def attachment(self, index: int = 0) -> Attachment:
        """With a VLAN, as on a trunk."""
        return attrs.evolve(attachment(index), vlan=100 + index)

    def new_namespace(self) -> str:
        """One that is held by name, as a container's is by its process."""
        path = NAMED / str(next(_numbers))
        path.touch()
        with links.Namespace() as made:
            libc = ctypes.CDLL(None, use_errno=True)
            done = libc.mount(made.path.encode(), str(path).encode(), None, _MS_BIND, None)
            assert done == 0, os.strerror(ctypes.get_errno())
        self._stack.callback(self.drop_namespace, str(path))
        return str(path)

    def drop_namespace(self, path: str) -> None:
        """Nobody holds it any more."""
        if Path(path).exists():
            ctypes.CDLL(None).umount2(path.encode(), _MNT_DETACH)
            Path(path).unlink()

    def see(self, path: str) -> dict[str, Seen]:
        """Links, addresses and routes as the kernel tells them."""
        found = {}
        with links.inside(path), IPRoute() as there:
            routes = there.get_routes(family=2)
            for link in there.get_links():
                if link.get("ifname") == "lo":
                    continue
                every = there.get_addr(index=link["index"])
                found[link.get("ifname")] = Seen(
                    link.get("address"),
                    link.get("mtu"),
                    tuple(f"{one.get('address')}/{one['prefixlen']}" for one in every),
                    tuple(
                        (f"{one.get('dst')}/{one['dst_len']}" if one.get("dst") else "default",
                         one.get("gateway"))
                        for one in routes
                        if one.get("oif") == link["index"] and one.get("gateway")
                    ),
                )  # fmt: skip
        return found

    def install(self, one: Attachment) -> None:
        """The gateway begins to answer on the port's VLAN."""
        with links.inside(self._host.path), IPRoute() as host:
            name = f"{OUTSIDE}.{one.vlan}"
            parent = links.index_of(host, OUTSIDE)
            host.link("add", ifname=name, kind="vlan", link=parent, vlan_id=one.vlan)
            index = links.index_of(host, name)
            host.link("set", index=index, state="up")
            host.addr("add", index=index, address="10.20.0.1", prefixlen=24)


async def test_another_pods_vlan_is_not_taken(bench: TrunkBench) -> None:
    """Two pods with one VLAN: the second is refused with the reason, the first stays."""
    one = bench.attachment()
    other = attrs.evolve(bench.attachment(), vlan=one.vlan)
    paths = bench.new_namespace(), bench.new_namespace()
    await bench.plugs.plug(one, InNamespace(paths[0], "eth0"), INCARNATION)
    with pytest.raises(LaunchFailed, match="in use by another pod"):
        await bench.plugs.plug(other, InNamespace(paths[1], "eth0"), INCARNATION + 1)
    assert [each.port for each in await bench.plugs.list()] == [one.port]


async def test_a_trunk_may_be_called_as_a_pods_interface(bench: TrunkBench) -> None:
    """As in a guest with one card, whose pods call theirs alike."""
    with IPRoute() as here:
        index = links.index_of(here, bench.trunk)
        here.link("set", index=index, state="down")
        here.link("set", index=index, ifname="eth0")
    bench.plugs = TrunkPlugs("c0c0c0c0", "vm", "eth0")
    one, path = bench.attachment(), bench.new_namespace()
    for _ in range(2):
        await bench.plugs.plug(one, InNamespace(path, "eth0"), INCARNATION)
    assert set(bench.see(path)) == {"eth0"}
    assert [each.port for each in await bench.plugs.list()] == [one.port]


def suite() -> dict[str, object]:
    """Every test by its name."""
    contract = PlugsContract()
    found = {name: getattr(contract, name) for name in dir(contract) if name.startswith("test_")}
    more = (test_another_pods_vlan_is_not_taken, test_a_trunk_may_be_called_as_a_pods_interface)
    return found | {test.__name__: test for test in more}


def dry() -> list[str]:
    """The files of all modules that the suite uses."""
    from tests.unit.net.test_net_plugging import MemoryBench

    for test in (test for name, test in suite().items() if name in dir(PlugsContract)):
        trio.run(test, MemoryBench())
    assert all((vlans, encodings.ascii, encodings.latin_1))
    return [module.__file__ for module in list(sys.modules.values())
            if getattr(module, "__file__", None)]  # fmt: skip


def main() -> None:
    """Run it all; the last line says how it went."""
    NAMED.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, test in suite().items():
        with ExitStack() as stack:
            try:
                trio.run(test, TrunkBench(stack))
            except BaseException:  # noqa: BLE001 - each is told, and the others run
                failed += 1
                traceback.print_exc(file=sys.stdout)
                sys.stdout.write(f"trunk: FAILED {name}\n")
            else:
                sys.stdout.write(f"trunk: ok {name}\n")
    sys.stdout.write(f"trunk: done, {failed} failed of {len(suite())}\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["dry"]:
        sys.stdout.write("\n".join(dry()))
    else:
        main()
