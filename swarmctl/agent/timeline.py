"""When each step of a launch was: what ``swarmctl trace`` shows of the agent's side.

Steps are noted where they happen, on the agent's clock, which nobody sets; when in the day that was
is worked out when somebody asks.  They are kept in memory, for the newest launches only: a node has
hundreds of instances, and a process that simulates many nodes launches in bulk, which notes
nothing here.  A launch on the spot (another attempt of the same incarnation) takes the place of the
one before.
"""

from enum import StrEnum
from typing import Final

from attrs import define, field

# Launches that are remembered, about 500 bytes each.
LAUNCHES_MAX: Final = 2_048


class Step(StrEnum):
    """The steps of a launch, in their order; some have none of a network or of health."""

    RECEIVED = "received"  # the assignment came
    JOURNALED = "journaled"  # the intent is on the disk; it waits for its turn
    PREPARING = "preparing"  # its image or disk is looked for, and got
    PREPARED = "prepared"  # it is there; it waits for its turn to be created
    STARTING = "starting"
    PLUGGED = "plugged in"  # its ports are in the switch
    CREATED = "created"
    PORT_UP = "port up"  # OVN says that packets of all its ports flow
    RUNNING = "running"
    HEALTHY = "healthy"  # the first good health check


@define(eq=False)
class Timeline:
    """One launch: for which attempt, and its steps with their times (the agent's clock)."""

    attempt: int
    steps: list[tuple[Step, float]] = field(factory=list)


@define(eq=False)
class Timelines:
    """Those of a node's newest launches, by incarnation."""

    launches_max: int = LAUNCHES_MAX
    _of: dict[int, Timeline] = field(factory=dict)

    def begin(self, incarnation: int, attempt: int, now: float) -> None:
        """A launch is in the journal and may be carried out."""
        # Anew, so that the table is in the order of launches.
        self._of.pop(incarnation, None)
        self._of[incarnation] = Timeline(attempt, [(Step.JOURNALED, now)])
        if len(self._of) > self.launches_max:
            del self._of[next(iter(self._of))]

    def note(self, incarnation: int, step: Step, now: float) -> None:
        """Its launch has come to ``step``."""
        found = self._of.get(incarnation)
        if found is not None:
            found.steps.append((step, now))

    def of(self, incarnation: int) -> Timeline | None:
        """Its newest launch; None when that is not remembered."""
        return self._of.get(incarnation)

    def forget(self, incarnation: int) -> None:
        """It is gone."""
        self._of.pop(incarnation, None)
