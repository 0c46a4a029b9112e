"""The wall clock of a daemon is stepped while it runs: nothing is lost, and nothing restarts.

No process may set the clock of the machine that tests run on, so a small library that is loaded
before all others answers for it in one process (``stepped_clock.c``).
"""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmctl.proto import limits
from tests.e2e.cluster import Cluster, Daemon, until
from tests.integration import real_instances
from tests.integration.real_instances import untouched
from tests.integration.test_controllers import service

SOURCE = Path(__file__).with_name("stepped_clock.c")
HOUR_S = 3600
NODES = 20
PATIENCE_S = 60.0
# Who is blamed for a clock is after three heartbeats.
WATCHED_S = 4 * limits.HEARTBEAT_S


def sick(cluster: Cluster) -> dict[str, str]:
    """Why nodes are not ready."""
    nodes = cluster.call("node.list")
    return {one["node"]: str(one["reasons"]) for one in nodes if one["state"] != "ready"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built."""
    built = tmp_path_factory.mktemp("clock") / "stepped_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return built


def with_clock(daemon: Daemon, library: Path) -> Callable[[int], None]:
    """Give a daemon a clock of its own; what sets it, in seconds from the true time."""
    file = daemon.log.with_suffix(".clock")

    def step(offset_s: int) -> None:
        with file.open("r+b" if file.exists() else "wb") as out:
            out.write(struct.pack("q", offset_s))

    step(0)
    daemon.environment = daemon.environment | {
        "LD_PRELOAD": str(library),
        "CLOCK_OFFSET_FILE": str(file),
    }
    return step


@pytest.mark.parametrize(
    ("offset_s", "way"),
    [
        pytest.param(HOUR_S, "ahead", id="forth"),
        # The same comparisons with the sign turned.
        pytest.param(-HOUR_S, "behind", id="back", marks=pytest.mark.slow),
    ],
)
def test_clocks_are_stepped(tmp_path: Path, library: Path, offset_s: int, way: str):
    """A node whose clock is off says so, alone; the controller's blames nobody at any time.

    Whatever is stepped and set right, a container and a VM are the same runs after it.
    """
    own = Cluster(tmp_path)
    try:
        step_controller = with_clock(own.controller, library)
        own.agent("n0", drivers=real_instances.DRIVERS)
        for name in ("n1", "n2", "n3"):
            own.agent(name, drivers="sim")
        step_node = with_clock(own.agents["n0"], library)
        own.start()
        with untouched(own, own.call):
            step_node(offset_s)
            until(lambda: way in sick(own).get("n0", ""), PATIENCE_S, f"a clock {way}")
            # Both are off now, by different amounts: by most clocks it is still that one node.
            step_controller(offset_s // 2)
            assert list(own.blamed(WATCHED_S)) == ["n0"]
            assert way in sick(own)["n0"]
            step_node(0)
            until(own.all_ready, PATIENCE_S, "a clock that is right")
            own.apply(service("meanwhile", 3))
            own.wait("meanwhile")
            own.remove("meanwhile")
            step_controller(0)
            assert own.blamed(WATCHED_S) == {}
    finally:
        print(own.logs())  # noqa: T201 - captured
        own.close()


@pytest.mark.slow
def test_the_controllers_clock_is_stepped_under_many(tmp_path: Path, library: Path):
    """Half of the nodes have said so yet, then more: none of them is called sick meanwhile.

    Simulated instances: what is asked is what nodes are called, by their heartbeats alone.
    """
    own = Cluster(tmp_path)
    try:
        step = with_clock(own.controller, library)
        for number in range(NODES):
            own.agent(f"n{number}", drivers="sim")
        own.start()
        for offset_s in (HOUR_S, 0):
            step(offset_s)
            assert own.blamed(WATCHED_S) == {}
    finally:
        print(own.logs())  # noqa: T201 - captured
        own.close()
