"""Open vSwitch without the kernel's module: a database and a switch of one's own in a namespace.

Theory of operation. Every program runs in the foreground, as a child in its own session, in the
network namespace that it serves (``nsenter --net``: it sees the machine's files, so its sockets can
be used from anywhere). Bridges have ``datapath_type=netdev``: the switch itself moves the packets.
Folders are short, since a Unix socket's path may have 107 characters.
"""

from __future__ import annotations

import os
import signal
import socket as sockets
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab import procs
from lab.faults import LabFault

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
START_S = 60.0  # each program answers in a fraction of a second on an idle machine
COMMAND_S = 60.0
END_S = 10.0


def version() -> str | None:
    """The installed version, or None where there is none."""
    if procs.which("ovs-vswitchd") is None:
        return None
    try:
        said = procs.run(["ovs-vswitchd", "--version"], timeout_s=10)
    except (subprocess.SubprocessError, OSError):
        return None
    return said.split("\n", 1)[0].rpartition(" ")[2] or None


class Place:
    """A network namespace and a folder, and the programs that run there."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def inside(self, *command: str) -> list[str]:
        """A command as it runs in the namespace."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def run(self, *command: str) -> str:
        """Run a command in the namespace, to its end; what it said.

        Raises:
            LabFault: it failed, or took too long.
        """
        return run(self.inside(*command))

    def spawn(self, name: str, *command: str) -> None:
        """Start a program that goes on; ``name`` is for :meth:`kill` and its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = str(self.folder)
        environment = {f"{kind}_{what}DIR": folder for kind in ("OVS", "OVN") for what in
                       ("RUN", "LOG", "DB", "SYSCONF")}  # fmt: skip
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.inside(*command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={**os.environ, **environment, "PATH": procs.search_path()},
            )

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End one of the programs, and wait until it is gone; a second call does nothing."""
        process = self.running.pop(name, None)
        if process is not None:
            process.send_signal(number)
            process.wait(END_S)

    def log(self, name: str) -> Path:
        """What a program says."""
        return self.folder / f"{name}.log"

    def await_socket(self, name: str, socket: Path) -> None:
        """Wait until a program listens.

        Raises:
            LabFault: it does not; with its last words.
        """
        if not procs.wait_until(lambda: _is_listening(socket), START_S):
            words = procs.last_lines(self.log(name))
            raise LabFault(f"{name} in {self.namespace} does not start: {words}")

    def serve_database(self, name: str, schema: Path, remotes: Sequence[str] = ()) -> Path:
        """Start a database server, with an empty database where there is none; its socket."""
        self.folder.mkdir(parents=True, exist_ok=True)
        database, socket = self.folder / f"{name}.db", self.folder / f"{name}.sock"
        if not database.exists():
            run(["ovsdb-tool", "create", str(database), str(schema)])
        self.spawn(
            name,
            "ovsdb-server",
            str(database),
            f"--remote=punix:{socket}",
            *(f"--remote={remote}" for remote in remotes),
            f"--unixctl={self.folder}/{name}.ctl",
        )
        self.await_socket(name, socket)
        return socket


class Switch:
    """Open vSwitch in a place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.socket = place.folder / "conf.sock"

    @property
    def remote(self) -> str:
        """The address of its database."""
        return f"unix:{self.socket}"

    def start(self, system_id: str) -> None:
        """Start the database and the switch.

        Raises:
            LabFault: they do not.
        """
        self.place.serve_database("conf", SCHEMA)
        run(["ovs-vsctl", f"--db={self.remote}", "--no-wait", "init"])
        run(["ovs-vsctl", f"--db={self.remote}", "--no-wait", "set", "Open_vSwitch", ".",
             f"external_ids:system-id={system_id}"])  # fmt: skip
        self.start_switch()

    def start_switch(self) -> None:
        """Start the switch alone, over its database."""
        control = f"--unixctl={self.place.folder}/switch.ctl"
        self.place.spawn("switch", "ovs-vswitchd", self.remote, control)

    def vsctl(self, *words: str) -> str:
        """``ovs-vsctl``; it waits until the switch has done it."""
        return run(["ovs-vsctl", f"--db={self.remote}", f"--timeout={COMMAND_S:.0f}", *words])

    def add_bridge(self, name: str) -> None:
        """Make a bridge in the switch's own datapath."""
        self.vsctl("--may-exist", "add-br", name, "--", "set", "Bridge", name,
                   "datapath_type=netdev")  # fmt: skip


def run(command: Sequence[str]) -> str:
    """Run a command to its end; what it said.

    Raises:
        LabFault: it failed, or took too long.
    """
    try:
        return procs.run(command, timeout_s=COMMAND_S).strip()
    except subprocess.CalledProcessError as error:
        words = " ".join((error.stderr or error.output or "").split())
        raise LabFault(f"`{' '.join(command)}` failed: {words}") from error
    except subprocess.TimeoutExpired as error:
        raise LabFault(f"`{' '.join(command)}` took longer than {COMMAND_S:.0f} s") from error
    except FileNotFoundError as error:
        raise LabFault(f"{command[0]} is missing", "python3 -m lab up --only ovn") from error


def _is_listening(path: Path) -> bool:
    """Whether somebody takes connections at a Unix socket; a stale file is nobody."""
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
