"""Traffic between two instances, made and measured inside of them.

The instances have busybox alone. What they lack, iperf3 with its libraries, is given to them over
``swarmctl exec``, the same way to a container on a host and to a pod in a VM.
"""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from lab import procs
from lab.faults import LabFault
from lab.ovs import Place
from lab.swarm import Swarm

PORT: Final = 5201  # iperf3's own
PING_BYTES: Final = 56  # of payload, unless something else is said
TOOLS: Final = "/tools"
_LOADER: Final = re.compile(r"ld-linux[^/]*$")
_COPY_S: Final = 120.0  # 8 MB to a VM under emulation, over its encrypted session
_COMMAND_S: Final = 120.0
_LISTEN_S: Final = 60.0
_TIMES: Final = re.compile(r"seq=\d+ .*time=([0-9.]+) ms")
_COUNTS: Final = re.compile(r"(\d+) packets transmitted, (\d+) packets received")


@frozen
class Endpoint:
    """An instance on a network, and where its packets come out.

    Attributes:
        swarm: whose instance it is.
        instance: ``web.1``.
        address: on the network that is measured.
        place: the host's namespace in which its port is.
        interface: the port's device there; that of its VM for a pod.
        prefix: what goes before each command inside, to be in another of its namespaces.
    """

    swarm: Swarm = field(repr=False)
    instance: str
    address: str
    place: Place = field(repr=False)
    interface: str
    prefix: tuple[str, ...] = ()

    def command(self, *words: str, interactive: bool = False) -> list[str]:
        """A command as it runs in the instance."""
        options = ["-i"] if interactive else []
        return self.swarm.command("exec", *options, self.instance, *self.prefix, *words)

    def call(self, *words: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run a command in the instance to its end, whatever that is."""
        return subprocess.run(
            self.command(*words, interactive=bool(stdin)),
            input=stdin,
            capture_output=True,
            timeout=_COPY_S if stdin else _COMMAND_S,
            check=False,
        )

    def run(self, *words: str, stdin: bytes = b"") -> str:
        """Run a command in the instance that works; its output.

        Raises:
            LabFault: it failed; with its own words.
        """
        done = self.call(*words, stdin=stdin)
        if done.returncode != 0:
            said = (done.stderr + done.stdout[-2000:]).decode(errors="replace").strip()
            raise LabFault(f"{' '.join(words)} in {self.instance}: {said or done.returncode}")
        return done.stdout.decode(errors="replace")

    def give_tools(self) -> None:
        """See to it that it has iperf3.

        Raises:
            LabFault: it does not run there.
        """
        if self.call(*_iperf3("--version")).returncode == 0:
            return
        self.run("tar", "xzf", "-", "-C", TOOLS, stdin=packed("iperf3"))
        self.run(*_iperf3("--version"))

    def reaches(self, address: str, *, tries: int = 3) -> bool:
        """Whether somebody there answers a ping."""
        return self.call("ping", "-c", str(tries), "-W", "1", address).returncode == 0

    def await_reach(self, address: str, timeout_s: float) -> bool:
        """Whether somebody there comes to answer within that time."""
        return procs.wait_until(lambda: self.reaches(address, tries=1), timeout_s)


@cache
def packed(program: str) -> bytes:
    """A program of this machine and the libraries that it needs, as a compressed tar.

    Raises:
        LabFault: it is not installed.
    """
    path = procs.which(program)
    if path is None:
        raise LabFault(f"{program} is missing", "python3 -m lab up --only ovn")
    listed = procs.run(["ldd", path], timeout_s=_COMMAND_S)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for file in (path, *re.findall(r"(/\S+) \(0x", listed)):
            name = "loader" if _LOADER.search(file) else Path(file).name
            tar.add(Path(file).resolve(), name)
    return buffer.getvalue()


def _iperf3(*words: str) -> list[str]:
    """iperf3 as it runs in an instance."""
    return [f"{TOOLS}/loader", "--library-path", TOOLS, f"{TOOLS}/iperf3", *words]


# --- throughput ----------------------------------------------------------------------------------


@frozen
class Flow:
    """What one TCP connection moved.

    Attributes:
        bytes_moved: that arrived.
        seconds: it took.
        retransmits: segments that were sent again.
        program_cpu_s: CPU seconds of iperf3 itself, both ends.
    """

    bytes_moved: int
    seconds: float
    retransmits: int
    program_cpu_s: float

    @property
    def mbit_per_s(self) -> float:
        """The rate at which payload arrived."""
        return self.bytes_moved * 8 / self.seconds / 1e6


def read_flow(text: str) -> Flow:
    """What ``iperf3 --json`` says.

    Raises:
        LabFault: it failed, or says nothing that makes sense.
    """
    try:
        said: dict[str, Any] = json.loads(text)
        if "error" in said:
            raise LabFault(f"iperf3: {said['error']}")
        end = said["end"]
        share = end["cpu_utilization_percent"]
        seconds = float(end["sum_received"]["seconds"])
        return Flow(
            bytes_moved=int(end["sum_received"]["bytes"]),
            seconds=seconds,
            retransmits=int(end["sum_sent"].get("retransmits", 0)),
            program_cpu_s=(share["host_total"] + share["remote_total"]) / 100 * seconds,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise LabFault(f"iperf3 said what is not understood: {text[-500:]}") from error


def flow(source: Endpoint, target: Endpoint, *amount: str) -> Flow:
    """Send by TCP; ``amount`` is iperf3's ``-t SECONDS`` or ``-n BYTES``.

    Raises:
        LabFault: nothing came through.
    """
    with _listening(target):
        done = source.call(*_iperf3("-c", target.address, "-J", *amount))
    return read_flow(done.stdout.decode(errors="replace"))


@contextmanager
def _listening(target: Endpoint) -> Iterator[None]:
    """iperf3 waits there for one connection."""
    with subprocess.Popen(
        target.command(*_iperf3("-s", "-1", "--forceflush")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as server:
        try:
            assert server.stdout is not None
            _await_line(server.stdout.readline, b"listening")
            yield
            server.wait(_LISTEN_S)
        finally:
            if server.poll() is None:
                server.kill()
                # Its end of the connection with the node goes, not iperf3 in the instance.
                target.call("killall", "loader")


def _await_line(read: Callable[[], bytes], wanted: bytes) -> None:
    seen = b""
    while wanted not in seen:
        line = read()
        seen += line
        if not line:
            raise LabFault(f"iperf3 does not listen: {seen.decode(errors='replace')}")


# --- latency -------------------------------------------------------------------------------------


@frozen
class RoundTrips:
    """Pings: how many were sent, and the times of those that came back, in milliseconds."""

    sent: int
    times_ms: tuple[float, ...]

    @property
    def lost(self) -> int:
        """How many did not come back."""
        return self.sent - len(self.times_ms)

    def at_most_ms(self, percent: float) -> float:
        """What so many of a hundred stay within (the nearest rank)."""
        ordered = sorted(self.times_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def read_round_trips(text: str) -> RoundTrips:
    """What busybox's ``ping`` says.

    Raises:
        LabFault: nothing came back.
    """
    counts = _COUNTS.search(text)
    times = tuple(float(one) for one in _TIMES.findall(text))
    if counts is None or not times:
        raise LabFault(f"ping: {text.strip()[-300:] or 'no answer'}")
    return RoundTrips(int(counts[1]), times)


def round_trips(source: Endpoint, target: Endpoint, count: int) -> RoundTrips:
    """Ping, one after the other.

    Raises:
        LabFault: nothing came back.
    """
    options: Sequence[str] = ("-c", str(count), "-i", "0.02", "-W", "5")
    done = source.call("ping", *options, target.address)
    return read_round_trips(done.stdout.decode(errors="replace"))
