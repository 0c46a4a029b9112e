"""A container's interfaces on Docker's own networks, and the bridges behind them."""

from typing import Any, Final

from swarmctl.agent.drivers.api import NodeLink
from swarmctl.agent.drivers.docker.calls import Calls, Client, Missing
from swarmctl.proto.errors import NotFound

# Two or three short requests, asked for by a person who waits.
LOOK_S: Final = 3.0
# Docker's word for no network at all.
_NONE: Final = "none"
_BRIDGE_NAME: Final = "com.docker.network.bridge.name"
_MASQUERADE: Final = "com.docker.network.bridge.enable_ip_masquerade"
# A bridge that was not given a name has that of its network's id.
_ID_CHARS: Final = 12


async def read_links(calls: Calls, container_id: str, where: str) -> tuple[NodeLink, ...]:
    """The interfaces of one container.

    Raises:
        NotFound: it is gone.
        DriverUnavailable: dockerd does not answer.
    """

    def look(client: Client) -> tuple[NodeLink, ...]:
        settings = client.inspect_container(container_id).get("NetworkSettings") or {}
        networks = settings.get("Networks") or {}
        return tuple(
            link_of(name, ends or {}, client.inspect_network(name))
            for name, ends in networks.items()
            if name != _NONE
        )

    try:
        return await calls.run(look, where=where, doing="inspect it", deadline_s=LOOK_S)
    except Missing as error:
        raise NotFound(error.text, where) from None


def link_of(name: str, ends: dict[str, Any], network: dict[str, Any]) -> NodeLink:
    """What an inspected container and network say of one of its interfaces."""
    options = network.get("Options") or {}
    is_bridge = network.get("Driver") == "bridge"
    bridge = options.get(_BRIDGE_NAME) or f"br-{network.get('Id', '')[:_ID_CHARS]}"
    internal = bool(network.get("Internal"))
    return NodeLink(
        name,
        mac=ends.get("MacAddress") or "",
        addresses=tuple(ends[key] for key in ("IPAddress", "GlobalIPv6Address") if ends.get(key)),
        gateway=ends.get("Gateway") or "",
        bridge=bridge if is_bridge else "",
        nat=is_bridge and not internal and options.get(_MASQUERADE, "true") == "true",
    )
