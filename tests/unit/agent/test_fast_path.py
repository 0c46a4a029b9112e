"""The fast path of a launch ends where the machine's single steps end."""

from contextlib import contextmanager

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.agent import assignment, fast_path
from swarmctl.agent.drivers.api import DriverEvent, EventKind, Started
from swarmctl.agent.outbox import Outbox
from swarmctl.agent.supervisor import Supervisor
from swarmctl.proto import digest
from swarmctl.proto.errors import DriverUnavailable, InvalidSpec, LaunchFailed
from swarmctl.proto.messages import Assign, AssignedGroup
from swarmctl.spec import wire
from swarmctl.spec.models import HealthCheck, HealthKind, RestartCondition
from tests.unit.agent.machine import CLUSTER, inc, template

_CHECKED = template(health=HealthCheck(HealthKind.COMMAND, command=("true",)))
_TEMPLATES = {
    wire.digest(one): one
    for one in (
        wire.encode_template(template()),
        wire.encode_template(template(RestartCondition.NEVER)),
        wire.encode_template(_CHECKED),
        b"of a later release",
    )
}
_MISSING = b"\0" * wire.DIGEST_BYTES
# What an incarnation is made from, and by which driver, never changes: each has some of its own.
_BODIES = [
    *((name, "sim") for name in [*_TEMPLATES, _MISSING]),
    (next(iter(_TEMPLATES)), "unlisted"),
    (next(iter(_TEMPLATES)), "unknown"),
]
_SEQUENCES = st.integers(0, 3 * len(_BODIES) - 1)


def _group(body, entries):
    name, driver = _BODIES[body]
    named = tuple((slot, inc(3 * body + slot), *rest) for slot, *rest in entries)
    return AssignedGroup("web", "default", name, driver, named)


_entries = st.tuples(
    st.integers(1, 3),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 1]),
    st.integers(0, 2),
)
_groups = st.builds(
    _group,
    st.sampled_from([0, 0, 0, *range(len(_BODIES))]),
    st.lists(_entries, max_size=4),
)
_ANSWERS = ["runs", "runs", "runs", "ended", "busy", "broken", "wrong"]
_steps = st.one_of(
    st.tuples(
        st.just("assign"),
        st.lists(_groups, max_size=3).map(tuple),
        st.booleans(),
        st.lists(_SEQUENCES.map(lambda one: inc(one + 1)), max_size=2).map(tuple),
    ),
    st.tuples(st.just("launched"), st.lists(st.sampled_from(_ANSWERS), min_size=6, max_size=6)),
    st.tuples(st.just("taken")),
    st.tuples(st.just("reported")),
)


@contextmanager
def _step_by_step():
    """Leave everything to the machine's single steps."""

    def leave(_supervisor, groups):
        return [(group, group.entries) for group in groups]

    def launched(supervisor, launches, started, now):
        supervisor.now = now
        for launch, answer in zip(launches, started.answers, strict=True):
            fast_path.ended(supervisor, launch, answer, started.at, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_path, "admit", leave)
        patch.setattr(fast_path, "launched", launched)
        yield


class Node:
    """A supervisor, and the launches that it has begun."""

    def __init__(self):
        self.supervisor = Supervisor(["sim", "unlisted"], 1000.0)
        self.supervisor.listed.add("sim")
        self.outbox = Outbox(self.supervisor)
        self.under_way = []
        self.now = 10.0
        self.version = 0

    def go(self, step):
        self.now += 1.0
        self.supervisor.tick(self.now)
        getattr(self, step[0])(*step[1:])

    def assign(self, groups, full, removed):
        self.version += 1
        known = {
            one.template: _TEMPLATES[one.template] for one in groups if one.template in _TEMPLATES
        }
        message = Assign(CLUSTER, 1, self.version, full, known, groups, removed)
        assignment.apply(self.supervisor, message, self.now)

    def launched(self, answers):
        """What is under way ends, each in its way."""
        given = []
        launches, self.under_way = self.under_way[: len(answers)], self.under_way[len(answers) :]
        for launch, how in zip(launches, answers, strict=False):
            if how == "ended":
                ended = DriverEvent(EventKind.EXITED, launch.incarnation, self.now + 1.0, 3)
                self.supervisor.event("sim", ended, self.now)
            given.append(
                {
                    "busy": DriverUnavailable("busy"),
                    "broken": LaunchFailed("broken"),
                    "wrong": InvalidSpec("wrong"),
                }.get(how, f"r{launch.incarnation}")
            )
        fast_path.launched(self.supervisor, launches, Started(self.now, given), self.now)

    def taken(self):
        actions = self.supervisor.take()
        for launches in actions.launches.values():
            self.under_way += launches
        self.under_way.sort(key=lambda one: one.incarnation)
        return in_order(actions)

    def reported(self):
        report = self.outbox.next_report(groups=True)
        if report is not None:
            self.outbox.acknowledged(report.sequence)

    def seen(self):
        """All that the machine holds, whatever its order."""
        supervisor = self.supervisor
        return {
            "instances": {
                number: attrs.asdict(one, recurse=False, filter=attrs.filters.exclude("health"))
                for number, one in supervisor.instances.items()
            },
            "watched": sorted(supervisor.health.watches),
            "dirty": sorted(supervisor.dirty),
            "gone": sorted(supervisor.gone),
            "unsent_gone": sorted(supervisor.unsent_gone),
            "unwritten": sorted(supervisor.unwritten),
            "missing": supervisor.missing_templates,
            "assigned": supervisor.assignment_digest,
            "reported": self.outbox.inventory_digest,
            "urgent": supervisor.urgent,
            "due": supervisor.next_due(),
            "actions": in_order(supervisor.actions),
            "under_way": self.under_way,
        }


def in_order(actions):
    """What is to be done, in an order that does not depend on the messages'."""
    found = attrs.asdict(actions, recurse=False)
    found["launches"] = {
        name: sorted(launches, key=lambda one: one.incarnation)
        for name, launches in actions.launches.items()
    }
    for name in ("cancels", "stops", "removes"):
        found[name] = sorted(map(str, found[name]))
    return found


@given(st.lists(_steps, min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_the_fast_path_ends_where_single_steps_end(steps):
    """Whatever comes in whatever order, both ways leave the same machine behind."""
    fast, slow = Node(), Node()
    for step in steps:
        fast.go(step)
        with _step_by_step():
            slow.go(step)

        assert fast.seen() == slow.seen()
    assert fast.taken() == slow.taken()


def test_a_plain_launch_takes_the_fast_path(monkeypatch):
    """What is new, wanted and can be launched is not stepped through one by one."""
    node = Node()
    monkeypatch.setattr(node.supervisor, "step", None)
    name = next(iter(_TEMPLATES))
    entries = tuple((slot, inc(slot), 0, 0, 0) for slot in range(1, 4))
    node.go(("assign", (AssignedGroup("web", "default", name, "sim", entries),), False, ()))
    node.go(("taken",))
    node.go(("launched", ["runs"] * 3))

    assert {one.state.label for one in node.supervisor.instances.values()} == {"running"}
    wanted = [digest.assignment_entry(inc(slot), 0, 0) for slot in range(1, 4)]
    assert node.supervisor.assignment_digest == digest.total(wanted)
