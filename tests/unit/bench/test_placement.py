"""The placement benchmark in small: every answer is checked, whatever the rate."""

import json

import pytest

from bench.placement import quality, scenarios, shapes
from bench.placement.__main__ import main
from bench.placement.report import measure, report
from swarmctl.scheduler import plan

# Every kind of row, with the figure that says how good the answer is.
SMALL = {
    "identical": (lambda: scenarios.identical(20, 205), {"copies_apart": 1}),
    "constrained": (lambda: scenarios.constrained(30, 200), {"copies_apart": 0}),
    "packed": (lambda: scenarios.all_different(60, "binpack"), {}),
    "spread evenly": (lambda: scenarios.all_different(60, "spread"), {}),
    "only one fits": (lambda: scenarios.only_one_fits(50, 150), {"unplaced": 0}),
    "pinned": (lambda: scenarios.pinned(50, 60), {"unplaced": 0}),
    "anti-affinity": (lambda: scenarios.anti_affinity(50, 3, 20), {"sharing_a_node": 0}),
    "affinity": (lambda: scenarios.affinity(50, 3, 20), {"unplaced": 0}),
    "racks": (lambda: scenarios.spread(500, 3, 25), {"skew": 1}),
    "racks, at once": (lambda: scenarios.spread(500, 1, 200), {"skew": 0}),
    "services": (lambda: shapes.services(50, 6, 60, 4, 0), {"most_of_a_service_on_a_node": 2}),
    "few copies": (lambda: shapes.services(50, 6, 3, 4, 0), {"most_of_a_service_on_a_node": 1}),
    "different": (lambda: shapes.different(50, 10, 2), {}),
    "scale by one": (lambda: shapes.scale_by_one(50, 4, 60), {}),
    "one call": (lambda: shapes.call(50, apart=True, calls=3), {}),
    "changes": (lambda: shapes.changes(20, 50), {}),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_scenario_places_well(name):
    """The checks within hold, and no node has a unit too much."""
    scenario, expected = SMALL[name]
    result = scenario()

    assert result.placed > 0
    assert result.per_s > 0
    assert expected.items() <= result.quality.items()
    assert result.quality.get("over_capacity", 0) == 0


def test_packing_is_near_the_least_number_of_nodes():
    """Within 3 % of what the scarcest resource alone would take, on nodes that are 97 % full."""
    found = scenarios.all_different(1_000, "binpack").quality

    assert found["nodes_over_least_possible"] <= 1.03
    assert found["used_nodes_full"] >= 0.97


def test_a_bad_answer_is_not_a_result():
    """Copies left over, a node over its capacity, racks apart: each ends the measurement."""
    snapshot = scenarios.cluster(100)
    crowded = plan(snapshot, [shapes.service(2, 101)])
    with pytest.raises(AssertionError, match="shares a node"):
        quality.all_apart(crowded)
    # One rack's nodes are the emptiest, and the service does not ask for an even spread.
    for i in range(50):
        snapshot.allocate(f"node-{i:06}", "old", {"cpu_millis": 30_000})
    uneven = plan(snapshot, [shapes.service(1, 3)])
    with pytest.raises(AssertionError, match="copies apart"):
        quality.skew(snapshot, "rack", uneven)
    snapshot.allocate("node-000001", "old", {"cpu_millis": 64_001})
    with pytest.raises(AssertionError, match="over its cpu_millis"):
        quality.over_capacity(snapshot)


def test_the_report_has_medians_and_the_machine():
    """Of three rounds the one in the middle; a rate below its target is said to be."""
    row = measure(lambda: shapes.different(50, 10, 2), rounds=3)
    whole = report([row, {**row, "per_s": 1.0, "met": False}], 3, small=True)

    assert sorted(row["per_s_rounds"])[1] == row["per_s"]
    assert whole["machine"]["cores"] >= 1
    assert whole["all_met"] is False
    assert json.loads(json.dumps(whole)) == whole


def test_the_command_shows_rows_and_writes_the_file(tmp_path, monkeypatch, capsys):
    """Small ones here; the garbage collector stays as it is for the other tests."""
    module = "bench.placement.__main__"
    monkeypatch.setattr(f"{module}.garbage.tune", lambda: None)
    chosen = [SMALL["racks"][0], SMALL["one call"][0]]
    monkeypatch.setattr(f"{module}.rows", lambda **_: chosen)
    path = tmp_path / "placement.json"
    monkeypatch.setattr("sys.argv", ["placement", "--small", "--rounds", "1", "--json", str(path)])

    assert main() == 0
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == [
        "500 nodes, 3 x 25 spread over racks",
        "50 nodes, one copy a plan, keeps apart",
    ]
    assert "skew 1" in capsys.readouterr().out
