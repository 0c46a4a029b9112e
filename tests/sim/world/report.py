"""The sum of many runs, for people: which faults fired how often, what was checked, what failed."""

import sys
import time
from collections import Counter

import attrs

from tests.sim.world.books import INVARIANTS
from tests.sim.world.faults import EFFECTS, FAULTS
from tests.sim.world.trace import EVENTS_MIN

# A run of this many seeds has to have had each fault in so many of them, or it proves little.
_FULL_RUN = 200
_SEEDS_A_FAULT = 25
_NODES_MIN = 20
_PROGRESS_S = 5.0


@attrs.frozen
class Found:
    """A failure: its seed, how many it took to come to it, and what did not hold."""

    seed: int
    seeds: int
    invariant: str

    def __str__(self):
        return f"{self.seeds} seeds, by {self.invariant}"


class Summary:
    """Takes the result of each seed in, and tells the sum."""

    def __init__(self, plant="", *, harsh=False, seed_base=0):
        self.seed_base = seed_base
        self.seeds = set()
        self.plant = plant
        self.harsh = harsh
        self.interrupted = False
        self.broken = []
        self.failed = {}
        self.held = 0
        self.fired, self.fired_in = Counter(), Counter()
        self.checked, self.checked_in = Counter(), Counter()
        self.events, self.cpu_s, self.calm_s, self.nodes = [], [], [], set()
        self._began = self._told = time.monotonic()

    def add(self, run):
        """One seed's result."""
        self.seeds.add(run["seed"])
        for name, count in run["fired"].items():
            self.fired[name] += count
            self.fired_in[name] += bool(count)
        for name, count in run["checked"].items():
            self.checked[name] += count
            self.checked_in[name] += 1
        self.cpu_s.append(run["cpu_s"])
        if run["violations"]:
            self.failed[run["seed"]] = run["violations"]
            print(f"seed {run['seed']} FAILED: {run['violations'][0][:400]}", flush=True)
            self._tell_replay(run["seed"])
        else:
            self.held += 1
            self.events.append(run["events"])
            self.nodes.add(run["nodes"])
            self.calm_s.append(run["calm_after_s"])
        if time.monotonic() - self._told > _PROGRESS_S:
            self._told = time.monotonic()
            print(f"{self.held + len(self.failed)} seeds, {len(self.failed)} failed",
                  file=sys.stderr, flush=True)  # fmt: skip

    def found(self):
        """The first seed that failed, once all before it have been run; None until then."""
        if not self.failed:
            return None
        first = min(self.failed)
        if not self.seeds.issuperset(range(self.seed_base, first)):
            return None
        invariant = self.failed[first][0].partition(":")[0]
        return Found(first, first - self.seed_base + 1, invariant)

    def recorded(self):
        """The sum as :mod:`record` keeps it: only of runs that held."""
        return {
            "first": self.seed_base,
            "run": self.held + len(self.failed),
            "held": self.held,
            "nodes": min(self.nodes),
            "events": [min(self.events), max(self.events)],
            "cpu_s": sum(self.cpu_s) / len(self.cpu_s),
            "at_rest_s": max(self.calm_s),
            "faults": {
                name: {"fired": self.fired[name], "seeds": self.fired_in[name]}
                for name in (*FAULTS, *EFFECTS)
            },
            "invariants": {
                name: {"says": says, "checks": self.checked[name], "seeds": self.checked_in[name]}
                for name, says in sorted(INVARIANTS.items())
            },
        }

    def _tell_replay(self, seed):
        options = variables = ""
        if self.plant:
            options, variables = f" --plant {self.plant}", f" PLANT={self.plant}"
        if self.harsh:
            options, variables = f"{options} --harsh", f"{variables} HARSH=1"
        print(f"  replay: make soak SEEDS=1 SEED_BASE={seed}{variables}", end="")
        print(f", or python -m tests.sim.world --show --seed-base {seed}{options}", flush=True)

    def tell(self):
        """Print all of it; the exit code."""
        total = self.held + len(self.failed)
        print("fault                          fired    in seeds")
        for name in (*FAULTS, *EFFECTS):
            print(f"  {name:<26} {self.fired[name]:>7} {self.fired_in[name]:>9}")
        print("invariant                    checked    in seeds")
        for name in sorted(self.checked):
            print(f"  {name:<26} {self.checked[name]:>7} {self.checked_in[name]:>9}")
        if self.held:
            print(
                f"{min(self.events)} to {max(self.events)} events a seed on {min(self.nodes)} "
                f"nodes, {sum(self.cpu_s) / len(self.cpu_s):.2f} s of CPU each; at rest "
                f"{max(self.calm_s):.1f} s after the last fault at the latest; "
                f"{time.monotonic() - self._began:.0f} s in all"
            )
        wrong = self._shortcomings(total)
        for text in wrong:
            print(f"NOT ENOUGH: {text}")
        if self.interrupted:
            print("interrupted")
        if self.failed:
            print("failed:", *sorted(self.failed))
        print(f"{self.held} of {total} seeds held")
        return 1 if self.failed or wrong else 0

    def _shortcomings(self, total):
        """Why the run proves less than it should."""
        found = [f"a worker ended with {code}" for code in self.broken]
        if self.events and min(self.events) < EVENTS_MIN:
            found.append(f"a seed had only {min(self.events)} events")
        if self.nodes and min(self.nodes) < _NODES_MIN:
            found.append(f"a seed had only {min(self.nodes)} nodes")
        if total >= _FULL_RUN and not self.plant:
            found += [
                f"{name} fired in {self.fired_in[name]} seeds only"
                for name in (*FAULTS, *EFFECTS)
                if self.fired_in[name] < _SEEDS_A_FAULT
            ]
            found += [f"{name} was never checked" for name in INVARIANTS if not self.checked[name]]
        return found
