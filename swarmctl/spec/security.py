"""``security_groups:`` of a stack file: what may reach the ports of a network, and be reached.

.. code-block:: yaml

    security_groups:
      web:
        ingress:
          - {protocol: tcp, ports: [80, 8000-8080], from: 0.0.0.0/0}
          - {from: {service: proxy}}
        egress:
          - {to: {label: tier=db}, protocol: tcp, ports: 5432}

The other end is a CIDR, ``any``, or the instances of a service, with a label, or in a group: those
that there are, and those that will be.
"""

import ipaddress
import re
from typing import Final

from swarmctl.net.model import Direction, Protocol, Remote, RemoteKind, Rule, SecurityGroup
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.names import check_service_name, check_tenant_name
from swarmctl.spec.reading import Field

# Rules of one group; each is an ACL that every host evaluates.
RULES_MAX: Final = 256

_PORTS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_OTHER_END: Final = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_KINDS: Final = ("cidr", "service", "label", "group")
_WITH_PORTS: Final = (Protocol.TCP, Protocol.UDP)


def read_groups(listed: Field | None, stack: str) -> dict[str, SecurityGroup]:
    """The groups of a file, by their names in it; outside they are ``STACK_NAME``.

    Raises:
        InvalidSpec: a part of it is not valid.
    """
    entries = listed.entries() if listed else {}
    return {name: _read_group(name, entry, stack, entries) for name, entry in entries.items()}


def check_group(group: SecurityGroup) -> None:
    """Refuse what no stack file can ask for: its texts become parts of OVN's expressions.

    Raises:
        InvalidSpec: a name, a port or the other end of a rule is none.
    """
    check_service_name(group.name)
    check_tenant_name(group.tenant)
    if len(group.rules) > RULES_MAX:
        raise InvalidSpec(f"{len(group.rules)} rules are too many", group.name)
    for rule in group.rules:
        first, last = rule.ports
        if rule.ports != (0, 0) and not 1 <= first <= last <= 65535:
            raise InvalidSpec(f"{first} to {last} are no ports", group.name)
        if rule.ports != (0, 0) and rule.protocol not in _WITH_PORTS:
            raise InvalidSpec(f"{rule.protocol} has no ports", group.name)
        match rule.remote.kind:
            case RemoteKind.CIDR:
                _parse_cidr(rule.remote.value)
            case RemoteKind.SERVICE | RemoteKind.GROUP:
                check_service_name(rule.remote.value)
            case RemoteKind.LABEL:
                _parse_label(rule.remote.value)
            case RemoteKind.ANY:
                continue


def _read_group(name: str, entry: Field, stack: str, known: dict[str, Field]) -> SecurityGroup:
    try:
        check_service_name(name)
    except InvalidSpec as error:
        raise entry.fail(error.what.replace("service", "security group"), error.hint) from error
    fields = entry.fields(tuple(Direction))
    rules: list[Rule] = []
    for direction in Direction:
        for item in fields[direction].elements() if direction in fields else []:
            rules += _read_rules(item, direction, stack, known)
    if len(rules) > RULES_MAX:
        raise entry.fail(f"{len(rules)} rules are too many", f"at most {RULES_MAX} a group")
    return SecurityGroup("default", f"{stack}_{name}", tuple(rules))


def _read_rules(
    item: Field, direction: Direction, stack: str, known: dict[str, Field]
) -> list[Rule]:
    other_end = _OTHER_END[direction]
    fields = item.fields(("protocol", "ports", other_end))
    ports = _read_ports(fields["ports"]) if "ports" in fields else [(0, 0)]
    protocol = Protocol.TCP if "ports" in fields else Protocol.ANY
    if "protocol" in fields:
        protocol = Protocol(fields["protocol"].choice([one.value for one in Protocol]))
    if "ports" in fields and protocol not in _WITH_PORTS:
        raise fields["ports"].fail(f"{protocol} has no ports", "give protocol: tcp or udp")
    remote = _read_remote(fields[other_end], stack, known) if other_end in fields else Remote()
    return [Rule(direction, protocol, span, remote) for span in ports]


def _read_ports(field: Field) -> list[tuple[int, int]]:
    items = [field] if field.is_scalar else field.elements()
    return [item.parse(_parse_ports) for item in items]


def _parse_ports(text: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise InvalidSpec(f'"{text}" is not a port', hint='such as 80 or "8000-8080"')
    return first, last


def _read_remote(field: Field, stack: str, known: dict[str, Field]) -> Remote:
    if field.is_scalar:
        return Remote() if field.text() == "any" else field.parse(_parse_cidr)
    given = field.fields(_KINDS)
    if len(given) != 1:
        raise field.mismatch("one of cidr, service, label, group", "such as {service: proxy}")
    ((kind, value),) = given.items()
    match kind:
        case "cidr":
            return value.parse(_parse_cidr)
        case "service":
            return Remote(RemoteKind.SERVICE, value.parse(check_service_name))
        case "label":
            return Remote(RemoteKind.LABEL, value.parse(_parse_label))
        case _:
            group = value.choice(list(known))
            return Remote(RemoteKind.GROUP, f"{stack}_{group}")


def _parse_cidr(text: str) -> Remote:
    try:
        return Remote(RemoteKind.CIDR, str(ipaddress.ip_network(text)))
    except ValueError as error:
        raise InvalidSpec(
            f'"{text}" is not a range of addresses: {error}',
            hint="such as 10.20.0.0/24, any, or {service: NAME}",
        ) from error


def _parse_label(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not key or not equals:
        raise InvalidSpec(f'"{text}" is not a label', hint="write KEY=VALUE")
    return text
