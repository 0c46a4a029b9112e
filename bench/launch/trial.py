"""One run of a scenario: the cluster, the clients, and what was found so far.

Runners (:mod:`bench.launch.runs`) do their work through a :class:`Trial` and leave what they
find in it as they go, so that a run that is interrupted still has a report.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import define, evolve, field

from bench.launch.check import Check, check, read_lists, skew
from bench.launch.cluster import BenchCluster
from bench.launch.measure import (
    Counters,
    Measurement,
    statistics,
    submit,
    submit_each,
    take_look,
    watch,
)
from bench.launch.progress import Progress
from bench.launch.scenario import Scenario
from swarmctl.client import Client
from swarmctl.proto.errors import DeadlineExceeded, EnvironmentFault
from swarmctl.spec.models import ServiceSpec

_READY_S = 60.0
# Of the nodes, when that has passed.
_READY_SHARE = 0.99
_LOOK_S = 0.02
_CHECKS_MAX = 3


def _unseen(running: int, seconds: float) -> None:
    """For what is too small to be shown."""


@define
class Trial:
    """See the module's docstring.

    ``specs`` are the services that there should be, by name; ``found`` is what the runner has to
    say beside the launch itself; ``gave_up`` says what did not come about in time.
    """

    scenario: Scenario
    cluster: BenchCluster
    client: Client
    progress: Progress
    specs: dict[str, ServiceSpec] = field(factory=dict)
    measured: Measurement | None = None
    before: Counters | None = None
    after: Counters | None = None
    checked: Check | None = None
    found: dict[str, Any] = field(factory=dict)
    interrupted: bool = False
    gave_up: str = ""

    def launch(self, on_look: Callable[[int, float], None] | None = None, **until: Any) -> None:
        """Submit the scenario's services and wait until all run: the figures of the report."""
        specs = self.scenario.specs()
        self.specs |= {spec.name: spec for spec in specs}
        self.wait_ready(self.scenario.nodes)
        self.measured = Measurement(self.scenario.instances)
        self.before = Counters.read(self.cluster, self.client)

        def look(running: int, seconds: float) -> None:
            self.progress.running(running, seconds)
            if on_look is not None:
                on_look(running, seconds)

        self.progress.phase("launching", self.scenario.instances)
        one_by_one = self.scenario.requests == "one-by-one"
        with self.cluster.connect() as watcher:
            began = time.monotonic()
            if one_by_one:
                sample = partial(take_look, watcher, self.measured, began, look)
                submit_each(self.client, specs, self.measured, sample)
            else:
                submit(self.client, specs, self.measured)
            self.measured.submitted_s = time.monotonic() - began
            timeout_s = self.scenario.timeout_s
            watch(watcher, self.measured, began, look, timeout_s=timeout_s, **until)
        self.after = Counters.read(self.cluster, self.client)

    def launch_more(
        self, specs: Sequence[ServiceSpec], *, wanted: int | None = None
    ) -> Measurement:
        """Launch something beside what runs, and wait for it (or for ``wanted`` of it)."""
        already = self.running()
        replicas = sum(spec.replicas for spec in specs)
        measured = Measurement(replicas if wanted is None else wanted)
        self.specs |= {spec.name: spec for spec in specs}
        if measured.wanted > 1:
            self.progress.phase("launching more", measured.wanted)
        began = time.monotonic()
        submit(self.client, specs, measured)
        measured.submitted_s = time.monotonic() - began
        watch(
            self.client,
            measured,
            began,
            self.progress.running if measured.wanted > 1 else _unseen,
            already=already,
            timeout_s=self.scenario.timeout_s,
        )
        return measured

    def remove(self, names: Sequence[str]) -> None:
        """Take services away; returns when that is durable."""
        self.client.call("service.remove", {"names": list(names)}, timeout_s=60.0)
        for name in names:
            del self.specs[name]

    def running(self) -> int:
        """How many the controller knows to run."""
        return int(statistics(self.client)["states"].get("running", 0))

    def wait_ready(self, nodes: int, timeout_s: float = _READY_S) -> float:
        """Wait until exactly ``nodes`` are ready; seconds that it took.

        On a machine that is too small for all of them a few are late, and sick, at any time: when
        the time is up nearly all will do, and the report says how many were not.

        Raises:
            EnvironmentFault: they are not in time.
        """
        began = time.monotonic()
        while (found := int(statistics(self.client)["nodes_ready"])) != nodes:
            if time.monotonic() - began > timeout_s:
                if found < nodes * _READY_SHARE:
                    raise EnvironmentFault(
                        f"{found} of {nodes} nodes are ready after {timeout_s:g} s"
                    )
                self.found["late_nodes"] = {"not_ready": nodes - found}
                break
            time.sleep(_LOOK_S)
        return time.monotonic() - began

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> float:
        """Wait for ``condition``; seconds that it took.

        Raises:
            DeadlineExceeded: it did not come about.
        """
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > timeout_s:
                raise DeadlineExceeded(f"{what}: not within {timeout_s:g} s")
            time.sleep(_LOOK_S)
        return time.monotonic() - began

    def check(self, *, replaced: int = 0) -> None:
        """Let the independent checker compare both sides.

        Nothing may be under way; but minutes after nodes have joined a few instances may be moved
        to them, and the two sides are not looked at in one moment: so what is found once is looked
        at again.  ``replaced`` instances are gone that nobody asked to touch.
        """
        self.progress.phase("checking", 0)
        specs = list(self.specs.values())
        for looks in range(1, _CHECKS_MAX + 1):
            files = self.cluster.lists()
            self.checked = evolve(check(specs, self.client, files), replaced=replaced)
            if not self.checked.may_be_under_way:
                break
            self.found["checks_that_differed"] = looks
        if any(spec.placement.spread for spec in specs):
            self.found["spread_skew_max"] = skew(specs, read_lists(files))

    def incarnations(self) -> dict[str, set[int]]:
        """What runs on each node, by the nodes' own lists."""
        return {
            row["node"]: {one[1] for one in row["instances"] if one[4] == "running"}
            for row in read_lists(self.cluster.lists())
        }
