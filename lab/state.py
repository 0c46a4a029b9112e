"""The registry of what the lab started and changed, kept in one small JSON file.

Theory of operation. The file is replaced whole (write, fsync, rename), so a crash leaves the old
or the new one. A change to the machine is recorded *before* it is made: after a crash the record
may name something that did not happen, and undoing that is harmless; the other way round it would
be forgotten. A file that cannot be read as JSON is set aside rather than trusted.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.config import Paths
from lab.faults import LabFault
from lab.procs import ProcessId, is_alive

FORMAT_VERSION = 1


class State:
    """What the lab knows about this machine; every setter writes the file at once."""

    def __init__(self, path: Path) -> None:
        """Read the registry at `path`; a missing file is an empty registry."""
        self.path = path
        self._lock = threading.Lock()
        self._data = _read(path)

    def daemon(self, name: str) -> ProcessId | None:
        """The daemon of that name that the lab started, whether or not it still lives."""
        entry = self._data["daemons"].get(name)
        return ProcessId(**entry) if entry else None

    def owns(self, name: str, pid: int | None = None) -> bool:
        """Whether the lab started the daemon that runs now (under `pid`, where one is given)."""
        process = self.daemon(name)
        if process is None or not is_alive(process):
            return False
        return pid is None or pid == process.pid

    def daemons(self) -> dict[str, ProcessId]:
        """Every daemon that the lab started and has not stopped."""
        return {name: ProcessId(**entry) for name, entry in self._data["daemons"].items()}

    def record_daemon(self, name: str, process: ProcessId | None) -> None:
        """Remember that the lab started it; None forgets it."""
        with self._lock:
            if process is None:
                self._data["daemons"].pop(name, None)
            else:
                self._data["daemons"][name] = asdict(process)
            self._write()

    def get(self, key: str) -> Any:
        """A fact recorded by a part of the lab (`kvm`, `firewall`, `units`, ...), or None."""
        return self._data["facts"].get(key)

    def put(self, key: str, value: Any) -> None:
        """Record a JSON-able fact; None forgets it."""
        with self._lock:
            if value is None:
                self._data["facts"].pop(key, None)
            else:
                self._data["facts"][key] = value
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(self._data, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def _read(path: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"version": FORMAT_VERSION, "daemons": {}, "facts": {}}
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return empty
    except ValueError:
        return _set_aside(path, empty)
    if not isinstance(data, dict) or data.get("version") != FORMAT_VERSION:
        return _set_aside(path, empty)
    return {**empty, **data}


def _set_aside(path: Path, empty: dict[str, Any]) -> dict[str, Any]:
    """Keep an unreadable registry for a person to look at, and begin with an empty one."""
    try:
        path.replace(path.with_suffix(".unreadable"))
    except PermissionError:
        pass  # `status` as another user: it only reads, and the next `up` as root sets it aside
    return empty


@contextmanager
def exclusive(paths: Paths) -> Iterator[None]:
    """Hold the lab's lock: two commands that change the machine take turns.

    Raises:
        LabFault: another one holds it, or the folder cannot be made.
    """
    try:
        paths.state_dir.mkdir(parents=True, exist_ok=True)
        file = paths.lock_file.open("a")
    except PermissionError:
        # Without root nothing is started or changed, so there is nothing to take turns about.
        yield
        return
    except OSError as error:
        raise LabFault(
            f"{paths.state_dir} cannot be written: {error.strerror}",
            "set SWARMCTL_LAB_DIR to another folder",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabFault(
                "another `lab` command is at work on this machine", "wait for it, then try again"
            ) from error
        yield
