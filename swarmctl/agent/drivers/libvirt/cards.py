"""A VM's network cards on libvirt's own networks, and the bridges behind them."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any

from swarmctl.agent.drivers.api import NodeLink
from swarmctl.agent.drivers.libvirt import domains
from swarmctl.proto.errors import NotFound


def read_links(conn: Any, uuid: str, where: str) -> tuple[NodeLink, ...]:
    """The cards of one domain. Blocks, and passes all errors of libvirt on.

    Raises:
        NotFound: it is gone.
    """
    domain = domains.find(conn, uuid)
    if domain is None:
        raise NotFound("it is not there", where)

    def network(name: str) -> str:
        return str(conn.networkLookupByName(name).XMLDesc())

    return tuple(links_of(domain.XMLDesc(), network))


def links_of(domain_xml: str, network: Callable[[str], str]) -> Iterator[NodeLink]:
    """What a running domain's XML says of its cards; ``network`` gives that of a network."""
    for card in ET.fromstring(domain_xml).iterfind("./devices/interface[@type='network']"):  # noqa: S314 - libvirt's own
        name = _attribute(card, "source", "network")
        its = ET.fromstring(network(name))  # noqa: S314 - libvirt's own
        yield NodeLink(
            name,
            mac=_attribute(card, "mac", "address"),
            gateway=_attribute(its, "ip", "address"),
            bridge=_attribute(card, "source", "bridge") or _attribute(its, "bridge", "name"),
            device=_attribute(card, "target", "dev"),
            nat=_attribute(its, "forward", "mode") == "nat",
        )


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return found.get(name, "") if found is not None else ""
