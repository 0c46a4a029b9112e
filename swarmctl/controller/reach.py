"""The whole way of a packet from one instance to another, or why there is none. Pure.

Two ports on one network reach each other through its logical switch.  Ports on two networks do
where both are ``routed``: over the tenant's router, which is on the sender's host, if the default
routes of both instances lead there.  On the way between two hosts there is one header, whatever the
way; on one host there is none.  Security groups are judged at both ends
(:mod:`swarmctl.net.reach`).  What is not on tenant networks is reached by published ports only, and
has no way here; the way to an address that is none of ours is :mod:`swarmctl.controller.outside`.
"""

from collections.abc import Sequence

from attrs import frozen

from swarmctl.controller.instance import Instance
from swarmctl.controller.networks import NetworkRecord
from swarmctl.controller.paths import Place, Seen, View, hop, tenant_paths
from swarmctl.controller.state import ClusterState
from swarmctl.net.reach import judge
from swarmctl.proto.messages import Attachment


@frozen
class End:
    """One of the two: where its ports are, and what is seen of them."""

    instance: Instance
    place: Place
    seen: Seen


@frozen
class Way:
    """By which of their ports two instances reach each other, with which addresses.

    ``indexes`` are those of the ports; ``router`` says that it is over the tenant's router.
    """

    indexes: tuple[int, int]
    addresses: tuple[str, str]
    router: bool = False


def no_way(target: Instance | None = None, address: str = "") -> View:
    """What is said of a way as long as nothing is known of it; without a target it is outside."""
    return {
        "instance": target.name if target is not None else "",
        "state": target.state.label if target is not None else "",
        "address": address,
        "reached": False,
        "why": "",
        "router": False,
        "uplink": "",
        "seen_as": "",
        "same_host": False,
        "passes": [],
        "hops": [],
    }


def reach(state: ClusterState, source: End, target: End, address: str = "") -> View:
    """The way from ``source`` to ``target``, at ``address`` where one was named."""
    same_host = bool(source.place.host) and source.place.host == target.place.host
    found = no_way(target.instance, address) | {"same_host": same_host}
    way = _way(state, source.instance, target.instance, address)
    if isinstance(way, str):
        return found | {"why": way}
    ends = [
        tenant_paths(state, one.instance, one.place, one.seen)[index]
        for one, index in zip((source, target), way.indexes, strict=True)
    ]
    wishes = [state.ports.wishes.get(end["port"]) for end in ends]
    groups = {key: record.group for key, record in state.ports.table.groups.items()}
    if wishes[0] is None or wishes[1] is None:
        return found | {"why": "its port is not among those that OVN is told of"}
    verdict = judge(wishes[0], wishes[1], way.addresses, groups)
    return found | {
        "address": way.addresses[1],
        "reached": bool(verdict.passages),
        "why": verdict.stopped_by,
        "router": way.router,
        "passes": [str(one) for one in verdict.passages],
        "hops": _hops(ends, way, same_host=same_host),
    }


def _hops(ends: Sequence[View], way: Way, *, same_host: bool) -> list[View]:
    """What is on the way: the one's own hops, what is between the hosts, and the other's, back."""
    one, other = ends
    between: list[View] = []
    if way.router:
        networks = f"from {one['network']} to {other['network']}"
        between.append(hop("router", one["host"], f"the tenant's own, {networks}"))
    if one["provider"]:
        between.append(hop("provider", one["host"], f"{one['provider']}: nothing around it"))
    elif same_host:
        between.append(hop("switch", one["host"], "both are on this host: nothing around it"))
    else:
        known = all(end["underlay_address"] for end in ends)
        addresses = f"{one['underlay_address']} to {other['underlay_address']}, " if known else ""
        around = f"{addresses}one header of {one['encapsulation_bytes']} bytes around it"
        left = min(end["mtu"] for end in ends)
        between.append(
            hop("geneve", f"{one['host']} to {other['host']}", f"{around}; packets up to {left}")
        )
    return [*one["hops"][:-1], *between, *reversed(other["hops"][:-1])]


# --- by which ports ---------------------------------------------------------------------------


def _way(state: ClusterState, source: Instance, target: Instance, address: str) -> Way | str:
    """By which ports it goes; or why there is no way, in words."""
    ours, theirs = (state.ports.attachments.get(one.incarnation, ()) for one in (source, target))
    for instance, given in ((source, ours), (target, theirs)):
        if not given:
            return f"no path: {instance.name} is on no tenant network"
    wanted = [
        (index, one) for index, one in enumerate(theirs) if not address or address in plain(one)
    ]
    for index, one in wanted:
        for own_index, own in enumerate(ours):
            pair = _pair(own, one, address) if own.network == one.network else None
            if pair is not None:
                return Way((own_index, index), pair)
    return _routed(state, ours, wanted, address)


def _routed(
    state: ClusterState,
    ours: Sequence[Attachment],
    wanted: Sequence[tuple[int, Attachment]],
    address: str,
) -> Way | str:
    names = " and ".join(_names(ours)), " and ".join(_names([one for _, one in wanted]))
    other = f"no path: other network ({names[0]} here, {names[1]} there)"
    default = next((pair for pair in enumerate(ours) if pair[1].routes), None)
    if default is None:
        return f"{other}, and no default route here"
    own = record_of(state, default[1])
    if own is not None and own.definition.provider is not None:
        return f"{other}; {own.key[1]} is a provider's, and what lies beyond it is not known here"
    for index, one in wanted:
        records = [record_of(state, each) for each in (default[1], one)]
        if not all(record is not None and _is_routed(record) for record in records):
            continue
        if not one.routes:
            return f"{other}; an answer would not come back: no default route there"
        pair = _pair(default[1], one, address)
        if pair is not None:
            return Way((default[0], index), pair, router=True)
    return f"{other}; both would have to be routed"


def record_of(state: ClusterState, one: Attachment) -> NetworkRecord | None:
    """The network that a port is on; None when it is gone."""
    tenant, _, name = one.network.partition("/")
    return state.ports.table.records.get((tenant, name))


def _is_routed(record: NetworkRecord) -> bool:
    return record.definition.routed and record.definition.provider is None


def _names(attachments: Sequence[Attachment]) -> list[str]:
    return [one.network.partition("/")[2] for one in attachments]


def plain(one: Attachment) -> list[str]:
    """Its addresses without their prefix."""
    return [address.partition("/")[0] for address in one.addresses]


def _pair(own: Attachment, one: Attachment, address: str) -> tuple[str, str] | None:
    """An address of each, of one version; None when there are none."""
    for to in plain(one):
        for source in plain(own):
            if (":" in to) is (":" in source) and address in ("", to):
                return source, to
    return None
