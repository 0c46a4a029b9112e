"""Pods in VMs on two hosts, with everything real: OVN, libvirt, guests, agents in them, runc.

The hosts are namespaces of the lab; each runs one VM that hosts pods, whose agent joins by what its
seed says.  Nothing is started by hand in a guest.  Guests are emulated where there is no KVM: the
waits are for a machine that others share.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from lab import podhost
from lab.config import paths_from
from lab.swarm import Swarm

# A guest boots and its agent joins within 30 s on an idle machine without KVM.
JOIN_S = 420
LAUNCH_S = 240
PING_S = "5"
NETWORKS = {"vms": "10.30.0.0/24", "front": "10.20.0.0/24", "back": "10.21.0.0/24"}
STRANGER = "10.20.0.250"
IN_VMS = "node.labels.vm == pods"

pytestmark = pytest.mark.alone


def pod(*networks: str, replicas: int = 2, at_most: int = 1) -> dict[str, Any]:
    """A service of pods, at most so many in each VM."""
    placement = {"constraints": [IN_VMS], "max_replicas_per_node": at_most}
    return {
        "image": podhost.IMAGE,
        "driver": "oci",
        "command": ["sleep", "3600"],
        "stop_grace_period": "0s",
        "networks": list(networks),
        "deploy": {"replicas": replicas, "placement": placement},
    }


def stack(vm: dict[str, object]) -> dict[str, Any]:
    """Two VMs, and pods in them: on either network, and on both."""
    resources = {"reservations": {"cpus": 2, "memory": f"{podhost.MEMORY_MIB}MiB"}}
    vms = {
        "vm": vm,
        "networks": ["vms"],
        "stop_grace_period": "1s",
        "deploy": {
            "replicas": 2,
            "placement": {"max_replicas_per_node": 1},
            "resources": resources,
        },
    }
    return {
        "services": {
            "pods": vms,
            "web": pod("front"),
            "db": pod("back"),
            "both": pod("front", "back"),
        },
        "networks": {
            name: {"name": name, "ipam": {"config": [{"subnet": subnet}]}}
            for name, subnet in NETWORKS.items()
        },
    }


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    """Two hosts, a VM on each, and the nodes in them ready."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    paths = paths_from()
    podhost.ensure(paths)
    with Swarm(f"t{os.getpid()}", drivers=("oci", "libvirt")) as made:
        apply(made, stack(podhost.stack_vm(paths)), "shop")

        def have_joined() -> bool:
            return [one["labels"].get("vm") for one in nested(made).values()] == ["pods", "pods"]

        made.until(have_joined, JOIN_S, "two nodes in VMs")
        yield made


def apply(swarm: Swarm, content: dict[str, Any], name: str) -> None:
    """Apply a stack file, without waiting."""
    file = swarm.folder / f"{name}.yaml"
    file.write_text(json.dumps({"name": name} | content))
    swarm.run("apply", "-f", str(file), "--detach")


def await_running(swarm: Swarm, *names: str) -> None:
    """Wait until all of these services run."""

    def all_run() -> bool:
        found = swarm.instances(*names).values()
        return bool(found) and {one["state"] for one in found} == {"running"}

    swarm.until(all_run, LAUNCH_S, f"{', '.join(names)} running")


def reaches(swarm: Swarm, source: str, address: str) -> bool:
    """Whether a ping from a pod is answered."""
    done = swarm.call("exec", source, "ping", "-c", "2", "-W", PING_S, address)
    assert "packets transmitted" in done.stdout, (done.stdout, done.stderr)
    return done.returncode == 0


def addresses(swarm: Swarm, instance: str) -> dict[str, str]:
    """An instance's address on each of its networks."""
    views = swarm.instances()[instance]["networks"]
    return {one["network"]: one["addresses"][0].partition("/")[0] for one in views}


def test_the_nodes_in_the_vms_joined_by_themselves(swarm: Swarm) -> None:
    """Each is in its VM, and its token is used up."""
    inside, vms = nested(swarm), swarm.instances("pods")

    assert {one["parent"] for one in inside.values()} == {"pods.1", "pods.2"}
    assert {one["host"] for one in inside.values()} == {"h1", "h2"}
    assert all(one["labels"]["vm"] == "pods" for one in inside.values())
    for name, one in inside.items():
        assert name == f"{one['parent']}-{vms[one['parent']]['incarnation']}"
        assert one["host"] == vms[one["parent"]]["node"]


def test_pods_reach_each_other_on_their_networks_alone(swarm: Swarm) -> None:
    """Across hosts, on the same network; what is on another network is out of reach."""
    await_running(swarm, "web", "db", "both")
    pods = swarm.instances("web", "db", "both")
    at = {name: addresses(swarm, name) for name in pods}

    assert {one["vm"] for one in pods.values()} == {"pods.1", "pods.2"}
    far = {
        name: next(two for two in pods if two[:-1] == name[:-1] and two != name) for name in pods
    }
    assert all(pods[one]["host"] != pods[two]["host"] for one, two in far.items())
    assert reaches(swarm, "web.1", at[far["web.1"]]["front"])
    assert reaches(swarm, "both.1", at["web.1"]["front"])
    assert reaches(swarm, "both.1", at["web.2"]["front"])
    assert reaches(swarm, "both.1", at["db.1"]["back"])
    assert reaches(swarm, "both.1", at["db.2"]["back"])
    for other in ("db.1", "db.2"):
        assert not reaches(swarm, "web.1", at[other]["back"])
    assert not reaches(swarm, "web.1", at["both.2"]["back"])

    shown = json.loads(swarm.run("network", "inspect", "front", "-o", "json"))
    [found] = shown if isinstance(shown, list) else [shown]
    paths = {each["path"][0]: each["path"] for each in found["attached"]}
    vm, host = pods["web.1"]["vm"], pods["web.1"]["host"]
    assert paths["web.1"][1].startswith("VLAN ")
    assert paths["web.1"][2:] == [f"{vm} ({pods['web.1']['node']})", host]
    assert f"{vm} on {host}" in swarm.run("ps", "web.1")


def test_a_pod_with_anothers_address_is_not_heard(swarm: Swarm) -> None:
    """Though it may do all to its interface: its host knows who it is, out of the VM's reach."""
    odd = {"services": {"odd": pod("front", replicas=1) | {"cap_add": ["NET_ADMIN"]}}}
    apply(swarm, odd | {"networks": {"front": {"external": True}}}, "odd")
    await_running(swarm, "odd", "web")
    pods = swarm.instances("odd", "web")
    other = next(name for name in ("web.1", "web.2") if pods[name]["vm"] != pods["odd.1"]["vm"])
    target = addresses(swarm, other)["front"]
    disguised = (
        f"ip addr add {STRANGER}/24 dev eth0 && ping -c 2 -W {PING_S} -I {STRANGER} {target}"
    )

    assert reaches(swarm, "odd.1", target)
    done = swarm.call("exec", "odd.1", "sh", "-c", disguised)
    assert "100% packet loss" in done.stdout, (done.stdout, done.stderr)
    assert reaches(swarm, "odd.1", target)
    swarm.run("rm", "--wait", "odd")


@pytest.mark.slow
def test_pods_of_a_vm_that_is_killed_run_elsewhere(swarm: Swarm) -> None:
    """And when the VM is gone, so are its node, its trunk, and all ports on that."""
    moved = {"services": {"moved": pod("front", replicas=3, at_most=2)}}
    apply(swarm, moved | {"networks": {"front": {"external": True}}}, "more")
    await_running(swarm, "moved")
    before = swarm.instances("moved")
    victim = next(one for one in before.values() if one["vm"] == "pods.2")
    [machine] = [each for each in swarm.machines if each.name == victim["host"]]
    domain = machine.run("virsh", "-q", "list", "--name").split()
    machine.run("virsh", "destroy", domain[0])

    def has_moved() -> bool:
        running = [one for one in swarm.instances("moved").values() if one["state"] == "running"]
        return [one["vm"] for one in running] == ["pods.1", "pods.1"]

    swarm.until(has_moved, LAUNCH_S, "the pods in the other VM, as many as it may have")
    # The same VM, on its disk: the agent in it is who it was, and needs no token.
    swarm.until(lambda: nested(swarm)[victim["node"]]["state"] == "ready", JOIN_S, "the node back")
    swarm.run("scale", "pods=1")
    swarm.until(lambda: victim["node"] not in nested(swarm), LAUNCH_S, "the node unregistered")
    swarm.until(lambda: trunks(swarm) == {"pods.1"}, LAUNCH_S, "one trunk in OVN")


def nested(swarm: Swarm) -> dict[str, Any]:
    """The nodes in VMs that are registered, by name."""
    return {each["node"]: each for each in swarm.listed("node", "ls") if each["parent"]}


def trunks(swarm: Swarm) -> set[str]:
    """The VMs on whose ports OVN has others."""
    text = swarm.hosts.central.place.run(
        *("ovn-nbctl", f"--db={swarm.hosts.northbound}", "--format=json", "--columns"),
        *("name,parent_name,external_ids", "list", "Logical_Switch_Port"),
    )
    rows = json.loads(text)["data"]
    owner = {name: dict(ids[1]).get("swarmctl-instance", "") for name, _, ids in rows}
    parents = {parent if isinstance(parent, str) else "" for _, parent, _ in rows}
    return {owner.get(parent, "gone") for parent in parents if parent}
