"""One page of pictures of one or more reports; needs matplotlib (the extra ``bench``).

Four panels: launch curves, latency distributions, time by stage, and cost against size, where the
reports are of different sizes.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from swarmctl.proto.errors import EnvironmentFault, InvalidSpec

_STAGES: Final = ("validate", "commit", "plan", "assign", "dispatch", "acknowledge")
_FORMATS: Final = (".svg", ".png")
# More curves than this in one panel cannot be told apart.
_CURVES_MAX: Final = 10

Report = dict[str, Any]


def check_available() -> None:
    """Say it before anything is measured.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "drawing needs matplotlib, which is not installed",
            hint="install the extra: pip install 'swarmctl[bench]'; --json works without",
        )


def draw(reports: Sequence[Report], path: Path, sizes: Sequence[Report] = ()) -> None:
    """Draw ``reports``, and the cost of launches of different ``sizes``, into a file.

    Raises:
        EnvironmentFault: matplotlib is not installed.
        InvalidSpec: the file's name is neither .svg nor .png.
    """
    check_available()
    if path.suffix not in _FORMATS:
        raise InvalidSpec(f"a picture is one of {', '.join(_FORMATS)}", str(path))
    # Not at the top: it takes half a second, and nothing else needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(2, 3) if sizes else figure.subplots(2, 2)
    flat = list(panels.flat)
    shown = list(reports)[:_CURVES_MAX]
    _launch_curves(flat[0], shown)
    _latencies(flat[1], shown)
    _stages(flat[2], shown)
    if sizes:
        _cost(flat[3], sizes, "nodes")
        _cost(flat[4], sizes, "instances")
        _rate(flat[5], sizes)
    else:
        _rate(flat[3], shown)
    figure.suptitle(_title([*reports, *sizes]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _title(reports: Sequence[Report]) -> str:
    machine = reports[0]["machine"]
    return (
        "swarmctl: launches of simulated instances, real control plane (CURVE, durable store)\n"
        f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, "
        f"{reports[0]['measured'][:10]}"
    )


def _name(report: Report) -> str:
    return f"{report['scenario']['name']} ({report['instances']:,} on {report['nodes']:,})"


def _launch_curves(axes: Any, reports: Sequence[Report]) -> None:
    for report in reports:
        curve = report["launch_curve"]
        whole = max(1, report["instances"])
        axes.plot(
            [seconds for seconds, _ in curve],
            [100.0 * running / whole for _, running in curve],
            label=_name(report),
        )
    axes.set(title="Launch curve", xlabel="seconds since submission", ylabel="% running")
    axes.legend(fontsize="small")


def _latencies(axes: Any, reports: Sequence[Report]) -> None:
    for report in reports:
        buckets = report["latency_ms"]["buckets"]
        total = sum(count for _, count in buckets)
        seen, values, shares = 0, [], []
        for value_ms, count in buckets:
            seen += count
            values.append(value_ms)
            shares.append(100.0 * seen / total)
        axes.step(values, shares, where="post")
    axes.set(
        title="Latency of an instance",
        xlabel="ms from acceptance to known running",
        ylabel="% at most",
        xscale="log",
    )
    _few_ticks(axes)
    # Its colours are those of the launch curve beside it, which has the names.


def _stages(axes: Any, reports: Sequence[Report]) -> None:
    names = [_name(report) for report in reports]
    left = [0.0] * len(reports)
    for stage in _STAGES:
        widths = [
            1e6 * report["stages_s"].get(stage, 0.0) / max(1, report["running"])
            for report in reports
        ]
        axes.barh(names, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(title="Controller's time by stage", xlabel="µs an instance")
    axes.invert_yaxis()
    axes.legend(fontsize="small")


def _cost(axes: Any, reports: Sequence[Report], size: str) -> None:
    """CPU an instance over one size, a line for each value of the other."""
    other = "instances" if size == "nodes" else "nodes"
    for fixed in sorted({report[other] for report in reports}):
        line = sorted((one for one in reports if one[other] == fixed), key=lambda one: one[size])
        if len(line) > 1:
            axes.plot(
                [one[size] for one in line],
                [one["controller_cpu_us_per_instance"] for one in line],
                marker="o",
                label=f"{fixed:,} {other}",
            )
    axes.set(
        title=f"Controller's CPU against {size}",
        xlabel=size,
        ylabel="µs an instance",
        xscale="log",
        yscale="log",
    )
    _few_ticks(axes)
    if axes.lines:
        axes.legend(fontsize="small")


def _few_ticks(axes: Any) -> None:
    """Plain numbers on logarithmic axes, and not at every minor tick."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axis.set_minor_formatter(NullFormatter())


def _rate(axes: Any, reports: Sequence[Report]) -> None:
    axes.barh([_name(one) for one in reports], [one["instances_per_s"] for one in reports])
    axes.set(title="Rate, submission to all running", xlabel="instances/s")
    axes.invert_yaxis()
