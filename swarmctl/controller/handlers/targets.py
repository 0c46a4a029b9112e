"""Names in a request: ``web`` is a service, ``web.3`` one of its instances."""

from collections.abc import Sequence

from attrs import frozen

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.instance import Instance, ServiceKey
from swarmctl.proto.errors import InvalidSpec, NotFound
from swarmctl.spec.names import did_you_mean
from swarmctl.transport.rpc import Call

DEFAULT_TENANT = "default"


@frozen
class Target:
    """A service, or with ``slot`` one instance of it."""

    key: ServiceKey
    slot: int | None = None

    @property
    def name(self) -> str:
        """As it was written."""
        return self.key[1] if self.slot is None else f"{self.key[1]}.{self.slot}"


def tenant_of(call: Call) -> str:
    """The tenant whose names a request means."""
    return call.text("tenant", DEFAULT_TENANT)


def parse(name: str, tenant: str) -> Target:
    """``web`` or ``web.3`` as a target, whether or not there is such a thing."""
    service, dot, slot = name.rpartition(".")
    if dot and slot.isdigit():
        return Target((tenant, service), int(slot))
    return Target((tenant, name))


def resolve(cluster: Cluster, names: Sequence[str], tenant: str) -> list[Target]:
    """The targets of ``names``, all of which exist.

    Raises:
        NotFound: one does not; near misses are suggested.
    """
    targets = [parse(name, tenant) for name in names]
    for target in targets:
        if target.key not in cluster.state.services and not cluster.quarantined(target.key):
            raise _unknown(cluster, target)
        service = cluster.state.services.get(target.key)
        if target.slot is None or service is None:
            continue
        if not 1 <= target.slot <= service.record.spec.replicas:
            raise NotFound(
                f"no instance {target.name!r}",
                hint=f"{target.key[1]} has {service.record.spec.replicas} replicas: "
                f"{target.key[1]}.1 to {target.key[1]}.{service.record.spec.replicas}",
            )
    return targets


def _unknown(cluster: Cluster, target: Target) -> NotFound:
    known = [name for tenant, name in cluster.state.services if tenant == target.key[0]]
    hint = did_you_mean(target.key[1], known, "'swarmctl ps' lists what there is")
    return NotFound(f"no service or instance {target.name!r}", hint=hint)


def holders(cluster: Cluster, targets: Sequence[Target]) -> list[Instance]:
    """The instances that ``targets`` mean and that a node has, in order.

    Raises:
        NotFound: a single instance was named that is on no node now.
    """
    found: list[Instance] = []
    for target in targets:
        service = cluster.state.services.get(target.key)
        if service is None:
            found.extend(cluster.quarantined(target.key, target.slot))
        elif target.slot is None:
            found.extend(cluster.state.instances_of(target.key))
        else:
            holder = service.holders.get(target.slot)
            if holder is None:
                raise NotFound(
                    f"{target.name} is on no node",
                    hint=f"'swarmctl explain {target.name}' says why",
                )
            found.append(holder)
    return found


def sole(cluster: Cluster, name: str, tenant: str) -> Target:
    """The one instance that ``name`` means: its own, or that of a service of one copy.

    Raises:
        NotFound: there is none of that name; near misses are suggested.
        InvalidSpec: it is a service of several.
    """
    [target] = resolve(cluster, [name], tenant)
    service = cluster.state.services.get(target.key)
    if target.slot is not None or service is None:
        return target
    if service.record.spec.replicas != 1:
        raise InvalidSpec(
            f"{target.name} has {service.record.spec.replicas} instances: name one",
            hint=f"such as {target.name}.1",
        )
    return Target(target.key, 1)
