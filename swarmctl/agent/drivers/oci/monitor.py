"""conmon, which holds a container's output and waits for its end, and runc, which it has start it.

Theory of operation.  conmon (the monitor of Podman and CRI-O) is a megabyte of C for each
container.  It runs ``runc create``, tells on a pipe what came of it, writes what the container
prints to a log file, and when the container ends writes its exit code to ``exits/ID``.  It is in a
session and in the machine's root cgroups, so neither an agent that ends nor a service manager that
stops the agent's cgroup takes a container down.

Everything here blocks and is called in threads, under the container's lock.
"""

import json
import os
import select
import signal
import subprocess
from typing import Final

from swarmctl.agent import guard
from swarmctl.agent.drivers.oci import faults
from swarmctl.agent.drivers.oci.layout import Layout, Place
from swarmctl.agent.drivers.oci.programs import CONMON, RUNC, environment, path_of, run
from swarmctl.agent.drivers.oci.state import monitor_lives, read_pid
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed

# `runc create` takes 0.1 s on an idle machine; a loaded disk makes it take many seconds.
CREATE_S: Final = 40.0
START_S: Final = 20.0
DELETE_S: Final = 30.0
# A monitor has little to do after its container's end; a machine that swaps takes longer.
MONITOR_END_S: Final = 10.0
ANSWER_MAX_BYTES: Final = 64 * 1024
# A log file is replaced beyond this. The agent puts it aside long before (see .rotation); this
# bounds what is written while no agent looks, or faster than it looks.
LOG_HARD_MAX_BYTES: Final = 32 * 1024 * 1024
# What conmon takes on its control pipe: open the log file anew.
REOPEN_LOG: Final = b"2 0 0\n"


def create(layout: Layout, place: Place, *, tty: bool, where: str) -> int:
    """Have conmon create the container; the process id of its first process, which waits.

    Raises:
        UserError: the spec cannot work.
        LaunchFailed: runc or conmon fail.
        DriverUnavailable: they are not installed, or do not answer.
    """
    answer_read, answer_write = os.pipe()
    go_read, go_write = os.pipe()
    try:
        try:
            process = _spawn(layout, place, tty=tty, pipes=(answer_write, go_read))
        finally:
            os.close(answer_write)
            os.close(go_read)
        _stand_apart(process.pid)
        os.write(go_write, b"x")
        answer = _read_answer(answer_read, where)
    finally:
        os.close(answer_read)
        os.close(go_write)
    try:
        process.wait(CREATE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return _pid_of(answer, process.returncode, where)


def start(layout: Layout, place: Place, where: str) -> None:
    """Let the created container's first process go.

    Raises:
        UserError: the spec cannot work.
        LaunchFailed: runc fails.
    """
    done = run(RUNC, "--root", str(layout.runtime), "start", place.id, timeout_s=START_S)
    if done.returncode != 0:
        raise faults.translate(done.stderr, where, "start it")


def delete(layout: Layout, place: Place, where: str) -> None:
    """End whatever is left of the container, and have runc and conmon forget it.

    Raises:
        LaunchFailed: something stays.
    """
    if (layout.runtime / place.id).exists():
        command = (RUNC, "--root", str(layout.runtime), "delete", "--force", place.id)
        done = run(*command, timeout_s=DELETE_S)
        if done.returncode != 0 and (layout.runtime / place.id).exists():
            raise faults.translate(done.stderr, where, "remove it")
    await_end(place)


def await_end(place: Place) -> None:
    """Wait for the monitor to end, which it does after its container; else end it."""
    pid = read_pid(place.monitor_pid_file)
    if pid is None or not monitor_lives(place):
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The number was looked at before there was a handle on it: look again.
        if not monitor_lives(place) or _ends_within(handle, MONITOR_END_S):
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        _ends_within(handle, MONITOR_END_S)
    finally:
        os.close(handle)


def reopen_log(place: Place) -> bool:
    """Have the monitor open its log file anew; whether there is a monitor that will."""
    try:
        pipe = os.open(place.control, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False  # nobody reads it any more
    try:
        return os.write(pipe, REOPEN_LOG) == len(REOPEN_LOG)
    except OSError:
        return False
    finally:
        os.close(pipe)


def _spawn(
    layout: Layout, place: Place, *, tty: bool, pipes: tuple[int, int]
) -> "subprocess.Popen[bytes]":
    answer, go = pipes
    command = [
        path_of(CONMON),
        *("--api-version", "1", "--cid", place.id, "--cuuid", place.id, "--name", place.id[:12]),
        *("--runtime", path_of(RUNC), "--runtime-arg", "--root"),
        *("--runtime-arg", str(layout.runtime)),
        *("--bundle", str(place.folder), "--container-pidfile", str(place.pid_file)),
        *("--conmon-pidfile", str(place.monitor_pid_file), "--exit-dir", str(place.exit.parent)),
        *("--log-path", f"k8s-file:{place.log}", "--log-size-max", str(LOG_HARD_MAX_BYTES)),
        *("--no-sync-log", "--full-attach", "--log-level", "error"),
        *(["--terminal"] if tty else []),
    ]
    pipe_names = {"_OCI_SYNCPIPE": str(answer), "_OCI_STARTPIPE": str(go)}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment() | pipe_names,
        cwd=place.folder,  # where it notes that memory ran out
        pass_fds=pipes,
        start_new_session=True,
    )


def _stand_apart(pid: int) -> None:
    """Out of the agent's cgroups, as far as that is allowed; as the guard does."""
    for root in set(guard.mounts().values()):
        guard.write(f"{root}/cgroup.procs", str(pid))


def _read_answer(pipe: int, where: str) -> bytes:
    """One line, or all that there is before the end."""
    text = b""
    while b"\n" not in text and len(text) < ANSWER_MAX_BYTES:
        ready, _, _ = select.select([pipe], [], [], CREATE_S)
        if not ready:
            raise DriverUnavailable(f"{CONMON} did not create it within {CREATE_S:g} s", where)
        piece = os.read(pipe, ANSWER_MAX_BYTES)
        if not piece:
            break
        text += piece
    return text


def _pid_of(answer: bytes, code: int, where: str) -> int:
    """The process id in conmon's answer; what it says instead becomes an error."""
    if not answer.strip():
        raise LaunchFailed(f"{CONMON} ended with code {code} and said nothing", where)
    fields = json.loads(answer)
    pid = int(fields.get("data", fields.get("pid", -1)))
    if pid <= 0:
        raise faults.translate(str(fields.get("message") or answer), where, "create it")
    return pid


def _ends_within(handle: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
