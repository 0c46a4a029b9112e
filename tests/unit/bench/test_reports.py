"""What is computed from counters, shown to people, compared and drawn."""

import json

import pytest
from click.testing import CliRunner

from bench.launch import plot, report
from bench.launch.command import code_of
from bench.launch.compare import load, main, ratios
from bench.launch.measure import Counters, Measurement, latency_between, median_ms, quantile
from bench.launch.progress import Lines
from bench.launch.scenario import Scenario
from swarmctl.controller.meters import LatencyHistogram, Meters
from swarmctl.proto.errors import InvalidSpec


def finding(**changed):
    """A report with everything that the readers of reports look at."""
    return {
        "scenario": report.plain(Scenario(name="small")),
        "nodes": 50,
        "instances": 500,
        "services": 10,
        "running": 500,
        "interrupted": False,
        "gave_up": "",
        "measured": "2030-01-01T00:00:00Z",
        "seconds_to_all_running": 0.5,
        "seconds": 0.5,
        "seconds_to_submitted": 0.1,
        "requests": 1,
        "instances_per_s": 1000.0,
        "latency_ms": {
            "p50": 10.0,
            "p99": 20.0,
            "max": 30.0,
            "buckets": [[10.0, 400], [30.0, 100]],
        },
        "stages_s": {"validate": 0.1, "plan": 0.2},
        "store": "sqlite",
        "store_filesystem": "ext4",
        "store_statistics": {"groups": 3, "sync_s": 0.01},
        "controller_cpu_s": 0.25,
        "controller_cpu_us_per_instance": 500.0,
        "controller_peak_rss_mib": 60.0,
        "messages": {"in": 100, "out": 200},
        "bytes": {"in": 1000, "out": 2000},
        "launch_curve": [[0.0, 0], [0.5, 500]],
        "machine": {
            "cores": 2,
            "cpu": "some",
            "memory_mib": 1024,
            "kernel": "6",
            "python": "3",
            "load": 0.5,
        },
        "found": {"one_change": {"scale_stages_ms": 2.0}},
        "check": {"on_nodes": 500, "missing": 0, "passed": True},
    } | changed


def counters(histogram, **changed):
    values = {
        "launches": histogram.view(),
        "stages_s": {"plan": 1.0},
        "store": {"groups": 5},
        "cpu_s": 2.0,
        "listener": {"received": 10, "sent": 20, "received_bytes": 30, "sent_bytes": 40},
    }
    return Counters(values | changed, 0.0, 0.0)


# --- numbers --------------------------------------------------------------------------------------


def test_a_quantile_is_the_value_that_so_many_do_not_exceed():
    """Of buckets, and of single values."""
    assert quantile([(1.0, 50), (2.0, 49), (9.0, 1)], 0.5) == 1.0
    assert quantile([(1.0, 50), (2.0, 49), (9.0, 1)], 0.99) == 2.0
    assert quantile([], 0.5) == 0.0
    assert median_ms([0.003, 0.001, 0.002]) == 2.0


def test_the_costs_of_a_launch_are_those_since_its_start():
    """What the controller used before (its start, enrolments) is not the launch's."""
    histogram = LatencyHistogram()
    before = counters(histogram)
    histogram.add(0.010, 99)
    histogram.add(1.0)
    later = {"received": 110, "sent": 220, "received_bytes": 330, "sent_bytes": 440}
    after = counters(histogram, stages_s={"plan": 1.5, "commit": 0.5}, cpu_s=2.25, listener=later)
    found = after.since(before)

    assert found["controller_cpu_s"] == 0.25
    assert found["controller_cpu_total_s"] == 2.25
    assert found["stages_s"] == {"plan": 0.5, "commit": 0.5}
    assert found["messages"] == {"in": 100, "out": 200}
    assert found["bytes"] == {"in": 300, "out": 400}
    assert found["latency_ms"]["p50"] == pytest.approx(10.0, rel=0.1)
    assert found["latency_ms"]["max"] == 1000.0


def test_latencies_before_are_taken_off():
    """Of two launches by one controller, the second's latencies are its own."""
    histogram = LatencyHistogram()
    histogram.add(5.0, 1000)
    before = histogram.view()
    histogram.add(0.010, 10)
    found = latency_between(before, histogram.view())

    assert sum(count for _, count in found["buckets"]) == 10
    assert found["max"] == pytest.approx(10.0, rel=0.1)


def test_commits_beside_each_other_are_counted_once():
    """Time in which anybody waits for the disk, not the sum of everybody's."""
    meters = Meters()
    with meters.overlapping("commit"):
        with meters.overlapping("commit"):
            assert "commit" not in meters.stages_s
        assert "commit" not in meters.stages_s
    assert meters.stages_s["commit"] > 0.0


def test_a_measurement_is_complete_when_all_run():
    """By its last look."""
    measured = Measurement(10)
    assert not measured.complete
    measured.curve += [(0.1, 9), (0.2, 10)]
    assert (measured.complete, measured.running_s) == (True, 0.2)


# --- text and exit codes --------------------------------------------------------------------------


def test_the_text_says_that_it_is_simulated_and_how_the_check_went():
    """Simulated instances are never called real ones."""
    text = report.text(finding())

    assert "simulated instances" in text
    assert "simulated nodes" in text
    assert "checker: passed" in text


def test_the_text_of_an_interrupted_run_says_so():
    """What there is, and that it is not all."""
    text = report.text(
        finding(interrupted=True, seconds_to_all_running=None, running=123, check=None)
    )

    assert "interrupted" in text
    assert "123 running after" in text
    assert "did not run" in text


def test_the_text_of_a_run_that_gave_up_says_what_did_not_come_about():
    """What there is stays worth something."""
    text = report.text(finding(gave_up="7 of 9 nodes are ready after 60 s"))

    assert "gave up: 7 of 9 nodes are ready after 60 s" in text
    assert "500 simulated instances" in text


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, 0),
        ({"gave_up": "nobody came"}, 1),
        ({"seconds_to_all_running": None}, 1),
        ({"check": {"passed": False}}, 1),
        ({"check": None}, 1),
        ({"interrupted": True}, 130),
    ],
)
def test_the_exit_code_tells_a_script_how_it_went(changed, code):
    """All run and the checker passed, or not."""
    assert code_of(finding(**changed)) == code


def test_progress_into_a_pipe_is_lines(capsys):
    """A line a phase, and one when all run, however quick it was."""
    lines = Lines()
    lines.phase("launching", 500)
    lines.running(100, 0.1)
    lines.running(500, 0.2)

    assert capsys.readouterr().err.splitlines() == [
        "launching 500",
        "    0.20 s        500 of 500 running",
    ]


# --- comparing ------------------------------------------------------------------------------------


def written(path, *found):
    path.write_text(json.dumps(found[0] if len(found) == 1 else list(found)))
    return path


def test_ratios_are_new_over_base_and_say_what_is_better(tmp_path):
    """More instances a second is better, more CPU is not, and 2 % is noise."""
    base = load(written(tmp_path / "base.json", finding()))
    new = load(
        written(
            tmp_path / "new.json",
            finding(instances_per_s=2000.0, controller_cpu_s=0.5, controller_peak_rss_mib=61.0),
        )
    )
    found = {row.figure: (row.ratio, row.verdict) for row in ratios(base, new)}

    assert found["instances/s"] == (2.0, "better")
    assert found["controller CPU s"] == (2.0, "worse")
    assert found["controller peak MiB"][1] == "same"
    assert found["scale +1, work ms"] == (1.0, "same")


def test_only_runs_of_the_same_size_are_compared(tmp_path):
    """Another number of nodes is another benchmark."""
    written(tmp_path / "one.json", finding(nodes=60))
    written(tmp_path / "two.json", finding(), finding(nodes=70))

    assert ratios(load(tmp_path), {("small", 80, 500): finding()}) == []
    assert len(load(tmp_path)) == 3


def test_the_command_prints_a_table(tmp_path):
    """As make bench-compare does."""
    path = str(written(tmp_path / "base.json", finding()))
    done = CliRunner().invoke(main, [path, path])

    assert done.exit_code == 0
    assert "small 500/50" in done.output
    assert "1.00  same" in done.output


def test_what_is_no_report_is_refused(tmp_path):
    """The file is named."""
    with pytest.raises(InvalidSpec, match="empty"):
        load(written(tmp_path / "empty.json", {"some": "thing"}))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidSpec, match="broken"):
        load(tmp_path / "broken.json")


# --- drawing --------------------------------------------------------------------------------------


def test_a_picture_is_drawn(tmp_path):
    """All panels, from reports as they come out of JSON."""
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    path = tmp_path / "launch.svg"
    sizes = [finding(nodes=nodes, instances=500) for nodes in (10, 100)]
    plot.draw([finding()], path, sizes)

    assert path.read_text().count("<svg") == 1


def test_a_picture_of_another_format_is_refused(tmp_path):
    """By the file's name."""
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    with pytest.raises(InvalidSpec, match="svg"):
        plot.draw([finding()], tmp_path / "launch.gif")
