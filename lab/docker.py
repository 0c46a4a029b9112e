"""The Docker daemon: is it there, start it, stop the one that we started.

Theory of operation. The daemon is asked over its socket in HTTP (the standard library can do that
with a two-line connection class), never by its client program, of which a machine may have another
version. dockerd starts and watches a containerd of its own; one that outlived a killed dockerd is
found again by the next dockerd through its pidfile, so only dockerd is ours to start. What a
crash leaves (a pidfile that names a dead or reused pid) is cleared before a start.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from lab import firewall, init, procs
from lab.config import Paths
from lab.faults import LabFault
from lab.report import Step
from lab.state import State

NAME = "dockerd"
UNITS_START = ("docker.service",)
UNITS_STOP = ("docker.service", "docker.socket")
ANSWER_S = 5.0  # a healthy daemon answers a ping in milliseconds
START_S = 60.0  # 1-4 s normally; after a crash it sweeps up old containers first
STOP_S = 60.0  # it gives each running container its grace period


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def request(
    paths: Paths, method: str, path: str, *, body: bytes | None = None, timeout_s: float = ANSWER_S
) -> tuple[int, Any]:
    """One request to the daemon; its status and its answer (parsed when it is JSON).

    Raises:
        OSError: nobody answers at the socket.
    """
    connection = _UnixConnection(paths.docker_socket, timeout_s)
    try:
        headers = {"Content-Type": "application/x-tar"} if body is not None else {}
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text
    finally:
        connection.close()


def version(paths: Paths) -> str | None:
    """The running daemon's version, or None when none answers."""
    try:
        status, answer = request(paths, "GET", "/version")
    except (OSError, http.client.HTTPException):
        return None
    return str(answer["Version"]) if status == 200 else None


def daemon_pid(paths: Paths) -> int | None:
    """The pid that the daemon wrote down, if a dockerd really runs under it."""
    pid = _pidfile_pid(paths)
    stat = procs.read_stat(pid) if pid else None
    return stat.pid if stat and stat.name == NAME else None


def up(paths: Paths, state: State, step: Step) -> None:
    """See to it that a Docker daemon answers.

    Raises:
        LabFault: none does and none can be started; with the reason from its log.
    """
    running = version(paths)
    if running:
        whose = "ours" if is_ours(paths, state) else "not ours, left alone"
        step.kept(f"Docker {running} is running ({whose})")
        return
    _require_startable(paths)
    if init.has_systemd():
        step.progress("systemctl start docker")
        firewall.record(state)
        init.start_units(UNITS_START)
        process = procs.identify(init.main_pid(UNITS_START[0]))
        state.record_daemon(NAME, process)
        _await_answer(paths, process, Path("journalctl -u docker"))
    else:
        _start_by_hand(paths, state, step)
    step.done(f"Docker {version(paths)} started (pid {daemon_pid(paths)})")


def is_ours(paths: Paths, state: State) -> bool:
    """Whether the daemon that answers is the one that the lab started."""
    return state.owns(NAME, daemon_pid(paths))


def _require_startable(paths: Paths) -> None:
    """Raise the reason why a start would be in vain."""
    if procs.which("dockerd") is None:
        raise LabFault("dockerd is not installed", "install docker.io (or Docker's own packages)")
    if os.geteuid() != 0:
        raise LabFault(
            f"no Docker daemon answers at {paths.docker_socket}, and starting one needs root",
            "start it as root, or join the `docker` group if it runs and you may not reach it",
        )


def _start_by_hand(paths: Paths, state: State, step: Step) -> None:
    """Clear what a crash left, then start dockerd and wait for its first answer."""
    step.progress("waiting for an earlier dockerd to be gone")
    if not procs.wait_until(lambda: daemon_pid(paths) is None, ANSWER_S):
        raise LabFault(
            f"a dockerd (pid {daemon_pid(paths)}) runs and does not answer at "
            f"{paths.docker_socket}",
            "see its log; end it, then run this again",
        )
    crashed = state.daemon(NAME) is not None
    paths.docker_pidfile.unlink(missing_ok=True)
    _clear_stale_containerd_pidfile(paths)
    firewall.record(state)
    log_file = paths.log_dir / "dockerd.log"
    step.progress("starting dockerd" + (" again after it died" if crashed else ""))
    process = procs.start_daemon(
        [str(procs.which("dockerd")), "--host", f"unix://{paths.docker_socket}",
         "--pidfile", str(paths.docker_pidfile)],
        log_file,
    )  # fmt: skip
    identity = procs.identify(process.pid)
    state.record_daemon(NAME, identity)
    _await_answer(paths, identity, log_file)


def _await_answer(paths: Paths, process: procs.ProcessId | None, log_file: Path) -> None:
    procs.wait_until(
        lambda: version(paths) is not None or process is None or not procs.is_alive(process),
        START_S,
    )
    if version(paths) is None:
        raise LabFault(f"dockerd does not answer: {procs.last_lines(log_file)}", f"see {log_file}")


def down(paths: Paths, state: State, step: Step) -> None:
    """Stop the dockerd that the lab started, and its containerd; any other is left alone.

    Raises:
        LabFault: it does not go.
    """
    process = state.daemon(NAME)
    if process is None:
        step.kept("not ours, left alone" if version(paths) else "not running")
        return
    containerd = _containerd(paths)
    if init.has_systemd() and procs.is_alive(process):
        step.progress("systemctl stop docker")
        init.stop_units(UNITS_STOP)
        outcome = "stopped"
    else:
        step.progress("stopping dockerd")
        outcome = procs.terminate(process, term_s=STOP_S)
    if outcome == "stuck":
        raise LabFault(f"dockerd (pid {process.pid}) does not end", "see its log")
    if containerd is not None and outcome != "stopped":
        procs.terminate(containerd, term_s=STOP_S)  # it outlives a dockerd that was killed
    if daemon_pid(paths) is None:
        for leftover in (paths.docker_pidfile, paths.docker_socket):
            leftover.unlink(missing_ok=True)
    undone = firewall.restore(state)
    state.record_daemon(NAME, None)
    step.done(f"{outcome} (pid {process.pid})" + (f"; {undone}" if undone else ""))


def _pidfile_pid(paths: Paths) -> int | None:
    try:
        return int(paths.docker_pidfile.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _containerd_pidfile(paths: Paths) -> Path:
    return paths.docker_pidfile.with_name("docker") / "containerd" / "containerd.pid"


def _containerd(paths: Paths) -> procs.ProcessId | None:
    """The containerd that a dockerd started for itself, if it lives."""
    try:
        pid = int(_containerd_pidfile(paths).read_text())
    except (FileNotFoundError, ValueError):
        return None
    stat = procs.read_stat(pid)
    return procs.identify(pid) if stat and stat.name == "containerd" else None


def _clear_stale_containerd_pidfile(paths: Paths) -> None:
    """A reused pid in that file would make dockerd wait for a containerd that is not one."""
    if _containerd(paths) is None:
        _containerd_pidfile(paths).unlink(missing_ok=True)
