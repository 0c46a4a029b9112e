"""`make demo-net`, twice in a row, and what is left of it after `make demo-net-down`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import hosts as lab_hosts
from lab.config import paths_from
from lab.swarm import folder_of
from tests.lab_hosts_needed import need_hosts

ROOT = Path(__file__).resolve().parents[2]
DEMO_S = 300

# A minute of it.
pytestmark = [need_hosts, pytest.mark.slow]


def demo(command, lab):
    """Run it; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.demo", command, "--lab", lab],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_comes_up_twice_and_goes():
    """The second run finds what there is; both show a frame in Geneve, and what does not pass."""
    lab = f"t{os.getpid()}"
    lab_hosts.remove_orphans()
    try:
        for found in ("a controller, 2 agents", "are up already"):
            said = demo("net", lab)
            assert found in said
            assert "6081: Geneve" in said
            assert "no answer, it is on another network" in said
            assert "web.2 - h" in said
    finally:
        demo("net-down", lab)
    assert lab_hosts.namespaces(lab) == []
    assert not folder_of(paths_from(), lab).exists()
    assert "there are none" in demo("net-down", lab)
