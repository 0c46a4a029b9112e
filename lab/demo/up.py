"""`make demo`, after the lab is up and the virtual environment made."""

from __future__ import annotations

import time
from functools import partial

from lab import docker, libvirt, procs
from lab.config import Paths
from lab.demo import counting
from lab.demo.cluster import STACK_FILE, Demo
from lab.faults import LabFault
from lab.state import State

FACT = "demos"
LAUNCH_TIMEOUT = "120s"  # 4 s on two idle cores under emulation; a busy machine gets its time

GRACE_S = 20.0  # twice what an instance gets to end by itself


def up(demo: Demo, paths: Paths) -> int:
    """Bring the demo up, prove it, and show it; running it again brings back what is missing.

    Raises:
        LabFault: a step failed, or Docker or libvirt disagree with what swarmctl says.
    """
    started = time.monotonic()
    drivers = _usable_drivers(paths)
    State(paths.state_file).put(FACT, _known(paths) | {str(demo.data): demo.cluster_id()})
    if _answers(demo):
        print("the demo's cluster is up already")
    else:
        name = ["--name", demo.node] if demo.node else []
        where = ["--data", str(demo.data), "--listen", demo.listen]
        demo.show("dev", "--detach", *where, "--drivers", ",".join(drivers), *name)
    cluster_id = demo.cluster_id()
    assert cluster_id is not None, "a controller that answered has written its context"
    State(paths.state_file).put(FACT, _known(paths) | {str(demo.data): cluster_id})
    variables = {"DEMO_KERNEL": str(paths.kernel), "DEMO_INITRD": str(paths.initrd)}
    if "docker" not in drivers:
        variables |= {"DEMO_WEB": "0", "DEMO_WORKERS": "0"}
    if "libvirt" not in drivers:
        variables |= {"DEMO_VMS": "0"}
    stack = str(STACK_FILE.relative_to(STACK_FILE.parents[1]))
    demo.show("apply", "-f", stack, "--wait", "--timeout", LAUNCH_TIMEOUT, **variables)
    demo.show("ps")
    print(_prove(demo, paths, cluster_id, drivers))
    print(f"demo: up in {time.monotonic() - started:.1f} s; `make down` takes it away")
    print("try:  .venv/bin/swarmctl scale web=6 && .venv/bin/swarmctl ps")
    return 0


def _usable_drivers(paths: Paths) -> list[str]:
    """The drivers whose daemons answer.

    Raises:
        LabFault: none does.
    """
    found = {"docker": docker.version(paths), "libvirt": libvirt.version()}
    for name in (name for name, version in found.items() if not version):
        print(f"demo: without {name}, which does not answer (python3 -m lab status)")
    usable = [name for name, version in found.items() if version]
    if not usable:
        raise LabFault("neither Docker nor libvirt answers", "python3 -m lab up")
    return usable


def _known(paths: Paths) -> dict[str, str | None]:
    return dict(State(paths.state_file).get(FACT) or {})


def _answers(demo: Demo) -> bool:
    """Whether the demo's controller answers and its agent serves."""
    if demo.cluster_id() is None:
        return False
    try:
        return any(node["state"] == "ready" for node in demo.swarmctl("node", "ls"))
    except LabFault:
        return False


def _prove(demo: Demo, paths: Paths, cluster_id: str, drivers: list[str]) -> str:
    """Compare what swarmctl says with what the daemons say; one line with the counts.

    Raises:
        LabFault: they disagree.
    """
    lines = []
    for driver, kind, words in (
        ("docker", "container", "containers, counted by Docker"),
        ("libvirt", "vm", "VMs, counted by libvirt"),
    ):
        if driver not in drivers:
            continue
        # What was scaled away a moment ago has its grace, and is not in `ps` any more.
        procs.wait_until(partial(_agree, demo, paths, cluster_id, kind), GRACE_S)
        count, differing = _differing(demo, paths, cluster_id, kind)
        if differing:
            raise LabFault(
                f"swarmctl says {count} {kind}s run, {driver} does not agree",
                f"differing: {', '.join(sorted(differing))}",
            )
        lines.append(f"{count} {words}")
    return f"running: {'; '.join(lines)}"


def _agree(demo: Demo, paths: Paths, cluster_id: str, kind: str) -> bool:
    return not _differing(demo, paths, cluster_id, kind)[1]


def _differing(demo: Demo, paths: Paths, cluster_id: str, kind: str) -> tuple[int, set[str]]:
    """How many of ``kind`` swarmctl says run, and the ids that only one side says run."""
    expected = {
        each["runtime_id"]
        for each in demo.swarmctl("ps")
        if each["kind"] == kind and each["state"] == "running"
    }
    if kind == "container":
        seen = counting.containers(paths, cluster_id, running=True)
    else:
        seen = counting.domains(cluster_id, running=True)
    return len(expected), expected ^ seen
