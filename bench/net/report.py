"""What was found, as data (the JSON file) and as a table: pure but for the machine's name."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import asdict

from bench.launch.report import machine
from bench.net.checks import Forgery, Reach

TRUNK, VXLAN, ACROSS, ONE_HOST = "pod_trunk", "pod_vxlan", "container_across", "container_one_host"
WORDS: Final = {
    ONE_HOST: "container to container, one host",
    ACROSS: "container to container, two hosts",
    TRUNK: "pod to pod by the VMs' trunks, two hosts",
    VXLAN: "pod to pod by VXLAN in the VMs, two hosts",
}
HEAD: Final = (
    "path",
    "around the packet at the port",
    "between the hosts",
    "bytes around it there",
    "payload MTU",
    "Mbit/s",
    "p50 ms",
    "p99 ms",
    "CPU s/GB",
)


def report(
    paths: Mapping[str, dict[str, Any]],
    reached: Sequence[Reach],
    cut_off: Sequence[Reach],
    forgeries: Sequence[Forgery],
    port_ready_ms: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All of it; the first fields are those of the path that matters most among those measured.

    ``trunk_vlan_tags`` and ``guest_overlay_headers`` are counted on a VM's tap, and None where no
    VM was measured; ``underlay_headers`` are the encapsulations between the hosts;
    ``port_ready_ms`` what a pod waits for its port (:mod:`bench.net.ready`).
    """
    trunk = paths.get(TRUNK)
    main = trunk or paths[ACROSS]
    return {
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "trunk_vlan_tags": trunk["port"]["vlan_tags"] if trunk else None,
        "underlay_headers": main["underlay"]["overlay_headers"],
        "guest_overlay_headers": trunk["port"]["overlay_headers"] if trunk else None,
        "payload_mtu": main["payload_mtu"],
        "same_network_reaches": bool(reached) and all(one.answered for one in reached),
        "other_network_blocked": bool(cut_off) and not any(one.answered for one in cut_off),
        "spoofing_blocked": bool(forgeries) and all(one.blocked for one in forgeries),
        "throughput_mbit_per_s": {key: one["throughput_mbit_per_s"] for key, one in paths.items()},
        "latency_ms": {
            key: {"p50": one["latency_ms"]["p50"], "p99": one["latency_ms"]["p99"]}
            for key, one in paths.items()
        },
        "port_ready_ms": port_ready_ms,
        "not_measured": [key for key in WORDS if key not in paths],
        "paths": {key: {"words": WORDS[key], **paths[key]} for key in WORDS if key in paths},
        "checks": {
            "same_network": [asdict(one) for one in reached],
            "other_network": [asdict(one) for one in cut_off],
            "spoofing": [asdict(one) | {"blocked": one.blocked} for one in forgeries],
        },
    }


def failures(found: Mapping[str, Any]) -> list[str]:
    """What is not as it has to be, in words."""
    wanted = {
        "same_network_reaches": "an instance of the same network was not reached",
        "other_network_blocked": "an instance of another network was reached",
        "spoofing_blocked": "a frame in another's name passed, or it could not be told",
    }
    return [words for key, words in wanted.items() if not found[key]]


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table, without its head."""
    return [_row(one) for one in found["paths"].values()]


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    between = one.get("underlay")
    return (
        one["words"],
        _headers(one["port"]),
        _headers(between) if between else "-",
        str(between["around_bytes"]) if between else "-",
        str(one["payload_mtu"]),
        f"{one['throughput_mbit_per_s']:.0f}",
        f"{one['latency_ms']['p50']:.2f}",
        f"{one['latency_ms']['p99']:.2f}",
        f"{one['cpu_s_per_gb']['all']:.1f}",
    )


def _headers(around: Mapping[str, Any]) -> str:
    """``1 VLAN tag``, ``1 Geneve``…, counted in what was seen most."""
    layers = around["layers"][0].split()
    counted = (
        (layers.count("vlan"), "VLAN tag"),
        (layers.count("geneve"), "Geneve"),
        (layers.count("vxlan"), "VXLAN"),
    )
    return ", ".join(f"{count} {name}" for count, name in counted if count) or "nothing"
