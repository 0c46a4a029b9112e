"""What a good answer is: checked after each measurement, and given as figures.

A check that fails ends the benchmark: a rate of wrong answers is not worth a line.
"""

import math
from collections import Counter

from swarmctl.scheduler import Plan, Snapshot
from swarmctl.scheduler.facts import LOAD_RESOURCES
from swarmctl.scheduler.model import Strategy

Figures = dict[str, float]

# Nodes used above the least that could hold all. A small cluster's last node weighs more.
_PACKING_MAX = 1.03
_PACKING_MAX_SMALL = 1.15
_SMALL_NODES = 500


def over_capacity(snapshot: Snapshot) -> int:
    """Nodes with a unit too much of anything: none.

    Raises:
        AssertionError: there is one.
    """
    for name, node in snapshot.nodes.items():
        for resource, used in snapshot.allocated(name).items():
            assert used <= node.capacity[resource], f"{name} is over its {resource}"
    return 0


def all_placed(result: Plan) -> Figures:
    """Nothing is left over.

    Raises:
        AssertionError: something is.
    """
    assert not result.unplaced, result.unplaced[0].rejection.text
    return {"unplaced": 0}


def evenness(result: Plan) -> Figures:
    """Copies on the fullest node of those that got any, less those on the emptiest."""
    counts = Counter(p.node for p in result.placements).values()
    apart = max(counts) - min(counts)
    assert apart <= 1, f"identical nodes are {apart} copies apart"
    return {**all_placed(result), "copies_apart": apart}


def all_apart(result: Plan) -> Figures:
    """No two copies of a service on one node."""
    for batch in result.placements.batches():
        assert len(set(batch.nodes)) == len(batch.nodes), f"{batch.service} shares a node"
    return {**all_placed(result), "sharing_a_node": 0}


def skew(snapshot: Snapshot, label: str, result: Plan) -> Figures:
    """By how many copies of one service two values of the label differ, at most."""
    values = {node.labels[label] for node in snapshot.nodes.values()}
    worst = 0
    for batch in result.placements.batches():
        counts = Counter(snapshot.nodes[node].labels[label] for node in batch.nodes)
        worst = max(worst, max(counts.values()) - min(counts[value] for value in values))
    assert worst <= 1, f"values of {label} are {worst} copies apart"
    return {**all_placed(result), "skew": worst}


def packing(snapshot: Snapshot, strategy: Strategy, result: Plan) -> Figures:
    """How full the used nodes are, and how many there are beside the least possible number.

    The least possible is by the resource that is scarcest in sum: no packing, of whatever cost,
    takes fewer nodes.  With ``spread`` all nodes are to be used, and evenly.
    """
    used: Counter[str] = Counter()
    capacity = dict(next(iter(snapshot.nodes.values())).capacity)
    # Of processors and memory alike, as the scheduler counts load; by node.
    shares: list[float] = []
    for name in snapshot.nodes:
        allocated = Counter(snapshot.allocated(name))
        used.update(allocated)
        shares.append(sum(allocated[r] / capacity[r] for r in LOAD_RESOURCES) / len(LOAD_RESOURCES))
    nodes = sum(share > 0 for share in shares)
    least = max(math.ceil(used[resource] / capacity[resource]) for resource in used)
    found = {
        **all_placed(result),
        "used_nodes_full": max(used[r] / capacity[r] for r in used) / nodes,
        "nodes_over_least_possible": nodes / least,
    }
    if strategy == "binpack":
        limit = _PACKING_MAX if len(snapshot.nodes) >= _SMALL_NODES else _PACKING_MAX_SMALL
        assert nodes <= limit * least, f"{nodes} nodes used, {least} might do"
    else:
        assert nodes == len(snapshot.nodes), "spread leaves nodes empty"
        mean = sum(shares) / len(shares)
        found["load_deviation"] = math.sqrt(
            sum((share - mean) ** 2 for share in shares) / len(shares)
        )
    return found
