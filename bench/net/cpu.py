"""CPU seconds of what moves the bytes: the switches and the VMs of all hosts.

What the kernel does outside of any process (softirqs in ``ksoftirqd``) is in neither.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import define, field

from lab import hosts, procs
from lab.swarm import Swarm

# The kernel's names of processes, of 15 characters at the most, to what they are.
_MOVERS: Final = {"ovs-vswitchd": "switches", "qemu-system-x86": "vms"}


@define
class Stopwatch:
    """Counts from its start.

    Attributes:
        kinds: pid to ``switches`` or ``vms``.
    """

    kinds: dict[int, str]
    _before: dict[int, float] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._before = {pid: cpu_s(pid) for pid in self.kinds}

    def seconds(self) -> dict[str, float]:
        """What each kind has used since the start."""
        used = dict.fromkeys(_MOVERS.values(), 0.0)
        for pid, kind in self.kinds.items():
            used[kind] += cpu_s(pid) - self._before[pid]
        return used


def stopwatch(swarm: Swarm) -> Stopwatch:
    """Start to count for all hosts of a swarm."""
    namespaces = [host.place.namespace for host in swarm.hosts.hosts]
    return Stopwatch(dict(_movers(hosts.processes_in(namespaces))))


def _movers(pids: Iterable[int]) -> Iterable[tuple[int, str]]:
    for pid in pids:
        stat = procs.read_stat(pid)
        if stat is not None and stat.name in _MOVERS:
            yield pid, _MOVERS[stat.name]


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, all of its threads.

    Raises:
        ProcessLookupError, FileNotFoundError: it has ended.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
