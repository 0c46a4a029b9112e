"""The one-file binary, in a root file system that has nothing in it but glibc and zlib."""

import json
import os
import shutil
import statistics
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.cluster import IMAGE, docker_client, free_port

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "dist" / "swarmctl"
# What every Linux with glibc has; the binary brings all else.
SYSTEM_LIBRARIES = ("libc", "libdl", "libm", "libpthread", "librt", "libutil", "libz", "libresolv")
VERSION_MAX_S = 1.0
WAITS_FOR_TERM = "trap exit TERM; sleep 600 & wait"
COMMAND_S = 90.0
DOCKER_SOCKET = "/var/run/docker.sock"
CHROOT = "/usr/sbin/chroot"


@pytest.fixture(scope="module")
def empty_root(tmp_path_factory):
    """A folder to change root into: the binary, glibc, /dev, /proc, Docker's socket; no Python."""
    if os.geteuid() != 0:
        pytest.skip("changing the root folder needs root")
    assert BINARY.exists(), "make binary comes first; make test does that"
    root = tmp_path_factory.mktemp("root")
    for name in ("dev", "proc", "tmp", "data", "etc"):
        (root / name).mkdir()
    shutil.copy2(BINARY, root / "swarmctl")
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    paths = [Path(line.split("=> ")[1]) for line in listed.splitlines() if "x86-64" in line]
    for path in paths:
        if path.name.split(".so")[0] in SYSTEM_LIBRARIES:
            copy_library(path, root)
    copy_library(Path("/lib64/ld-linux-x86-64.so.2"), root)
    socket = root / "var/run/docker.sock"
    socket.parent.mkdir(parents=True)
    socket.touch()
    mounts = [("/dev", root / "dev"), ("/proc", root / "proc"), (DOCKER_SOCKET, socket)]
    for source, target in mounts:
        subprocess.run(["mount", "--rbind", "--make-rslave", source, str(target)], check=True)
    try:
        yield root
    finally:
        for _, target in mounts:
            subprocess.run(["umount", "--lazy", str(target)], check=True)


def copy_library(path, root):
    """Copy a library to where it is, below ``root``."""
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path.resolve(), target)


def inside(root, *arguments, expect=0):
    """Run the binary in there; what it printed."""
    done = subprocess.run(
        [CHROOT, str(root), "/swarmctl", *arguments],
        env={"SWARMCTL_CONFIG": "/data/config", "HOME": "/", "PATH": "/"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == expect, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout if expect == 0 else done.stderr


@pytest.mark.alone
def test_it_answers_its_version_within_a_second(empty_root):
    """The median of seven, unpacking included."""
    took = []
    for _ in range(7):
        started = time.monotonic()
        assert inside(empty_root, "--version").startswith("swarmctl ")
        took.append(time.monotonic() - started)
    assert statistics.median(took) <= VERSION_MAX_S, took


@pytest.fixture(scope="module")
def dev(empty_root):
    """`dev` started in there, with Docker, and with a driver that the system lacks a library of."""
    listen = f"tcp://127.0.0.1:{free_port()}"
    options = ("--data", "/data/dev", "--listen", listen, "--name", "bare")
    inside(empty_root, "dev", "--detach", *options, "--drivers", "docker,libvirt")
    yield empty_root
    inside(empty_root, "dev", "--stop", "--data", "/data/dev")


def test_a_whole_cluster_runs_without_python(dev):
    """`dev` starts a controller and an agent from the same file, which launch real containers."""
    try:
        replicas = ("--name", "web", "--replicas", "2", "--network", "none")
        inside(dev, "run", "--wait", *replicas, IMAGE, "sh", "-c", WAITS_FOR_TERM)
        shown = json.loads(inside(dev, "ps", "-o", "json"))
        assert [(one["instance"], one["node"], one["state"]) for one in shown] == [
            ("web.1", "bare", "running"),
            ("web.2", "bare", "running"),
        ]
        with closing(docker_client()) as client:
            running = [client.inspect_container(one["runtime_id"])["State"] for one in shown]
        assert all(state["Running"] for state in running)
    finally:
        inside(dev, "rm", "--wait", "web")


def test_what_the_system_lacks_is_named(dev):
    """The system brings libvirt's library: where it is not, the reason names it."""
    told = json.loads(inside(dev, "node", "inspect", "bare", "-o", "json"))
    assert "libvirt.so.0" in json.dumps(told)
