"""The processes of a benchmark: one controller and the fleets, as children of this one.

All of them are stopped, by their own process ids, when the block ends; whatever they wrote is in
one temporary folder.  They are in sessions of their own, so that Ctrl-C reaches this process
alone, which then still can ask them what there is; should this process be killed, they notice by
a pipe that ends.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import asdict, evolve, field, frozen

from bench.launch.fleet import FleetSettings
from bench.launch.scenario import Machine, Scenario
from swarmctl.client import Client
from swarmctl.credentials import parse_context
from swarmctl.proto.errors import EnvironmentFault, InternalError, NoController, PeerError
from swarmctl.transport.errors import KeyRefused

_START_S: Final = 20.0
_STOP_S: Final = 20.0
_ROOT: Final = Path(__file__).parents[2]
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only the folder that temporary ones are made in
# A controller that starts again is looked for this often: failover is measured in tenths.
_LOOK_S: Final = 0.01


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

    def __init__(self, folder: Path, nodes_folder: Path, lifeline_fd: int) -> None:
        self.folder = folder
        self._nodes_folder = nodes_folder
        self.fleets: list[FleetProcess] = []
        self.enrolment_s = 0.0
        self.controller_alone_rss_mib = 0.0
        self._lifeline_fd = lifeline_fd
        self._log = (folder / "daemons.log").open("ab")
        self.controller = self._start_controller("tcp://127.0.0.1:0")

    @property
    def data(self) -> Path:
        """The controller's data folder."""
        return self.folder / "controller"

    @property
    def processes(self) -> list["subprocess.Popen[Any]"]:
        """All that run, the nodes first."""
        return [*(fleet.process for fleet in self.fleets), self.controller]

    # --- the controller -----------------------------------------------------------------------

    def _start_controller(self, address: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "swarmctl", "controller", "--listen", address),
                *("--data", str(self.data), "--log-level", "warning"),
                *("--lifeline-fd", str(self._lifeline_fd)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(self._lifeline_fd,),
            start_new_session=True,
        )

    def kill_controller(self) -> None:
        """End it without a warning, and start it again at once on the same folder and address."""
        [address] = self._context().addresses
        self.controller.kill()
        self.controller.wait()
        self.controller = self._start_controller(address)

    def _context(self) -> Any:
        path = self.data / "admin.context"
        return parse_context(path.read_text(encoding="utf-8"), str(path))

    def connect(self) -> Client:
        """A client, as the command line makes it; waits until the controller serves.

        Raises:
            EnvironmentFault: the controller has ended.
            NoController: it does not serve in time.
        """
        deadline = time.monotonic() + _START_S
        while True:
            if self.controller.poll() is not None:
                log = (self.folder / "daemons.log").read_text(encoding="utf-8")
                raise EnvironmentFault(f"the controller ended: {log[-2000:]}")
            try:
                return Client(self._context())
            except (FileNotFoundError, PeerError, KeyRefused) as error:
                # A controller in the moment of its start may also refuse a key.
                if time.monotonic() > deadline:
                    raise NoController(f"it does not serve in {_START_S:g} s: {error}") from error
            time.sleep(_LOOK_S)

    # --- the nodes ----------------------------------------------------------------------------

    def start_fleets(self, scenario: Scenario) -> None:
        """Start the nodes, and wait until all have enrolled and are ready."""
        began = time.monotonic()
        for settings in self._shares(scenario):
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.launch.fleet", settings.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                start_new_session=True,
            )
            self.fleets.append(FleetProcess(settings, process))
        for fleet in self.fleets:
            fleet.answer("ready")
        self.enrolment_s = time.monotonic() - began

    def _shares(self, scenario: Scenario) -> Iterator[FleetSettings]:
        """The nodes, shared out over the processes."""
        machines = scenario.machines or (Machine(capacity=scenario.capacity),)
        whole = FleetSettings(
            join=str(self.data / "join.token"),
            folder=str(self._nodes_folder),
            first=0,
            count=0,
            seed=scenario.seed,
            machines=tuple(asdict(one) for one in machines),
            delay_s=scenario.delay_s,
            failure_rate=scenario.failure_rate,
        )
        for number in range(scenario.processes):
            first = scenario.nodes * number // scenario.processes
            after = scenario.nodes * (number + 1) // scenario.processes
            yield evolve(whole, first=first, count=after - first)

    def tell_all(self, commands: list[str], verb: str) -> list[list[str]]:
        """Send each fleet its command, and take all answers."""
        for fleet, command in zip(self.fleets, commands, strict=True):
            fleet.tell(command)
        return [fleet.answer(verb) for fleet in self.fleets]

    def lists(self) -> list[Path]:
        """Have every fleet write what its nodes have; the files."""
        paths = [self.folder / f"list-{number}.jsonl" for number in range(len(self.fleets))]
        self.tell_all([f"list {path}" for path in paths], "listed")
        return paths

    def vanish(self, count: int) -> None:
        """Let ``count`` nodes fall silent, evenly from the processes."""
        shares = len(self.fleets)
        counts = [count * (n + 1) // shares - count * n // shares for n in range(shares)]
        self.tell_all([f"vanish {one}" for one in counts], "vanished")

    def reconnect(self) -> float:
        """Let all nodes lose their connections; seconds until the last is back."""
        answers = self.tell_all(["reconnect"] * len(self.fleets), "reconnected")
        return max(float(answer[0]) for answer in answers)

    def stop_fleets(self) -> None:
        """End the nodes' processes."""
        for fleet in self.fleets:
            _stop(fleet.process)
        self.fleets.clear()

    def close(self) -> None:
        """End everything that runs."""
        for process in self.processes:
            _stop(process)
        self._log.close()


@contextmanager
def bench_cluster(scenario: Scenario) -> Iterator[BenchCluster]:
    """A controller, and fleets that have all joined.

    The folder is where TMPDIR says; it should be on a real disk, because the store's fsync is
    part of what is measured (the report names the file system).  What the nodes keep is in memory
    where that can be had: in life those are the disks of other machines.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmctl-bench-"))
        memory = _MEMORY if _MEMORY.is_dir() else folder
        nodes = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="swarmctl-bench-nodes-", dir=memory)
        )
        lifeline_fd, our_end = os.pipe()
        stack.callback(os.close, our_end)
        stack.callback(os.close, lifeline_fd)
        cluster = BenchCluster(Path(folder), Path(nodes), lifeline_fd)
        stack.callback(cluster.close)
        cluster.connect().close()
        cluster.controller_alone_rss_mib = memory_mib(cluster.controller.pid)
        cluster.start_fleets(scenario)
        yield cluster


def memory_mib(pid: int, *, peak: bool = False) -> float:
    """What a process holds in memory, or has held at most.

    From the kernel's books of its own address space: what ``getrusage`` says of a child begins
    with its parent's.
    """
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) / 1024
    raise InternalError(f"no {wanted} of process {pid}")


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used so far, in user and system mode."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _stop(process: "subprocess.Popen[Any]") -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
