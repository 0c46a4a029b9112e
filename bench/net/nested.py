"""VMs that host pods, one on each host; VXLAN inside of them, to compare; and what a VM may forge.

Pods are ordinary services, held to the nodes in the VMs. Beside them each VM has a *root*: a
container on the VM's own interfaces with all rights over them, which is what a tenant has who took
a VM over. Through it the VXLAN network is set up, and frames are forged that no pod could send.

The VXLAN network is the least that one can cost: its device itself is the only interface of a
network namespace in the VM, without the bridge and the veth pair that such networks usually have.
It runs over the VM's own address, as an overlay in VMs does.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from bench.net.checks import Attempt
from bench.net.traffic import TOOLS, Endpoint
from bench.net.world import Member, World, apply, attached
from lab import fetch, guest, podhost
from lab.report import Step
from lab.swarm import Swarm

NETWORK: Final = "vms"
SERVICE: Final = "vm"
JOINED_S: Final = 420.0  # 25 s on an idle machine under emulation: boot, start, enrolment
_VXLAN_NUMBER: Final = 42
_VXLAN_PORT: Final = 4789
_VXLAN_MODULE: Final = "vxlan"
# The root sees all files of the VM, and so has its `ip`, which busybox's is no match for.
_ROOT_VOLUMES: Final = ("/:/vm:ro",)
_IP: Final = "chroot /vm /usr/bin/ip"
_ROOT_CAPABILITIES: Final = ("NET_ADMIN", "SYS_ADMIN", "SYS_MODULE")
# A VLAN that no pod of a few has: they are given out from the lowest.
_NOBODYS_VLAN: Final = 4000


@frozen
class Nested:
    """A node in a VM, and the host that the VM is on."""

    node: str
    vm: str
    host: str


def launch_vms(swarm: Swarm, folder: Path) -> tuple[Nested, ...]:
    """A VM on each host, in the order of the hosts, with their nodes ready.

    Raises:
        LabFault: one does not start, or its agent does not join in time.
    """
    vm: dict[str, Any] = {
        "vm": podhost.stack_vm(swarm.paths),
        "networks": [NETWORK],
        "deploy": {
            "replicas": len(swarm.hosts.hosts),
            "placement": {"max_replicas_per_node": 1},
            "resources": {"reservations": {"cpus": "0.5", "memory": f"{podhost.MEMORY_MIB}MiB"}},
        },
    }
    apply(swarm, folder, {SERVICE: vm})
    joined: list[Nested] = []

    def all_joined() -> bool:
        joined[:] = _joined(swarm)
        return len(joined) == len(swarm.hosts.hosts)

    swarm.until(all_joined, JOINED_S, "nodes in all VMs")
    return tuple(sorted(joined, key=lambda one: one.host))


def _joined(swarm: Swarm) -> list[Nested]:
    """The nodes in VMs that can be used; where there is too much to do some are sick at times."""
    vms = {port["instance"]: port["host"] for port in attached(swarm, [NETWORK])}
    return [
        Nested(node["node"], node["parent"], vms[node["parent"]])
        for node in swarm.listed("node", "ls")
        if node["parent"] in vms and node["state"] in ("ready", "sick") and "oci" in node["drivers"]
    ]


def members(nodes: tuple[Nested, ...]) -> tuple[Member, ...]:
    """The pods of two VMs, named as the containers are but for their letter, and the roots."""
    one, other = (nested.node for nested in nodes)
    return (
        Member("p", one, "front"),
        Member("q", other, "front"),
        Member("podfriend", one, "back"),
        Member("podother", other, "back"),
        Member("root1", one, "", _ROOT_CAPABILITIES, _ROOT_VOLUMES),
        Member("root2", other, "", _ROOT_CAPABILITIES, _ROOT_VOLUMES),
    )


def roots(world: World, nodes: tuple[Nested, ...]) -> tuple[Endpoint, ...]:
    """The roots, as endpoints with the address and the port of their VM."""
    return tuple(
        evolve(world.ends[nested.vm], instance=f"root{number}.1")
        for number, nested in enumerate(nodes, 1)
    )


# --- VXLAN ---------------------------------------------------------------------------------------


def vxlan_pods(made: tuple[Endpoint, ...], step: Step) -> tuple[Endpoint, ...]:
    """In each of two VMs a namespace with a VXLAN device, through the VM's root.

    Raises:
        LabFault: the kernel has no VXLAN, or a command fails.
    """
    modules = _modules(made[0].swarm, step)
    pods = []
    for number, root in enumerate(made, 1):
        remote = made[2 - number].address
        root.give_tools()
        root.run("tar", "xzf", "-", "-C", TOOLS, stdin=modules)
        root.run("sh", "-c", _LOAD)
        address = f"10.99.0.{number}"
        script = _PLUG.format(
            ip=_IP, id=_VXLAN_NUMBER, port=_VXLAN_PORT, own=root.address, remote=remote,
            address=address, tools=TOOLS,
        )  # fmt: skip
        pid = root.run("sh", "-ec", script).split()[-1]
        pods.append(evolve(root, address=address, prefix=("nsenter", "-t", pid, "-n")))
    return tuple(pods)


_LOAD: Final = f"""
for module in $(cat {TOOLS}/order); do
  grep -q "^$module " /proc/modules || insmod {TOOLS}/$module.ko || exit 1
done
"""
# The device of the VM's own address is the trunk; a device made over it has the MTU that is left.
_PLUG: Final = """
trunk=$({ip} -o address show to {own} | sed 's/^[0-9]*: \\([^ ]*\\) .*/\\1/')
{ip} link del vxlan0 2>/dev/null || true
setsid unshare -n sh -c 'echo $$ >{tools}/pid; exec sleep 86400' </dev/null >/dev/null 2>&1 &
tries=0
until [ -s {tools}/pid ] || [ $tries -gt 100 ]; do tries=$((tries + 1)); usleep 50000; done
pid=$(cat {tools}/pid)
{ip} link add vxlan0 type vxlan id {id} local {own} remote {remote} dstport {port} dev $trunk
{ip} link set vxlan0 netns $pid
nsenter -t $pid -n {ip} address add {address}/24 dev vxlan0
nsenter -t $pid -n {ip} link set lo up
nsenter -t $pid -n {ip} link set vxlan0 up
echo $pid
"""


def _modules(swarm: Swarm, step: Step) -> bytes:
    """The guest's kernel's module for VXLAN, with those that it needs and their order, as a tar."""
    root = fetch.unpacked(swarm.paths, fetch.current_kernel_package(), step)
    files = {guest.module_name(file.name): file for file in root.rglob("*.ko")}
    depends = {name: guest.module_depends(file.read_bytes()) for name, file in files.items()}
    order = guest.load_order([_VXLAN_MODULE], depends)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in order:
            tar.add(files[name], f"{name}.ko")
        text = "\n".join(order).encode() + b"\n"
        entry = tarfile.TarInfo("order")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return buffer.getvalue()


# --- what a VM may forge -------------------------------------------------------------------------


def vlan_attempts(
    world: World, root: Endpoint, source: str, target: str, neighbour: str
) -> Iterator[Attempt]:
    """In the name of a pod: its VM itself in a VLAN of nobody, and a neighbour in its own VLAN.

    The neighbour is a pod of another network in the same VM. Its VLAN is used through it, since
    Linux makes but one device of a VLAN.
    """
    one, other = world.ends[source].address, world.ends[target].address
    mac, target_mac = world.macs[source], world.macs[target]
    device = f"forged{_NOBODYS_VLAN}"
    there = (
        f"trunk=$({_IP} -o address show to {root.address} | sed 's/^[0-9]*: \\([^ ]*\\) .*/\\1/')",
        f"{_IP} link add link $trunk name {device} address {mac} type vlan id {_NOBODYS_VLAN}",
        f"{_IP} address add {one}/32 dev {device}",
        f"{_IP} link set {device} up",
        f"{_IP} route add {other}/32 dev {device} src {one}",
        f"{_IP} neigh add {other} lladdr {target_mac} dev {device}",
    )
    yield Attempt(
        "a VLAN of nobody",
        root,
        " && ".join(there),
        f"{_IP} link del {device}",
        ("-I", device),
        lambda frame: frame.vlans == (_NOBODYS_VLAN,) and frame.source_mac == mac,
    )
    vlan = world.vlans[neighbour]
    yield Attempt(
        "another pod's VLAN",
        world.ends[neighbour],
        f"ip link set dev eth0 address {mac} && ip address add {one}/32 dev eth0"
        f" && ip route add {other}/32 dev eth0 && arp -s {other} {target_mac}",
        f"arp -d {other}; ip route del {other}/32 dev eth0; ip address del {one}/32 dev eth0;"
        f" ip link set dev eth0 address {world.macs[neighbour]}",
        ("-I", one),
        lambda frame: frame.vlans == (vlan,) and frame.source_mac == mac,
    )
