"""What the scheduler reads and answers: nodes, requests, placements.

Everything here is a frozen value.
Resources are named integers: ``cpu_millis``, ``memory_bytes`` and ``disk_bytes`` are known by
their units, any other name (``gpu``, ``licence/matlab``) is a count.
The scheduler does not know what a container or a VM is: only which driver starts it.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import attrs

from swarmctl.proto.errors import InvalidSpec
from swarmctl.scheduler.constraint import Constraint, check_attribute

Strategy = Literal["spread", "binpack"]

# Amounts stay exact in 64-bit sums over many copies below this: a pebibyte, a trillion cores.
RESOURCE_MAX: Final = 1 << 50
# The weight at which an affinity outweighs any difference in allocation.
WEIGHT_MAX: Final = 100


def _check_amounts(_: object, field: "attrs.Attribute[Mapping[str, int]]", value: object) -> None:
    assert isinstance(value, Mapping)
    for resource, amount in value.items():
        if not isinstance(amount, int) or not 0 <= amount <= RESOURCE_MAX:
            raise InvalidSpec(
                f"{resource} must be a whole number from 0 to {RESOURCE_MAX}, not {amount!r}",
                field.name,
            )


@attrs.frozen
class Node:
    """A machine as the scheduler sees it.

    Attributes:
        name: unique.
        labels: free text by name; constraints and spread refer to them.
        capacity: units by resource name.
        drivers: what the node can start instances with.
        schedulable: False keeps new instances away; what is there stays.
        unschedulable_reason: why, in words that follow a count: ``cordoned``,
            ``sick: docker does not answer``, ``lost``.
    """

    name: str
    labels: Mapping[str, str] = attrs.field(factory=dict)
    capacity: Mapping[str, int] = attrs.field(factory=dict, validator=_check_amounts)
    drivers: frozenset[str] = frozenset({"docker"})
    schedulable: bool = True
    unschedulable_reason: str = ""


@attrs.frozen(cache_hash=True)
class Affinity:
    """A wish (or, when required, a condition) about the instances of a service on the node.

    Attributes:
        service: whose instances; may be the requesting service itself.
        weight: 1 to 100, when not required: 100 outweighs any difference in allocation.
        required: an affinity that is required needs at least one such instance on the node, an
            anti-affinity none. The first copy of a service that requires itself may go anywhere.
    """

    service: str
    weight: int = attrs.field(default=WEIGHT_MAX, kw_only=True)
    required: bool = attrs.field(default=False, kw_only=True)

    @weight.validator
    def _check_weight(self, _: object, value: int) -> None:
        if not 1 <= value <= WEIGHT_MAX:
            raise InvalidSpec(f"weight must be from 1 to {WEIGHT_MAX}, not {value}", "affinity")


def _check_slots(_: object, __: object, value: Sequence[int]) -> None:
    if not isinstance(value, range) and len(set(value)) != len(value):
        raise InvalidSpec("a slot is asked for twice", "slots")


def _check_spread(_: object, __: object, value: tuple[str, ...]) -> None:
    for attribute in value:
        check_attribute(attribute, "spread")


def _positive(value: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((name, amount) for name, amount in value.items() if amount)


@attrs.frozen(kw_only=True)
class Request:
    """Identical copies of one service that want nodes.

    Attributes:
        service: the service's key.
        slots: one copy each; they are placed in this order.
        resources: units each copy takes, by resource name.
        driver: the node must have it; empty accepts any node.
        constraints: all must hold.
        spread: attributes (``node.labels.rack``, ``node.name``) over whose values the service's
            copies are kept even; with several, evenly by the first, then within it by the second.
            Nodes without the label count as one more value.
        strategy: ``spread`` takes the least allocated node, ``binpack`` the most allocated one.
        max_per_node: copies of this service on one node, those already there included; 0 is no
            limit.
        affinity: services to be beside.
        anti_affinity: services to keep away from. It binds this request only: who wants both
            directions gives it to both services' requests.
        priority: higher ones are placed first.
        needs: the resources that are not zero, as pairs (derived).
        plain: no wish or limit looks at where instances are already (derived).
    """

    service: str
    slots: Sequence[int] = attrs.field(validator=_check_slots)
    resources: Mapping[str, int] = attrs.field(factory=dict, validator=_check_amounts)
    driver: str = "docker"
    constraints: tuple[Constraint, ...] = ()
    spread: tuple[str, ...] = attrs.field(default=(), validator=_check_spread)
    strategy: Strategy = attrs.field(
        default="spread", validator=attrs.validators.in_(("spread", "binpack"))
    )
    max_per_node: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    affinity: tuple[Affinity, ...] = ()
    anti_affinity: tuple[Affinity, ...] = ()
    priority: int = 0
    needs: tuple[tuple[str, int], ...] = attrs.field(init=False, repr=False, eq=False)

    @needs.default
    def _needs(self) -> tuple[tuple[str, int], ...]:
        return _positive(self.resources)

    plain: bool = attrs.field(init=False, repr=False, eq=False)

    @plain.default
    def _plain(self) -> bool:
        return not (self.spread or self.max_per_node or self.affinity or self.anti_affinity)


@attrs.frozen
class Placement:
    """One copy and the node that it goes to."""

    service: str
    slot: int
    node: str
