"""How soon a pod's port is ready: from a warm pool, by the timeline of the agent in the VM.

A port costs a launch two waits: until it is plugged in, and, once the container is created, what is
still missing until its packets flow. Both are read from `swarmctl trace`, of pods that are launched
one after the other, each with spare ports of its network on its trunk: so it is the port that is
measured, not a queue, and not the way of an assignment.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from bench.net.world import Member, launch
from lab import podhost
from lab.faults import LabFault
from lab.swarm import Swarm

NETWORK: Final = "front"
SERVICE: Final = "ready"
# Pods that are counted; one before them has made the pool.
PODS: Final = 10
_WARM_S: Final = 60.0
_RUNNING_S: Final = 120.0
# By the steps of a timeline: from which to which.
_WAITS: Final = (("starting", "plugged in"), ("created", "port up"))


@frozen
class Ready:
    """What one launch waited for its port.

    Attributes:
        plug_ms: until it was plugged in, with its network namespace.
        up_ms: from when the container was created until packets flowed.
    """

    plug_ms: float
    up_ms: float

    @property
    def all_ms(self) -> float:
        """Both together."""
        return self.plug_ms + self.up_ms


def read(steps: Sequence[Mapping[str, Any]]) -> Ready:
    """The waits in a timeline, as ``swarmctl trace`` shows it.

    Raises:
        LabFault: a step is missing, or its time is not known.
    """
    at = {one["step"]: one["after_ms"] for one in steps if one["after_ms"] is not None}
    try:
        plug, up = (at[end] - at[begin] for begin, end in _WAITS)
    except KeyError as error:
        raise LabFault(f"the timeline has no {error}: {sorted(at)}") from error
    return Ready(plug, up)


def summary(found: Sequence[Ready]) -> dict[str, Any]:
    """In milliseconds: the median and the most, of all of it and of its parts."""
    parts: dict[str, Callable[[Ready], float]] = {
        "all": lambda one: one.all_ms,
        "plug": lambda one: one.plug_ms,
        "up": lambda one: one.up_ms,
    }
    shown: dict[str, Any] = {
        name: {
            "p50": round(statistics.median(map(part, found)), 1),
            "max": round(max(map(part, found)), 1),
        }
        for name, part in parts.items()
    }
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"measured": when, "pods": len(found), **shown}


def measure(swarm: Swarm, folder: Path, node: str) -> dict[str, Any]:
    """Launch pods on a node in a VM, and read what each waited for its port.

    Raises:
        LabFault: one does not run in time, or there are no spare ports.
    """
    launch(swarm, folder, (Member(SERVICE, node, NETWORK, ()),), podhost.IMAGE)
    found = []
    for count in range(2, PODS + 2):
        swarm.until(lambda: _spares(swarm) > 0, _WARM_S, f"spare ports of {NETWORK}")
        swarm.run("scale", f"{SERVICE}={count}")
        name = f"{SERVICE}.{count}"
        swarm.until(partial(_runs, swarm, name), _RUNNING_S, f"{name} running")
        found.append(read(json.loads(swarm.run("trace", name, "-o", "json"))["steps"]))
    swarm.run("rm", "--wait", SERVICE)
    guests = "with KVM" if swarm.paths.kvm_node.exists() else "emulated"
    return {"guests": guests, **summary(found)}


def _spares(swarm: Swarm) -> int:
    return int(json.loads(swarm.run("network", "inspect", NETWORK))["spare_subports"])


def _runs(swarm: Swarm, name: str) -> bool:
    return swarm.instances(SERVICE).get(name, {}).get("state") == "running"
