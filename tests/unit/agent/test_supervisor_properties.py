"""Whatever happens in whatever order, an agent comes to what is wanted once faults stop."""

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarmctl.agent.drivers.api import EventKind, Phase
from swarmctl.proto.states import Desired, InstanceState
from tests.unit.agent.machine import Node, Row, inc, template

SEQUENCES = st.integers(1, 3)
STRANGER = 9


class AgentMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.node = Node()
        self.stranger_came = False

    # --- the controller -----------------------------------------------------------------------

    @rule(
        sequence=SEQUENCES,
        stopped=st.booleans(),
        bump=st.booleans(),
        arrives=st.booleans(),
    )
    def wants(self, sequence, stopped, bump, arrives):
        node = self.node
        if inc(sequence) in node.removed:
            return
        _, _, generation = node.wanted.get(inc(sequence), (None, 0, 0))
        desired = Desired.STOPPED if stopped else Desired.RUNNING
        node.want(sequence, template(), desired, generation + bump)
        if arrives:
            node.assign(sequence)

    @rule(sequence=SEQUENCES, arrives=st.booleans())
    def unwants(self, sequence, arrives):
        if inc(sequence) in self.node.wanted:
            self.node.unwant(sequence)
            if arrives:
                self.node.assign(removed=(sequence,))

    @rule()
    def sends_everything(self):
        self.node.assign_all()

    @rule()
    def greets(self):
        self.node.hello()

    @rule()
    def reports(self):
        self.node.report()

    # --- the agent ----------------------------------------------------------------------------

    @rule()
    def acts(self):
        self.node.act()

    @rule(seconds=st.sampled_from([0.05, 0.5, 5.0, 70.0]))
    def time_passes(self, seconds):
        self.node.now += seconds

    @rule()
    def crashes_between_journal_and_action(self):
        self.node.act(crash_before_acting=True)

    @rule(calls_go_on=st.booleans())
    def crashes(self, calls_go_on):
        self.node.crash(calls_go_on=calls_go_on)

    # --- the daemon ---------------------------------------------------------------------------

    @precondition(lambda self: self.node.ops)
    @rule(data=st.data())
    def call_ends(self, data):
        self.node.answer(data.draw(st.sampled_from(self.node.ops)))

    @precondition(lambda self: self.node.ops)
    @rule(data=st.data(), how=st.sampled_from(["busy", "broken", "late"]))
    def call_fails(self, data, how):
        self.node.fail(data.draw(st.sampled_from(self.node.ops)), how)

    @precondition(lambda self: any(op.kind == "list" for op in self.node.ops))
    @rule()
    def list_is_taken_and_grows_old(self):
        for op in self.node.ops:
            if op.kind == "list":
                self.node.effect(op)

    @precondition(lambda self: self.node.zombies)
    @rule(data=st.data())
    def given_up_call_comes_through(self, data):
        op = data.draw(st.sampled_from(self.node.zombies))
        self.node.zombies.remove(op)
        self.node.effect(op)

    @precondition(lambda self: self.node.events)
    @rule()
    def event_arrives(self):
        self.node.deliver()

    @rule(sequence=SEQUENCES, code=st.sampled_from([0, 1]))
    def instance_ends(self, sequence, code):
        row = self.node.rows.get(inc(sequence))
        if row is not None and row.phase is Phase.RUNNING:
            self.node.end(inc(sequence), code)

    @rule(sequence=SEQUENCES)
    def instance_vanishes(self, sequence):
        row = self.node.rows.get(inc(sequence))
        if row is not None:
            if row.phase is Phase.RUNNING:
                self.node.end(inc(sequence), 137)
            del self.node.rows[inc(sequence)]
            self.node.tell(EventKind.REMOVED, inc(sequence))

    @rule(running=st.booleans())
    def stranger_appears(self, running):
        """One of ours that neither journal nor controller knows."""
        node = self.node
        if not self.stranger_came:
            self.stranger_came = True
            phase = Phase.RUNNING if running else Phase.CREATED
            launch = attrs.evolve(_launch(), incarnation=inc(STRANGER))
            node.rows[inc(STRANGER)] = Row(launch, phase, None, node.now)
            if running:
                node.tell(EventKind.STARTED, inc(STRANGER))

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def stranger_is_left_alone(self):
        row = self.node.rows.get(inc(STRANGER))
        assert row is None or row.phase is not Phase.EXITED

    def teardown(self):
        node = self.node
        node.run()
        node.hello()
        node.run(300)
        node.assign_all()
        node.run(300)
        for one, (_, desired, _) in node.wanted.items():
            runs = one in node.rows and node.rows[one].phase is Phase.RUNNING
            assert runs == (desired == Desired.RUNNING), node.supervisor.instances[one]
            state = node.reported[one].state
            assert (state == InstanceState.RUNNING) == runs
        for one in node.removed:
            assert one not in node.rows
            assert one not in node.reported
            assert one not in node.records
        assert node.digests_agree


def _launch():
    from swarmctl.agent.drivers.api import Launch

    return Launch("old", STRANGER, inc(STRANGER), template())


TestAgentMachine = AgentMachine.TestCase
TestAgentMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
