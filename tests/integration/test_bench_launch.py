"""The benchmark harness: a small launch with all that a large one has, and a checker that sees."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.launch.check import compare, known_running, read_lists
from bench.launch.cluster import bench_cluster
from bench.launch.progress import Lines
from bench.launch.scenario import load
from bench.launch.trial import Trial

ROOT = Path(__file__).parents[2]
REQUIRED = (
    *("nodes", "instances", "driver", "store", "curve", "seconds_to_all_running"),
    *("instances_per_s", "latency_ms", "stages_s", "controller_cpu_s", "controller_peak_rss_mib"),
    *("messages", "bytes", "machine", "check"),
)
STAGES = {"validate", "commit", "plan", "dispatch", "acknowledge"}
# What a machine that does other things too may take for what takes two seconds here.
DEADLINE_S = 180.0


def bench(*arguments):
    """The command line's benchmark, as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "swarmctl", "bench", "launch", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_small_launch_is_measured_checked_and_written_down(tmp_path):
    """The report has all that it should, and every figure of it was measured."""
    path = tmp_path / "small.json"
    process = bench("--scenario", "small", "--json", str(path))
    said, progress = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0, said + progress
    found = json.loads(path.read_text())
    assert set(REQUIRED) <= found.keys()
    assert found["driver"] == "simulated"
    assert "simulated" in said
    assert "500 of 500 running" in progress
    assert found["check"]["passed"] is True
    assert found["check"]["on_nodes"] == found["check"]["known_running"] == 500
    assert found["stages_s"].keys() >= STAGES
    assert all(found["stages_s"][stage] > 0.0 for stage in STAGES)
    latency = found["latency_ms"]
    assert 0.0 < latency["p50"] <= latency["p99"] <= latency["max"]
    assert sum(count for _, count in latency["buckets"]) == 500
    assert 0.0 < found["controller_cpu_s"] < found["controller_cpu_total_s"]
    # Each of 50 nodes is told, acknowledges and reports at least once.
    assert found["messages"]["in"] >= 50
    assert found["messages"]["out"] >= 50


@pytest.fixture
def launched():
    """A small cluster in which all run."""
    scenario = load("small", nodes=10, containers=40, vms=10)
    with bench_cluster(scenario) as cluster:
        trial = Trial(scenario, cluster, cluster.connect(), Lines())
        trial.launch()
        yield trial
        trial.client.close()


def test_a_planted_fault_is_found(launched):
    """One instance less, or one twice, in one node's own list: the checker says which it is."""
    specs = list(launched.specs.values())
    known = known_running(launched.client)
    lists = list(read_lists(launched.cluster.lists()))
    whole = compare(specs, known, lists)
    taken = lists[3]["instances"].pop()
    one_less = compare(specs, known, lists)
    lists[3]["instances"] += [taken, [*taken[:1], taken[1] + 1_000_000, *taken[2:]]]
    one_more = compare(specs, known, lists)

    assert whole.passed
    assert (one_less.passed, one_less.missing) == (False, 1)
    assert (one_more.passed, one_more.twice, one_more.unknown) == (False, 1, 1)


def test_what_a_node_has_behind_its_agents_back_is_found(launched):
    """The lists are the simulated machines' own: nodes that vanish take theirs with them."""
    launched.cluster.vanish(1)
    launched.check()

    assert not launched.checked.passed
    assert launched.checked.missing == 5


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_early_end_shows_what_there_is_and_leaves_nothing_behind(ending):
    """The report so far, an exit code that says so, and no process that runs on."""
    process = bench("--scenario", "idle", "--nodes", "5", "--processes", "1", "--seconds", "600")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("idle"):
            break
    children = children_of(process.pid)
    assert len(children) == 2
    process.send_signal(ending)
    said, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 130
    assert "interrupted" in said
    assert "5 simulated nodes" in said
    deadline = time.monotonic() + DEADLINE_S
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a process of the benchmark runs on"
        time.sleep(0.05)


def children_of(pid):
    """The processes that ``pid`` has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def test_a_wrong_option_is_an_error_in_words():
    """Like every error of the command line."""
    process = bench("--scenario", "keynot")
    _, said = process.communicate(timeout=DEADLINE_S)

    assert process.returncode not in (0, 1)
    assert said.startswith("error: no scenario 'keynot'")
    assert "keynote" in said


def test_an_installation_without_the_harness_says_where_it_is(tmp_path):
    """The product works without bench/; only this command does not."""
    (tmp_path / "swarmctl").symlink_to(ROOT / "swarmctl")
    code = (
        f"import sys; sys.path[:] = [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "from swarmctl.__main__ import main\n"
        "sys.argv = ['swarmctl', 'bench', 'launch']; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 1
    assert "bench/ folder" in done.stderr
