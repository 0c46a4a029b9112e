"""libvirt's daemons: virtlogd and libvirtd; are they there, start them, stop ours.

Theory of operation. libvirt is asked with ``virsh``, which speaks to whatever serves the system
URI here (the one daemon of Debian, or the split ones elsewhere). By hand, virtlogd is started
first, then libvirtd; a libvirtd that starts while its predecessor still lets go of its socket dies
without a word, so a start waits for that, and tries once more when the process is gone early.
The KVM node is settled *before* (see :mod:`lab.kvm`), since libvirtd probes QEMU with it.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab import init, procs
from lab.config import LIBVIRT_URI, Paths
from lab.faults import LabFault
from lab.report import Step
from lab.state import State

ANSWER_S = 10.0
START_S = 30.0  # 1 s normally
STOP_S = 20.0
UNITS_START = ("virtlogd.service", "libvirtd.service")
UNITS_STOP = (
    "libvirtd.socket",
    "libvirtd-ro.socket",
    "libvirtd-admin.socket",
    "libvirtd.service",
    "virtlogd.socket",
    "virtlogd-admin.socket",
    "virtlogd.service",
)


@dataclass(frozen=True)
class Daemon:
    """One of libvirt's daemons, as it is started by hand."""

    name: str
    socket: Path
    pidfile: Path


DAEMONS = (
    Daemon("virtlogd", Path("/run/libvirt/virtlogd-sock"), Path("/run/virtlogd.pid")),
    Daemon("libvirtd", Path("/run/libvirt/libvirt-sock"), Path("/run/libvirtd.pid")),
)


def parse_versions(text: str) -> str | None:
    """`virsh version` as "9.0.0, QEMU 7.2.0"; None when the daemon's part is missing."""
    library = re.search(r"Using API: QEMU (\S+)|Using library: libvirt (\S+)", text)
    daemon = re.search(r"Running hypervisor: QEMU (\S+)", text)
    numbers = re.search(r"Using library: libvirt (\S+)", text)
    if library is None or daemon is None or numbers is None:
        return None
    return f"{numbers[1]}, QEMU {daemon[1]}"


def version() -> str | None:
    """Versions of the libvirt and QEMU that answer, or None."""
    virsh = procs.which("virsh")
    if virsh is None:
        return None
    try:
        return parse_versions(
            procs.run([virsh, "-c", LIBVIRT_URI, "-r", "version"], timeout_s=ANSWER_S)
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None


def up(paths: Paths, state: State, step: Step) -> None:
    """See to it that libvirt answers.

    Raises:
        LabFault: it does not and cannot be started; with the reason.
    """
    running = version()
    if running and all(_is_fine(daemon, state) for daemon in DAEMONS):
        whose = "ours" if state.owns("libvirtd") else "not ours, left alone"
        step.kept(f"libvirt {running} is running ({whose})")
        return
    _require_startable()
    if init.has_systemd():
        step.progress("systemctl start libvirtd")
        init.start_units(UNITS_START)
        for unit, daemon in zip(UNITS_START, DAEMONS, strict=True):
            state.record_daemon(daemon.name, procs.identify(init.main_pid(unit)))
    else:
        for daemon in DAEMONS:
            if not any(procs.named(daemon.name)):
                _start_by_hand(daemon, paths, state, step)
    answered = procs.wait_until(lambda: version() is not None, START_S)
    if not answered:
        log_file = paths.log_dir / "libvirtd.log"
        raise LabFault(
            f"libvirt does not answer at {LIBVIRT_URI}: {procs.last_lines(log_file)}",
            f"see {log_file}",
        )
    step.done(f"libvirt {version()} started")


def _is_fine(daemon: Daemon, state: State) -> bool:
    """A daemon that we started must live; about one that we did not, libvirt's answer decides."""
    process = state.daemon(daemon.name)
    return process is None or procs.is_alive(process) or any(procs.named(daemon.name))


def _require_startable() -> None:
    if procs.which("libvirtd") is None:
        raise LabFault("libvirtd is not installed", "install libvirt-daemon-system")
    if procs.which("virsh") is None:
        raise LabFault("virsh is not installed", "install libvirt-clients")
    if os.geteuid() != 0:
        raise LabFault(
            f"libvirt does not answer at {LIBVIRT_URI}, and starting it needs root",
            "start it as root, or join the `libvirt` group if it runs and you may not reach it",
        )


def _start_by_hand(daemon: Daemon, paths: Paths, state: State, step: Step) -> None:
    """Start one daemon and wait for its socket; once more if it dies at once.

    Raises:
        LabFault: it died twice.
    """
    log_file = paths.log_dir / f"{daemon.name}.log"
    crashed = state.daemon(daemon.name) is not None
    program = procs.which(daemon.name)
    if program is None:
        raise LabFault(f"{daemon.name} is not installed", "install libvirt-daemon-system")
    for _attempt in range(2):
        step.progress(f"starting {daemon.name}" + (" again after it died" if crashed else ""))
        daemon.socket.unlink(missing_ok=True)  # nobody listens: no process of that name runs
        process = procs.start_daemon([program, "--pid-file", str(daemon.pidfile)], log_file)
        identity = procs.identify(process.pid)
        state.record_daemon(daemon.name, identity)
        ready = procs.wait_until(
            lambda: daemon.socket.exists() or process.poll() is not None,  # noqa: B023 - called here
            START_S,
        )
        if ready and process.poll() is None:
            return
    state.record_daemon(daemon.name, None)
    raise LabFault(
        f"{daemon.name} does not stay up: {procs.last_lines(log_file)}", f"see {log_file}"
    )


def down(state: State, step: Step) -> None:
    """Stop the daemons that the lab started; running domains go on without them.

    Raises:
        LabFault: one does not go.
    """
    ours = {d: state.daemon(d.name) for d in DAEMONS if state.daemon(d.name) is not None}
    if not ours:
        step.kept("not ours, left alone" if version() else "not running")
        return
    if init.has_systemd():
        step.progress("systemctl stop libvirtd")
        init.stop_units(UNITS_STOP)
    outcomes = []
    for daemon, process in reversed(ours.items()):
        assert process is not None
        step.progress(f"stopping {daemon.name}")
        outcome = procs.terminate(process, term_s=STOP_S)
        if outcome == "stuck":
            raise LabFault(f"{daemon.name} (pid {process.pid}) does not end", "see its log")
        if not any(procs.named(daemon.name)):
            daemon.socket.unlink(missing_ok=True)
            daemon.pidfile.unlink(missing_ok=True)
        state.record_daemon(daemon.name, None)
        outcomes.append(f"{daemon.name} {outcome}")
    step.done(", ".join(outcomes))
