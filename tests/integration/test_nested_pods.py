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
from attrs import evolve

from bench.net import checks, nested, paths
from bench.net.capture import capturing
from bench.net.traffic import Endpoint
from bench.net.world import World, look
from lab import podhost
from lab.config import paths_from
from lab.swarm import Swarm

# A guest boots and its agent joins within 30 s on an idle machine without KVM.
JOIN_S = 420
LAUNCH_S = 240
PING_S = "5"
NETWORKS = {"vms": "10.30.0.0/24", "front": "10.20.0.0/24", "back": "10.21.0.0/24"}
IN_VMS = "node.labels.vm == pods"
# What the security group of the first network lets in, by the service that it comes from.
FRIENDS = ("web", "both", "odd")
RIGHTS = {"cap_add": ["NET_ADMIN"]}
# Who took a VM over: on its own interfaces, and with its files.
ROOT = {
    "network_mode": "host",
    "cap_add": ["NET_ADMIN", "SYS_ADMIN"],
    "volumes": ["/:/vm:ro"],
}

EXTERNAL = {"networks": {name: {"external": True} for name in NETWORKS if name != "vms"}}

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


def on_node(node: str, *networks: str) -> dict[str, Any]:
    """A service of one pod in the VM that is this node."""
    made = pod(*networks, replicas=1)
    made["deploy"]["placement"]["constraints"] = [f"node.name == {node}"]
    return made


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
            | ({"security_group": "friends"} if name == "front" else {})
            for name, subnet in NETWORKS.items()
        },
        "security_groups": {
            "friends": {"ingress": [{"from": {"service": name}} for name in FRIENDS]}
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
            return [one["labels"].get("vm") for one in nodes_in_vms(made).values()] == [
                "pods",
                "pods",
            ]

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
    inside, vms = nodes_in_vms(swarm), swarm.instances("pods")

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


@pytest.fixture(scope="module")
def odd(swarm: Swarm) -> Iterator[World]:
    """In the VM of ``web.1``, with rights over their interfaces: pods, and who has the whole VM.

    ``odd`` may come in at its network, ``out`` is on it too and may not; ``beside`` is on another.
    """
    await_running(swarm, "web", "db", "both")
    node = swarm.instances("web")["web.1"]["node"]
    services = {
        "odd": on_node(node, "front") | RIGHTS,
        "out": on_node(node, "front") | RIGHTS,
        "beside": on_node(node, "back") | RIGHTS,
        "root": {key: one for key, one in on_node(node).items() if key != "networks"} | ROOT,
    }
    apply(swarm, {"services": services} | EXTERNAL, "odd")
    await_running(swarm, *services)
    yield look(swarm, NETWORKS)
    swarm.run("rm", "--wait", *services)


def root_of(odd: World) -> Endpoint:
    """The VM that the odd pods are in, from inside."""
    vm = odd.swarm.instances("web")["web.1"]["vm"]
    return evolve(odd.ends[vm], instance="root.1")


def test_what_a_pod_forges_is_not_heard(odd: World) -> None:
    """Its MAC and its address are its own, though it may do all to its interface in a VM."""
    for attempt in checks.attempts(odd, "odd.1", "web.2", "both.2"):
        found = checks.forge(attempt, odd.ends["odd.1"], odd.ends["web.2"])
        assert found.blocked, found


def test_what_a_vm_forges_is_not_heard(odd: World) -> None:
    """Who has the whole VM sends in a pod's name in no VLAN but that pod's own."""
    attempts = nested.vlan_attempts(odd, root_of(odd), "odd.1", "web.2", "beside.1")
    for attempt in attempts:
        found = checks.forge(attempt, odd.ends["odd.1"], odd.ends["web.2"])
        assert found.blocked, found


def test_a_security_group_holds_against_a_pod_with_anothers_address(
    swarm: Swarm, odd: World
) -> None:
    """Whom the group does not name is not let in, nor when it takes the address of one it names.

    The answers would go to that one: so it is looked at what arrives, and what of an honest pod.
    """
    target = odd.ends["web.2"].address
    assert reaches(swarm, "odd.1", target)
    assert not reaches(swarm, "out.1", target)

    _, disguised = checks.attempts(odd, "out.1", "web.2", "both.2")
    found = checks.forge(disguised, odd.ends["odd.1"], odd.ends["web.2"])
    assert found.blocked, found


def test_a_pods_packet_has_one_tag_and_then_one_geneve_header(odd: World) -> None:
    """A tag and no overlay on the VM's trunk, one header and nothing in it between the hosts."""
    one, other = odd.ends["odd.1"], odd.ends["web.2"]
    with (
        capturing(one.place, one.interface) as at_trunk,
        capturing(odd.swarm.hosts.central.place, paths.wire_of(odd.swarm, one)) as at_wire,
    ):
        assert checks.reach(one, other).answered
    trunk = paths.around(at_trunk.between(one.address, other.address, least=2))
    wire = paths.around(at_wire.between(one.address, other.address, least=2))

    assert trunk["layers"] == ["ethernet vlan ipv4"]
    assert wire["layers"] == ["ethernet ipv4 udp geneve ethernet ipv4"]


@pytest.mark.slow  # 40 s of emulated guests; every run has it without them.
def test_a_subport_that_does_not_come_up_is_replaced(swarm: Swarm) -> None:
    """Its row in OVN is damaged: its pod runs by another port, says why, and the bad one goes.

    It is the pod's second port, to which no route leads: that is waited for as the first is.
    """
    await_running(swarm, "web")
    node = swarm.instances("web")["web.1"]["node"]
    spares = subports(swarm, of="")
    for number, name in enumerate(spares):
        tag(swarm, name, 4000 - number)
    apply(swarm, {"services": {"late": on_node(node, "front", "back")}} | EXTERNAL, "late")
    bad: dict[str, str] = {}

    def has_ports() -> bool:
        views = swarm.instances("late").get("late.1", {}).get("networks", [])
        bad.update({one["network"]: one["port"] for one in views})
        return len(bad) == 2

    swarm.until(has_ports, LAUNCH_S, "ports of a pod")
    for name in spares.keys() - {bad["back"]}:
        tag(swarm, name, spares[name])
    await_running(swarm, "late")

    ports = {one["network"]: one["port"] for one in swarm.instances()["late.1"]["networks"]}
    assert ports["back"] != bad["back"]
    said = swarm.run("explain", "late.1")
    assert f"its port {bad['back']} did not come up, and is replaced" in said, said
    swarm.until(lambda: bad["back"] not in subports(swarm), LAUNCH_S, "the bad port gone")
    swarm.run("rm", "--wait", "late")


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
    swarm.until(
        lambda: nodes_in_vms(swarm)[victim["node"]]["state"] == "ready", JOIN_S, "the node back"
    )
    swarm.run("scale", "pods=1")
    swarm.until(
        lambda: victim["node"] not in nodes_in_vms(swarm), LAUNCH_S, "the node unregistered"
    )
    swarm.until(lambda: trunks(swarm) == {"pods.1"}, LAUNCH_S, "one trunk in OVN")


def nodes_in_vms(swarm: Swarm) -> dict[str, Any]:
    """The nodes in VMs that are registered, by name."""
    return {each["node"]: each for each in swarm.listed("node", "ls") if each["parent"]}


def trunks(swarm: Swarm) -> set[str]:
    """The VMs on whose ports OVN has others."""
    rows = northbound(swarm, "name,parent_name,external_ids")
    owner = {name: dict(ids[1]).get("swarmctl-instance", "") for name, _, ids in rows}
    parents = {parent if isinstance(parent, str) else "" for _, parent, _ in rows}
    return {owner.get(parent, "gone") for parent in parents if parent}


def northbound(swarm: Swarm, columns: str) -> list[Any]:
    """These columns of all ports that OVN has, as JSON."""
    text = swarm.hosts.central.place.run(
        *("ovn-nbctl", f"--db={swarm.hosts.northbound}", "--format=json", "--columns", columns),
        *("list", "Logical_Switch_Port"),
    )
    rows: list[Any] = json.loads(text)["data"]
    return rows


def subports(swarm: Swarm, of: str | None = None) -> dict[str, int]:
    """OVN's ports on trunks, with their VLANs: all of them, a service's, or spare ones ("")."""
    rows = northbound(swarm, "name,parent_name,tag_request,external_ids")
    return {
        name: vlan
        for name, parent, vlan, ids in rows
        if isinstance(parent, str) and parent and of in (None, _service_of(dict(ids[1])))
    }


def _service_of(ids: dict[str, str]) -> str:
    return ids.get("swarmctl-instance", "").rpartition(".")[0]


def tag(swarm: Swarm, port: str, vlan: int) -> None:
    """Set a subport's VLAN in OVN, behind swarmctl's back."""
    swarm.hosts.central.place.run(
        *("ovn-nbctl", f"--db={swarm.hosts.northbound}", "set", "Logical_Switch_Port", port),
        f"tag_request={vlan}",
    )
