"""A node's wire is cut both ways, or one way only, and mended: real daemons, real TCP.

Three nodes sit each behind a wire of their own into the namespace of the controller; each of the
wires is cut another way at the same time, so that one wait serves all.  *One way* is a neighbour's
wrong hardware address at one end: what is sent there is nobody's, and what comes back arrives.
The time of each step, in a cut both ways, is in ``test_real_faults``.
"""

import contextlib
import os
import subprocess

import pytest
from attrs import frozen

from tests.e2e.cluster import Cluster, box, machine, until
from tests.integration import real_instances
from tests.integration.namespaces import entered, inside, ip
from tests.integration.test_real_faults import PATIENCE_S, own

__all__ = ["own"]

HUB = f"swarmcut{os.getpid()}h"
NOBODY = "02:00:00:00:00:99"
COPIES = 8


@frozen
class Wire:
    """A node's namespace, and its wire to the controller's."""

    name: str
    number: int

    @property
    def namespace(self) -> str:
        """The node's."""
        return f"swarmcut{os.getpid()}{self.number}"

    @property
    def hub_end(self) -> str:
        """The controller's end of the wire."""
        return f"to{self.number}"

    def address(self, end: int) -> str:
        """1 is the controller's end, 2 the node's."""
        return f"10.213.{100 + self.number}.{end}"

    def lay(self) -> None:
        """Make the namespace and the wire."""
        ip("netns", "add", self.namespace)
        ip("-n", self.namespace, "link", "set", "lo", "up")
        peer = ("peer", "wire", "netns", self.namespace)
        ip("link", "add", self.hub_end, "netns", HUB, "type", "veth", *peer)
        for place, link, end in ((HUB, self.hub_end, 1), (self.namespace, "wire", 2)):
            ip("-n", place, "addr", "add", f"{self.address(end)}/24", "dev", link)
            ip("-n", place, "link", "set", link, "up")

    def lose(self, place: str, link: str, end: int) -> None:
        """What ``place`` sends to the other end, which has the address ``end``, reaches nobody."""
        to = self.address(end)
        ip("-n", place, "neigh", "replace", to, "lladdr", NOBODY, "dev", link, "nud", "permanent")

    def find(self, place: str, link: str, end: int) -> None:
        """It arrives again."""
        ip("-n", place, "neigh", "del", self.address(end), "dev", link)


BOTH, UPWARDS, DOWNWARDS = WIRES = (
    Wire("cut", 1),
    Wire("unheard", 2),
    Wire("deaf", 3),
)


def cut() -> None:
    """One both ways, one from its node to the controller, one to its node."""
    ip("-n", BOTH.namespace, "link", "set", "wire", "down")
    UPWARDS.lose(UPWARDS.namespace, "wire", 1)
    DOWNWARDS.lose(HUB, DOWNWARDS.hub_end, 2)


def mend() -> None:
    """All as it was."""
    ip("-n", BOTH.namespace, "link", "set", "wire", "up")
    UPWARDS.find(UPWARDS.namespace, "wire", 1)
    DOWNWARDS.find(HUB, DOWNWARDS.hub_end, 2)


@pytest.fixture
def wires():
    """The namespaces, gone at the end."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        ip("netns", "add", HUB)
        ip("-n", HUB, "link", "set", "lo", "up")
        for wire in WIRES:
            wire.lay()
        yield WIRES
    finally:
        for name in (HUB, *(wire.namespace for wire in WIRES)):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.mark.usefixtures("wires")
def test_wires_that_are_cut_either_way_or_both_and_mended(own: Cluster):
    """Each of the nodes is lost, and what it ran goes elsewhere; all are taken back, none twice.

    Containers are real, and so is a VM on each of the nodes that are cut off: at the end Docker and
    libvirt have each once, on the node that was not, and nothing beside them.
    """
    own.controller.prefix = inside(HUB)
    own.agent("near", drivers=real_instances.DRIVERS).prefix = inside(HUB)
    for wire in WIRES:
        at = f"tcp://{wire.address(1)}:7077"
        own.controller.arguments += ["--listen", at]
        agent = own.agent(wire.name, "--controller", at, drivers=real_instances.DRIVERS)
        agent.prefix = inside(wire.namespace)
    own.controller.start()
    for agent in own.agents.values():
        agent.spawn()
    with entered(HUB):
        _cut_and_mended(own)


def _cut_and_mended(own: Cluster) -> None:
    names = {wire.name for wire in WIRES}

    def states() -> dict[str, str]:
        return {one["node"]: one["state"] for one in own.call("node.list")}

    def homes() -> list[str]:
        return sorted(one["node"] for one in own.ps().values() if one["state"] == "running")

    until(own.all_ready, PATIENCE_S, "all nodes")
    own.apply(box("real", COPIES))
    until(lambda: homes() == sorted([*own.agents] * 2), PATIENCE_S, "two on each")
    # Cordoned, or one of the VMs would be where nothing happens to it.
    own.call("node.change", {"names": ["near"], "cordoned": True})
    own.apply(machine("vm", len(WIRES)))
    own.wait("vm")
    own.call("node.change", {"names": ["near"], "cordoned": False})
    before = real_instances.runs(own)
    assert {one["node"] for one in own.ps("vm").values()} == names

    cut()
    until(
        lambda: states() == dict.fromkeys(names, "lost") | {"near": "ready"},
        PATIENCE_S,
        "three nodes lost",
    )
    everything = COPIES + len(WIRES)
    until(lambda: homes() == ["near"] * everything, PATIENCE_S, "all of it elsewhere")
    mend()
    until(own.all_ready, PATIENCE_S, "all nodes back")
    until(lambda: real_instances.as_desired(own, own.call, everything), PATIENCE_S, "each once")
    after = real_instances.runs(own)
    stayed = {name: one for name, one in before.containers.items() if one.node == "near"}
    assert len(stayed) == COPIES // len(own.agents)
    assert after.containers.items() >= stayed.items()
    assert {one.node for one in after.containers.values()} == {"near"}
    assert not after.domains.keys() & before.domains.keys()

    def counts() -> dict[str, int]:
        return {one["node"]: one["instances"] for one in own.call("node.list")}

    expected = dict.fromkeys(names, 0) | {"near": everything}
    until(lambda: counts() == expected, PATIENCE_S, "node ls, that counts so")
