"""Whatever happens, once it stops happening the nodes run what is wanted, and nothing else."""

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.controller.records import SlotOverride, SlotWish
from swarmctl.proto.states import InstanceState
from tests.unit.controller.harness import FakeNode, Harness, spec

NAMES = ("a", "b", "c")
SERVICES = ("web", "db")

_service = st.sampled_from(SERVICES)
_node = st.sampled_from(NAMES)
_slot = st.integers(1, 4)
EVENTS = st.one_of(
    st.tuples(st.just("scale"), _service, st.integers(0, 5)),
    st.tuples(st.just("image"), _service, st.sampled_from(["box", "newer"])),
    st.tuples(st.just("wish"), _service, _slot, st.sampled_from([None, *SlotWish])),
    st.tuples(st.just("restart"), _service),
    st.tuples(st.just("connect"), _node),
    st.tuples(st.just("disconnect"), _node),
    st.tuples(st.just("vanish"), _node),
    st.tuples(st.just("controller")),
    st.tuples(st.just("step"), st.booleans()),
    st.tuples(st.just("beat")),
)


class _World:
    """Carries events out on a harness."""

    def __init__(self):
        self.harness = Harness([FakeNode(name, cpu_millis=1000) for name in NAMES])
        self.term = 1

    def happen(self, event):
        getattr(self, f"_{event[0]}")(*event[1:])

    def _scale(self, name, replicas):
        before = self.harness.records.get(("default", name))
        old = before.spec if before else spec(name)
        self.harness.apply(evolve(old, replicas=replicas))

    def _image(self, name, image):
        if ("default", name) in self.harness.records:
            replicas = self.harness.records[("default", name)].spec.replicas
            self.harness.apply(spec(name, replicas, image=image))

    def _wish(self, name, slot, wish):
        before = self.harness.records.get(("default", name))
        if before:
            self.harness.save(before.with_override(slot, SlotOverride(wish)))

    def _restart(self, name):
        before = self.harness.records.get(("default", name))
        if before:
            self.harness.save(evolve(before, generation=before.generation + 1))

    def _connect(self, name):
        self.harness.connect(name)

    def _disconnect(self, name):
        if self.harness.nodes[name].peer:
            self.harness.disconnect(name)

    def _vanish(self, name):
        """Its machine is made anew: nothing runs there any more."""
        self._disconnect(name)
        self.harness.nodes[name].instances.clear()
        self.harness.nodes[name].assigned.clear()

    def _controller(self):
        self.term += 1
        self.harness.start(self.term)

    def _step(self, deliver):
        self.harness.step(deliver=deliver)

    def _beat(self):
        self.harness.beat()

    def faults_stop(self):
        for name in NAMES:
            self.harness.connect(name)
        self.harness.run(40)


@given(st.lists(EVENTS, min_size=10, max_size=60))
@settings(max_examples=150, deadline=None)
def test_after_any_history_each_wanted_slot_runs_once_and_nothing_else_runs(events):
    """The end depends on what is wanted, not on what happened on the way."""
    world = _World()
    for event in events:
        world.happen(event)
    world.faults_stop()

    harness = world.harness
    for name in SERVICES:
        record = harness.records.get(("default", name))
        replicas = record.spec.replicas if record else 0
        wanted = {slot for slot in range(1, replicas + 1) if record.wish(slot) is SlotWish.RUNNING}
        running = harness.running(name)
        assert set(running) == wanted
        assert all(len(nodes) == 1 for nodes in running.values())
    _agree(harness)


def _agree(harness):
    """Both sides have the same picture, of the newest template, within every node's capacity."""
    for name, node in harness.nodes.items():
        known = harness.state.nodes[name]
        beat = node.heartbeat()
        assert (known.assignment_digest, known.inventory_digest) == (
            beat.assignment_digest,
            beat.inventory_digest,
        )
        assert set(known.instances) == set(node.instances)
        assert len(node.instances) * 100 <= node.cpu_millis
        assert harness.fleet.snapshot.allocated(name).get("cpu_millis", 0) == 100 * len(
            node.instances
        )
    for service in harness.state.services.values():
        for holder in service.holders.values():
            if holder.state is InstanceState.RUNNING:
                assert holder.template == service.template
