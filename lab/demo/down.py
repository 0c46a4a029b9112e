"""`make down`: take the demo away, whole, whether or not anything of it still works.

Theory of operation. First politely: the services are removed through the controller, which lets
instances end by their own rules. Then what is left is found by the cluster's id, which is on every
container and domain, and by the locks in the demo's folders, which name its processes. The id
comes from the demo's folder, or where that is gone from the lab's registry.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from lab import docker, libvirt, procs
from lab import down as lab_down
from lab.config import Paths
from lab.demo import counting
from lab.demo.cluster import Demo, cluster_id_in, config_folder
from lab.demo.up import FACT
from lab.faults import LabFault
from lab.report import Report, Step
from lab.state import State, exclusive

CONTEXT = "dev"
STOP_S = 35.0  # `dev` gives each of its two daemons 15 s
REMOVE_TIMEOUT = "60s"


def down(demo: Demo, paths: Paths, *, keep_lab: bool) -> int:
    """Take the demo away, then the lab's daemons; 0 when nothing of it is left.

    Raises:
        LabFault: another command works on the lab.
    """
    state = State(paths.state_file)
    known: dict[str, str | None] = dict(state.get(FACT) or {})
    cluster_id = demo.cluster_id() or known.get(str(demo.data))
    steps: list[tuple[str, Callable[[Step], None]]] = [
        ("services", lambda step: _remove_services(demo, step)),
        ("processes", lambda step: _stop_processes(demo, step)),
    ]
    if cluster_id:
        steps += [
            ("containers", lambda step: _remove_containers(paths, cluster_id, step)),
            ("VMs", lambda step: _remove_domains(cluster_id, step)),
        ]
    report = Report()
    with report:
        for name, action in steps:
            _attempt(report, name, action)
        if not report.failures:
            with report.step("folders") as step:
                _remove_folders(demo, cluster_id, step)
            known.pop(str(demo.data), None)
            state.put(FACT, known or None)
    if keep_lab or report.failures:
        return 1 if report.failures else 0
    with exclusive(paths):
        return lab_down.down(paths, ("docker", "libvirt"), Report())


def _attempt(report: Report, name: str, action: Callable[[Step], None]) -> None:
    try:
        with report.step(name) as step:
            action(step)
    except LabFault:
        pass  # printed and counted by the step; the others are attempted all the same


def _remove_services(demo: Demo, step: Step) -> None:
    """Ask the controller, where there is one; what it cannot do is done by the steps after."""
    if demo.cluster_id() is None:
        step.kept("no demo in " + str(demo.data))
        return
    try:
        names = [each["service"] for each in demo.swarmctl("service", "ls")]
        if names:
            step.progress(f"removing {', '.join(names)}")
            demo.run("rm", "--wait", "--timeout", REMOVE_TIMEOUT, *names)
    except (LabFault, subprocess.TimeoutExpired) as error:
        step.done(f"not through the controller ({str(error).splitlines()[0]})")
    else:
        step.done(f"removed: {', '.join(names)}" if names else "there are none")


def _stop_processes(demo: Demo, step: Step) -> None:
    """End what watches first: it ends the other two in order."""
    outcomes = [procs.terminate(each, term_s=STOP_S) for each in demo.processes()]
    if "stuck" in outcomes:
        raise LabFault("a process of the demo does not end", f"see the pid files in {demo.data}")
    stopped = [outcome for outcome in outcomes if outcome != "gone"]
    if stopped:
        step.done(f"dev {', '.join(stopped)}")
    else:
        step.kept("none runs")


def _remove_containers(paths: Paths, cluster_id: str, step: Step) -> None:
    if docker.version(paths) is None:
        step.kept("Docker does not run")
        return
    left = counting.containers(paths, cluster_id, running=False)
    for container_id in left:
        counting.remove_container(paths, container_id)
    _told(step, len(left))


def _remove_domains(cluster_id: str, step: Step) -> None:
    if libvirt.version() is None:
        step.kept("libvirt does not run")
        return
    left = counting.domains(cluster_id, running=False)
    for uuid in left:
        counting.remove_domain(uuid)
    _told(step, len(left))


def _told(step: Step, count: int) -> None:
    if count:
        step.done(f"{count} that were left, removed")
    else:
        step.kept("none is left")


def _remove_folders(demo: Demo, cluster_id: str | None, step: Step) -> None:
    """The demo's data, and the context `dev` where it leads to this demo."""
    removed = [str(demo.data)] if demo.data.exists() else []
    shutil.rmtree(demo.data, ignore_errors=True)
    if demo.data.exists():
        raise LabFault(f"{demo.data} cannot be removed", "remove it as its owner")
    folder = config_folder()
    context = folder / f"{CONTEXT}.context"
    if cluster_id and cluster_id_in(context) == cluster_id:
        context.unlink()
        _forget_current(folder)
        removed.append(f"the context {CONTEXT}")
    if removed:
        step.done(f"removed {' and '.join(removed)}")
    else:
        step.kept("there are none")


def _forget_current(folder: Path) -> None:
    current = folder / "current"
    if current.exists() and current.read_text().strip() == CONTEXT:
        current.unlink()
