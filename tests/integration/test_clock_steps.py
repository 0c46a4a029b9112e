"""The wall clock of a daemon is stepped while it runs: nothing is lost, and nothing restarts.

No process may set the clock of the machine that tests run on, so a small library that is loaded
before all others answers for it in one process (``stepped_clock.c``).
"""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, Daemon, until
from tests.integration.test_controllers import service

SOURCE = Path(__file__).with_name("stepped_clock.c")
HOUR_S = 3600
PATIENCE_S = 60.0


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


@pytest.mark.slow
def test_clocks_are_stepped(tmp_path: Path, library: Path):
    """An hour forth and back: a node whose clock is off says so, a controller's blames nobody."""
    own = Cluster(tmp_path)
    try:
        step_controller = with_clock(own.controller, library)
        for name in ("n0", "n1", "n2"):
            own.agent(name, drivers="sim")
        step_node = with_clock(own.agents["n0"], library)
        own.start()
        own.apply(service("web", 6))
        own.wait("web")

        def runs() -> set[tuple[str, str, int, str]]:
            return {
                (name, one["runtime_id"], one["restarts"], one["state"])
                for name, one in own.ps("web").items()
            }

        def sick() -> dict[str, str]:
            nodes = own.call("node.list")
            return {one["node"]: str(one["reasons"]) for one in nodes if one["state"] != "ready"}

        before = runs()
        for offset_s, way in ((HOUR_S, "ahead"), (-HOUR_S, "behind")):
            step_node(offset_s)
            until(lambda way=way: way in sick().get("n0", ""), PATIENCE_S, f"a clock {way}")
            assert list(sick()) == ["n0"]
            assert runs() == before
            step_node(0)
            until(own.all_ready, PATIENCE_S, "a clock that is right")
        for offset_s in (HOUR_S, -HOUR_S):
            step_controller(offset_s)
            name = f"at{HOUR_S + offset_s}"
            own.apply(service(name, 3))
            own.wait(name)
            own.remove(name)
            assert runs() == before
            step_controller(0)
        until(own.all_ready, PATIENCE_S, "all of them well")
        assert runs() == before
    finally:
        print(own.logs())  # noqa: T201 - captured
        for daemon in own.others:
            if daemon.process is not None:
                daemon.kill()
