"""The instances between which is measured, on a swarm of two hosts.

Containers are ordinary services of the swarm, held to their host by a constraint. They may change
their own interfaces (``NET_ADMIN``), as a hostile tenant would: that is what spoofing needs.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from bench.net.traffic import TOOLS, Endpoint
from lab.config import IMAGE_TAG
from lab.faults import LabFault
from lab.hosts import Host
from lab.swarm import Swarm

IMAGE: Final = f"docker-daemon:{IMAGE_TAG}"
NETWORKS: Final = {"front": "10.20.0.0/24", "back": "10.20.1.0/24", "vms": "10.20.2.0/24"}
_VOLUME: Final = "tools"
RUNNING_S: Final = 300.0  # pods in VMs under emulation: 15 s on an idle machine


@frozen
class Member:
    """One container or pod.

    Attributes:
        service: its service's name.
        node: where it is.
        network: the tenant network that it is on; empty for the node's own interfaces.
        capabilities: that it has beside the usual ones.
        volumes: that it has beside that of the tools, which those on one node share.
    """

    service: str
    node: str
    network: str
    capabilities: tuple[str, ...] = ("NET_ADMIN",)
    volumes: tuple[str, ...] = ()


@frozen
class World:
    """Members that run, as endpoints.

    Attributes:
        swarm: what they run on.
        ends: by the instance's name, ``web.1``; one on several networks is on the last here.
        macs: likewise.
        vlans: likewise, of pods on their VM's trunk.
    """

    swarm: Swarm = field(repr=False)
    ends: dict[str, Endpoint]
    macs: dict[str, str]
    vlans: dict[str, int]


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
    apply(swarm, folder, {one.service: _service(one, image) for one in members})


def apply(swarm: Swarm, folder: Path, services: Mapping[str, Any]) -> None:
    """Run services on the tenant networks that there are, and wait until all do.

    Raises:
        LabFault: not all run in time; with why.
    """
    file = folder / f"{next(iter(services))}.json"
    networks = {name: {"external": True} for name in NETWORKS}
    stack = {"services": services, "networks": networks, "volumes": {_VOLUME: {}}}
    file.write_text(json.dumps(stack, indent=1))
    swarm.run("apply", "-f", str(file), "--detach")
    # Not by `--wait`, which ends when something cannot be placed: on a machine with too much to do
    # nodes are sick for moments.
    swarm.until(
        lambda: all(one["state"] == "running" for one in swarm.instances(*services).values()),
        RUNNING_S,
        f"{', '.join(services)} running",
    )


def _service(one: Member, image: str) -> dict[str, Any]:
    where = {"networks": [one.network]} if one.network else {"network_mode": "host"}
    return {
        "image": image,
        "driver": "oci",
        "command": ["sleep", "86400"],
        "stop_grace_period": "1s",
        "cap_add": list(one.capabilities),
        "volumes": [f"{_VOLUME}:{TOOLS}", *one.volumes],
        "deploy": {"placement": {"constraints": [f"node.name == {one.node}"]}},
        **where,
    }


def look(swarm: Swarm, networks: Iterable[str] = NETWORKS) -> World:
    """What runs on the networks, and where its packets come out.

    Raises:
        LabFault: a port is in none of the switches.
    """
    places = {host.name: host for host in swarm.hosts.hosts}
    world = World(swarm, {}, {}, {})
    ports = attached(swarm, networks)
    first = {port["instance"]: port["port"] for port in reversed(ports)}
    for port in ports:
        host, instance = places[port["host"]], port["instance"]
        # A pod's packets come out where those of its VM do.
        plugged = first[port["vm"]] if port["vm"] else port["port"]
        world.ends[instance] = Endpoint(
            swarm,
            instance=instance,
            address=port["addresses"][0],
            place=host.place,
            interface=device_of(host, plugged),
        )
        world.macs[instance] = port["mac"]
        world.vlans[instance] = port["vlan"]
    return world


def attached(swarm: Swarm, networks: Iterable[str] = NETWORKS) -> list[dict[str, Any]]:
    """The ports of all instances on these networks, as ``network inspect`` shows them."""
    shown = [json.loads(swarm.run("network", "inspect", name)) for name in networks]
    return [port for one in shown for port in one["attached"]]


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
