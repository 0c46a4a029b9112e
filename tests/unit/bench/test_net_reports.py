"""What programs say in instances, as it is read, and what the report makes of all of it."""

import json

import pytest

from bench.net.checks import Forgery, Reach
from bench.net.frames import read_frame
from bench.net.paths import around
from bench.net.plot import draw
from bench.net.ready import Ready, read, summary
from bench.net.report import failures, report, rows
from bench.net.traffic import read_flow, read_round_trips
from lab.faults import LabFault
from tests.integration.net_pods import datagram
from tests.unit.bench.test_net_frames import ONE, OTHER, geneve, vxlan

PING = """\
PING 10.20.0.4 (10.20.0.4): 56 data bytes
64 bytes from 10.20.0.4: seq=0 ttl=64 time=3.418 ms
64 bytes from 10.20.0.4: seq=1 ttl=64 time=0.500 ms
64 bytes from 10.20.0.4: seq=3 ttl=64 time=1.000 ms

--- 10.20.0.4 ping statistics ---
4 packets transmitted, 3 packets received, 25% packet loss
"""


def test_pings_are_read():
    """Times, what is lost, and ranks; without an answer there is nothing to read."""
    found = read_round_trips(PING)
    assert (found.sent, found.lost) == (4, 1)
    assert (found.at_most_ms(50), found.at_most_ms(99)) == (1.0, 3.418)
    for text in ("", "PING x\n\n4 packets transmitted, 0 packets received"):
        with pytest.raises(LabFault, match="ping"):
            read_round_trips(text)


def test_what_iperf3_says_is_read():
    """What arrived counts; an error of its own is passed on."""
    end = {
        "sum_sent": {"retransmits": 7, "bytes": 2000},
        "sum_received": {"bytes": 1_000_000, "seconds": 2.0},
        "cpu_utilization_percent": {"host_total": 10.0, "remote_total": 15.0},
    }
    found = read_flow(json.dumps({"end": end}))
    assert (found.mbit_per_s, found.retransmits, found.program_cpu_s) == (4.0, 7, 0.5)
    for text in ('{"error": "unable to connect"}', "", "{}", '{"end": []}'):
        with pytest.raises(LabFault, match="iperf3"):
            read_flow(text)


def a_path(port, underlay):
    """A measured path, with real frames around it."""
    return {
        "throughput_mbit_per_s": 100.0,
        "latency_ms": {"p50": 1.0, "p99": 2.0, "count": 9, "lost": 0},
        "cpu_s_per_gb": {"switches": 2.0, "vms": 1.0, "programs": 0.0, "all": 3.0},
        "port": around([read_frame(port)]),
        "underlay": around([read_frame(underlay)]),
        "payload_mtu": 1442,
    }


PLAIN = datagram(ONE, OTHER, (1, 7), b"x" * 50)
TAGGED = datagram(ONE, OTHER, (1, 7), b"x" * 50, vlan=100)
ACROSS = a_path(PLAIN, geneve(PLAIN))
REACHED, NOT = Reach("a.1", "b.1", answered=True), Reach("a.1", "o.1", answered=False)
BLOCKED = Forgery("mac", "a.1", sent=4, arrived=0, honest_sent=4, honest_arrived=4)


def test_the_trunk_is_what_the_report_is_about():
    """Headers are those that were seen on the path by trunk, where there is one."""
    paths = {"pod_trunk": a_path(TAGGED, geneve(PLAIN)), "container_across": ACROSS,
             "pod_vxlan": a_path(vxlan(PLAIN), geneve(vxlan(PLAIN)))}  # fmt: skip
    found = report(paths, [REACHED], [NOT], [BLOCKED])

    assert (found["trunk_vlan_tags"], found["underlay_headers"]) == (1, 1)
    assert (found["guest_overlay_headers"], found["payload_mtu"]) == (0, 1442)
    assert found["paths"]["pod_vxlan"]["port"]["overlay_headers"] == 1
    assert found["paths"]["pod_vxlan"]["underlay"]["overlay_headers"] == 2
    assert failures(found) == []
    assert found["not_measured"] == ["container_one_host"]
    by_path = {row[0]: row for row in rows(found)}
    by_vxlan = by_path["pod to pod by VXLAN in the VMs, two hosts"]
    assert by_vxlan[1:4] == ("1 VXLAN", "1 Geneve, 1 VXLAN", "122")
    assert by_path["pod to pod by the VMs' trunks, two hosts"][1] == "1 VLAN tag"


def test_without_vms_nothing_is_said_of_trunks():
    """What was not measured is not known, and it is said which that is."""
    found = report({"container_across": ACROSS}, [REACHED], [NOT], [BLOCKED])
    assert found["trunk_vlan_tags"] is found["guest_overlay_headers"] is None
    assert found["underlay_headers"] == 1
    assert "pod_trunk" in found["not_measured"]


@pytest.mark.parametrize(
    "forgery",
    [
        Forgery("mac", "a.1", sent=4, arrived=1, honest_sent=4, honest_arrived=4),
        Forgery("mac", "a.1", sent=0, arrived=0, honest_sent=4, honest_arrived=4),
        Forgery("mac", "a.1", sent=4, arrived=0, honest_sent=4, honest_arrived=0),
        Forgery("mac", "a.1", sent=4, arrived=0, honest_sent=0, honest_arrived=4),
    ],
)
def test_a_forgery_is_blocked_only_where_it_could_have_been_seen(forgery):
    """One that passed, was never sent, or on a way on which nothing passes, fails."""
    found = report({"container_across": ACROSS}, [REACHED], [NOT], [BLOCKED, forgery])
    assert not found["spoofing_blocked"]
    assert len(failures(found)) == 1


def test_checks_that_were_not_made_fail():
    """Nothing is true because nobody looked."""
    found = report({"container_across": ACROSS}, [], [], [])
    assert len(failures(found)) == 3


def test_a_picture_is_drawn(tmp_path):
    """One with a panel for each question."""
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    found = report({"container_across": ACROSS}, [REACHED], [NOT], [BLOCKED])
    draw(found, tmp_path / "net.svg")

    drawn = (tmp_path / "net.svg").read_text()
    assert drawn.startswith("<?xml")
    assert "container to container" in drawn


def test_what_a_launch_waits_for_its_port_is_read_from_its_timeline():
    """Until it is plugged in, and what is missing when the container is there; not the create."""
    steps = [
        {"step": "starting", "after_ms": 100.0},
        {"step": "plugged in", "after_ms": 130.0},
        {"step": "created", "after_ms": 900.0},
        {"step": "port up", "after_ms": 904.0},
    ]
    found = read(steps)
    assert (found.plug_ms, found.up_ms, found.all_ms) == (30.0, 4.0, 34.0)
    shown = summary([found, Ready(40.0, 2.0), Ready(10.0, 30.0)])
    assert (shown["pods"], shown["all"]) == (3, {"p50": 40.0, "max": 42.0})
    with pytest.raises(LabFault, match="port up"):
        read([*steps[:3], {"step": "port up", "after_ms": None}])
