"""What a run keeps count of: faults that fired, invariants that were checked, and violations."""

from collections import Counter

import attrs
import trio

# What stands in an invariant's place where an exception that nobody expects has ended a run.
A_DEFECT = "a defect"


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
        """A fault had its effect."""
        self.fired[fault] += times
        self.trace.note("fault", fault, *details)

    def check(self, invariant, holds, what=""):
        """An invariant was looked at; ``what`` is the text, or makes the text, of a violation."""
        self.checked[invariant] += 1
        if not holds:
            text = what() if callable(what) else what
            self.violations.append(f"{invariant}: {text} (at {trio.current_time():.3f} s)")
            self.trace.note("VIOLATION", self.violations[-1])
            self.violated.set()
