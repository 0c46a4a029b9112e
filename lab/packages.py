"""What has to be installed, and installing it with apt, once, for everything that is wanted.

Theory of operation. A *need* is something that the lab looks for on the machine (a program, a
file) and the package that brings it on Debian. Only what is missing is installed: a machine with
Docker's own packages, or libvirt from elsewhere, keeps them. Planning is pure (:func:`plan`); the
shell around it asks the file system and runs apt-get.

apt-get is run with its machine-readable status on a pipe, which gives real percentages, and with a
``policy-rc.d`` that keeps packages from starting daemons: the lab starts them itself, so that it
knows which are its own. A ``policy-rc.d`` that is there already is the machine's and stays.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import procs
from lab.faults import Interrupted, LabFault
from lab.report import Step

LISTS_DIR = Path("/var/lib/apt/lists")
LISTS_MAX_AGE_S = 7 * 86400.0  # older package lists name versions that mirrors have dropped
POLICY_FILE = Path("/usr/sbin/policy-rc.d")
POLICY_TEXT = "#!/bin/sh\n# Written by swarmctl's lab while it installs packages.\nexit 101\n"
APT_OPTIONS = (
    "-y",
    "-q",
    "--no-install-recommends",
    "--no-remove",  # what is there may be somebody's: fail with apt's reason rather than replace it
    "-o", "Dpkg::Options::=--force-confdef",
    "-o", "Dpkg::Options::=--force-confold",
    "-o", "Dpkg::Use-Pty=0",
    "-o", "DPkg::Lock::Timeout=120",  # unattended upgrades may hold the lock for a while
)  # fmt: skip


@dataclass(frozen=True)
class Need:
    """Something a part of the lab wants on the machine."""

    part: str
    package: str
    any_of: tuple[str, ...]  # programs (no slash), files (a slash), or `python:` checks
    why: str


NEEDS = (
    Need("docker", "docker.io", ("dockerd",), "runs containers"),
    Need("docker", "iptables", ("iptables",), "Docker's networks"),
    Need("libvirt", "libvirt-daemon-system", ("libvirtd", "virtqemud"), "runs VMs"),
    Need("libvirt", "libvirt-clients", ("virsh",), "asks libvirt how it is"),
    Need("libvirt", "dnsmasq-base", ("dnsmasq",), "addresses on libvirt's own network"),
    Need("libvirt", "qemu-system-x86", ("qemu-system-x86_64",), "the VMs themselves"),
    Need("libvirt", "qemu-utils", ("qemu-img",), "disk images and overlays"),
    Need("libvirt", "xorriso", ("xorrisofs",), "cloud-init seeds"),
    Need(
        "libvirt",
        "ovmf",
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd"),
        "VMs with UEFI",
    ),
    Need("etcd", "etcd-server", ("etcd",), "the store of several controllers"),
    Need("ovn", "openvswitch-switch", ("ovs-vswitchd",), "the switch of each host"),
    Need("ovn", "ovn-central", ("ovn-northd",), "tenant networks"),
    Need("ovn", "ovn-host", ("ovn-controller",), "tenant networks, on each host"),
    Need("ovn", "iproute2", ("ip",), "hosts as network namespaces"),
    Need("ovn", "ethtool", ("ethtool",), "checksums that a switch in user space needs"),
    Need("ovn", "tcpdump", ("tcpdump",), "looks at what is on the wire"),
    Need("ovn", "iperf3", ("iperf3",), "measures throughput"),
    Need("guest", "qemu-utils", ("qemu-img",), "the test guest's disk"),
    Need("build", "gcc", ("gcc",), "builds libvirt-python"),
    Need("build", "libc6-dev", ("/usr/include/stdio.h",), "builds libvirt-python"),
    Need("build", "pkg-config", ("pkg-config",), "builds libvirt-python"),
    Need(
        "build",
        "libvirt-dev",
        (
            "/usr/lib/x86_64-linux-gnu/pkgconfig/libvirt.pc",
            "/usr/lib/aarch64-linux-gnu/pkgconfig/libvirt.pc",
            "/usr/lib64/pkgconfig/libvirt.pc",
        ),
        "builds libvirt-python",
    ),
    Need("build", "python3-dev", ("python:headers",), "builds libvirt-python"),
    Need("build", "python3-venv", ("python:venv",), "the virtual environment"),
)


@dataclass(frozen=True)
class Distribution:
    """What kind of machine this is, as far as installing goes."""

    name: str
    is_debian: bool
    has_apt: bool
    is_root: bool


def parse_os_release(text: str) -> Mapping[str, str]:
    """The KEY=value lines of an os-release file, without their quotes."""
    pairs = (line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z_]+=", line))
    return {key: value.strip().strip("\"'") for key, value in pairs}


def distribution() -> Distribution:
    """Look at the machine."""
    try:
        release = parse_os_release(Path("/etc/os-release").read_text())
    except FileNotFoundError:
        release = {}
    families = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".split()
    return Distribution(
        name=release.get("PRETTY_NAME", "an unknown distribution"),
        is_debian="debian" in families,
        has_apt=procs.which("apt-get") is not None,
        is_root=os.geteuid() == 0,
    )


def is_there(thing: str) -> bool:
    """Whether a program, a file or a `python:` ability is on this machine."""
    if thing == "python:headers":
        return (Path(sysconfig.get_path("include")) / "Python.h").exists()
    if thing == "python:venv":
        return importlib.util.find_spec("ensurepip") is not None
    if "/" in thing:
        return Path(thing).exists()
    return procs.which(thing) is not None


def plan(parts: Iterable[str], there: Callable[[str], bool] = is_there) -> tuple[Need, ...]:
    """The needs of these parts that are not met, one for each package, in a fixed order."""
    wanted = set(parts)
    missing: dict[str, Need] = {}
    for need in NEEDS:
        if need.part in wanted and not any(there(thing) for thing in need.any_of):
            missing.setdefault(need.package, need)
    return tuple(missing.values())


def blocker(here: Distribution) -> str | None:
    """Why nothing can be installed here, or None when it can."""
    if not (here.is_debian and here.has_apt):
        return f"{here.name} is not Debian or one of its family, so the lab cannot install here"
    if not here.is_root:
        return "installing needs root"
    return None


def parse_status(line: str) -> str | None:
    """A line of apt's status pipe as words for a person, or None for one that says nothing.

    ``dlstatus:1:43.2:Retrieving file 3 of 9`` and ``pmstatus:qemu-utils:61.5:Installing ...``.
    """
    kind, _, rest = line.partition(":")
    match = re.match(r"(.*?):(\d+(?:\.\d+)?):", rest)
    if match is None:
        return None
    percent = float(match[2])
    if kind == "dlstatus":
        return f"downloading, {percent:.0f} %"
    if kind == "pmstatus":
        return f"installing {match[1].removesuffix(':amd64')}, {percent:.0f} %"
    return None


def lists_are_stale(lists_dir: Path = LISTS_DIR, now: float | None = None) -> bool:
    """Whether apt's package lists are missing or too old to trust."""
    if not any(lists_dir.glob("*_Packages*")):
        return True
    age_s = (time.time() if now is None else now) - lists_dir.stat().st_mtime
    return age_s > LISTS_MAX_AGE_S


@contextmanager
def no_daemon_starts(policy_file: Path = POLICY_FILE) -> Iterator[None]:
    """Keep packages from starting daemons, unless the machine has a policy of its own."""
    if policy_file.exists() and policy_file.read_text() != POLICY_TEXT:
        yield
        return
    policy_file.write_text(POLICY_TEXT)
    policy_file.chmod(0o755)
    try:
        yield
    finally:
        policy_file.unlink(missing_ok=True)


def refresh_lists(step: Step) -> None:
    """Run `apt-get update`, twice where a list does not come.

    Raises:
        LabFault: the mirrors are not in reach.
    """
    step.progress("updating the package lists")
    try:
        _apt(["update", "-q", "-o", "APT::Update::Error-Mode=any"], step)
    except LabFault:
        # By default apt calls it a success when some list is missing: good enough, as a second try.
        _apt(["update", "-q"], step)


def install(packages: Iterable[str], step: Step) -> None:
    """Install packages, with one more try on fresh lists when the first fails.

    Raises:
        LabFault: apt-get failed; its last words are in it.
        Interrupted: Ctrl-C; what apt had begun to unpack is finished first.
    """
    names = list(packages)
    with no_daemon_starts():
        _finish_interrupted_install()
        try:
            _apt(["install", *APT_OPTIONS, *names], step)
        except LabFault:
            refresh_lists(step)
            _apt(["install", *APT_OPTIONS, *names], step)


def _finish_interrupted_install() -> None:
    """Let dpkg configure what an interrupted run left half-configured (a no-op otherwise)."""
    try:
        procs.run(["dpkg", "--configure", "-a"], timeout_s=300)
    except subprocess.CalledProcessError as error:
        raise LabFault(
            f"dpkg is in a broken state: {error.stderr.strip().splitlines()[-1:]}",
            "repair it with `dpkg --configure -a` and `apt-get -f install`",
        ) from error


def _apt(arguments: list[str], step: Step) -> None:
    """Run apt-get with its status on a pipe; Ctrl-C lets it finish what dpkg has in hand."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as status:
        process = subprocess.Popen(
            ["apt-get", "-o", f"APT::Status-Fd={write_end}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[write_end],
            start_new_session=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        )
        os.close(write_end)
        assert process.stdout is not None
        output: list[str] = []
        readers = (
            threading.Thread(target=output.extend, args=(process.stdout,), daemon=True),
            threading.Thread(target=_show_status, args=(status, step), daemon=True),
        )
        for reader in readers:
            reader.start()
        _await_apt(process, step)
        for reader in readers:
            reader.join()
    if procs.cancelled.is_set():
        raise Interrupted
    if process.returncode != 0:
        errors = [line.strip() for line in output if line.startswith("E:")] or output
        raise LabFault(
            f"apt-get {arguments[0]} failed: {' '.join(errors[-2:])}",
            "check the network and /etc/apt/sources.list, then run it again",
        )


def _show_status(status: Iterable[str], step: Step) -> None:
    for line in status:
        words = parse_status(line)
        if words and not procs.cancelled.is_set():
            step.progress(words)


def _await_apt(process: subprocess.Popen[str], step: Step) -> None:
    """Wait for apt-get; at Ctrl-C ask it to end, which it does once dpkg is in a sane state."""
    asked = False
    while True:
        try:
            process.wait(timeout=procs.CANCEL_POLL_S)
        except subprocess.TimeoutExpired:
            if procs.cancelled.is_set() and not asked:
                asked = True
                step.progress("interrupted, waiting for apt to finish what it has in hand")
                process.send_signal(signal.SIGINT)
        else:
            return
