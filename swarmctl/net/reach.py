"""What one port may send to another: the same security groups as ``net/security``, answered. Pure.

A packet is judged twice, when it leaves the one port and before it comes to the other; an answer to
it passes by itself.  A port that is not closed in a direction lets all of it through.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from attrs import frozen

from swarmctl.net.model import (
    Direction,
    PortWish,
    Protocol,
    Remote,
    RemoteKind,
    Rule,
    SecurityGroup,
)
from swarmctl.net.security import closed

Groups = Mapping[tuple[str, str], SecurityGroup]


@frozen
class Passage:
    """A protocol and its range of ports; ``first`` is 0 for all of them."""

    protocol: Protocol = Protocol.ANY
    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        """As people read it: ``tcp 80``, ``udp 8000-8080``, ``any``."""
        if not self.first:
            return self.protocol.value
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.protocol.value} {ports}"

    def meet(self, other: "Passage") -> "Passage | None":
        """What is in both; None when nothing is."""
        if Protocol.ANY in (self.protocol, other.protocol):
            return other if self.protocol is Protocol.ANY else self
        if self.protocol is not other.protocol:
            return None
        if not (self.first and other.first):
            return self if self.first else other
        first, last = max(self.first, other.first), min(self.last, other.last)
        return Passage(self.protocol, first, last) if first <= last else None


# Which also a port needs that is closed for what goes out; see net/security.
ALWAYS_OUT: Final = (
    *(Passage(Protocol.UDP, port, port) for port in (53, 67, 547)),
    Passage(Protocol.TCP, 53, 53),
)


@frozen
class Judgement:
    """What passes; ``stopped_by`` names the groups of the side that lets nothing through."""

    passages: tuple[Passage, ...]
    stopped_by: str = ""


def judge(
    source: PortWish, target: PortWish, addresses: tuple[str, str], groups: Groups
) -> Judgement:
    """What ``source`` may send to ``target``.

    Args:
        source: the port that sends.
        target: the port that it sends to.
        addresses: theirs, of one version, in the same order.
        groups: all that there are, by tenant and name.
    """
    out = _let_through(source, target, addresses[1], Direction.EGRESS, groups)
    into = _let_through(target, source, addresses[0], Direction.INGRESS, groups)
    both = {meeting for one in out for other in into if (meeting := one.meet(other)) is not None}
    if both:
        order = sorted(both, key=lambda one: (one.protocol, one.first, one.last))
        whole = [one for one in order if one.protocol is Protocol.ANY]
        return Judgement(tuple(whole or order))
    side, way = (target, "ingress") if not into else (source, "egress")
    if into and out != ALWAYS_OUT:
        return Judgement(
            (), f"nothing that {_named(source)} lets out is let in by {_named(target)}"
        )
    return Judgement((), f"no rule of {_named(side)} ({way} of {side.instance}) lets it through")


def judge_out(source: PortWish, address: str, groups: Groups) -> Judgement:
    """What ``source`` may send to an address that is no port's; groups as for :func:`judge`."""
    out = sorted(
        set(_let_through(source, None, address, Direction.EGRESS, groups)),
        key=lambda one: (one.protocol, one.first, one.last),
    )
    return Judgement(tuple([one for one in out if one == Passage()] or out))


def _named(port: PortWish) -> str:
    return f"security group {', '.join(port.security_groups)}"


def _let_through(
    port: PortWish, other: PortWish | None, address: str, direction: Direction, groups: Groups
) -> tuple[Passage, ...]:
    """What ``port`` lets through in ``direction``, of or to ``other`` at ``address``."""
    own = [
        groups[port.tenant, name] for name in port.security_groups if (port.tenant, name) in groups
    ]
    if direction not in closed(own, named=bool(port.security_groups)):
        return (Passage(),)
    always = ALWAYS_OUT if direction is Direction.EGRESS else ()
    return (*always, *_passages(_matching(own, other, address, direction)))


def _matching(
    own: Iterable[SecurityGroup], other: PortWish | None, address: str, direction: Direction
) -> Iterator[Rule]:
    for group in own:
        for rule in group.rules:
            known = other if other is not None and other.tenant == group.tenant else None
            if rule.direction is direction and _is_at(rule.remote, known, address):
                yield rule


def _is_at(remote: Remote, other: PortWish | None, address: str) -> bool:
    """Whether a rule's other end is this one: a port of the tenant's, or only an address."""
    match remote.kind:
        case RemoteKind.ANY:
            return True
        case RemoteKind.CIDR:
            network = ipaddress.ip_network(remote.value, strict=False)
            return ipaddress.ip_address(address) in network
        case RemoteKind.SERVICE:
            return other is not None and other.service == remote.value
        case RemoteKind.LABEL:
            labels = other.labels if other is not None else ()
            return remote.value in {f"{name}={value}" for name, value in labels}
        case RemoteKind.GROUP:
            return other is not None and remote.value in other.security_groups


def _passages(rules: Iterable[Rule]) -> Iterator[Passage]:
    for rule in rules:
        first, last = rule.ports
        ported = rule.protocol in (Protocol.TCP, Protocol.UDP)
        yield Passage(rule.protocol, first, last) if ported else Passage(rule.protocol)
