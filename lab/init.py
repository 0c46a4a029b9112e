"""The machine's service manager, where there is one: starting and stopping units by systemd.

Theory of operation. Where systemd is process 1, a daemon belongs to a unit, and starting it by
hand would fight with it. Everywhere else (containers, small VMs) the lab is the service manager.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import procs
from lab.faults import LabFault

UNIT_DEADLINE_S = 90.0  # systemd's own default for a start or a stop


def has_systemd() -> bool:
    """Whether systemd runs this machine (the test that sd_booted(3) documents)."""
    return Path("/run/systemd/system").is_dir()


def start_units(units: tuple[str, ...]) -> None:
    """Start units.

    Raises:
        LabFault: systemd could not.
    """
    _systemctl("start", units)


def stop_units(units: tuple[str, ...]) -> None:
    """Stop units; those that do not exist on this machine are left out.

    Raises:
        LabFault: systemd could not.
    """
    known = tuple(unit for unit in units if _is_loaded(unit))
    if known:
        _systemctl("stop", known)


def main_pid(unit: str) -> int:
    """The unit's main process, 0 where it has none."""
    text = procs.run(["systemctl", "show", "--property=MainPID", "--value", unit], timeout_s=10)
    return int(text.strip() or 0)


def _is_loaded(unit: str) -> bool:
    text = procs.run(["systemctl", "show", "--property=LoadState", "--value", unit], timeout_s=10)
    return text.strip() == "loaded"


def _systemctl(verb: str, units: tuple[str, ...]) -> None:
    try:
        procs.run(["systemctl", verb, *units], timeout_s=UNIT_DEADLINE_S)
    except subprocess.CalledProcessError as error:
        raise LabFault(
            f"systemctl {verb} {' '.join(units)} failed: {error.stderr.strip()}",
            f"see `journalctl -u {units[0]}`",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LabFault(
            f"systemctl {verb} {' '.join(units)} took longer than {UNIT_DEADLINE_S:.0f} s",
            f"see `journalctl -u {units[0]}`",
        ) from error
