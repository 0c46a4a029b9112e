"""Processes: reading /proc, starting a daemon, ending it, and waiting until it is gone.

Theory of operation. A process is known by its pid *and* its start time (field 22 of
``/proc/PID/stat``, clock ticks since boot): a pid alone can be another program tomorrow. The boot
id is kept beside both, since ticks begin again at each boot. Parsing is pure; the rest is a thin
layer over ``os`` and ``subprocess``.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.faults import Interrupted

POLL_S = 0.05  # how often a wait looks again: unnoticed by a person, cheap for the machine
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
    """Every live process with this command name, in this process's own pid namespace."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = read_stat(int(entry.name))
            if stat and stat.name == name[:15]:  # the kernel keeps 15 characters
                yield stat


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Look until the condition holds; False when the time is up.

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
        time.sleep(POLL_S)


def start_daemon(arguments: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    """Start a program that outlives this one: its own session, output appended to a file."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists() and log_file.stat().st_size > LOG_BYTES_KEPT:
        log_file.replace(log_file.with_suffix(".log.1"))
    with log_file.open("ab") as log:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            preexec_fn=_raise_open_files,  # noqa: PLW1509 - only setrlimit; no lock is taken there
        )


def _raise_open_files() -> None:
    """Give the daemon as many open files as the machine lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (OPEN_FILES_WANTED, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (ValueError, OSError):
            continue  # not allowed to go above the hard limit here: take what there is
        return
    assert soft >= 0


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
    """
    done = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=True,
        cwd=cwd,
        start_new_session=True,  # Ctrl-C is ours to handle, not the child's
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout
