"""Measuring one path: what is on it, what passes in a second, how long it takes, what it costs.

Two passes: captures cost time themselves, so rates and times are taken without them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final

from attrs import frozen

from bench.net import cpu
from bench.net.capture import Captured, capturing
from bench.net.frames import Frame
from bench.net.traffic import Endpoint, flow, round_trips
from lab.faults import LabFault
from lab.swarm import Swarm

# Enough for packets of full size on the way, and few enough for one capture.
_SEEN_BYTES: Final = "2M"
_SEEN_PINGS: Final = 10


@frozen
class Path:
    """From whom to whom.

    Attributes:
        name: one of those of `bench.net.report`.
        source: sends.
        target: takes.
        across: they are on two hosts.
    """

    name: str
    source: Endpoint
    target: Endpoint
    across: bool


def measure(path: Path, swarm: Swarm, seconds: int, pings: int) -> dict[str, Any]:
    """All about a path, as plain data.

    Raises:
        LabFault: nothing comes through, or it is not seen where it has to be.
    """
    path.source.give_tools()
    path.target.give_tools()
    seen = look(path, swarm)
    watch = cpu.stopwatch(swarm)
    moved = flow(path.source, path.target, "-t", str(seconds))
    used = watch.seconds()
    times = round_trips(path.source, path.target, pings)
    per_gb = 1e9 / moved.bytes_moved
    # In a VM iperf3 runs on the VM's CPU, and is in its share already.
    used["programs"] = 0.0 if used["vms"] else moved.program_cpu_s
    return {
        "throughput_mbit_per_s": round(moved.mbit_per_s, 1),
        "retransmits": moved.retransmits,
        "latency_ms": {
            "p50": times.at_most_ms(50),
            "p99": times.at_most_ms(99),
            "count": times.sent,
            "lost": times.lost,
        },
        "cpu_s_per_gb": {name: round(value * per_gb, 2) for name, value in used.items()}
        | {"all": round(sum(used.values()) * per_gb, 2)},
        **seen,
    }


def look(path: Path, swarm: Swarm) -> dict[str, Any]:
    """What is around a path's packets, at the source's port and between the hosts.

    Raises:
        LabFault: they are not seen there.
    """
    one, other = path.source, path.target
    with ExitStack() as stack:
        at_port = stack.enter_context(capturing(one.place, one.interface))
        at_wire: Captured | None = None
        if path.across:
            wire = stack.enter_context(capturing(swarm.hosts.central.place, wire_of(swarm, one)))
            at_wire = wire
        round_trips(one, other, _SEEN_PINGS)
        flow(one, other, "-n", _SEEN_BYTES)
    addresses = one.address, other.address
    found: dict[str, Any] = {"port": around(at_port.between(*addresses))}
    if at_wire is not None:
        found["underlay"] = around(at_wire.between(*addresses))
        found["payload_mtu"] = found["underlay"]["packet_bytes_max"]
    else:
        found["payload_mtu"] = found["port"]["packet_bytes_max"]
    return found


def wire_of(swarm: Swarm, one: Endpoint) -> str:
    """The other end of the cable of the host that an endpoint is on.

    Raises:
        LabFault: it is on none.
    """
    for host in swarm.hosts.hosts:
        if host.place is one.place:
            return host.name
    raise LabFault(f"{one.instance} is on no host")


def around(frames: Sequence[Frame]) -> dict[str, Any]:
    """What is around the packets in these frames.

    All frames of a path are alike but for the protocol in the packet; where they are not, the
    most that was seen counts, and ``layers`` has each kind.
    """
    kinds = Counter(_outside(one.layers) for one in frames)
    return {
        "frames": len(frames),
        "layers": [" ".join(kind) for kind, _ in kinds.most_common()],
        "vlan_tags": max(len(one.vlans) for one in frames),
        "overlay_headers": max(one.overlays for one in frames),
        "around_bytes": max(one.around_bytes for one in frames),
        "packet_bytes_max": max(one.packet_bytes for one in frames),
        "fragments": sum(one.is_fragment for one in frames),
        # Of all bytes on it, those of the packets themselves.
        "packet_share": round(_share(frames), 4),
    }


def _outside(layers: Sequence[str]) -> tuple[str, ...]:
    """Without what the innermost packet carries."""
    return tuple(layers[:-1])


def _share(frames: Iterable[Frame]) -> float:
    pairs = [(one.packet_bytes, one.length_bytes) for one in frames]
    return sum(packet for packet, _ in pairs) / sum(length for _, length in pairs)
