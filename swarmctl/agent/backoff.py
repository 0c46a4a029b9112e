"""What an end or a failed launch means: try again and when, or leave it, and in which words.

Pure functions of the restart policy and of how often it went wrong in a row; the supervisor
counts, this decides.
"""

from typing import Final

from attrs import frozen

from swarmctl.proto import limits
from swarmctl.proto.errors import SwarmError, UserError
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import RestartCondition, RestartPolicy, Template
from swarmctl.spec.sizes import format_duration

# The first restart after a good run: a container killed behind our back is back at once.
RESTART_FIRST_S: Final = 0.1
# A daemon that is away is asked again at least this often: it is usually back within seconds.
UNAVAILABLE_RETRY_MAX_S: Final = 5.0

# The end of what the guard stopped: no failure, and nobody's wish; it goes on once it may.
LEASE_ENDED: Final = "the fencing lease ended, and the guard stopped it"

_STEADY: Final = frozenset({RestartCondition.ALWAYS, RestartCondition.UNLESS_STOPPED})


@frozen
class Verdict:
    """Try again after ``delay_s`` (None: never); meanwhile it is in ``state``, for ``reason``."""

    delay_s: float | None
    state: InstanceState
    reason: str


def delay_s(failures: int, maximum_s: float = limits.RESTART_BACKOFF_MAX_S) -> float:
    """Seconds to wait after ``failures`` in a row: short once, then doubled up to the maximum."""
    if failures <= 1:
        return RESTART_FIRST_S
    # The exponent is bounded too: a float overflows after a thousand failures.
    return min(limits.RESTART_BACKOFF_MIN_S * 2.0 ** min(failures - 2, 32), maximum_s)


def seconds(value: float) -> str:
    """A wait in words: ``0.5 s``, ``8 s``."""
    return f"{value:g} s"


def after_exit(
    template: Template, exit_code: int | None, why: str, failures: int, span_s: float | None = None
) -> Verdict:
    """What follows when an instance that ran has ended.

    Args:
        template: what it was made from.
        exit_code: None when nobody knows it (it was taken away).
        why: the driver's words for the end, if any.
        failures: ends in a row, this one included, without a good run between them.
        span_s: seconds since the first of them; None when that is not known.
    """
    if why == LEASE_ENDED:
        return Verdict(RESTART_FIRST_S, InstanceState.STARTING, f"{why}; starts when it is renewed")
    policy = template.restart
    ended = _end_in_words(exit_code, why)
    if exit_code == 0 and (template.job or policy.condition not in _STEADY):
        return Verdict(None, InstanceState.SUCCEEDED, ended)
    if policy.condition is RestartCondition.NEVER:
        return Verdict(None, InstanceState.FAILED, ended)
    if _exhausted(policy, failures):
        times = policy.max_attempts
        return Verdict(None, InstanceState.FAILED, f"gave up after {times} restarts: {ended}")
    wait_s = max(delay_s(failures), policy.delay_s)
    if failures > limits.CRASH_LOOP_RESTARTS:
        span = "" if span_s is None else f" in {format_duration(max(1, round(span_s)))}"
        reason = (
            f"crash loop: {failures} ends{span}, "
            f"next try in {seconds(wait_s)}, {_last_end(exit_code, why)}"
        )
    else:
        reason = f"{ended}; restarts in {seconds(wait_s)}"
    return Verdict(wait_s, InstanceState.STARTING, reason)


def after_launch_error(
    template: Template, error: SwarmError, failures: int, instance: str = ""
) -> Verdict:
    """What follows when a launch of ``instance`` did not come to run."""
    # The instance itself is named wherever its reason is shown; a file or a field is not.
    about = f"{error.where}: " if error.where not in ("", instance) else ""
    said = about + (f"{error.what} ({error.hint})" if error.hint else error.what)
    if error.temporary:
        wait_s = delay_s(failures + 1, UNAVAILABLE_RETRY_MAX_S)
        return Verdict(wait_s, InstanceState.PREPARING, f"{said}; next try in {seconds(wait_s)}")
    policy = template.restart
    steady = policy.condition in _STEADY and not template.job
    by_user = isinstance(error, UserError)
    if policy.condition is RestartCondition.NEVER or (by_user and not steady):
        return Verdict(None, InstanceState.FAILED, said)
    if _exhausted(policy, failures):
        return Verdict(None, InstanceState.FAILED, f"gave up after {failures} tries: {said}")
    wait_s = max(delay_s(failures + 1), policy.delay_s)
    return Verdict(wait_s, InstanceState.FAILED, f"{said}; next try in {seconds(wait_s)}")


def _exhausted(policy: RestartPolicy, failures: int) -> bool:
    return bool(policy.max_attempts) and failures > policy.max_attempts


def _last_end(exit_code: int | None, why: str) -> str:
    if exit_code is None:
        return f"last: {_end_in_words(None, why)}"
    return f"last exit code {exit_code}" + (f" ({why})" if why else "")


def _end_in_words(exit_code: int | None, why: str) -> str:
    if exit_code is None:
        return why or "it is gone, and not by us"
    return f"exited {exit_code}: {why}" if why else f"exited {exit_code}"
