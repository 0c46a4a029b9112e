"""`python3 -m lab.venv`: the project's virtual environment, from the lock file.

Theory of operation. What the environment was made from (the lock file, the project's own metadata,
the Python, and whether libvirt's headers are there) is hashed into a stamp inside it. While the
stamp is true nothing happens, in a few milliseconds; otherwise what building needs is installed
through :mod:`lab.up`, and pip installs exactly the locked files, each checked by its hash.

Where libvirt's headers cannot be had, libvirt-python cannot be built: the environment is made
without it, which is said, and is part of the stamp, so that headers which come later are noticed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from lab import packages, procs, up
from lab.config import paths_from
from lab.faults import Interrupted, LabFault
from lab.report import Report, Step
from lab.state import exclusive

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv"
LOCK_FILE = ROOT / "requirements.lock"
MIN_PYTHON = (3, 11)
PIP_S = 900.0  # a slow mirror; 25 s with a near one
#: Pinned by the lock file like all else, but compiled here, against libvirt's headers.
BUILT_HERE = "libvirt-python"


def has_libvirt_headers() -> bool:
    """Whether libvirt-python can be built: a compiler, Python's headers and libvirt's."""
    return not any(need.part == "build" for need in packages.plan(["build"]))


def without_package(lock: str, name: str) -> str:
    """A lock file's text without one package: its line, its hashes and its comments."""
    return re.sub(rf"^{re.escape(name)}==.*\n(?:[ \t]+.*\n)*", "", lock, flags=re.MULTILINE)


def recipe(*, with_libvirt: bool) -> str:
    """Changes when an environment is not what this code would make now."""
    parts = [LOCK_FILE.read_bytes(), (ROOT / "pyproject.toml").read_bytes()]
    parts += [sys.version.encode(), str(FOLDER).encode(), str(with_libvirt).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_made(folder: Path, wanted: str) -> bool:
    """Whether the environment is there, works, and is the wanted one."""
    stamp = folder / "recipe"
    return stamp.exists() and stamp.read_text() == wanted and (folder / "bin/python").exists()


def make(report: Report) -> None:
    """Make the environment, or bring it up to date.

    Raises:
        LabFault: this Python is too old, or pip failed; with its last words.
    """
    if sys.version_info < MIN_PYTHON:
        needed = ".".join(map(str, MIN_PYTHON))
        raise LabFault(
            f"Python {sys.version.split()[0]} is too old, {needed} is needed",
            "install a newer one, and run make with it first in PATH",
        )
    with_libvirt = has_libvirt_headers()
    wanted = recipe(with_libvirt=with_libvirt)
    if is_made(FOLDER, wanted):
        return
    with report.step("venv") as step:
        (FOLDER / "recipe").unlink(missing_ok=True)
        step.progress("making the virtual environment")
        _run([sys.executable, "-m", "venv", str(FOLDER)])
        _install(step, with_libvirt=with_libvirt)
        (FOLDER / "recipe").write_text(wanted)
        step.done(f"{FOLDER.name} made from {LOCK_FILE.name}")
    if not with_libvirt:
        report.say(f"     without {BUILT_HERE}, so the libvirt driver is off: its headers or a")
        report.say("     compiler are missing; as root, `python3 -m lab up --only build` gets them")


def _install(step: Step, *, with_libvirt: bool) -> None:
    lock = LOCK_FILE.read_text()
    chosen = FOLDER / "requirements.chosen"
    chosen.write_text(lock if with_libvirt else without_package(lock, BUILT_HERE))
    pip = [str(FOLDER / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    step.progress("installing the locked packages")
    _run([*pip, "install", "--require-hashes", "-r", str(chosen)])
    step.progress("installing swarmctl itself, editable")
    _run([*pip, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)])


def _run(command: list[str]) -> None:
    try:
        procs.run(command, timeout_s=PIP_S)
    except subprocess.CalledProcessError as error:
        words = f"{error.stdout}{error.stderr}".strip().splitlines()
        raise LabFault(
            f"{' '.join(command[1:4])} ... failed: " + "\n     ".join(words[-6:]),
            "check the network and the package index that pip is configured with",
        ) from error


def main() -> int:
    """Install what building needs where it is missing, then make the environment."""
    report = Report()
    try:
        if not is_made(FOLDER, recipe(with_libvirt=True)) and packages.plan(["build"]):
            with exclusive(paths_from()):
                # A fault is said there; `make` goes on without libvirt, or fails for want of venv.
                up.up(paths_from(), ("build",), report, ask=os.environ.get("YES") != "1")
            report = Report()
        procs.heed_interrupts()
        with report:
            make(report)
    except LabFault as fault:
        if not report.failures:
            print(f"venv: {fault.what}" + (f"; {fault.hint}" if fault.hint else ""))
        return 1
    except (Interrupted, KeyboardInterrupt):
        print("venv: interrupted; run it again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
