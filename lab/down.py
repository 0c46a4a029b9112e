"""`lab down` and `lab purge`: stop what the lab started, undo what it changed, drop what it kept.

Theory of operation. Everything here works from the registry: a daemon that is not in it is never
touched. Each part is attempted even when another failed; a part that failed stays in the registry,
so that the next `down` tries it again. Installed packages, and what Docker and libvirt keep for
themselves, stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection

from lab import docker, image, kvm, libvirt, procs, testbox
from lab.config import Paths
from lab.faults import LabFault
from lab.report import Report, Step
from lab.state import State


def down(paths: Paths, parts: Collection[str], report: Report) -> int:
    """Stop the lab's own daemons and give the KVM node back; 0 when all of it worked.

    Raises:
        LabFault: it needs root.
        Interrupted: Ctrl-C.
    """
    state = State(paths.state_file)
    if os.geteuid() != 0 and state.daemons():
        raise LabFault(f"stopping {', '.join(state.daemons())} needs root", "run the same as root")
    procs.heed_interrupts()
    actions: list[tuple[str, str, Callable[[Step], None]]] = [
        ("docker", "docker", lambda step: docker.down(paths, state, step)),
        ("libvirt", "libvirt", lambda step: libvirt.down(state, step)),
        ("libvirt", "kvm", lambda step: _give_back_kvm(paths, state, step)),
    ]
    with report:
        for part, name, action in actions:
            if part in parts:
                _attempt(report, name, action)
    return 1 if report.failures else 0


def purge(paths: Paths, report: Report) -> int:
    """`down`, and remove the test image, the cache and the lab's own folder; 0 when it worked."""
    with report:
        _attempt(report, "image", lambda step: testbox.remove(paths, step))
        _attempt(report, "own image", lambda step: image.remove(paths, step))
    failed = down(paths, ("docker", "libvirt"), report)
    if failed:
        report.say(f"lab: {paths.state_dir} stays, since it names what still runs")
        return failed
    with report.step("cache") as step:
        _remove_made_by_lab(paths)
        step.done(f"{paths.cache_dir} and {paths.state_dir} removed")
    report.say("lab: installed packages stay; so do /var/lib/docker and /var/lib/libvirt")
    return 0


def _attempt(report: Report, name: str, action: Callable[[Step], None]) -> None:
    try:
        with report.step(name) as step:
            action(step)
    except LabFault:
        pass  # printed and counted by the step; the other parts are stopped all the same


def _give_back_kvm(paths: Paths, state: State, step: Step) -> None:
    done = kvm.give_back(paths, state)
    if done:
        step.done(done)
    else:
        step.kept("was not touched")


def _remove_made_by_lab(paths: Paths) -> None:
    """Remove only what the lab makes in these folders: they may be a person's own choice."""
    for folder in (
        paths.cache_dir / "packages",
        paths.cache_dir / "base",
        paths.cache_dir / "debian",
        paths.cache_dir / "podhost",
        paths.guest_dir,
        paths.log_dir,
    ):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (paths.state_file, paths.lock_file, paths.state_file.with_suffix(".unreadable")):
        file.unlink(missing_ok=True)
    for folder in (paths.cache_dir, paths.state_dir):
        try:
            folder.rmdir()
        except OSError:
            continue  # something of another maker is in it, or it was never made
