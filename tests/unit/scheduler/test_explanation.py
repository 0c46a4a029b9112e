"""Why a service is nowhere, and why it is where it is."""

import pytest

from swarmctl.scheduler import Affinity, Constraint, Node, Request, Snapshot, explain, plan
from swarmctl.scheduler.explanation import amount_text

GIB = 1 << 30


def node(name, zone="eu-1", memory_bytes=4 * GIB, **fields):
    """A node with four processors."""
    capacity = {"cpu_millis": 4_000, "memory_bytes": memory_bytes}
    return Node(name, {"zone": zone}, capacity, **fields)


def request(**fields):
    """One copy of a web server."""
    return Request(service="web", slots=(1,), **fields)


def test_the_line_counts_nodes_by_reason():
    """The example of the design, word by word."""
    snapshot = Snapshot(node(f"a{i}", memory_bytes=int((1 + i / 34) * GIB)) for i in range(8))
    for i in range(4):
        snapshot.add_node(node(f"b{i}", zone="us-1"))
    wanted = request(
        resources={"memory_bytes": 2 * GIB},
        constraints=(Constraint.parse("node.labels.zone == eu-1"),),
    )

    assert explain(snapshot, wanted).text == (
        "0 of 12 nodes fit: 8 lack memory (need 2 GiB, best has 1.2 GiB), "
        "4 fail node.labels.zone == eu-1"
    )


def test_every_reason_has_words():
    """Each filter in turn, in the singular, and in the order of the filters."""
    snapshot = Snapshot(
        [
            node("a", schedulable=False, unschedulable_reason="sick: docker does not answer"),
            node("b", drivers=frozenset({"sim"})),
            node("c", zone="us-1"),
            Node("d", {"zone": "eu-1"}, {"cpu_millis": 400}),
            node("e"),
            node("f"),
            node("g"),
        ]
    )
    snapshot.allocate("e", "web", {})
    snapshot.allocate("g", "cache", {})
    snapshot.allocate("g", "db", {})
    wanted = request(
        resources={"cpu_millis": 500},
        constraints=(Constraint.parse("node.labels.zone == eu-1"),),
        max_per_node=1,
        affinity=(Affinity("cache", required=True),),
        anti_affinity=(Affinity("db", required=True),),
    )

    assert explain(snapshot, wanted).text == (
        "0 of 7 nodes fit: 1 sick: docker does not answer, 1 lacks driver docker, "
        "1 fails node.labels.zone == eu-1, 1 lacks cpu (need 0.5, best has 0.4), "
        "1 has 1 of it, the most per node, 1 has no cache, which it must be beside, "
        "1 has db, which it must not be beside"
    )


def test_a_resource_that_no_node_has_is_named():
    """Any name is a resource; what a node does not advertise it has none of."""
    wanted = request(resources={"licence/matlab": 1})

    assert explain(Snapshot([node("a")]), wanted).text == (
        "0 of 1 node fits: 1 lacks licence/matlab (need 1, best has 0)"
    )


def test_an_empty_cluster_says_so():
    """There is no node to count."""
    result = plan(Snapshot(), [request()])

    assert result.unplaced[0].rejection.text == "0 of 0 nodes fit: no node has joined"


def test_what_is_too_little_never_reads_like_enough():
    """The best node's share is rounded down, the need up."""
    snapshot = Snapshot([node("a", memory_bytes=2 * GIB - 1)])

    assert explain(snapshot, request(resources={"memory_bytes": 2 * GIB})).text == (
        "0 of 1 node fits: 1 lacks memory (need 2 GiB, best has 1.9 GiB)"
    )


def test_the_best_node_is_explained_by_what_decided():
    """Copies by label first, then allocation, then wishes."""
    snapshot = Snapshot([node("a"), node("b"), node("c", zone="us-1")])
    snapshot.allocate("a", "web", {"cpu_millis": 2_000, "memory_bytes": GIB})
    snapshot.allocate("b", "cache", {})
    wanted = request(spread=("node.labels.zone",), affinity=(Affinity("cache", weight=50),))

    explanation = explain(snapshot, wanted)
    assert [score.node for score in explanation.scores] == ["c", "b", "a"]
    assert explanation.text == "3 of 3 nodes fit"
    assert explanation.why == (
        "c: 0 of its copies at node.labels.zone us-1, 0% allocated; "
        "next b: 1 of its copies at node.labels.zone eu-1, 0% allocated, attracted with weight 50; "
        "a: 1 of its copies at node.labels.zone eu-1, 38% allocated"
    )


def test_needed_and_best_differ_in_words_when_they_differ():
    """However close they are."""
    snapshot = Snapshot([node("a", memory_bytes=int(2.04 * GIB))])

    assert explain(snapshot, request(resources={"memory_bytes": int(2.05 * GIB)})).text == (
        "0 of 1 node fits: 1 lacks memory (need 2.1 GiB, best has 2 GiB)"
    )


@pytest.mark.parametrize(
    ("resource", "amount", "text"),
    [
        ("memory_bytes", 0, "0 B"),
        ("memory_bytes", 1023, "1023 B"),
        ("memory_bytes", 1536, "1.5 KiB"),
        ("memory_bytes", GIB - 1, "1 GiB"),
        ("disk_bytes", 5 << 40, "5 TiB"),
        ("cpu_millis", 1_000, "1"),
        ("cpu_millis", 250, "0.25"),
        ("gpu", 3, "3"),
    ],
)
def test_amounts_have_units_that_people_read(resource, amount, text):
    """Binary prefixes with one decimal, processors as a fraction, counts as they are."""
    assert amount_text(resource, amount) == text
