"""A scenario from start to report, and where scenarios for the command line come from."""

from typing import Any, Final

from bench.launch import runs
from bench.launch.cluster import bench_cluster
from bench.launch.progress import Progress
from bench.launch.report import report
from bench.launch.scenario import Scenario, changed, load
from bench.launch.trial import Trial
from swarmctl.proto.errors import DeadlineExceeded, EnvironmentFault

# Simulated nodes in one process: each takes four of its 20,000 descriptors, and memory.
_NODES_A_PROCESS: Final = 2_500
# What one instance of a launch without a scenario needs.
_NEEDS: Final = {"cpu_millis": 100, "memory_bytes": 64 << 20}
# So many times the load fit into a cluster without a scenario.
_ROOM: Final = 2
_INSTANCES_A_SERVICE: Final = 100
_SERVICES_MAX: Final = 1_000


def run(scenario: Scenario, progress: Progress) -> dict[str, Any]:
    """Run ``scenario``; its report, as the JSON file has it.

    Ctrl-C ends it early, and so does what does not come about in time: the report is of what there
    is, and says so.
    """
    progress.phase(f"starting {scenario.nodes:,} simulated nodes", 0)
    with bench_cluster(scenario) as cluster:
        trial = Trial(scenario, cluster, cluster.connect(), progress)
        try:
            runs.carry_out(trial)
        except (EnvironmentFault, DeadlineExceeded) as error:
            trial.gave_up = str(error)
        except KeyboardInterrupt:
            trial.interrupted = True
            # The old connection may be in the middle of an answer.
            trial.client.close()
            trial.client = cluster.connect()
        try:
            return report(trial)
        finally:
            trial.client.close()


def chosen(name: str, **overrides: Any) -> Scenario:
    """The scenario ``name``, or with an empty name a plain launch, with ``overrides``.

    Raises:
        InvalidSpec: there is none of that name, or it makes no sense so.
    """
    if name:
        return load(name, **overrides)
    plain = changed(Scenario(name="custom", needs=_NEEDS), **overrides)
    fitted: dict[str, Any] = {}
    if overrides.get("services") is None:
        fitted["services"] = min(_SERVICES_MAX, max(1, plain.instances // _INSTANCES_A_SERVICE))
    if overrides.get("processes") is None:
        fitted["processes"] = -(-plain.nodes // _NODES_A_PROCESS)
    a_node = -(-plain.instances // plain.nodes) * _ROOM
    # Instances vary between nodes, and a node takes as many more as fit.
    fitted["capacity"] = {key: need * max(a_node, _ROOM * 10) for key, need in _NEEDS.items()}
    return changed(plain, **fitted)
