"""What a run keeps count of: faults that fired, invariants that were checked, and violations."""

from collections import Counter

import attrs
import trio

# What stands in an invariant's place where an exception that nobody expects has ended a run.
A_DEFECT = "a defect"
# All invariants, and what they say.
INVARIANTS = {
    "acknowledged-is-durable": "an acknowledged write is stored, after each crash and at rest",
    "acknowledged-is-served": "the next controller begins with it",
    "acknowledged-is-synced": "it was on the disk before it was acknowledged",
    "booked-within-capacity": "no node is over its capacity in the controller's own books",
    "comes-to-rest": (
        "within two minutes after the faults all is as the users asked, and stays so"
    ),
    "completion-is-earned": (
        "a slot of a job is completed only if a copy of that very job has ended well"
    ),
    "ends-for-a-reason": "a daemon that ends by itself does so for a reason that it may have",
    "fenced-runs-once": "a fenced instance never runs twice",
    "incarnation-on-one-node": "no incarnation is made on two nodes",
    "journaled-before-created": "an agent has journaled what it is about to make",
    "killed-is-gone": "nothing of a killed process goes on",
    "no-defect": "no error is logged with a trace",
    "nothing-left-over": "no message, task, lock or record is left over at rest",
    "refused-is-not-done": "a write that was refused was not done",
    "within-capacity": (
        "no node is over its capacity, of any resource, at any start and every half second"
    ),
    "write-is-asked-for": "whatever is written was asked for",
}


@attrs.define(eq=False)
class Books:
    """The counts of one run; the first violation ends it."""

    trace: object
    world: object = None
    fired: Counter = attrs.field(factory=Counter)
    checked: Counter = attrs.field(factory=Counter)
    violations: list = attrs.field(factory=list)
    violated: trio.Event = attrs.field(factory=trio.Event)

    def fire(self, fault, *details, times=1):
        """A fault had its effect; ``times`` 0: it had none."""
        if not times:
            return
        self.fired[fault] += times
        self.trace.note("fault", fault, *details)

    def check(self, invariant, holds, what=""):
        """An invariant was looked at; ``what`` is the text, or makes the text, of a violation."""
        assert invariant in INVARIANTS, invariant
        self.checked[invariant] += 1
        if not holds:
            text = what() if callable(what) else what
            self.violations.append(f"{invariant}: {text} (at {trio.current_time():.3f} s)")
            self.trace.note("VIOLATION", self.violations[-1])
            self.violated.set()
