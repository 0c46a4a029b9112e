"""The simulator itself: a seed is one run, it holds, and it finds the bugs that it should find."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.world.plants import PLANTS

ROOT = Path(__file__).resolve().parents[2]


def simulate(*arguments):
    """What ``python -m tests.sim.world`` says, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.world", *arguments],
        cwd=ROOT,
        # Whatever this process was given: the simulator sees to it that it has the right one.
        env={k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def test_a_seed_is_one_run_event_for_event():
    """In two processes, whatever ran before in the second: the same hash of the same events."""

    def runs(first, count):
        code, said = simulate(
            "--worker", "0", "--jobs", "1", "--seed-base", str(first), "--seeds", str(count)
        )
        assert code == 0, said
        return {one["seed"]: one for one in map(json.loads, said.splitlines())}

    alone, after_others = runs(3, 1), runs(1, 3)

    assert alone[3]["digest"] == after_others[3]["digest"]
    assert len({one["digest"] for one in after_others.values()}) == 3
    for one in after_others.values():
        assert one["violations"] == []
        assert one["events"] >= 1000
        assert one["nodes"] >= 20


def test_seeds_hold():
    """Two of them here; ``make test`` and ``make soak`` run many."""
    code, said = simulate("--seeds", "2", "--seed-base", "1000", "--jobs", "1")

    assert code == 0, said
    assert said.splitlines()[-1] == "2 of 2 seeds held"


# The three that every run plants; the others have a minute or two each.
PLANTED_ALWAYS = {"no-fence", "acknowledge-first", "ignore-generation"}


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, marks=[] if bug in PLANTED_ALWAYS else pytest.mark.slow)
        for bug in sorted(PLANTS)
    ],
)
def test_planted_bugs_are_found(bug):
    """Each within 500 seeds, and the line that is printed for it finds it again."""
    code, said = simulate("--plant", bug, "--until-found", "--seeds", "500", "--jobs", "1")

    assert code == 1
    assert "FAILED" in said
    [replay] = re.findall(r"replay: make (soak [^,]*),", said)
    shown = subprocess.run(
        ["make", "--dry-run", *replay.split()], cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout
    [arguments] = re.findall(r"-m tests.sim.world (.*)", shown)
    code, again = simulate(*arguments.split())
    assert code == 1
    assert f"seed {found(said)} FAILED" in again


def found(said):
    """The first seed that failed."""
    return re.search(r"seed (\d+) FAILED", said)[1]
