"""What a launch benchmark does, as data: the files under ``bench/scenarios/``."""

from pathlib import Path
from typing import Any

import yaml
from attrs import evolve, field, fields, frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import (
    ContainerSpec,
    Kind,
    Placement,
    Resources,
    ServiceSpec,
    Template,
    VmSpec,
)

FOLDER = Path(__file__).parent.parent / "scenarios"


@frozen
class Scenario:
    """One launch: a fleet, and what is submitted to it.

    ``requests`` is ``batch`` (all services in few requests) or ``one-by-one`` (a request an
    instance).  ``capacity`` is a node's, by resource; ``needs`` an instance's.
    """

    name: str = "launch"
    nodes: int = 100
    containers: int = 1000
    vms: int = 0
    services: int = 10
    requests: str = "batch"
    seed: int = 0
    processes: int = 1
    capacity: dict[str, int] = field(factory=dict)
    needs: dict[str, int] = field(factory=dict)
    delay_s: float = 0.0
    failure_rate: float = 0.0
    vanish: int = 0
    timeout_s: float = 300.0

    @property
    def instances(self) -> int:
        """How many have to run in the end."""
        return self.containers + self.vms

    def specs(self) -> list[ServiceSpec]:
        """The services: containers and VMs shared out over ``services`` of them."""
        if self.requests == "one-by-one":
            return [
                _spec(f"job-{number}", Kind.CONTAINER, 1, self)
                for number in range(1, self.containers + 1)
            ] + [_spec(f"vm-{number}", Kind.VM, 1, self) for number in range(1, self.vms + 1)]
        for_vms = 0
        if self.vms:
            for_vms = max(1, round(self.services * self.vms / self.instances))
        for_containers = max(1, self.services - for_vms) if self.containers else 0
        return [
            *_shared_out("web", Kind.CONTAINER, self.containers, for_containers, self),
            *_shared_out("vm", Kind.VM, self.vms, for_vms, self),
        ]


def _shared_out(
    prefix: str, kind: Kind, total: int, services: int, scenario: Scenario
) -> list[ServiceSpec]:
    return [
        _spec(
            f"{prefix}-{number + 1}",
            kind,
            total * (number + 1) // services - total * number // services,
            scenario,
        )
        for number in range(services)
    ]


def _spec(name: str, kind: Kind, replicas: int, scenario: Scenario) -> ServiceSpec:
    needs = dict(scenario.needs)
    resources = Resources(
        cpu_millis=needs.pop("cpu_millis", 0),
        memory_bytes=needs.pop("memory_bytes", 0),
        disk_bytes=needs.pop("disk_bytes", 0),
        named=needs,
    )
    if kind is Kind.VM:
        template = Template(vm=VmSpec(kernel="vmlinuz", cmdline=name), resources=resources)
    else:
        container = ContainerSpec("swarmctl/testbox", environment={"SERVICE": name})
        template = Template(container=container, resources=resources)
    return ServiceSpec(name, template, replicas, placement=Placement())


def load(name: str, **overrides: Any) -> Scenario:
    """The scenario in ``bench/scenarios/NAME.yaml``, with some of it replaced.

    Raises:
        InvalidSpec: there is no such scenario, or it has an unknown field.
    """
    path = FOLDER / f"{name}.yaml"
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(one.stem for one in FOLDER.glob("*.yaml")))
        raise InvalidSpec(f"no scenario {name!r}", hint=f"there are: {known}") from error
    unknown = set(loaded) - {one.name for one in fields(Scenario)}
    if unknown:
        raise InvalidSpec(f"unknown fields {', '.join(sorted(unknown))}", str(path))
    scenario = Scenario(**({"name": name} | loaded))
    return evolve(scenario, **{key: value for key, value in overrides.items() if value is not None})
