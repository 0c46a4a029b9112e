"""What a launch benchmark does, as data: the files under ``bench/scenarios/``.

``kind`` names the module under :mod:`bench.launch.runs` that carries it out.  Plain launches say
how many containers and VMs there are and what each needs; a mixed one lists ``workloads`` and
``machines`` (kinds of nodes) in their place.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from attrs import evolve, field, fields, frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import (
    AffinityTerm,
    ContainerSpec,
    Kind,
    Placement,
    Resources,
    ServiceSpec,
    Template,
    VmSpec,
)

FOLDER = Path(__file__).parent.parent / "scenarios"
KINDS: Final = ("launch", "joins", "idle", "failover", "churn", "full", "overload")
REQUESTS: Final = ("batch", "one-by-one")
# Nodes that share a zone's or a rack's label.
_ZONES: Final = 20
_RACKS: Final = 50


@frozen
class Machine:
    """A kind of node: how many of all nodes are such (by weight), what one has, its labels."""

    name: str = "standard"
    weight: int = 1
    capacity: dict[str, int] = field(factory=dict)
    labels: dict[str, str] = field(factory=dict)


@frozen
class Workload:
    """A kind of service: how many services of how many copies, and where these may be.

    ``apart`` keeps copies of one service off each other's nodes.
    """

    name: str
    services: int = 1
    copies: int = 1
    kind: Kind = field(default=Kind.CONTAINER, converter=Kind)
    needs: dict[str, int] = field(factory=dict)
    constraints: tuple[str, ...] = field(default=(), converter=tuple)
    spread: tuple[str, ...] = field(default=(), converter=tuple)
    strategy: str = "spread"
    max_per_node: int = 0
    apart: bool = False

    def specs(self) -> Iterator[ServiceSpec]:
        """Its services."""
        for number in range(1, self.services + 1):
            name = f"{self.name}-{number}"
            yield service(name, self.kind, self.copies, self.needs, placement=self._placement(name))

    def _placement(self, name: str) -> Placement:
        return Placement(
            constraints=self.constraints,
            spread=self.spread,
            strategy=self.strategy,
            max_replicas_per_node=self.max_per_node,
            anti_affinity=(AffinityTerm(name, required=True),) if self.apart else (),
        )


@frozen
class Scenario:
    """One benchmark: a fleet, and what is asked of it.

    Attributes:
        requests: ``batch`` (all services in few requests) or ``one-by-one`` (one an instance).
        processes: that hold the simulated nodes.
        capacity: a node's, by resource; ``needs`` an instance's.
        delay_s: mean of an exponential start delay.
        failure_rate: share of starts that fail.
        vanish_share: share of nodes that fall silent during the launch.
        seconds: for how long a steady state is looked at.
        churn_per_min: share of the instances that is replaced in a minute.
        excess: how many times more is asked than can be done.
    """

    name: str = "launch"
    kind: str = "launch"
    about: str = ""
    nodes: int = 100
    containers: int = 1000
    vms: int = 0
    services: int = 10
    requests: str = "batch"
    seed: int = 0
    processes: int = 1
    capacity: dict[str, int] = field(factory=dict)
    needs: dict[str, int] = field(factory=dict)
    machines: tuple[Machine, ...] = ()
    workloads: tuple[Workload, ...] = ()
    delay_s: float = 0.0
    failure_rate: float = 0.0
    vanish_share: float = 0.0
    seconds: float = 30.0
    churn_per_min: float = 0.1
    excess: float = 10.0
    timeout_s: float = 300.0

    @property
    def instances(self) -> int:
        """How many have to run in the end."""
        if self.workloads:
            return sum(one.services * one.copies for one in self.workloads)
        return self.containers + self.vms

    @property
    def vanishing(self) -> int:
        """How many nodes fall silent."""
        return round(self.nodes * self.vanish_share)

    def machine_of(self, number: int) -> Machine:
        """What node ``number`` is: kinds alternate by their weights, so any range has all."""
        if not self.machines:
            return Machine(capacity=self.capacity)
        position = number % sum(one.weight for one in self.machines)
        for machine in self.machines:
            position -= machine.weight
            if position < 0:
                return machine
        raise AssertionError("weights add up")

    def specs(self) -> list[ServiceSpec]:
        """The services: containers and VMs shared out over ``services`` of them."""
        if self.workloads:
            return [spec for workload in self.workloads for spec in workload.specs()]
        if self.requests == "one-by-one":
            return [
                service(f"job-{number}", Kind.CONTAINER, 1, self.needs)
                for number in range(1, self.containers + 1)
            ] + [
                service(f"vm-{number}", Kind.VM, 1, self.needs) for number in range(1, self.vms + 1)
            ]
        for_vms = 0
        if self.vms:
            for_vms = max(1, round(self.services * self.vms / self.instances))
        for_containers = max(1, self.services - for_vms) if self.containers else 0
        return [
            *_shared_out("web", Kind.CONTAINER, self.containers, for_containers, self.needs),
            *_shared_out("vm", Kind.VM, self.vms, for_vms, self.needs),
        ]


def node_name(number: int) -> str:
    """The name of a simulated node."""
    return f"node-{number:05d}"


def node_labels(number: int, machine: Machine) -> dict[str, str]:
    """The labels of a simulated node."""
    places = {"zone": f"zone-{number % _ZONES}", "rack": f"rack-{number % _RACKS}"}
    return places | {"machine": machine.name} | machine.labels


def service(
    name: str,
    kind: Kind,
    replicas: int,
    needs: dict[str, int],
    *,
    placement: Placement | None = None,
) -> ServiceSpec:
    """A service of ``replicas`` instances, each of which needs ``needs``."""
    named = dict(needs)
    resources = Resources(
        cpu_millis=named.pop("cpu_millis", 0),
        memory_bytes=named.pop("memory_bytes", 0),
        disk_bytes=named.pop("disk_bytes", 0),
        named=named,
    )
    if kind is Kind.VM:
        template = Template(vm=VmSpec(kernel="vmlinuz", cmdline=name), resources=resources)
    else:
        container = ContainerSpec("swarmctl/testbox", environment={"SERVICE": name})
        template = Template(container=container, resources=resources)
    return ServiceSpec(name, template, replicas, placement=placement or Placement())


def _shared_out(
    prefix: str, kind: Kind, total: int, services: int, needs: dict[str, int]
) -> list[ServiceSpec]:
    return [
        service(
            f"{prefix}-{number + 1}",
            kind,
            total * (number + 1) // services - total * number // services,
            needs,
        )
        for number in range(services)
    ]


# --- files ----------------------------------------------------------------------------------------


def names() -> list[str]:
    """The scenarios there are."""
    return sorted(one.stem for one in FOLDER.glob("*.yaml"))


def load(name: str, **overrides: Any) -> Scenario:
    """The scenario in ``bench/scenarios/NAME.yaml``, with some of it replaced.

    Raises:
        InvalidSpec: there is no such scenario, or something in it is wrong.
    """
    path = FOLDER / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSpec(
            f"no scenario {name!r}", hint=f"there are: {', '.join(names())}"
        ) from error
    scenario = parse({"name": name} | yaml.safe_load(text), str(path))
    return changed(scenario, **overrides)


def changed(scenario: Scenario, **overrides: Any) -> Scenario:
    """``scenario`` with what is given (and not None) replaced.

    Raises:
        InvalidSpec: the outcome makes no sense.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if scenario.workloads and given.keys() & {"containers", "vms", "services"}:
        raise InvalidSpec(
            f"scenario {scenario.name} says itself which services there are",
            hint="its numbers of nodes and its seed can be changed",
        )
    outcome = evolve(scenario, **given)
    if scenario.workloads and outcome.nodes != scenario.nodes:
        # They are written for that number of nodes, and would not fit into fewer.
        outcome = evolve(
            outcome,
            workloads=tuple(
                evolve(one, copies=max(1, one.copies * outcome.nodes // scenario.nodes))
                for one in scenario.workloads
            ),
        )
    _check(outcome, outcome.name)
    return outcome


def parse(given: dict[str, Any], where: str) -> Scenario:
    """A scenario from plain data.

    Raises:
        InvalidSpec: a field is unknown, or makes no sense.
    """
    made = dict(given)
    made["machines"] = tuple(_made(Machine, one, where) for one in made.get("machines", ()))
    made["workloads"] = tuple(_made(Workload, one, where) for one in made.get("workloads", ()))
    scenario: Scenario = _made(Scenario, made, where)
    _check(scenario, where)
    return scenario


def _made(kind: Any, given: dict[str, Any], where: str) -> Any:
    unknown = set(given) - {one.name for one in fields(kind)}
    if unknown:
        raise InvalidSpec(f"unknown fields {', '.join(sorted(unknown))}", where)
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise InvalidSpec(
            f"a {kind.__name__.lower()} cannot be made of it: {error}", where
        ) from error


def _check(scenario: Scenario, where: str) -> None:
    if scenario.kind not in KINDS:
        raise InvalidSpec(f"kind is one of {', '.join(KINDS)}, not {scenario.kind!r}", where)
    if scenario.requests not in REQUESTS:
        raise InvalidSpec(f"requests is batch or one-by-one, not {scenario.requests!r}", where)
    for name in ("nodes", "services", "processes"):
        if getattr(scenario, name) < 1:
            raise InvalidSpec(f"{name} has to be 1 or more", where)
    if min(scenario.containers, scenario.vms) < 0:
        raise InvalidSpec("a number of instances is below 0", where)
    for name in ("failure_rate", "vanish_share"):
        if not 0.0 <= getattr(scenario, name) < 1.0:
            raise InvalidSpec(f"{name} has to be from 0 to below 1", where)
