"""Where the demo is: its folder, its id, its processes, and its command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import procs
from lab.faults import LabFault

ROOT = Path(__file__).resolve().parents[2]
STACK_FILE = ROOT / "lab" / "demo.yaml"
COMMAND_S = 180.0  # the slowest is the launch: 4 s on two cores, bounded by its own --timeout


def default_data() -> Path:
    """The demo's own folder, apart from that of a person's own `swarmctl dev`."""
    if os.geteuid() == 0:
        return Path("/var/lib/swarmctl/demo")
    return Path.home() / ".local/share/swarmctl/demo"


def config_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where swarmctl keeps named contexts (the same rule as its own)."""
    explicit = environment.get("SWARMCTL_CONFIG")
    if explicit:
        return Path(explicit)
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "swarmctl"


@dataclass(frozen=True)
class Demo:
    """One demo: the data folder that it owns, and how it was asked to run."""

    data: Path
    listen: str
    node: str

    @property
    def context_file(self) -> Path:
        """The administrator's way in."""
        return self.data / "controller" / "admin.context"

    def cluster_id(self) -> str | None:
        """The id that is on everything that the demo made; None before its first start."""
        return cluster_id_in(self.context_file)

    def swarmctl(self, *arguments: str, **environment: str) -> list[Any]:
        """Run one command that answers in JSON.

        Raises:
            LabFault: it failed; with its own words.
        """
        text = self.run(*arguments, "-o", "json", **environment)
        answer = json.loads(text)
        assert isinstance(answer, list), "everything that lists answers with a list"
        return answer

    def run(self, *arguments: str, **environment: str) -> str:
        """Run one command to its end; its output.

        Raises:
            LabFault: it failed, or there is no virtual environment to run it from.
        """
        done = self._call(arguments, environment, capture=True)
        if done.returncode != 0:
            words = done.stderr.strip() or f"exit code {done.returncode}"
            raise LabFault(f"swarmctl {arguments[0]} failed: {words}", f"logs are in {self.data}")
        return str(done.stdout)

    def show(self, *arguments: str, **environment: str) -> None:
        """Run one command with its output where ours goes.

        Raises:
            LabFault: as `run`.
        """
        print(f"$ swarmctl {' '.join(arguments)}", flush=True)
        done = self._call(arguments, environment, capture=False)
        if done.returncode != 0:
            raise LabFault(f"swarmctl {arguments[0]} failed (see above)", f"logs: {self.data}")

    def _call(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], *, capture: bool
    ) -> subprocess.CompletedProcess[str]:
        program = ROOT / ".venv/bin/swarmctl"
        if not program.exists():
            raise LabFault("there is no virtual environment", "make venv")
        context = {"SWARMCTL_CONTEXT": str(self.context_file)} if self.context_file.exists() else {}
        return subprocess.run(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=capture,
            text=True,
            timeout=COMMAND_S,
            cwd=ROOT,
            env={**os.environ, **context, **environment},
            check=False,
        )

    def processes(self) -> Iterator[procs.ProcessId]:
        """The demo's own processes that live, by the locks in its folders; who watches is first."""
        for name in ("lock", "controller/lock", "agent/lock"):
            try:
                pid = int((self.data / name).read_text().split()[0])
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
                continue
            process = procs.identify(pid)
            if process and any(str(self.data).encode() in word for word in command):
                yield process


def cluster_id_in(context_file: Path) -> str | None:
    """The cluster that a context file leads to; None when there is no such file, or no sense."""
    try:
        content = json.loads(context_file.read_text())
        return str(content["cluster_id"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
