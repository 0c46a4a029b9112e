"""The instances between which is measured, on a swarm of two hosts.

Containers are ordinary services of the swarm, held to their host by a constraint. They may change
their own interfaces (``NET_ADMIN``), as a hostile tenant would: that is what spoofing needs.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from bench.net.traffic import Endpoint
from lab.config import IMAGE_TAG
from lab.faults import LabFault
from lab.hosts import Host
from lab.swarm import Swarm

IMAGE: Final = f"docker-daemon:{IMAGE_TAG}"
NETWORKS: Final = {"front": "10.20.0.0/24", "back": "10.20.1.0/24"}
WAIT: Final = "180s"


@frozen
class Member:
    """One container or pod: its service, its node, its network; empty for the node's own."""

    service: str
    node: str
    network: str


@frozen
class World:
    """Members that run, as endpoints.

    Attributes:
        swarm: what they run on.
        ends: by the instance's name, ``web.1``; one on several networks is on the last here.
        macs: likewise.
    """

    swarm: Swarm = field(repr=False)
    ends: dict[str, Endpoint]
    macs: dict[str, str]


def make_networks(swarm: Swarm) -> None:
    """Make the tenant networks.

    Raises:
        LabFault: one is refused.
    """
    for name, subnet in NETWORKS.items():
        swarm.run("network", "create", name, "--subnet", subnet)


def launch(swarm: Swarm, folder: Path, members: tuple[Member, ...], image: str = IMAGE) -> None:
    """Run these, and wait until all do.

    Raises:
        LabFault: not all run in time; with why.
    """
    file = folder / f"{members[0].service}.json"
    used = {one.network for one in members if one.network}
    stack = {
        "services": {one.service: _service(one, image) for one in members},
        "networks": {name: {"external": True} for name in used},
    }
    file.write_text(json.dumps(stack, indent=1))
    swarm.run("apply", "-f", str(file), "--wait", "--timeout", WAIT)


def _service(one: Member, image: str) -> dict[str, Any]:
    where = {"networks": [one.network]} if one.network else {"network_mode": "host"}
    return {
        "image": image,
        "driver": "oci",
        "command": ["sleep", "86400"],
        "stop_grace_period": "1s",
        "cap_add": ["NET_ADMIN"],
        "deploy": {"placement": {"constraints": [f"node.name == {one.node}"]}},
        **where,
    }


def look(swarm: Swarm, networks: Iterable[str] = NETWORKS) -> World:
    """What runs on the networks, and where its packets come out.

    Raises:
        LabFault: a port is in none of the switches.
    """
    places = {host.name: host for host in swarm.hosts.hosts}
    ends: dict[str, Endpoint] = {}
    macs: dict[str, str] = {}
    for network in networks:
        shown = json.loads(swarm.run("network", "inspect", network))
        by_instance = {port["instance"]: port["port"] for port in shown["attached"]}
        for port in shown["attached"]:
            host, instance = places[port["host"]], port["instance"]
            plugged = by_instance.get(port["vm"], port["port"])
            ends[instance] = Endpoint(
                swarm,
                instance=instance,
                address=port["addresses"][0],
                place=host.place,
                interface=device_of(host, plugged),
            )
            macs[instance] = port["mac"]
    return World(swarm, ends, macs)


def device_of(host: Host, port: str) -> str:
    """The device of a port in the switch of a host.

    Raises:
        LabFault: it is not plugged in there.
    """
    wanted = f"external_ids:iface-id={port}"
    found = host.switch.vsctl("--bare", "--columns=name", "find", "Interface", wanted).split()
    if len(found) != 1:
        raise LabFault(f"port {port} is {len(found)} times in the switch of {host.name}")
    return found[0]
