"""Daemons and commands in network namespaces: what a test does there, and sees from there."""

import ctypes
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.e2e.cluster import Cluster, run_swarmctl


def ip(*arguments: str) -> None:
    """The ip command, which has to succeed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def inside(name: str) -> list[str]:
    """What to put before a command to run it in a namespace."""
    return ["nsenter", f"--net=/run/netns/{name}"]


@contextmanager
def entered(name: str) -> Iterator[None]:
    """This thread's sockets are of that namespace meanwhile."""
    own = Path("/proc/thread-self/ns/net").open("rb")  # noqa: SIM115 - closed below
    other = Path("/run/netns", name).open("rb")  # noqa: SIM115 - closed below
    try:
        _setns(other.fileno())
        yield
    finally:
        _setns(own.fileno())
        own.close()
        other.close()


def _setns(descriptor: int) -> None:
    """``setns(2)``, which Python has from 3.12 on only."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")


@frozen
class View:
    """A cluster as commands in a namespace show it."""

    cluster: Cluster
    namespace: str

    def run(self, *arguments: str) -> str:
        """What a command prints, which has to succeed."""
        prefix = inside(self.namespace)
        done = run_swarmctl(self.cluster.environment, *arguments, prefix=prefix)
        assert done.code == 0, done
        return done.out

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command lists."""
        found: list[dict[str, Any]] = json.loads(self.run(*arguments, "-o", "json"))
        return found

    def states(self) -> dict[str, str]:
        """The nodes' states."""
        return {one["node"]: one["state"] for one in self.listed("node", "ls")}

    def homes(self) -> list[str]:
        """The node of each instance that runs, in order."""
        return sorted(one["node"] for one in self.listed("ps") if one["state"] == "running")
