"""Floating addresses: ``floating:`` of a service, and ``run --floating``.

A floating address is one of the uplink that leads to a service, for as long as the service asks for
it, whichever instances there are.  A service that publishes ports is reached at those, shared by
its copies; one that publishes none is one instance, which has the whole address, both ways.
"""

from typing import Final

from swarmctl.net.model import Protocol, PublishedPort
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.attachments import parse_address
from swarmctl.spec.models import ServiceSpec

AUTO: Final = "auto"


def parse_floating(text: str) -> str:
    """``auto``, or an address in its usual form.

    Raises:
        InvalidSpec: it is neither.
    """
    if text == AUTO:
        return AUTO
    try:
        return parse_address(text)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, hint='write "auto", or an address of the uplink') from error


def check_floating(spec: ServiceSpec) -> None:
    """Refuse what no address can lead to.

    Raises:
        InvalidSpec: saying what.
    """
    if not spec.floating:
        return
    parse_floating(spec.floating)
    if not spec.template.networks:
        raise InvalidSpec(
            "a floating address leads to a tenant network, and the service is on none",
            hint="name one under networks",
        )
    if spec.replicas > 1 and not published(spec):
        raise InvalidSpec(
            f"a floating address for {spec.replicas} copies that publish no ports: one can have it",
            hint="publish the ports that it is to answer on, or have one replica",
        )


def published(spec: ServiceSpec) -> tuple[PublishedPort, ...]:
    """The ports that the service's addresses answer on; those of SCTP are not among them."""
    container = spec.template.container
    if container is None or not spec.template.networks:
        return ()
    found = {
        (one.host_port or one.container_port, one.protocol): PublishedPort(
            one.host_port or one.container_port, one.container_port, Protocol(one.protocol)
        )
        for one in container.ports
        if one.protocol in (Protocol.TCP, Protocol.UDP)
    }
    return tuple(found.values())
