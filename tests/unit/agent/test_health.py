"""Health checks: when they are due, what answers mean, and what an instance becomes by them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import Node, inc, template

from swarmctl.agent import healthcare
from swarmctl.agent.checks import answer_of_http
from swarmctl.agent.health import AFTER, Answer, Health, Heard, Watch, Watchlist
from swarmctl.agent.transitions import Phase
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import HealthCheck, HealthKind, RestartCondition

GOOD, BAD = Answer(good=True), Answer(good=False, said="no")
EVERY_10S = HealthCheck(HealthKind.COMMAND, ("true",), interval_s=10.0, retries=3)


def follow(check, answers, began_at=100.0):
    """Give each look its answer; the times of the looks and the health after each."""
    watch = Watch(1, check, began_at, due=began_at)
    seen = []
    for answer in answers:
        now = watch.due
        watch.take(answer, now)
        seen.append((now - began_at, watch.health))
    return watch, seen


def test_every_answer_has_a_meaning():
    """The table has a row for whatever may come."""
    assert set(AFTER) == set(itertools.product(Health, Heard))


def test_healthy_soon():
    """One that is quick is known to be well within a second or two."""
    _, seen = follow(EVERY_10S, [BAD, BAD, GOOD])

    assert seen[-1] == (pytest.approx(3.0), Health.HEALTHY)


def test_failures_before_the_first_interval_do_not_count():
    """It has as long as a container engine gives it: the retries at the interval."""
    watch, seen = follow(EVERY_10S, [BAD] * 12)
    unhealthy = [at for at, health in seen if health is Health.UNHEALTHY]

    assert unhealthy[0] == pytest.approx(30.0, abs=0.2)
    assert watch.health is Health.UNHEALTHY


def test_failures_in_the_start_period_do_not_count():
    """Nor within the start period, whatever the interval."""
    check = HealthCheck(HealthKind.TCP, port=1, interval_s=1.0, retries=1, start_period_s=60.0)
    _, seen = follow(check, [BAD] * 80)

    first = next(at for at, health in seen if health is Health.UNHEALTHY)
    assert first == pytest.approx(60.0, abs=0.1)


def test_only_failures_in_a_row_count():
    """A good answer forgives what was before it."""
    watch, _ = follow(EVERY_10S, [GOOD, BAD, BAD, GOOD, BAD, BAD])
    assert watch.health is Health.HEALTHY

    watch, _ = follow(EVERY_10S, [GOOD, BAD, BAD, BAD])
    assert watch.health is Health.UNHEALTHY


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_unhealthy_never_without_enough_failures(answers, retries):
    """Whatever comes, the last answers of an unhealthy one are ``retries`` failures."""
    check = HealthCheck(HealthKind.COMMAND, ("true",), interval_s=1.0, retries=retries)
    watch = Watch(1, check, 0.0)
    for index, good in enumerate(answers):
        before = watch.due
        watch.take(GOOD if good else BAD, watch.due)
        assert before < watch.due <= before + 1.0 + 1e-6
        if watch.health is Health.UNHEALTHY:
            last_good = max((i for i in range(index + 1) if answers[i]), default=-1)
            assert index - last_good >= retries


def test_watchlist_hands_out_what_is_due_once():
    """Each watch is taken once until it is planned again, at most so many at a time."""
    watchlist = Watchlist()
    watches = [watchlist.begin(number, EVERY_10S, float(number)) for number in range(5)]

    taken = list(watchlist.due(100.0, 3))
    assert taken == watches[:3]
    assert list(watchlist.due(100.0, 9)) == watches[3:]
    assert list(watchlist.due(100.0, 9)) == []
    watches[0].put_off(100.0)
    watchlist.schedule(watches[0])
    assert watchlist.next_due() == watches[0].due
    watchlist.end(watches[0])
    assert list(watchlist.due(1000.0, 9)) == []


# --- in the supervisor -----------------------------------------------------------------------


def a_node(condition=RestartCondition.ALWAYS, check=EVERY_10S):
    node = Node()
    node.hello()
    node.want(1, template(condition, health=check))
    node.touchable.add(inc(1))
    node.assign(1)
    node.run()
    return node


def look(node, answer):
    """The next look, at its time, ends so."""
    watchlist = node.supervisor.health
    node.run(max(0.0, watchlist.next_due() - node.now))
    (watch,) = watchlist.due(node.now, 1)
    healthcare.answered(node.supervisor, watch, answer, node.now)
    node.run()


def until_bad(node):
    for _ in range(20):
        before = node.reported[inc(1)].attempt
        look(node, BAD)
        report = node.reported[inc(1)]
        if report.attempt != before or report.state == InstanceState.FAILED:
            return report
    raise AssertionError("never unhealthy")


def test_running_means_healthy():
    """It is starting until the first good answer, and says so."""
    node = a_node()
    report = node.reported[inc(1)]
    assert (report.state, report.health) == (InstanceState.STARTING, "starting")

    look(node, BAD)
    assert node.reported[inc(1)].reason == "not healthy yet: no"
    look(node, GOOD)
    report = node.reported[inc(1)]
    assert (report.state, report.health, report.reason) == (InstanceState.RUNNING, "healthy", "")


def test_unhealthy_is_restarted_by_its_policy():
    """It is stopped, counted as a failure, and started again; health begins anew."""
    node = a_node()
    look(node, GOOD)
    until_bad(node)
    node.run(1.0)
    report = node.reported[inc(1)]

    assert (report.restarts, report.attempt, report.health) == (1, 2, "starting")
    assert report.state == InstanceState.STARTING
    assert node.launches_of[inc(1)] == 2
    look(node, GOOD)
    assert node.reported[inc(1)].state == InstanceState.RUNNING


def test_never_healthy_under_the_policy_no_has_failed():
    """Nobody starts it again: it failed, with the check's words."""
    node = a_node(RestartCondition.NEVER)
    report = until_bad(node)

    assert report.state == InstanceState.FAILED
    assert report.reason == "unhealthy: no"


def test_once_healthy_under_the_policy_no_is_left_alone():
    """It is shown as unhealthy and runs on; a good answer makes it healthy again."""
    node = a_node(RestartCondition.NEVER)
    look(node, GOOD)
    for _ in range(4):
        look(node, BAD)
    report = node.reported[inc(1)]
    assert (report.state, report.health) == (InstanceState.RUNNING, "unhealthy")
    assert report.reason == "unhealthy: no"

    look(node, GOOD)
    report = node.reported[inc(1)]
    assert (report.health, report.reason) == ("healthy", "")


def test_a_check_that_could_not_be_made_changes_nothing():
    """A daemon that is away is no failure of the instance."""
    node = a_node()
    look(node, GOOD)
    for _ in range(10):
        look(node, None)

    report = node.reported[inc(1)]
    assert (report.state, report.health, report.attempt) == (InstanceState.RUNNING, "healthy", 1)


def test_a_restarted_agent_does_not_call_a_healthy_one_starting():
    """What was well runs on as running; its health is asked anew."""
    node = a_node()
    look(node, GOOD)
    node.act()
    node.crash(calls_go_on=False)
    node.run()

    report = node.reported[inc(1)]
    assert (report.state, report.health, report.attempt) == (InstanceState.RUNNING, "starting", 1)


def test_a_stop_that_failed_is_tried_again():
    """An unhealthy one whose daemon did not stop it is stopped after the next bad look."""
    node = a_node()
    look(node, GOOD)
    while node.supervisor.instances[inc(1)].phase == Phase.RUNNING:
        watchlist = node.supervisor.health
        node.now = watchlist.next_due()
        (watch,) = watchlist.due(node.now, 1)
        healthcare.answered(node.supervisor, watch, BAD, node.now)
    node.act()
    (stop,) = node.ops
    node.fail(stop, "busy")
    node.run()
    assert node.reported[inc(1)].attempt == 1

    until_bad(node)
    assert node.reported[inc(1)].attempt == 2


def test_without_checks_nothing_is_kept():
    """An instance without a check costs nothing here."""
    node = Node()
    node.hello()
    node.want(1, template(health=HealthCheck()))
    node.assign(1)
    node.run()

    assert node.reported[inc(1)].state == InstanceState.RUNNING
    assert node.reported[inc(1)].health == ""
    assert not node.supervisor.health.watches
    assert node.supervisor.instances[inc(1)].health is None


@pytest.mark.parametrize(
    ("head", "good"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.0 301 Moved\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\n", False),
        (b"HTTP/1.1 503\n", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
    ],
)
def test_http_status(head, good):
    """From 200 to 399 is well; what is not HTTP is not."""
    assert answer_of_http(head, "x").good is good
