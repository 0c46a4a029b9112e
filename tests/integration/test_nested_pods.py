"""Pods in VMs on two hosts, with everything real: OVN, libvirt, guests, agents in them, runc.

The hosts are namespaces of the lab; each runs one VM that hosts pods, whose agent joins by what its
seed says.  Nothing is started by hand in a guest.  Guests are emulated where there is no KVM: the
waits are for a machine that others share.
"""

import json
import os
from collections.abc import Iterator

import pytest

from lab import podhost
from lab.config import paths_from
from lab.swarm import Swarm

# A guest boots and its agent joins within 30 s on an idle machine without KVM.
JOIN_S = 420
LAUNCH_S = 240
PING_S = "5"
STACK = {
    "services": {
        "pods": {
            "vm": {},
            "networks": ["vms"],
            "stop_grace_period": "1s",
            "deploy": {
                "replicas": 2,
                "placement": {"max_replicas_per_node": 1},
                "resources": {"reservations": {"cpus": 1, "memory": "512MiB"}},
            },
        }
    },
    "networks": {"vms": {"ipam": {"config": [{"subnet": "10.30.0.0/24"}]}}},
}

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def swarm() -> Iterator[Swarm]:
    """Two hosts, a VM on each, and the nodes in them ready."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")
    paths = paths_from()
    podhost.ensure(paths)
    with Swarm(f"t{os.getpid()}", drivers=("oci", "libvirt")) as made:
        STACK["services"]["pods"]["vm"] = podhost.stack_vm(paths)
        file = made.folder / "compose.yaml"
        file.write_text(json.dumps(STACK))
        made.run("apply", "-f", str(file), "--detach")
        made.until(lambda: len(made.ready_nodes()) == 4, JOIN_S, "two nested nodes")
        made.run("network", "create", "front", "--subnet", "10.20.0.0/24")
        made.run("network", "create", "back", "--subnet", "10.21.0.0/24")
        yield made


def run_pods(swarm: Swarm, name: str, *networks: str, replicas: int = 2) -> None:
    """Start pods in the VMs, one each."""
    options = [word for network in networks for word in ("--network", network)]
    options += ["--driver", "oci", "--replicas", str(replicas)]
    options += ["--constraint", "node.labels.vm == pods"]
    swarm.run("run", "-d", "--name", name, *options, podhost.IMAGE, "sleep", "3600")


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
    nodes = {each["node"]: each for each in swarm.listed("node", "ls")}
    nested = {name: one for name, one in nodes.items() if one["parent"]}
    vms = swarm.instances("pods")

    assert {one["parent"] for one in nested.values()} == {"pods.1", "pods.2"}
    assert {one["host"] for one in nested.values()} == {"h1", "h2"}
    assert all(one["drivers"] == ["oci"] for one in nested.values())
    for name, one in nested.items():
        assert name == f"{one['parent']}-{vms[one['parent']]['incarnation']}"
        assert one["host"] == vms[one["parent"]]["node"]


def test_pods_reach_each_other_on_their_networks_alone(swarm: Swarm) -> None:
    """Across hosts, on the same network; what is on another network is out of reach."""
    for name, networks in (("web", ["front"]), ("db", ["back"]), ("both", ["front", "back"])):
        run_pods(swarm, name, *networks)
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


def test_pods_of_a_vm_that_is_killed_run_elsewhere(swarm: Swarm) -> None:
    """And when the VM is gone, so are its node, its trunk, and all ports on that."""
    run_pods(swarm, "moved", "front")
    await_running(swarm, "moved")
    before = swarm.instances("moved")
    victim = next(one for one in before.values() if one["vm"] == "pods.2")
    [machine] = [each for each in swarm.machines if each.name == victim["host"]]
    domain = machine.run("virsh", "-q", "list", "--name").split()
    machine.run("virsh", "destroy", domain[0])

    def moved() -> bool:
        found = swarm.instances("moved").values()
        return {(one["state"], one["vm"]) for one in found} == {("running", "pods.1")}

    swarm.until(moved, LAUNCH_S, "all pods in the other VM")
    swarm.run("scale", "pods=1")
    swarm.until(lambda: victim["node"] not in nodes(swarm), LAUNCH_S, "the node unregistered")
    swarm.until(lambda: trunks(swarm) == {"pods.1"}, LAUNCH_S, "one trunk in OVN")


def nodes(swarm: Swarm) -> set[str]:
    """All that are registered."""
    return {each["node"] for each in swarm.listed("node", "ls")}


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
