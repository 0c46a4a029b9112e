"""Between the cluster's state and the scheduler: services become requests, nodes become rows.

The scheduler's snapshot is an index over :class:`~swarmctl.controller.state.ClusterState`; this
module keeps it by change, and can rebuild it from the state at any time.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from swarmctl.controller.instance import Instance, scheduler_key
from swarmctl.controller.networks import NetworkKey
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.controller.uplinks import CHASSIS, PHYSICAL, maps
from swarmctl.proto.errors import InvalidSpec, ProtocolError
from swarmctl.proto.messages import NodeFacts
from swarmctl.proto.states import NodeState
from swarmctl.scheduler import Affinity, Request, Snapshot, parse_constraints
from swarmctl.scheduler import Node as SchedulerNode
from swarmctl.spec import wire
from swarmctl.spec.models import AffinityTerm, ServiceSpec

# See _apart: in hundredths of two fully loaded nodes.
_APART_WEIGHT: Final = 25
# By this the scheduler knows the nodes that can take what is fenced; no user's label is called so.
GUARD_LABEL: Final = "swarmctl/guard"
_GUARDED: Final = f"node.labels.{GUARD_LABEL} == alive"
# And by this those that can plug instances into tenant networks; without OVN none has to.
NETWORK_LABEL: Final = "swarmctl/network"
_PLUGGABLE: Final = f"node.labels.{NETWORK_LABEL} == there"
# And by this those that cannot for one network: one on a provider that they do not map to a bridge,
# or one that their trunk is too narrow for.
_MAPPED: Final = "swarmctl/network/"
# How an agent's fact "network" begins where there is no switch to plug into.
_NO_SWITCH: Final = "none"
# Of a node that has told of no Open vSwitch: its name there, and its physical networks.
_UNMAPPED: Final = ("", "")
_NO_PROVIDERS: Final[Mapping[NetworkKey, str]] = {}


@lru_cache(maxsize=4096)
def amounts_of(encoded_template: bytes) -> Mapping[str, int]:
    """What an instance of this template takes from a node."""
    return wire.decode_template(encoded_template).resources.amounts()


def request_for(service: Service, slots: Sequence[int]) -> Request:
    """The scheduler's form of "``service`` wants ``slots`` placed".

    Raises:
        InvalidSpec: the scheduler cannot count with what the service asks for.
    """
    made = service.request
    if made is not None and list(slots) == list(made.slots):
        service.request = None
        return made
    spec = service.record.spec
    placement = spec.placement
    return Request(
        service=scheduler_key(service.key),
        slots=slots,
        resources=service.amounts,
        driver=spec.driver_name,
        constraints=parse_constraints(_constraints(spec)),
        spread=placement.spread,
        strategy="binpack" if placement.strategy == "binpack" else "spread",
        max_per_node=placement.max_replicas_per_node,
        affinity=_terms(spec.tenant, placement.affinity),
        anti_affinity=_apart(service) + _terms(spec.tenant, placement.anti_affinity),
        priority=spec.priority,
    )


def _constraints(spec: ServiceSpec) -> tuple[str, ...]:
    constraints, template = spec.placement.constraints, spec.template
    if template.fenced:
        constraints = (*constraints, _GUARDED)
    if template.networks:
        named = (f"{_MAPPED}{spec.tenant}/{use.network}" for use in template.networks)
        mapped = (f"node.labels.{label} != none" for label in named)
        return (*constraints, _PLUGGABLE, *mapped)
    return constraints


def _apart(service: Service) -> tuple[Affinity, ...]:
    """Copies of a service would rather not share a node: one that fails should not take them all.

    It is a wish, worth half a node's load; ``binpack`` and wishes of the user's own replace it.
    """
    spec = service.record.spec
    placement = spec.placement
    named = {term.service for term in placement.affinity + placement.anti_affinity}
    own = placement.strategy != "spread" or placement.spread or spec.name in named
    if own or spec.replicas < 2:
        return ()
    return (Affinity(scheduler_key(service.key), weight=_APART_WEIGHT),)


def _terms(tenant: str, terms: tuple[AffinityTerm, ...]) -> tuple[Affinity, ...]:
    return tuple(
        Affinity(scheduler_key((tenant, term.service)), weight=term.weight, required=term.required)
        for term in terms
    )


def row_for(
    node: Node, *, plugging: bool = False, providers: Mapping[NetworkKey, str] = _NO_PROVIDERS
) -> SchedulerNode:
    """The scheduler's form of a node.

    Args:
        node: the node.
        plugging: there are tenant networks.
        providers: the physical network of each that needs one. An agent that does not tell what its
            node maps (an older one, or one in a VM) is taken to map them all.
    """
    reason = unschedulable_reason(node)
    unpluggable = plugging and (
        None in node.obstacles or node.facts.facts.get("network", "").startswith(_NO_SWITCH)
    )
    unmapped = (
        key
        for key, physical in providers.items()
        if PHYSICAL in node.facts.facts and not maps(node, physical)
    )
    closed = {*unmapped, *(key for key in node.obstacles if key is not None)}
    return SchedulerNode(
        name=node.name,
        labels=node.labels
        | {
            GUARD_LABEL: "alive" if node.guarded else "none",
            NETWORK_LABEL: "none" if unpluggable else "there",
        }
        | {f"{_MAPPED}{tenant}/{name}": "none" for tenant, name in closed},
        capacity=node.facts.capacity,
        # Until a driver has said what it has nothing is launched on it, nor is it known what room
        # there is: the agent may have forgotten.
        drivers=frozenset(
            driver.name for driver in node.facts.drivers if driver.available and driver.listed
        ),
        schedulable=not reason,
        unschedulable_reason=reason,
    )


def check_facts(facts: NodeFacts) -> None:
    """Refuse facts that the scheduler cannot count with.

    Raises:
        ProtocolError: an amount is negative or beyond any machine.
    """
    try:
        SchedulerNode(name="", capacity=facts.capacity)
    except InvalidSpec as error:
        raise ProtocolError(error.what, error.where) from error


def unschedulable_reason(node: Node) -> str:
    """Why nothing new is placed on ``node``; empty when it may be."""
    match node.state:
        case NodeState.READY:
            return ""
        case NodeState.SICK:
            return f"sick: {'; '.join(node.reasons)}"
        case NodeState.JOINING:
            return "not heard of since the controller started"
        case other:
            return str(other.value)


class Fleet:
    """The scheduler's snapshot, kept in step with the state.

    ``plugging`` says that there is an OVN, so that what is on tenant networks goes only where it
    can be plugged in; ``remapped`` is called when a node maps other physical networks than before.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.plugging = False
        self.remapped: Callable[[], None] = lambda: None
        self._known: set[str] = set()
        self._providers: Mapping[NetworkKey, str] = {}
        self._mapping: dict[str, tuple[str, str]] = {}

    def set_providers(self, providers: Mapping[NetworkKey, str]) -> bool:
        """The physical network of each network that needs one; whether any is new or different.

        The nodes' rows are to be made anew then, by :meth:`node_changed`.
        """
        changed = dict(providers) != self._providers
        self._providers = dict(providers)
        return changed

    def node_changed(self, node: Node) -> None:
        """Its facts, labels or state are different (or it is new)."""
        row = row_for(node, plugging=self.plugging, providers=self._providers)
        self._remap(
            node.name, (node.facts.facts.get(CHASSIS, ""), node.facts.facts.get(PHYSICAL, ""))
        )
        if node.name in self._known:
            self.snapshot.update_node(row)
        else:
            self.snapshot.add_node(row)
            self._known.add(node.name)

    def node_removed(self, name: str) -> None:
        """It was taken out of the registry."""
        if name in self._known:
            self._known.remove(name)
            self._remap(name, _UNMAPPED)
            self.snapshot.remove_node(name)

    def _remap(self, name: str, mapping: tuple[str, str]) -> None:
        if self._mapping.get(name, _UNMAPPED) == mapping:
            return
        if mapping == _UNMAPPED:
            del self._mapping[name]
        else:
            self._mapping[name] = mapping
        self.remapped()

    def allocate(self, state: ClusterState, instance: Instance) -> None:
        """Count an adopted instance (placed ones are counted by committing the plan)."""
        encoded = state.templates.get(instance.template)
        if encoded is not None and not instance.counted:
            service = scheduler_key(instance.key)
            self.snapshot.allocate(instance.node, service, amounts_of(encoded))
            instance.counted = True

    def free(self, state: ClusterState, instance: Instance) -> None:
        """Its node has it no more."""
        if instance.counted and instance.node in self._known:
            amounts = amounts_of(state.templates[instance.template])
            self.snapshot.free(instance.node, scheduler_key(instance.key), amounts)
            instance.counted = False
