"""A picture of what each path costs; needs matplotlib (the extra ``bench``)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.launch.plot import check_available

_KINDS: Final = ("switches", "vms", "programs")
_WORDS: Final = {"switches": "switches", "vms": "VMs", "programs": "iperf3 itself"}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw a report into a file.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    check_available()
    # Not at the top: it takes half a second, and nothing else needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    headers, rate, latency, cost = figure.subplots(2, 2).flat
    rows = list(found["paths"].values())
    names = [one["words"].replace(", ", "\n").replace(" by ", "\nby ") for one in rows]
    around = [_around_bytes(one) for one in rows]
    headers.barh(names, around)
    headers.set(title="Around the packet between the hosts", xlabel="bytes")
    for number, count in enumerate(around):
        headers.annotate(str(count), (count, number), va="center")
    rate.barh(names, [one["throughput_mbit_per_s"] for one in rows])
    rate.set(title="One TCP connection", xlabel="Mbit/s")
    latency.barh(names, [one["latency_ms"]["p99"] for one in rows], color="lightgrey", label="p99")
    latency.barh(names, [one["latency_ms"]["p50"] for one in rows], label="p50")
    latency.set(title="Round trip", xlabel="ms")
    latency.legend(fontsize="small")
    left = [0.0] * len(rows)
    for kind in _KINDS:
        widths = [one["cpu_s_per_gb"][kind] for one in rows]
        cost.barh(names, widths, left=left, label=_WORDS[kind])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    cost.set(title="CPU", xlabel="seconds a gigabyte")
    cost.legend(fontsize="small")
    for axes in (headers, rate, latency, cost):
        axes.invert_yaxis()
    machine = found["machine"]
    figure.suptitle(
        f"Paths between instances: {machine['cores']} cores of {machine['cpu']} for all of it, "
        f"switches in user space, {found['measured'][:10]}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _around_bytes(one: Mapping[str, Any]) -> int:
    """All headers around the pod's IP packet between the hosts, or at its port on one host."""
    return int(one.get("underlay", one["port"])["around_bytes"])
