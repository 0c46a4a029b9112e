"""A join storm: every enrolled node loses its connection at once and comes back.

Each handshake, hello (with the inventory of what runs there), welcome and assignment is counted
in; the agents' ends of all that run on the same machine.  First enrolment, which makes a key and
a commit a node, is in the report apart.
"""

from typing import Final

from bench.launch.measure import Counters
from bench.launch.trial import Trial

# Where all nodes are on a machine that they nearly fill while idle, the last ones come slowly.
_READY_S: Final = 300.0


def run(trial: Trial) -> None:
    """See the module."""
    nodes = trial.scenario.nodes
    trial.launch()
    had = trial.incarnations()
    trial.progress.phase("join storm", 0)
    before = Counters.read(trial.cluster, trial.client)
    seconds = trial.cluster.reconnect()
    trial.found["join_storm"] = {
        "nodes": nodes,
        "instances_in_inventories": sum(map(len, had.values())),
        "seconds_to_all_sessions_open": seconds,
        "joins_per_s": nodes / seconds,
    }
    settled_s = seconds + trial.wait_ready(nodes, _READY_S)
    after = Counters.read(trial.cluster, trial.client)
    trial.wait_until(
        lambda: trial.running() >= trial.scenario.instances,
        "all are known to run again",
        trial.scenario.timeout_s,
    )
    has = trial.incarnations()
    trial.found["join_storm"] |= {
        "seconds_to_all_ready": settled_s,
        "controller_cpu_s": after.cpu_s - before.cpu_s,
        # More than one a node: attempts that were given up, as too slow.
        "connections_per_join": (
            after.values["listener"]["connections"] - before.values["listener"]["connections"]
        )
        / nodes,
        "messages_per_join": (
            after.values["listener"]["received"] - before.values["listener"]["received"]
        )
        / nodes,
        "controller_cpu_us_per_join": (after.cpu_s - before.cpu_s) * 1e6 / nodes,
        "instances_replaced": sum(len(had[node] - has[node]) for node in had),
    }
    trial.check(replaced=trial.found["join_storm"]["instances_replaced"])
