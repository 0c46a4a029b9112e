"""Published ports: ``[[HOST_IP:]HOST:]CONTAINER[/PROTOCOL]``, with ranges on both sides."""

import ipaddress
import re
from typing import Final

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import PortMapping

# A range is written out one mapping a port; docker starts a proxy process for each of them.
PORTS_MAX: Final = 1_024
PROTOCOLS: Final = ("tcp", "udp", "sctp")

_RANGE: Final = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_HINT: Final = 'write "8080:80", "127.0.0.1:8080:80/tcp" or "3000-3005:3000-3005"'


def parse_port(text: str) -> tuple[PortMapping, ...]:
    """The mappings that one ``-p`` or one item of ``ports:`` asks for.

    Raises:
        InvalidSpec: it is not a port mapping.
    """
    address, _, protocol = text.partition("/")
    protocol = protocol.lower() if protocol else "tcp"
    if protocol not in PROTOCOLS:
        raise InvalidSpec(
            f'"{protocol}" in "{text}" is not a protocol', hint="use tcp, udp or sctp"
        )
    if address.startswith(":"):
        raise InvalidSpec(f'"{text}" is not a port mapping', hint=_HINT)
    before, _, container = address.rpartition(":")
    host_ip, _, host = before.rpartition(":")
    if before.endswith("]"):  # "[::1]:80" is an address with a port of the node's choice
        host_ip, host = before, ""
    return expand_ports(
        parse_port_range(container, text),
        parse_port_range(host, text) if host else None,
        protocol,
        parse_host_ip(host_ip) if host_ip else "",
    )


def parse_port_range(text: str, whole: str = "") -> range:
    """The ports of ``80`` or ``3000-3005``; ``whole`` is the text it is part of.

    Raises:
        InvalidSpec: it is not a port or a range.
    """
    whole = whole or text
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidSpec(f'"{whole}" is not a port mapping', hint=_HINT)
    first, last = int(match.group(1)), int(match.group(2) or match.group(1))
    for port in (first, last):
        if not 1 <= port <= 65535:
            raise InvalidSpec(f'{port} in "{whole}" is not a port', hint="ports are 1 to 65535")
    if last < first:
        raise InvalidSpec(f'the range {text} in "{whole}" runs backwards')
    if last - first >= PORTS_MAX:
        raise InvalidSpec(f'the range {text} in "{whole}" has over {PORTS_MAX} ports')
    return range(first, last + 1)


def parse_host_ip(text: str) -> str:
    """An address of a node to publish on, without brackets; empty means all of them.

    Raises:
        InvalidSpec: it is not an IP address.
    """
    plain = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError as error:
        raise InvalidSpec(f'"{text}" is not an IP address', hint=_HINT) from error


def expand_ports(
    container: range, host: range | None, protocol: str, host_ip: str
) -> tuple[PortMapping, ...]:
    """One mapping a port; ``host`` None lets the node choose.

    Raises:
        InvalidSpec: the ranges differ in length.
    """
    if host is not None and len(host) != len(container):
        raise InvalidSpec(
            f"{len(host)} host ports for {len(container)} container ports",
            hint="give ranges of the same length",
        )
    return tuple(
        PortMapping(port, host[index] if host is not None else 0, protocol, host_ip)
        for index, port in enumerate(container)
    )


def check_ports(ports: tuple[PortMapping, ...]) -> None:
    """Refuse host ports that are asked for twice by one instance, or too many ports.

    Raises:
        InvalidSpec: naming the port.
    """
    if len(ports) > PORTS_MAX:
        raise InvalidSpec(f"{len(ports)} ports are too many", hint=f"publish at most {PORTS_MAX}")
    taken: dict[tuple[int, str], list[str]] = {}
    for port in ports:
        if not port.host_port:
            continue
        addresses = taken.setdefault((port.host_port, port.protocol), [])
        if addresses and (not port.host_ip or "" in addresses or port.host_ip in addresses):
            raise InvalidSpec(
                f"host port {port.host_port}/{port.protocol} is published twice", hint="remove one"
            )
        addresses.append(port.host_ip)


def format_port(port: PortMapping) -> str:
    """The short syntax of a mapping."""
    ip = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    host = f"{port.host_port}:" if port.host_port else (":" if ip else "")
    return f"{ip}{':' if ip else ''}{host}{port.container_port}/{port.protocol}"
