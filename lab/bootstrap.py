"""A Debian from the machine's own package mirror, as a tar in the cache.

Theory of operation. mmdebstrap makes it, of the machine's own release and from its own sources, so
where packages can be installed a Debian can be made. A tar is kept under a name that changes with
what it is made of; what goes into it with every build of swarmctl is no part of it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab import packages, procs
from lab.faults import LabFault
from lab.report import Step

SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
BOOTSTRAP_S = 900.0  # 15 s for a few packages and 150 s for a whole system, with a near mirror
WITHOUT_MANUALS = (
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


def codename() -> str:
    """This machine's release of Debian."""
    release = packages.parse_os_release(Path("/etc/os-release").read_text())
    return release.get("VERSION_CODENAME", "stable")


def recipe(release: str, options: Sequence[str]) -> str:
    """Changes when a tar in the cache is not what this code would make."""
    return hashlib.sha256(json.dumps([release, list(options)]).encode()).hexdigest()[:16]


def made(folder: Path, options: Sequence[str], step: Step) -> Path:
    """The tar of a Debian, from the cache or made now.

    Args:
        folder: of the cache.
        options: mmdebstrap's: packages, variant, hooks.
        step: hears what is in hand.

    Raises:
        LabFault: mmdebstrap cannot be had, or failed.
    """
    name = recipe(codename(), options)
    tar = folder / f"{name}.tar"
    if tar.exists():
        return tar
    if procs.which("mmdebstrap") is None:
        blocked = packages.blocker(packages.distribution())
        if blocked:
            raise LabFault(f"mmdebstrap is not installed; {blocked}", "install it")
        packages.install(["mmdebstrap"], step)
    sources = [str(path) for path in SOURCES if path.exists()][:1]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.new.tar"
    step.progress("making a Debian with mmdebstrap")
    command = ["mmdebstrap", "--quiet", "--format=tar", *options, codename(), str(temporary)]
    try:
        procs.run([*command, *sources], timeout_s=BOOTSTRAP_S)
        temporary.replace(tar)
    except subprocess.CalledProcessError as error:
        words = " ".join(error.stderr.strip().splitlines()[-2:])
        raise LabFault(f"mmdebstrap failed: {words}", "check the package mirror") from error
    except subprocess.TimeoutExpired as error:
        raise LabFault(f"mmdebstrap took longer than {BOOTSTRAP_S:.0f} s", "try again") from error
    finally:
        temporary.unlink(missing_ok=True)
    return tar
