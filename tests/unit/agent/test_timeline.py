"""What an agent remembers of its launches, and what it says that it does not."""

from machine import inc

from swarmctl.agent.health import Watch
from swarmctl.agent.instance import Instance
from swarmctl.agent.timeline import Step, Timeline, Timelines
from swarmctl.agent.tracing import moments
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import HealthCheck, HealthKind

OFFSET_S = 1_000.0


def instance(**fields):
    """One that runs."""
    known = {"state": InstanceState.RUNNING, "since": 1_013.0, "received_at": 10.0}
    return Instance(inc(1), "web", 1, **(known | fields))


def timeline():
    """A whole launch."""
    steps = (Step.JOURNALED, Step.PREPARING, Step.RUNNING)
    return Timeline(1, [(step, 11.0 + number) for number, step in enumerate(steps)])


def test_only_the_newest_launches_are_remembered():
    """One that is launched again is new; what is gone or unknown is no error."""
    kept = Timelines(2)
    for number in (1, 2, 1, 3):
        kept.begin(number, 1, 0.0)
    kept.note(2, Step.RUNNING, 1.0)
    kept.note(3, Step.RUNNING, 1.0)

    assert [kept.of(number) is not None for number in (1, 2, 3)] == [True, False, True]
    assert [step for step, _ in kept.of(3).steps] == [Step.JOURNALED, Step.RUNNING]
    kept.forget(3)
    kept.forget(3)
    assert kept.of(3) is None


def test_a_launch_is_told_in_its_order():
    """In epoch seconds, from the assignment to the first good health check."""
    watch = Watch(inc(1), HealthCheck(HealthKind.TCP, port=1), 13.0, healthy_since=14.0)
    told = moments(instance(health=watch), timeline(), OFFSET_S)

    assert [step for step, _, _ in told] == [
        "received",
        "journaled",
        "preparing",
        "running",
        "healthy",
    ]
    assert [at for _, at, _ in told] == [1_010.0, 1_011.0, 1_012.0, 1_013.0, 1_014.0]


def test_another_attempt_says_which():
    """The assignment's step is the incarnation's, the others are of its newest launch."""
    again = timeline()
    again.attempt = 3
    details = [detail for _, _, detail in moments(instance(), again, OFFSET_S)]
    assert details == ["", "attempt 3", "", ""]


def test_an_end_comes_last_with_its_reason():
    """A launch that failed shows how far it came, and why."""
    ended = instance(state=InstanceState.FAILED, reason="no such image", since=1_012.5)
    assert moments(ended, timeline(), OFFSET_S)[-1] == ("failed", 1_012.5, "no such image")


def test_what_was_adopted_has_no_steps():
    """Since when it runs its driver knows; the rest is not known, and said to be."""
    told = moments(instance(received_at=None), None, OFFSET_S)

    assert [(step, at) for step, at, _ in told] == [
        ("received", 0.0),
        ("preparing", 0.0),
        ("starting", 0.0),
        ("running", 1_013.0),
    ]
    assert all("adopted" in detail for _, _, detail in told[:3])


def test_a_launch_that_was_forgotten_says_so():
    """The agent has seen it, but there were many after it."""
    told = moments(instance(), None, OFFSET_S)

    assert told[0] == ("received", 1_010.0, "")
    assert "newest launches only" in told[1][2]
