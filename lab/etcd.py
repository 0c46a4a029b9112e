"""etcd for tests and benchmarks: clusters of one or three members, each killed and frozen at will.

Theory of operation. The lab installs the program and starts none: unlike Docker and libvirt an
etcd costs a folder and two ports, so whoever wants one starts one of its own, with nobody else's
data in it. Members listen on free ports of loopback and die with the process that started them
(``setpriv --pdeathsig``), however that ends. A member's ports and folder stay the same over its
restarts, so that a killed one comes back as itself.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from types import TracebackType

from lab import procs
from lab.faults import LabFault

START_S = 30.0  # a member waits for a quorum, and a busy machine for its disk
ASK_S = 1.0
END_S = 10.0
# Sooner than etcd's own 1,000 ms, so that tests of a lost leader take less time.
HEARTBEAT_MS = 50
ELECTION_MS = 500


def program() -> str | None:
    """The program's path, or None where there is none."""
    return procs.which("etcd")


def version() -> str | None:
    """The installed version, or None where there is none."""
    if program() is None:
        return None
    try:
        said = procs.run(["etcd", "--version"], timeout_s=10)
    except (subprocess.SubprocessError, OSError):
        return None
    return said.split("\n", 1)[0].rpartition(" ")[2] or None


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on; all are held until the last is found."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


class Member:
    """One process of a cluster."""

    def __init__(self, name: str, folder: Path, client_port: int, peer_port: int) -> None:
        self.name = name
        self.folder = folder
        self.client_url = f"http://127.0.0.1:{client_port}"
        self.peer_url = f"http://127.0.0.1:{peer_port}"
        self.address = f"127.0.0.1:{client_port}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / f"{self.name}.log"

    def spawn(self, initial: str, more: tuple[str, ...] = ()) -> None:
        """Start it, and do not wait."""
        assert self.process is None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "etcd", "--name", self.name),
                    *("--data-dir", str(self.folder / self.name)),
                    *("--listen-client-urls", self.client_url),
                    *("--advertise-client-urls", self.client_url),
                    *("--listen-peer-urls", self.peer_url),
                    *("--initial-advertise-peer-urls", self.peer_url),
                    *("--initial-cluster", initial, "--initial-cluster-state", "new"),
                    *("--heartbeat-interval", str(HEARTBEAT_MS)),
                    *("--election-timeout", str(ELECTION_MS)),
                    *("--logger", "zap", "--log-level", "warn"),
                    *more,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP freezes it, SIGCONT lets it go on."""
        assert self.process is not None, f"{self.name} does not run"
        self.process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone; a second call does nothing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(END_S)
            self.process = None

    def is_healthy(self) -> bool:
        """Whether it says that it can serve, which needs a quorum."""
        with closing(http.client.HTTPConnection(self.address, timeout=ASK_S)) as connection:
            try:
                connection.request("GET", "/health")
                return bool(json.load(connection.getresponse()).get("health") == "true")
            except (OSError, ValueError, http.client.HTTPException):
                return False


class EtcdCluster:
    """Members below ``folder``; a context manager.

    Args:
        folder: theirs alone; made where it is missing.
        members: how many.
        more: further options of etcd, for all of them.
    """

    def __init__(self, folder: Path, members: int = 1, more: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * members)
        self.more = more
        self.members = [
            Member(f"m{number}", folder, ports[2 * number], ports[2 * number + 1])
            for number in range(members)
        ]

    @property
    def addresses(self) -> list[str]:
        """``HOST:PORT`` of every member, for clients."""
        return [member.address for member in self.members]

    @property
    def url(self) -> str:
        """As ``swarmctl controller --store`` takes it."""
        return "etcd://" + ",".join(self.addresses)

    def start(self) -> EtcdCluster:
        """Start every member that does not run, and wait until all of them serve.

        Raises:
            LabFault: they do not.
        """
        if program() is None:
            raise LabFault("there is no etcd on this machine", "python3 -m lab up --only etcd")
        for member in self.members:
            if member.process is None:
                self.spawn(member)
        if not procs.wait_until(lambda: all(one.is_healthy() for one in self.members), START_S):
            words = "\n".join(procs.last_lines(member.log) for member in self.members)
            self.close()
            raise LabFault(f"etcd does not serve: {words}")
        return self

    def spawn(self, member: Member) -> None:
        """Start one member, and do not wait until it serves."""
        initial = ",".join(f"{one.name}={one.peer_url}" for one in self.members)
        member.spawn(initial, self.more)

    def close(self) -> None:
        """End every member."""
        for member in self.members:
            member.kill()

    def __enter__(self) -> EtcdCluster:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
