"""Processes: reading /proc, starting a daemon, ending it, and waiting until it is gone.

Theory of operation. A process is known by its pid *and* its start time (field 22 of
``/proc/PID/stat``, clock ticks since boot): a pid alone can be another program tomorrow. The boot
id is kept beside both, since ticks begin again at each boot. Parsing is pure; the rest is a thin
layer over ``os`` and ``subprocess``.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lab.faults import Interrupted

POLL_S = 0.05  # how often a wait looks again: unnoticed by a person, cheap for the machine
CANCEL_POLL_S = 0.2  # a child in hand ends this soon after Ctrl-C
OPEN_FILES_WANTED = 1_048_576  # what Docker's own unit asks for: each container costs several
LOG_BYTES_KEPT = 4 << 20  # a daemon's log from earlier runs is cut to this at its next start

#: Set by Ctrl-C; every long step looks at it and stops where it can be taken up again.
cancelled = threading.Event()


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True)
class Stat:
    """What the lab reads of a /proc/PID/stat line."""

    pid: int
    name: str
    state: str
    parent_pid: int
    start_ticks: int


def parse_stat(line: str) -> Stat:
    """Read a /proc/PID/stat line; the name may hold spaces and parentheses.

    Raises:
        ValueError: the line is not one.
    """
    head, separator, tail = line.rpartition(")")
    pid_text, opening, name = head.partition("(")
    fields = tail.split()
    if not separator or not opening or len(fields) < 20:
        raise ValueError(f"not a /proc stat line: {line[:80]!r}")
    return Stat(
        pid=int(pid_text),
        name=name,
        state=fields[0],
        parent_pid=int(fields[1]),
        start_ticks=int(fields[19]),
    )


def heed_interrupts() -> None:
    """From now on Ctrl-C and SIGTERM set :data:`cancelled`; a second Ctrl-C ends us at once."""
    signal.signal(signal.SIGINT, _cancel)
    signal.signal(signal.SIGTERM, _cancel)


def _cancel(_number: int, _frame: FrameType | None) -> None:
    cancelled.set()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_stat(pid: int) -> Stat | None:
    """The process's stat line, or None when there is no such process (or only its zombie)."""
    try:
        stat = parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if stat.state in "ZX" else stat


def identify(pid: int) -> ProcessId | None:
    """The full identity of a live process, or None."""
    stat = read_stat(pid)
    return ProcessId(pid, stat.start_ticks, boot_id()) if stat else None


def is_alive(process: ProcessId) -> bool:
    """Whether that very process lives, not another one that got its pid."""
    return identify(process.pid) == process


def named(name: str) -> Iterator[Stat]:
    """Every live process with this command name that sees the file system that we see.

    A daemon of the same name inside a container has a mount namespace of its own, and is none of
    our business.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = read_stat(int(entry.name))
            # The kernel keeps 15 characters of a name.
            if stat and stat.name == name[:15] and _shares_files(stat.pid):
                yield stat


def _shares_files(pid: int) -> bool:
    """Whether a process is in our mount namespace (or we may not know)."""
    try:
        return Path(f"/proc/{pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
    except PermissionError:
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = POLL_S) -> bool:
    """Look until the condition holds; False when the time is up.

    Args:
        condition: what is looked at.
        timeout_s: for so long.
        every_s: the pause between two looks.

    Raises:
        Interrupted: Ctrl-C came first.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if condition():
            return True
        if cancelled.is_set():
            raise Interrupted
        if time.monotonic() >= deadline:
            return False
        time.sleep(every_s)


def start_daemon(arguments: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    """Start a program that outlives this one: its own session, output appended to a file."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists() and log_file.stat().st_size > LOG_BYTES_KEPT:
        log_file.replace(log_file.with_suffix(".log.1"))
    _raise_open_files()
    with log_file.open("ab") as log:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "PATH": search_path()},
        )


def _raise_open_files() -> None:
    """Let this program, and so the daemon that it starts next, have many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, OPEN_FILES_WANTED)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))  # what there is


def terminate(process: ProcessId, *, term_s: float, kill_s: float = 5.0) -> str:
    """End that very process and wait until it is gone.

    Args:
        process: whom; another process with its pid is left alone.
        term_s: how long it may take after SIGTERM.
        kill_s: how long it may take after SIGKILL.

    Returns:
        ``gone`` (it was already), ``stopped``, ``killed``, or ``stuck``.
    """
    for number, patience_s, outcome in (
        (signal.SIGTERM, term_s, "stopped"),
        (signal.SIGKILL, kill_s, "killed"),
    ):
        if not is_alive(process):
            return "gone"
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return "gone"
        if wait_until(lambda: not is_alive(process), patience_s):
            return outcome
    return "stuck"


def last_lines(log_file: Path, count: int = 3) -> str:
    """The end of a log, for an error message."""
    try:
        text = log_file.read_bytes()[-8192:].decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.strip().splitlines()[-count:])


def run(arguments: Sequence[str], *, timeout_s: float, cwd: Path | None = None) -> str:
    """Run a program to its end and give its standard output.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` holds its words.
        subprocess.TimeoutExpired: it took longer than that, and was killed.
        Interrupted: Ctrl-C; it was killed.
    """
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,  # Ctrl-C is ours to handle, not the child's
        env={**os.environ, "LC_ALL": "C", "PATH": search_path()},
    ) as process:
        try:
            output, errors = _communicate(process, timeout_s)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, arguments, output, errors)
    return output


def _communicate(process: subprocess.Popen[str], timeout_s: float) -> tuple[str, str]:
    """Wait for a child in short turns, so that Ctrl-C is seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return process.communicate(timeout=CANCEL_POLL_S)
        except subprocess.TimeoutExpired:
            if cancelled.is_set():
                raise Interrupted from None
            if time.monotonic() >= deadline:
                raise


def search_path() -> str:
    """PATH with the system folders, which a plain user's PATH may lack."""
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def which(program: str) -> str | None:
    """Where a program is, system folders included."""
    return shutil.which(program, path=search_path())
