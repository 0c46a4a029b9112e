"""Restart policies: what follows an end or a failed launch, when, and in which words."""

import pytest

from swarmctl.agent.backoff import after_exit, after_launch_error, delay_s
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, NotFound
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import ContainerSpec, RestartCondition, RestartPolicy, Template

NEVER, ON_FAILURE = RestartCondition.NEVER, RestartCondition.ON_FAILURE
ALWAYS, UNLESS_STOPPED = RestartCondition.ALWAYS, RestartCondition.UNLESS_STOPPED


def made(condition, *, maximum=0, delay=0.0, job=False):
    return Template(
        container=ContainerSpec("box"),
        restart=RestartPolicy(condition, delay, maximum),
        job=job,
    )


@pytest.mark.parametrize(
    ("spec", "exit_code", "again", "state"),
    [
        (made(NEVER), 0, False, InstanceState.SUCCEEDED),
        (made(NEVER), 1, False, InstanceState.FAILED),
        (made(ON_FAILURE), 0, False, InstanceState.SUCCEEDED),
        (made(ON_FAILURE), 1, True, InstanceState.STARTING),
        (made(ON_FAILURE), None, True, InstanceState.STARTING),
        (made(ALWAYS), 0, True, InstanceState.STARTING),
        (made(UNLESS_STOPPED), 1, True, InstanceState.STARTING),
        (made(ALWAYS, job=True), 0, False, InstanceState.SUCCEEDED),
        (made(ALWAYS, job=True), 1, True, InstanceState.STARTING),
        (made(NEVER, job=True), 1, False, InstanceState.FAILED),
    ],
)
def test_end_follows_the_policy(spec, exit_code, again, state):
    """Each condition with good, bad and unknown exits."""
    verdict = after_exit(spec, exit_code, "", 1)

    assert (verdict.delay_s is not None) == again
    assert verdict.state == state


def test_a_failed_launch_says_which_file_but_not_again_which_instance():
    """A path is told; the instance stands beside the reason anyway."""
    missing = NotFound("disk image: no such file on this node", "/images/x.qcow2", "give the path")
    refused = NotFound("image x is not there", "web.1")

    assert after_launch_error(made(NEVER), missing, 0, "web.1").reason == (
        "/images/x.qcow2: disk image: no such file on this node (give the path)"
    )
    assert after_launch_error(made(NEVER), refused, 0, "web.1").reason == "image x is not there"


def test_attempts_are_bounded():
    """on-failure:3 restarts three times, and says that it gave up."""
    spec = made(ON_FAILURE, maximum=3)

    assert after_exit(spec, 1, "", 3).delay_s is not None
    last = after_exit(spec, 1, "", 4)
    assert last.delay_s is None
    assert last.reason == "gave up after 3 restarts: exited 1"


def test_waits_grow_and_are_bounded():
    """The first restart is immediate for an eye; later ones double up to a minute."""
    waits = [delay_s(failures) for failures in range(1, 5_000)]

    assert waits[:5] == [0.1, 0.5, 1.0, 2.0, 4.0]
    assert waits == sorted(waits)
    assert waits[-1] == 60.0
    assert after_exit(made(ALWAYS, delay=5.0), 1, "", 1).delay_s == 5.0


@pytest.mark.parametrize(
    ("exit_code", "why", "last"),
    [
        (1, "", "last exit code 1"),
        (137, "out of memory", "last exit code 137 (out of memory)"),
        (None, "unhealthy: no answer within 1 s", "last: unhealthy: no answer within 1 s"),
        (None, "", "last: it is gone, and not by us"),
    ],
)
def test_a_crash_loop_is_named(exit_code, why, last):
    """How often in how long, when the next try is, and how the last one ended."""
    assert "crash loop" not in after_exit(made(ALWAYS), exit_code, why, 3, 100.0).reason
    verdict = after_exit(made(ALWAYS), exit_code, why, 5, 130.0)

    assert verdict.reason == f"crash loop: 5 ends in 2m10s, next try in 4 s, {last}"
    verdict = after_exit(made(ALWAYS), exit_code, why, 5)
    assert verdict.reason == f"crash loop: 5 ends, next try in 4 s, {last}"


def test_unavailable_daemon_is_waited_for_whatever_the_policy():
    """An instance that never ran is not failed because dockerd restarts."""
    verdict = after_launch_error(made(NEVER), DriverUnavailable("dockerd does not answer"), 9)

    assert verdict.delay_s == 5.0
    assert verdict.reason == "dockerd does not answer; next try in 5 s"


@pytest.mark.parametrize(
    ("spec", "error", "again"),
    [
        (made(ALWAYS), NotFound("no image x"), True),
        (made(ON_FAILURE), NotFound("no image x"), False),
        (made(ALWAYS, job=True), NotFound("no image x"), False),
        (made(NEVER), LaunchFailed("no room"), False),
        (made(ON_FAILURE), LaunchFailed("no room"), True),
        (made(ON_FAILURE, maximum=1), LaunchFailed("no room"), False),
    ],
)
def test_failed_launch_is_failed_with_its_reason(spec, error, again):
    """Who is at fault and the policy decide whether it is tried again; the reason is kept."""
    verdict = after_launch_error(spec, error, 2)

    assert verdict.state == InstanceState.FAILED
    assert (verdict.delay_s is not None) == again
    assert error.what in verdict.reason
