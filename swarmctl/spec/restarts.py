"""Restart policies in docker's words: ``no``, ``always``, ``unless-stopped``, ``on-failure:3``."""

from typing import Final

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import RestartCondition, RestartPolicy
from swarmctl.spec.names import did_you_mean

# More attempts than this are "without end", which is written without a number.
ATTEMPTS_MAX: Final = 1_000_000

_WORDS: Final = {condition.value: condition for condition in RestartCondition}


def parse_restart(text: str) -> RestartPolicy:
    """The policy that ``restart:`` or ``--restart`` names.

    Raises:
        InvalidSpec: there is no such policy.
    """
    word, colon, attempts = text.partition(":")
    condition = _WORDS.get(word)
    if condition is None:
        raise InvalidSpec(
            f'"{text}" is not a restart policy',
            hint=did_you_mean(word, _WORDS, "use " + ", ".join(_WORDS)),
        )
    if not colon:
        return RestartPolicy(condition)
    if condition is not RestartCondition.ON_FAILURE:
        raise InvalidSpec(f'"{word}" takes no number', hint='only "on-failure:3" does')
    if not attempts.isascii() or not attempts.isdigit() or int(attempts[:9]) > ATTEMPTS_MAX:
        raise InvalidSpec(
            f'"{attempts}" in "{text}" is not a number of attempts', hint='write "on-failure:3"'
        )
    return RestartPolicy(condition, max_attempts=int(attempts))


def check_job_restart(policy: RestartPolicy) -> None:
    """Refuse policies under which a job would never end.

    Raises:
        InvalidSpec: saying which policies a job may have.
    """
    if policy.condition in (RestartCondition.ALWAYS, RestartCondition.UNLESS_STOPPED):
        raise InvalidSpec(
            f'a job that restarts "{policy.condition.value}" never ends',
            hint='use "on-failure" or "no"',
        )
