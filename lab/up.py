"""`lab up`: install once, then everything that does not wait for another thing beside each other.

Theory of operation. apt runs once, for all packages. Meanwhile the guest is fetched and built (it
needs no installed package until its last step). Then three lines run in threads: KVM and after it
libvirt (libvirtd probes QEMU with the node, so the node is settled first), Docker and after it the
image, and the rest of the guest. Each line ends in its own fault or success; none stops another.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from lab import docker, guest, kvm, libvirt, packages, procs, testbox
from lab.config import Paths
from lab.faults import Interrupted, LabFault
from lab.report import Report
from lab.state import State

DAEMON_PARTS = {"docker", "libvirt"}
WAIT_TURN_S = 0.2
APT_WAIT_S = 1800.0  # a slow mirror; Ctrl-C ends it sooner


@dataclass
class Run:
    """One `lab up` in progress."""

    paths: Paths
    state: State
    parts: Collection[str]
    report: Report
    installed: threading.Event = field(default_factory=threading.Event)
    faults: dict[str, LabFault] = field(default_factory=dict)

    def attempt(self, part: str, action: Callable[[], None]) -> bool:
        """Run one part's action; a fault is kept under the part's name."""
        try:
            action()
        except LabFault as fault:
            self.faults.setdefault(part, fault)
            return False
        return True


def up(paths: Paths, parts: Collection[str], report: Report, *, ask: bool) -> int:
    """Bring the lab up; 0 when what was asked for, or at least one daemon of it, is usable.

    Raises:
        Interrupted: Ctrl-C.
        LabFault: nothing at all can be done here.
    """
    started = time.monotonic()
    run = Run(paths, State(paths.state_file), parts, report)
    missing = packages.plan(parts)
    blocked = packages.blocker(packages.distribution()) if missing else None
    if missing and not blocked and not _agreed(run, missing, ask=ask):
        report.say("lab: nothing was changed")
        return 1
    procs.heed_interrupts()
    with report, ThreadPoolExecutor(max_workers=4, thread_name_prefix="lab") as pool:
        lines: list[Future[None]] = []
        if missing and not blocked and packages.lists_are_stale():
            run.attempt("packages", lambda: _refresh(run))
        if "guest" in parts:
            lines.append(pool.submit(_guest_line, run))
        try:
            _install(run, missing, blocked)
        finally:
            run.installed.set()
        if "libvirt" in parts:
            lines.append(pool.submit(_libvirt_line, run))
        if "docker" in parts or "image" in parts:
            lines.append(pool.submit(_docker_line, run))
        _await(lines)
    return _conclude(run, time.monotonic() - started)


def _agreed(run: Run, missing: tuple[packages.Need, ...], *, ask: bool) -> bool:
    """Say what will be installed, and on a terminal ask once (Enter is yes)."""
    run.report.say("lab: these packages are missing and will be installed with apt-get:")
    for need in missing:
        run.report.say(f"     {need.package:<22} {need.why}")
    daemons = [name for name in ("docker", "libvirt") if name in run.parts]
    if daemons:
        run.report.say(f"     then {' and '.join(daemons)} will be started, if not running")
    if not ask or not sys.stdin.isatty():
        return True
    try:
        answer = input("lab: go on? [Y/n] ").strip().lower()
    except EOFError:
        answer = ""
    return answer in ("", "y", "yes")


def _refresh(run: Run) -> None:
    with run.report.step("packages") as step:
        packages.refresh_lists(step)
        step.done("package lists updated")


def _install(run: Run, missing: tuple[packages.Need, ...], blocked: str | None) -> None:
    if not missing:
        run.report.say("  -- packages:  nothing is missing")
        return
    names = [need.package for need in missing]

    def action() -> None:
        with run.report.step("packages") as step:
            if blocked:
                raise LabFault(
                    f"{blocked}; missing: {', '.join(names)}",
                    "install what these stand for by other means, then run this again",
                )
            packages.install(names, step)
            step.done(f"{len(names)} installed with what they need: {', '.join(names)}")

    run.faults.pop("packages", None)  # installing tries the lists again itself, where it must
    if not run.attempt("packages", action):
        fault = run.faults["packages"]
        if "build" in run.parts and any(need.part == "build" for need in missing):
            run.faults["build"] = fault


def _guest_line(run: Run) -> None:
    def action() -> None:
        with run.report.step("guest") as step:
            try:
                guest.up(run.paths, step, run.installed)
            except LabFault:
                if run.installed.is_set():
                    raise
                step.progress("waiting for apt, then trying again")  # it may refresh its lists
                procs.wait_until(run.installed.is_set, APT_WAIT_S)
                guest.up(run.paths, step, run.installed)

    run.attempt("guest", action)


def _libvirt_line(run: Run) -> None:
    def settle_kvm() -> None:
        with run.report.step("kvm") as step:
            kvm.settle(run.paths, run.state, step)

    def start() -> None:
        with run.report.step("libvirt") as step:
            libvirt.up(run.paths, run.state, step)

    run.attempt("kvm", settle_kvm)
    run.attempt("libvirt", start)


def _docker_line(run: Run) -> None:
    def start() -> None:
        with run.report.step("docker") as step:
            docker.up(run.paths, run.state, step)

    def image() -> None:
        with run.report.step("image") as step:
            if docker.version(run.paths) is None:
                raise LabFault("needs a Docker daemon, and none answers", "see docker above")
            testbox.up(run.paths, step)

    if "docker" in run.parts:
        run.attempt("docker", start)
    if "image" in run.parts:
        run.attempt("image", image)


def _await(lines: list[Future[None]]) -> None:
    """Wait for every line in short turns, so that Ctrl-C is seen; bugs and Ctrl-C come out here."""
    pending = set(lines)
    while pending:
        _, pending = wait(pending, timeout=WAIT_TURN_S)
    for line in lines:
        line.result()
    if procs.cancelled.is_set():
        raise Interrupted


def _conclude(run: Run, elapsed_s: float) -> int:
    """Print the summary and choose the exit code."""
    good = [part for part in run.parts if part not in run.faults]
    bad = [part for part in run.parts if part in run.faults]
    summary = f"lab: {'up' if not bad else 'partly up'} in {elapsed_s:.1f} s"
    run.report.say(f"{summary}: {', '.join(good) or 'nothing'}")
    for part in bad:
        fault = run.faults[part]
        run.report.say(f"lab: without {part}: {fault.what}")
    if not bad:
        return 0
    daemons_wanted = DAEMON_PARTS & set(run.parts)
    usable = daemons_wanted & set(good)
    return 0 if usable else 1
