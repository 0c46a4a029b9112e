"""What may reach what: security groups as port groups with rules (ACLs), stateful in OVN.

A port group each for: a security group (its ports, with what the group lets through); the ports of
a tenant that are closed in one direction (with the rule that drops); and whatever a rule names as
its other end (the ports of a service, with a label). OVN keeps the addresses of a port group's
ports as ``$NAME_ip4`` and ``$NAME_ip6``, so rules follow instances as these come and go.

A port without a group is open to its network. The rules are carried out on the host, out of reach
of what runs in an instance, and hold as far as source addresses are true: port security sees to it.
"""

import hashlib
import ipaddress
from collections import defaultdict
from typing import Final

from swarmctl.net.draft import Draft, port_key
from swarmctl.net.model import Direction, Protocol, Remote, RemoteKind, Rule, SecurityGroup
from swarmctl.net.names import match_name

# OVN takes the highest that matches. Replies are let through by connection tracking, above these.
PRIORITY_ALLOW: Final = 1002
PRIORITY_DROP: Final = 1001

# In which pipeline a direction is checked, and what a rule calls the port and the other end there.
_ACL_DIRECTION: Final = {Direction.INGRESS: "to-lport", Direction.EGRESS: "from-lport"}
_PORT: Final = {Direction.INGRESS: "outport", Direction.EGRESS: "inport"}
_OTHER_END: Final = {Direction.INGRESS: "src", Direction.EGRESS: "dst"}

# What a port that is closed for going out still needs: its addresses, and names.
_ALWAYS_OUT: Final = "((udp && udp.dst == {53, 67, 547}) || (tcp && tcp.dst == 53))"


def draw(draft: Draft) -> None:
    """Add the port groups and their rules."""
    for title, ports in _members(draft).items():
        kind, tenant, *names = title
        draft.add(
            "Port_Group",
            _key(title),
            notes={"of": "/".join((kind, tenant, *names))},
            name=match_name(draft.cluster_id, kind, tenant, *names),
            ports=frozenset(ports),
        )
        if kind == "closed":
            _close(draft, tenant, Direction(names[0]))
    for group in draft.wishes.groups:
        for rule in group.rules:
            _rule(draft, group, rule)


_Title = tuple[str, ...]


def _members(draft: Draft) -> dict[_Title, list[str]]:
    """The ports of every port group that is needed, by what it stands for."""
    groups = {(group.tenant, group.name): group for group in draft.wishes.groups}
    found: dict[_Title, list[str]] = {("group", *title): [] for title in groups}
    wanted = defaultdict(set)
    for group in groups.values():
        for rule in group.rules:
            if rule.remote.kind is not RemoteKind.ANY and rule.remote.kind is not RemoteKind.CIDR:
                found.setdefault(_remote_title(group.tenant, rule.remote), [])
                wanted[group.tenant].add(rule.remote)
    for (tenant, network), ports in draft.ports.items():
        if (tenant, network) not in draft.networks:
            continue
        for port in ports:
            key = port_key(port.name)
            own = [
                groups[tenant, name] for name in port.security_groups if (tenant, name) in groups
            ]
            for group in own:
                found["group", tenant, group.name].append(key)
            for direction in closed(own, named=bool(port.security_groups)):
                found.setdefault(("closed", tenant, direction.value), []).append(key)
            standing = {Remote(RemoteKind.SERVICE, port.service)} | {
                Remote(RemoteKind.LABEL, f"{name}={value}") for name, value in port.labels
            }
            for remote in standing & wanted[tenant]:
                found[_remote_title(tenant, remote)].append(key)
    return found


def closed(groups: list[SecurityGroup], *, named: bool) -> list[Direction]:
    """In which directions a port is closed; one that names a group which is gone stays closed."""
    if not named:
        return []
    has_egress = any(rule.direction is Direction.EGRESS for group in groups for rule in group.rules)
    return [Direction.INGRESS, Direction.EGRESS] if has_egress else [Direction.INGRESS]


def _close(draft: Draft, tenant: str, direction: Direction) -> None:
    title = ("closed", tenant, direction.value)
    ports = f"{_PORT[direction]} == @{match_name(draft.cluster_id, *title)}"
    rules = [("drop", PRIORITY_DROP, f"{ports} && ip", direction)]
    if direction is Direction.EGRESS:
        rules.append(("allow-related", PRIORITY_ALLOW, f"{ports} && {_ALWAYS_OUT}", direction))
    for action, priority, match, way in rules:
        draft.add(
            "ACL",
            f"acl/closed/{tenant}/{way.value}/{action}",
            parent=_key(title),
            direction=_ACL_DIRECTION[way],
            priority=priority,
            match=match,
            action=action,
        )


def _rule(draft: Draft, group: SecurityGroup, rule: Rule) -> None:
    match = match_of(draft.cluster_id, group, rule)
    # By content, not by place: a rule that is put in between changes no other.
    digest = hashlib.blake2b(f"{rule.direction}/{match}".encode(), digest_size=8).hexdigest()
    key = f"acl/{group.title}/{digest}"
    if key not in draft.rows:
        draft.add(
            "ACL",
            key,
            parent=_key(("group", group.tenant, group.name)),
            direction=_ACL_DIRECTION[rule.direction],
            priority=PRIORITY_ALLOW,
            match=match,
            action="allow-related",
        )


def match_of(cluster_id: str, group: SecurityGroup, rule: Rule) -> str:
    """A rule as OVN's expression."""
    members = match_name(cluster_id, "group", group.tenant, group.name)
    parts = [f"{_PORT[rule.direction]} == @{members}", "ip"]
    end, remote = _OTHER_END[rule.direction], rule.remote
    if remote.kind is RemoteKind.CIDR:
        version = ipaddress.ip_network(remote.value, strict=False).version
        parts.append(f"ip{version}.{end} == {remote.value}")
    elif remote.kind is not RemoteKind.ANY:
        name = match_name(cluster_id, *_remote_title(group.tenant, remote))
        parts.append(f"(ip4.{end} == ${name}_ip4 || ip6.{end} == ${name}_ip6)")
    first, last = rule.ports
    if rule.protocol is Protocol.ICMP:
        parts.append("(icmp4 || icmp6)")
    elif rule.protocol is not Protocol.ANY:
        parts.append(rule.protocol.value)
        if first:
            field = f"{rule.protocol.value}.dst"
            ranged = f"{field} >= {first} && {field} <= {last}"
            parts.append(f"{field} == {first}" if first == last else ranged)
    return " && ".join(parts)


def _remote_title(tenant: str, remote: Remote) -> _Title:
    if remote.kind is RemoteKind.GROUP:
        return ("group", tenant, remote.value)
    return (remote.kind.value, tenant, remote.value)


def _key(title: _Title) -> str:
    return "group/" + "/".join(title)
