"""The simulator itself: a seed is one run, it holds, and it finds the bugs that it should find."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.world.plants import PLANTS
from tests.sim.world.report import Found, Summary

ROOT = Path(__file__).resolve().parents[2]


# Of a seed, on a machine that does other things as well: it takes 1.4 s of CPU.
SEED_S = 8.0


def simulate(*arguments, seeds=4):
    """What ``python -m tests.sim.world`` says of up to so many seeds, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.world", *arguments],
        cwd=ROOT,
        # Whatever this process was given: the simulator sees to it that it has the right one.
        env={k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"},
        capture_output=True,
        text=True,
        timeout=60 + seeds * SEED_S,
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


# Those that every run plants; some of the others take minutes.
PLANTED_ALWAYS = {"no-fence", "acknowledge-first", "ignore-generation", "no-lease-check"}
WITHIN_SEEDS = 500


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, marks=[] if bug in PLANTED_ALWAYS else pytest.mark.slow)
        for bug in sorted(PLANTS)
    ],
)
def test_planted_bugs_are_found(bug):
    """Each within 500 seeds, by what it breaks; and the line that is printed finds it again."""
    code, said = simulate(
        "--plant", bug, "--until-found", "--seeds", str(WITHIN_SEEDS), "--jobs", "1",
        seeds=WITHIN_SEEDS,
    )  # fmt: skip

    assert code == 1
    seed, invariant = found(said)
    assert invariant in PLANTS[bug].found_by
    code, again = simulate(*replayed(said))
    assert code == 1
    assert found(again) == (seed, invariant)


def test_a_failure_under_harsh_faults_is_replayed_with_them(capsys):
    """Without them another run has that seed."""
    summary = Summary("guard-nothing", harsh=True)
    nothing = {"fired": {}, "checked": {}, "cpu_s": 1.0}

    summary.add(nothing | {"seed": 7, "violations": ["no-defect: it was one"]})

    said = capsys.readouterr().out
    assert {"--harsh", "--plant", "guard-nothing"} <= set(replayed(said))
    assert "--show --seed-base 7 --plant guard-nothing --harsh" in said


def test_a_plant_is_found_at_the_first_seed_that_fails_whichever_worker_is_faster():
    """How many seeds it took is the same with any number of workers."""
    summary = Summary("defect", seed_base=10)
    nothing = {"fired": {}, "checked": {}, "cpu_s": 1.0, "events": 1, "nodes": 20}

    summary.add(nothing | {"seed": 13, "violations": ["no-defect: it was one"]})
    early = summary.found()
    for seed in (10, 12):
        summary.add(nothing | {"seed": seed, "violations": [], "calm_after_s": 1.0})
    summary.add(nothing | {"seed": 11, "violations": ["comes-to-rest: not yet"]})

    assert early is None
    assert summary.found() == Found(seed=11, seeds=2, invariant="comes-to-rest")


def found(said):
    """The first seed that failed, and the invariant that did not hold."""
    return re.search(r"seed (\d+) FAILED: ([^:]*):", said).groups()


def replayed(said):
    """The arguments of what is printed for replaying a seed."""
    [replay] = re.findall(r"replay: make (soak [^,]*),", said)
    shown = subprocess.run(
        ["make", "--dry-run", *replay.split()], cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout
    [arguments] = re.findall(r"-m tests.sim.world (.*)", shown)
    return arguments.split()
