"""How long an agent waits for a controller that says nothing.

A controller that is silent is frozen, or has more to do than it can: to leave it costs it a
handshake, a hello with all that the node has, and an assignment of all that it should have.  Where
thousands leave at once that is what keeps it from answering the others.  So the first silence is
noticed soon, and each one after it, of the same controller, waits twice as long: until it answers
as it should again.  Another controller begins afresh.

The only controller there is gets half a minute at once: nothing is won by leaving it.  It need not
answer each heartbeat, either.
"""

from typing import Final

from attrs import define

from swarmctl.proto import limits

# At the most so many times as long: a frozen controller that comes back is found within a minute.
TIMES_MAX: Final = 4
# Heartbeats in a row that are answered before a silence is forgotten: it has caught up by then.
ANSWERS_MIN: Final = 5


@define(eq=False)
class Patience:
    """See the module's docstring."""

    _endpoint: str = ""
    _times: int = 1
    _answers: int = 0

    def allowed_s(self, endpoint: str, *, is_open: bool, is_only: bool) -> float:
        """Seconds that the controller at ``endpoint`` may be silent.

        ``is_open`` says whether a session with it is, ``is_only`` that there is no other.
        """
        if is_only:
            return limits.ONLY_CONTROLLER_SILENT_S
        usual_s = limits.CONTROLLER_SILENT_S if is_open else limits.HANDSHAKE_S
        return usual_s * (self._times if endpoint == self._endpoint else 1)

    def silent(self, endpoint: str) -> None:
        """It was silent for as long as it may be."""
        again = endpoint == self._endpoint
        self._times = min(self._times * 2, TIMES_MAX) if again else 2
        self._endpoint, self._answers = endpoint, 0

    def answered(self) -> None:
        """A heartbeat was."""
        self._answers += 1
        if self._answers >= ANSWERS_MIN:
            self._times = 1


def is_content(heard_s: float, *, is_only: bool) -> bool:
    """Whether a controller that was heard so many seconds ago need not answer a heartbeat now."""
    return is_only and heard_s < limits.UNHEARD_S
