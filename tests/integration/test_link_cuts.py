"""A node's wire is cut both ways, or one way only, and mended: real daemons, real TCP.

Three nodes sit each behind a wire of their own into the namespace of the controller; each of the
wires is cut another way at the same time, so that one wait serves all.  *One way* is a neighbour's
wrong hardware address at one end: what is sent there is nobody's, and what comes back arrives.
With real containers, and the time of each step, a cut both ways is in ``test_real_faults``.
"""

import contextlib
import os
import subprocess

import pytest
from attrs import frozen

from tests.e2e.cluster import Cluster, until
from tests.integration.namespaces import View, inside, ip
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
    """Each of the nodes is lost, and what it ran goes elsewhere; all are taken back, none twice."""
    own.controller.prefix = inside(HUB)
    near = own.agent("near", drivers="sim")
    near.prefix = inside(HUB)
    for wire in WIRES:
        at = f"tcp://{wire.address(1)}:7077"
        own.controller.arguments += ["--listen", at]
        own.agent(wire.name, "--controller", at, drivers="sim").prefix = inside(wire.namespace)

    view = View(own, HUB)
    states, homes = view.states, view.homes
    everybody = {"near", *(wire.name for wire in WIRES)}
    own.controller.start()
    for agent in own.agents.values():
        agent.spawn()
    until(lambda: states() == dict.fromkeys(everybody, "ready"), PATIENCE_S, "all nodes")
    run = ["run", "-d", "--name", "web", "--replicas", str(COPIES), "--driver", "sim", "box"]
    view.run(*run)
    until(lambda: homes() == sorted([*everybody] * 2), PATIENCE_S, "two on each")

    cut()
    until(
        lambda: states() == dict.fromkeys(everybody, "lost") | {"near": "ready"},
        PATIENCE_S,
        "three nodes lost",
    )
    until(lambda: homes() == ["near"] * COPIES, PATIENCE_S, "all of it elsewhere")
    mend()
    until(lambda: states() == dict.fromkeys(everybody, "ready"), PATIENCE_S, "all nodes back")

    def once_each() -> bool:
        shown = view.listed("ps", "-a")
        return sorted((one["instance"], one["node"], one["state"]) for one in shown) == sorted(
            (f"web.{slot}", "near", "running") for slot in range(1, COPIES + 1)
        )

    until(once_each, PATIENCE_S, "each copy once")
    assert {one["node"]: one["instances"] for one in view.listed("node", "ls")} == (
        dict.fromkeys(everybody, 0) | {"near": COPIES}
    )
