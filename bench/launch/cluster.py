"""The processes of a benchmark: one controller and the fleets, as children of this one.

All of them are stopped, by their own process ids, when the block ends; whatever they wrote is in
one temporary folder.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from bench.launch.fleet import FleetSettings
from bench.launch.scenario import Scenario
from swarmctl.cli.clusters import from_file
from swarmctl.client import Client
from swarmctl.proto.errors import EnvironmentFault, NoController, PeerUnreachable

_START_S = 20.0
_STOP_S = 20.0


@frozen
class FleetProcess:
    """One process of simulated nodes, spoken to by lines."""

    settings: FleetSettings
    process: "subprocess.Popen[str]" = field(repr=False)

    def tell(self, command: str) -> None:
        """Send one command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self, verb: str) -> list[str]:
        """The words after ``verb`` in the next line.

        Raises:
            EnvironmentFault: the process has ended, or says something else.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        words = line.split()
        if not words or words[0] != verb:
            raise EnvironmentFault(f"a fleet process answered {line!r}, not {verb!r}")
        return words[1:]


class BenchCluster:
    """A running controller and its simulated nodes."""

    def __init__(self, folder: Path, controller: "subprocess.Popen[bytes]") -> None:
        self.folder = folder
        self.controller = controller
        self.fleets: list[FleetProcess] = []

    @property
    def data(self) -> Path:
        """The controller's data folder."""
        return self.folder / "controller"

    def connect(self) -> Client:
        """A client, as the command line makes it; waits until the controller serves."""
        deadline = time.monotonic() + _START_S
        while True:
            if self.controller.poll() is not None:
                log = (self.folder / "controller.log").read_text(encoding="utf-8")
                raise EnvironmentFault(f"the controller ended: {log[-2000:]}")
            try:
                return Client(from_file(self.data / "admin.context"))
            except (NoController, PeerUnreachable, EnvironmentFault):
                if time.monotonic() > deadline:
                    raise
            except Exception:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def lists(self) -> list[Path]:
        """Have every fleet write what its nodes have; the files."""
        paths = []
        for number, fleet in enumerate(self.fleets):
            path = self.folder / f"list-{number}.jsonl"
            fleet.tell(f"list {path}")
            paths.append(path)
        for fleet in self.fleets:
            fleet.answer("listed")
        return paths


@contextmanager
def bench_cluster(scenario: Scenario) -> Iterator[BenchCluster]:
    """A controller, and fleets that have all joined.

    The folder is on a real disk (beside this checkout unless TMPDIR says otherwise), because the
    store's fsync is part of what is measured.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmctl-bench-")))
        log = stack.enter_context((folder / "controller.log").open("wb"))
        controller = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "swarmctl",
                "controller",
                "--listen",
                "tcp://127.0.0.1:0",
                "--data",
                str(folder / "controller"),
                "--log-level",
                "warning",
            ],
            stdout=log,
            stderr=log,
        )
        stack.callback(_stop, controller)
        cluster = BenchCluster(folder, controller)
        cluster.connect().close()
        for settings in _shares(scenario, cluster):
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.launch.fleet", settings.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)},
            )
            stack.callback(_stop, process)
            cluster.fleets.append(FleetProcess(settings, process))
        for fleet in cluster.fleets:
            fleet.answer("ready")
        yield cluster


def _shares(scenario: Scenario, cluster: BenchCluster) -> Iterator[FleetSettings]:
    """The nodes, shared out over the processes."""
    whole = FleetSettings(
        join=str(cluster.data / "join.token"),
        folder=str(cluster.folder / "nodes"),
        first=0,
        count=0,
        seed=scenario.seed,
        capacity=dict(scenario.capacity),
        delay_s=scenario.delay_s,
        failure_rate=scenario.failure_rate,
    )
    for number in range(scenario.processes):
        first = scenario.nodes * number // scenario.processes
        after = scenario.nodes * (number + 1) // scenario.processes
        yield evolve(whole, first=first, count=after - first)


def _stop(process: "subprocess.Popen[Any]") -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
