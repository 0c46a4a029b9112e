"""What is on an interface while something goes on: tcpdump, in the namespace of the interface.

The kernel takes VLAN tags off and notes them beside the frame; tcpdump puts them back, so what is
read is what was on the wire.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import define, field

from bench.net.frames import Frame
from bench.net.pcap import frames_of
from lab import procs
from lab.faults import LabFault
from lab.ovs import Place

# Ethernet, IPv4, UDP, Geneve with options, twice over, and room.
_SNAP_BYTES: Final = 320
_FRAMES_MAX: Final = 200_000  # of one capture: 64 MB
_START_S: Final = 20.0
_END_S: Final = 20.0
# A file that did not grow for so long has all that was on its way: tcpdump writes frames as they
# come. On a machine that gives it no time for that long frames are missed, and what is looked for
# is not found.
_QUIET_S: Final = 0.5


@define
class Captured:
    """What was seen; empty until the capture has ended."""

    frames: list[Frame] = field(factory=list)

    def between(self, one: str, other: str, *, least: int = 1) -> list[Frame]:
        """The frames whose innermost packet goes from one of these addresses to the other.

        Raises:
            LabFault: there are fewer than ``least``: then nothing is known.
        """
        found = [each for each in self.frames if each.is_between(one, other) and each.packet_bytes]
        if len(found) < least:
            raise LabFault(
                f"{len(found)} of {len(self.frames)} captured frames are between {one} and {other}"
            )
        return found


@contextmanager
def capturing(place: Place, interface: str, expression: str = "") -> Iterator[Captured]:
    """Capture what passes an interface inside of the block; it is there after the block.

    Args:
        place: the namespace that the interface is in.
        interface: its name.
        expression: what is captured, in tcpdump's language; all of it unless given.

    Raises:
        LabFault: tcpdump does not start, or what it wrote makes no sense.
    """
    captured = Captured()
    with tempfile.TemporaryDirectory(prefix="capture-") as folder:
        file, words = Path(folder) / "frames", Path(folder) / "words"
        process = _start(place, interface, expression, file, words)
        try:
            yield captured
            _await_quiet(file)
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        try:
            captured.frames = list(frames_of(file.read_bytes()))
        except (OSError, ValueError) as error:
            raise LabFault(f"tcpdump on {interface}: {error}; {words.read_text()}") from error


def _start(
    place: Place, interface: str, expression: str, file: Path, words: Path
) -> "subprocess.Popen[bytes]":
    command: Sequence[str] = place.inside(
        *("tcpdump", "-i", interface, "-w", str(file), "-U", "-n", "-p", "--immediate-mode"),
        *("-s", str(_SNAP_BYTES), "-c", str(_FRAMES_MAX), "-Z", "root"),
        *([expression] if expression else []),
    )
    with words.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    if not procs.wait_until(lambda: _listens(words) or process.poll() is not None, _START_S):
        process.kill()
        process.wait()
        raise LabFault(f"tcpdump does not start on {interface}")
    if process.poll() is not None:
        raise LabFault(f"tcpdump on {interface}: {words.read_text().strip()}")
    return process


def _await_quiet(file: Path) -> None:
    """Until it grows no more, or for as long as an end may take."""
    deadline = time.monotonic() + _END_S
    size, since = -1, time.monotonic()
    while time.monotonic() < min(deadline, since + _QUIET_S):
        now = file.stat().st_size if file.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        time.sleep(procs.POLL_S)


def _listens(words: Path) -> bool:
    return b"listening on" in words.read_bytes()
