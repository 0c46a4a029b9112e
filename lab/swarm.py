"""A swarm of several hosts on one machine: a controller with OVN, and an agent on every host.

Theory of operation. The hosts are those of `lab.hosts`, each a whole machine (`lab.machines`); the
controller runs where OVN's databases are. Every process is the real one, started by the command
that a user would type. Commands of a user run where the controller is, since no address of the lab
can be reached from outside.

Everything ends with the hosts' namespaces, so a swarm is taken away by name, like its hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import hosts, procs
from lab.config import Paths, paths_from
from lab.faults import LabFault
from lab.hosts import Hosts
from lab.machines import Machine, remove_cgroups

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = (str(ROOT / ".venv/bin/swarmctl"),)
PORT = 7077
READY_S = 90.0  # each imports for a second on an idle machine
COMMAND_S = 180.0
LAUNCH_S = 240.0


class Swarm:
    """A swarm; a context manager.

    Args:
        lab: its name, as that of `lab.hosts.Hosts`.
        count: how many hosts.
        drivers: what the agents offer: ``docker``, ``libvirt``, ``oci``.
        paths: the lab's folders; those of this environment unless given.
        mtu: of the network between the hosts.
        program: the swarmctl that is run.
    """

    def __init__(
        self,
        lab: str,
        count: int = 2,
        drivers: Sequence[str] = ("oci", "libvirt"),
        *,
        paths: Paths | None = None,
        mtu: int = hosts.MTU,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.drivers = tuple(drivers)
        self.paths = paths or paths_from()
        self.folder = folder_of(self.paths, lab)
        self.hosts = Hosts(lab, count, mtu)
        self.machines = [Machine(host, self.folder / host.name) for host in self.hosts.hosts]
        self.program = tuple(program)

    @property
    def controller_data(self) -> Path:
        """The controller's folder, with the ways in."""
        return self.folder / "controller"

    @property
    def address(self) -> str:
        """Where the controller listens."""
        return f"tcp://{hosts.CENTRAL_ADDRESS}:{PORT}"

    # --- processes ----------------------------------------------------------------------------

    def start(self) -> Swarm:
        """Make all of it anew, and wait until every node is ready.

        Raises:
            LabFault: something of it fails; nothing of it is left.
        """
        remove(self.hosts.lab, self.paths)
        self.folder.mkdir(parents=True)
        try:
            self.hosts.start()
            self.start_controller()
            for machine in self.machines:
                self.start_machine(machine)
                self.start_agent(machine)
            self.await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def start_controller(self) -> None:
        """Start the controller, and wait until it answers."""
        self.hosts.central.place.spawn(
            "controller",
            *self.program,
            *("controller", "--listen", self.address, "--data", str(self.controller_data)),
            *("--ovn", self.hosts.northbound, "--underlay-mtu", str(self.hosts.mtu)),
        )
        self.until(self._answers, READY_S, "an answer of the controller")

    def start_machine(self, machine: Machine) -> None:
        """Start a machine and the daemons that its agent's drivers need."""
        machine.boot()
        if "libvirt" in self.drivers:
            machine.start_libvirt()
        if "docker" in self.drivers:
            machine.start_docker(self.paths)

    def start_agent(self, machine: Machine) -> None:
        """Start the agent of a machine; :meth:`await_ready` waits for it."""
        machine.spawn(
            "agent",
            *self.program,
            *("agent", "--name", machine.name, "--data", str(machine.folder / "agent")),
            *("--join", str(self.controller_data / "join.token")),
            *("--drivers", ",".join(self.drivers)),
            *("--ovs", machine.host.switch.remote),
            *("--bridge", f"{hosts.PHYSICAL_NETWORK}={hosts.PHYSICAL_BRIDGE}"),
            *("--docker-host", f"unix://{machine.docker_socket}"),
            *("--images", str(self.paths.guest_dir)),
        )

    def await_ready(self, *more: str) -> None:
        """Wait until the node of every host is ready, and the nodes ``more`` as well."""
        wanted = {machine.name for machine in self.machines} | set(more)
        self.until(lambda: wanted <= self.ready_nodes(), READY_S, f"{wanted} ready")

    def ready_nodes(self) -> set[str]:
        """The nodes that are ready."""
        return {each["node"] for each in self.listed("node", "ls") if each["state"] == "ready"}

    def _answers(self) -> bool:
        if not (self.controller_data / "admin.context").exists():
            return False
        return self.call("node", "ls").returncode == 0

    def until(
        self,
        condition: Callable[[], object],
        timeout_s: float,
        what: str,
        every_s: float = procs.POLL_S,
    ) -> None:
        """Wait until something is so.

        Args:
            condition: whether it is; a command costs CPU, of which emulated guests want all.
            timeout_s: for so long.
            what: is waited for, in words.
            every_s: the pause between two looks.

        Raises:
            LabFault: it is not, in time; with the last words of all daemons.
        """
        if not procs.wait_until(lambda: bool(condition()), timeout_s, every_s):
            raise LabFault(f"{what}: not so within {timeout_s:.0f} s\n{self.last_words()}")

    # --- commands -----------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """A user's command as it runs where the controller is."""
        context = str(self.controller_data / "admin.context")
        program = [*self.program, "--context", context]
        return self.hosts.central.place.inside(*program, *words)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a user's command to its end, whatever that is."""
        return subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            env={**os.environ, "COLUMNS": "200"},
            check=False,
        )

    def run(self, *words: str) -> str:
        """Run a user's command that works; its output.

        Raises:
            LabFault: it failed; with its own words.
        """
        done = self.call(*words)
        if done.returncode != 0:
            raise LabFault(f"swarmctl {' '.join(words)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def listed(self, *words: str) -> list[Any]:
        """Run a user's command that lists; the list.

        Raises:
            LabFault: it failed.
        """
        answer = json.loads(self.run(*words, "-o", "json"))
        assert isinstance(answer, list), "everything that lists answers with a list"
        return answer

    def instances(self, *names: str) -> dict[str, dict[str, Any]]:
        """Instance name to what ``ps`` shows of it."""
        return {each["instance"]: each for each in self.listed("ps", *names)}

    # --- the end ------------------------------------------------------------------------------

    def last_words(self) -> str:
        """The ends of the logs of all that runs."""
        places = [self.hosts.central.place, *(host.place for host in self.hosts.hosts)]
        logs = [log for place in places for log in sorted(place.folder.glob("*.log"))]
        return "\n".join(f"--- {log}\n{procs.last_lines(log, 12)}" for log in logs)

    def close(self) -> None:
        """Take all of it away."""
        self.hosts.close()
        _remove_folder(self.folder)

    def __enter__(self) -> Swarm:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def folder_of(paths: Paths, lab: str) -> Path:
    """Where the daemons of a swarm keep what they keep."""
    return paths.state_dir / "swarms" / lab


def remove(lab: str, paths: Paths) -> None:
    """Take a swarm away, by its name; what is not there is no error.

    Raises:
        LabFault: a process does not end.
    """
    hosts.remove(lab)
    _remove_folder(folder_of(paths, lab))


def _remove_folder(folder: Path) -> None:
    for machine in folder.glob("h*"):
        remove_cgroups(machine)
    shutil.rmtree(folder, ignore_errors=True)
