"""Clusters and requests for property tests, and a scheduler so simple that it must be right."""

import os

from hypothesis import settings
from hypothesis import strategies as st

from swarmctl.scheduler import Affinity, Constraint, Node, Request, Snapshot
from swarmctl.scheduler.facts import LOAD_PER_INSTANCE, LOAD_RESOURCES, LOAD_SCALE
from swarmctl.scheduler.score import KEY_PER_WEIGHT, first_row

# The same examples each time, whatever the machine is doing meanwhile; PLACING_EXAMPLES=5000 looks
# for new ones.
EXAMPLES = int(os.environ.get("PLACING_EXAMPLES", "0"))
steady = settings(deadline=None, derandomize=not EXAMPLES, max_examples=EXAMPLES or 80)

RESOURCES = ("cpu_millis", "memory_bytes", "gpu")
SERVICES = ("a", "b", "c")
ZONES = ("eu-1", "eu-2", None)
RACKS = ("r1", "r2", "r3", None)
CONSTRAINTS = (
    "node.labels.zone == eu-1",
    "node.labels.zone != eu-1",
    "node.labels.rack in (r1, r2)",
    "node.labels.rack not in (r3)",
    "node.name == n1",
    "node.labels.nothing == x",
)

# Most clusters have room, most nodes are well and most requests can be placed: what is rare in
# these strategies is what ends an example early.
amounts = st.fixed_dictionaries(
    {},
    optional={
        "cpu_millis": st.integers(0, 3),
        "memory_bytes": st.integers(0, 3),
        "gpu": st.sampled_from([0, 0, 0, 1]),
    },
)
capacities = st.fixed_dictionaries(
    {"cpu_millis": st.integers(3, 20), "memory_bytes": st.sampled_from([8, 8, 16, 3])},
    optional={"gpu": st.integers(0, 3)},
)
services = st.sampled_from(["a", "a", "b", "c"])
drivers = st.sampled_from([*["docker"] * 6, "libvirt", ""])
conditions = st.one_of(
    st.just(()),
    st.just(()),
    st.sampled_from(CONSTRAINTS).map(lambda text: (Constraint.parse(text),)),
)


@st.composite
def nodes(draw, name):
    """A node of that name."""
    labels = {"zone": draw(st.sampled_from(ZONES)), "rack": draw(st.sampled_from(RACKS))}
    reason = draw(st.sampled_from([*[""] * 8, "cordoned", "sick: docker does not answer"]))
    return Node(
        name,
        {key: value for key, value in labels.items() if value is not None},
        draw(capacities),
        draw(st.sampled_from([frozenset({"docker", "libvirt"}), frozenset({"docker"})])),
        schedulable=not reason,
        unschedulable_reason=reason,
    )


@st.composite
def clusters(draw, max_nodes=7):
    """A snapshot of a few nodes with something on them."""
    count = draw(st.sampled_from([0, *range(1, max_nodes + 1)]))
    snapshot = Snapshot(draw(nodes(f"n{i}")) for i in range(count))
    if count:
        for _ in range(draw(st.integers(0, 4))):
            name = f"n{draw(st.integers(0, count - 1))}"
            snapshot.allocate(name, draw(services), draw(amounts), draw(st.integers(1, 3)))
    return snapshot


def wishes(**fixed):
    """Affinities of a request."""
    one = st.builds(
        Affinity,
        services,
        weight=st.sampled_from([1, 30, 100]),
        required=st.booleans(),
    )
    return st.lists(one, max_size=2, **fixed).map(tuple)


plain_requests = st.builds(
    Request,
    service=services,
    slots=st.integers(0, 12).map(lambda count: range(1, count + 1)),
    resources=amounts,
    driver=drivers,
    constraints=conditions,
    strategy=st.sampled_from(["spread", "binpack"]),
)
requests = st.builds(
    Request,
    service=services,
    slots=st.integers(0, 12).map(lambda count: range(1, count + 1)),
    resources=amounts,
    driver=drivers,
    constraints=conditions,
    spread=st.sampled_from(
        [(), ("node.labels.rack",), ("node.labels.zone", "node.labels.rack"), ("node.name",)]
    ),
    strategy=st.sampled_from(["spread", "binpack"]),
    max_per_node=st.sampled_from([0, 0, 1, 3]),
    affinity=wishes(),
    anti_affinity=wishes(),
)
seeds = st.integers(0, 5)


class Naive:
    """Places copy by copy, looking at every node each time, with dictionaries only."""

    def __init__(self, snapshot, seed):
        self.nodes = sorted(snapshot.nodes.values(), key=lambda node: node.name)
        self.used = {node.name: snapshot.allocated(node.name) for node in self.nodes}
        self.count = {node.name: 0 for node in self.nodes}
        self.copies = {service: dict(snapshot.copies(service)) for service in SERVICES}
        for by_node in self.copies.values():
            for name, count in by_node.items():
                self.count[name] += count
        self.start = first_row(seed, len(self.nodes))

    def place(self, request):
        """Names of the nodes of the request's copies, in order."""
        chosen = []
        for _ in request.slots:
            fit = [i for i, node in enumerate(self.nodes) if self.fits(request, node)]
            if not fit:
                break
            best = min(fit, key=lambda i: self.key(request, i))
            node = self.nodes[best].name
            chosen.append(node)
            self.count[node] += 1
            mine = self.copies[request.service]
            mine[node] = mine.get(node, 0) + 1
            for resource, amount in request.resources.items():
                self.used[node][resource] = self.used[node].get(resource, 0) + amount
        return chosen

    def fits(self, request, node):
        mine = self.copies[request.service]
        return (
            node.schedulable
            and (not request.driver or request.driver in node.drivers)
            and all(c.matches(node.name, node.labels) for c in request.constraints)
            and all(
                amount == 0
                or self.used[node.name].get(name, 0) + amount <= node.capacity.get(name, 0)
                for name, amount in request.resources.items()
            )
            and (not request.max_per_node or mine.get(node.name, 0) < request.max_per_node)
            and all(
                self.copies[w.service].get(node.name)
                or (w.service == request.service and not any(mine.values()))
                for w in request.affinity
                if w.required
            )
            and not any(
                self.copies[w.service].get(node.name) for w in request.anti_affinity if w.required
            )
        )

    def key(self, request, index):
        node = self.nodes[index]
        key = self.load(node) * (1 if request.strategy == "spread" else -1)
        for sign, wanted in ((-1, request.affinity), (1, request.anti_affinity)):
            for wish in wanted:
                if not wish.required and self.copies[wish.service].get(node.name):
                    key += sign * wish.weight * KEY_PER_WEIGHT
        around = []
        for depth in range(1, len(request.spread) + 1):
            labels = request.spread[:depth]
            here = [value(node, label) for label in labels]
            around.append(
                sum(
                    self.copies[request.service].get(other.name, 0)
                    for other in self.nodes
                    if [value(other, label) for label in labels] == here
                )
            )
        return (*around, key, (index - self.start) % len(self.nodes))

    def load(self, node):
        load = self.count[node.name] * LOAD_PER_INSTANCE
        for resource in LOAD_RESOURCES:
            capacity = node.capacity.get(resource, 0)
            if capacity:
                load += self.used[node.name].get(resource, 0) * (LOAD_SCALE // capacity)
        return load


def value(node, attribute):
    """A node's value of an attribute."""
    if attribute == "node.name":
        return node.name
    return node.labels.get(attribute.removeprefix("node.labels."))


def placed(plan):
    """What a plan places, to compare."""
    return [(p.service, p.slot, p.node) for p in plan.placements]


def contents(snapshot):
    """What a snapshot says is allocated, to compare."""
    return (
        {name: snapshot.allocated(name) for name in snapshot.nodes},
        {service: dict(snapshot.copies(service)) for service in SERVICES},
    )
