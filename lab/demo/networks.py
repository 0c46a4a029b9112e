"""`make demo-net`: two hosts on this machine, tenant networks over both, and packets to look at.

Theory of operation. The hosts are those of `lab.swarm`; commands of a user run where its
controller is. A second run finds what is up, and brings back what is missing of it. What is shown
at the end is not what was asked for but what passes: a page that comes over the hosts, a frame of
it as it was between them, and a question to the other network that nobody answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lab import debian, podhost, procs
from lab.config import Paths
from lab.demo.cluster import ROOT
from lab.faults import LabFault
from lab.ovs import Place
from lab.report import Report, table
from lab.swarm import Swarm, folder_of, remove

LAB = "demonet"
STACK_FILE = "lab/demo-net.yaml"
FRONT, VMS = "shop_front", "shop_vms"
# On an idle machine under emulation 25 s, of a Debian 80: boot, start, enrolment.
JOINED_S = 900.0
LOOK_EVERY_S = 2.0  # looking costs the CPU that emulated guests need
LAUNCH_TIMEOUT = "180s"
CAPTURE_S = 30.0
SHOWN_S = 200.0  # the launch, and the way to it


def up(paths: Paths, lab: str = LAB, *, vms: str = "") -> int:
    """Bring it up, prove it, and show it.

    Args:
        paths: the lab's folders.
        lab: its name among others on this machine.
        vms: ``small`` with a small VM on each host, ``debian`` with a Debian on one; a pod in each.

    Raises:
        LabFault: a step failed, or packets go where they should not.
    """
    began = time.monotonic()
    swarm = Swarm(lab, 2, ("oci", "libvirt") if vms else ("oci",), paths=paths)
    with Report() as said:
        if vms:
            with said.step("guest") as step:
                debian.up(paths, step) if vms == "debian" else podhost.up(paths, step)
        with said.step("hosts") as step:
            if _is_up(swarm):
                step.kept("2 hosts, a controller and 2 agents are up already")
            else:
                step.progress("2 hosts with OVN, a controller, 2 agents")
                swarm.start()
                step.done("2 hosts with OVN, a controller, 2 agents")
    if vms:
        _apply_vms(swarm, vms)
    else:
        _apply(swarm, {})
    _show(swarm, "node", "ls")
    _show(swarm, "ps")
    _show(swarm, "network", "ls")
    _show_paths(swarm)
    _show_packets(swarm)
    if vms:
        _show_trunk(swarm)
    print(f"demo: up in {time.monotonic() - began:.1f} s; `make demo-net-down` takes it away")
    print("try:  " + " ".join(swarm.command("ps")))
    return 0


def down(paths: Paths, lab: str = LAB) -> int:
    """Take it away, whole.

    Raises:
        LabFault: something of it does not end.
    """
    with Report() as said, said.step("hosts") as step:
        was_there = folder_of(paths, lab).exists()
        remove(lab, paths)
        if was_there:
            step.done("2 hosts, with all that was on them")
        else:
            step.kept("there are none")
    return 0


def _is_up(swarm: Swarm) -> bool:
    """Whether its controller answers and every node is ready; if not, it is made anew."""
    try:
        return {machine.name for machine in swarm.machines} <= swarm.ready_nodes()
    except (LabFault, OSError, subprocess.SubprocessError):
        return False


def _apply_vms(swarm: Swarm, kind: str) -> None:
    """The VMs first: their pods have no place before the agents in them have joined.

    Raises:
        LabFault: something does not run in time.
    """
    count = len(swarm.machines)
    vm, memory_mib, cpus = podhost.stack_vm(swarm.paths), podhost.MEMORY_MIB, "0.5"
    if kind == "debian":
        count, vm, memory_mib, cpus = 1, debian.stack_vm(swarm.paths), debian.MEMORY_MIB, "1"
    file = swarm.folder / "vms.json"
    file.write_text(json.dumps({"services": {"vm": {"vm": vm}}}, indent=1))
    files = ("-f", STACK_FILE, "-f", str(file))
    variables = {"DEMO_VMS": str(count), "DEMO_MEMORY": f"{memory_mib}MiB", "DEMO_CPUS": cpus}
    there = "pod" in {one["service"] for one in swarm.instances().values()}
    if not there:
        _apply(swarm, variables, files)
        with Report() as said, said.step("VMs") as step:
            step.progress("waiting for the agents in them")
            swarm.until(lambda: len(_nested(swarm)) == count, JOINED_S, "VMs joined", LOOK_EVERY_S)
            step.done(", ".join(_nested(swarm)))
    # Not by `--wait`, which ends when something cannot be placed: where the machine has too much to
    # do for its emulated VMs, their nodes are sick for moments.
    _show(swarm, "apply", *files, "--detach", **variables, DEMO_PODS=str(count))
    with Report() as said, said.step("pods") as step:
        swarm.until(lambda: _is_running(swarm, "pod"), JOINED_S, "pods running", LOOK_EVERY_S)
        step.done("one in each VM")


def _is_running(swarm: Swarm, service: str) -> bool:
    found = swarm.instances(service).values()
    return bool(found) and all(one["state"] == "running" for one in found)


def _nested(swarm: Swarm) -> list[str]:
    """The nodes in VMs that can take pods."""
    return [
        node["node"]
        for node in swarm.listed("node", "ls")
        if node["parent"] and node["state"] in ("ready", "sick") and node["drivers"]
    ]


def _apply(
    swarm: Swarm, variables: Mapping[str, str], files: Sequence[str] = ("-f", STACK_FILE)
) -> None:
    _show(swarm, "apply", *files, "--wait", "--timeout", LAUNCH_TIMEOUT, **variables)


def _show(swarm: Swarm, *words: str, **variables: str) -> None:
    """Run a user's command with its output where ours goes.

    Raises:
        LabFault: it failed.
    """
    print(f"$ swarmctl {' '.join(words)}", flush=True)
    done = subprocess.run(
        swarm.command(*words),
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        timeout=SHOWN_S,
        env={**os.environ, **variables},
        check=False,
    )
    if done.returncode != 0:
        raise LabFault(f"swarmctl {words[0]} failed (see above)", f"logs: {swarm.folder}")


# --- what passes ---------------------------------------------------------------------------------


def _inspect(swarm: Swarm, network: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(swarm.run("network", "inspect", network))["attached"]
    return found


def _show_paths(swarm: Swarm) -> None:
    """What `network inspect` says of each port: the way of its packets."""
    print(f"$ swarmctl network inspect {FRONT}   (of each port: its path)")
    head = ["INSTANCE", "ADDRESS", "MAC", "PATH"]
    ports = [
        [one["instance"], " ".join(one["addresses"]), one["mac"], " - ".join(one["path"])]
        for one in _inspect(swarm, FRONT)
    ]
    print(table([head, *ports]), flush=True)


def _show_packets(swarm: Swarm) -> None:
    """A page over the hosts, what of it was between them, and what does not pass.

    Raises:
        LabFault: the page does not come, nothing of it is seen, or the other network answers.
    """
    ports = {one["instance"]: one for one in _inspect(swarm, FRONT)}
    client = next(name for name in sorted(ports) if name.startswith("client."))
    web = next(
        name
        for name in sorted(ports)
        if name.startswith("web.") and ports[name]["host"] != ports[client]["host"]
    )
    address = ports[web]["addresses"][0]
    cable = ports[client]["host"]
    seen = _captured(swarm, swarm.hosts.central.place, cable, "udp port 6081", address, client)
    print(f"between the hosts, as tcpdump sees it:\n{seen}", flush=True)
    store = next(iter(swarm.instances("store").values()))["addresses"][0]
    if swarm.call("exec", client, "ping", "-c", "2", "-W", "1", store).returncode == 0:
        raise LabFault(f"{client} reaches {store}, which is on another network")
    print(f"$ swarmctl exec {client} ping {store}: no answer, it is on another network")


def _show_trunk(swarm: Swarm) -> None:
    """A page from a web server on another host to a pod, and a frame of it at the pod's VM.

    Raises:
        LabFault: the page does not come, or nothing of it is seen.
    """
    ports = {one["instance"]: one for one in _inspect(swarm, FRONT)}
    pod = next(name for name in sorted(ports) if ports[name]["vm"])
    host = next(one for one in swarm.hosts.hosts if one.name == ports[pod]["host"])
    web = next(
        one["addresses"][0]
        for name, one in sorted(ports.items())
        if name.startswith("web.") and one["host"] != host.name
    )
    vm = next(one for one in _inspect(swarm, VMS) if one["instance"] == ports[pod]["vm"])
    device = host.switch.vsctl(
        "--bare", "--columns=name", "find", "Interface", f"external_ids:iface-id={vm['port']}"
    )
    seen = _captured(swarm, host.place, device, f"vlan {ports[pod]['vlan']} and tcp", web, pod)
    print(f"on the trunk of {ports[pod]['vm']}, as tcpdump sees it:\n{seen}", flush=True)


def _captured(
    swarm: Swarm, place: Place, interface: str, wanted: str, address: str, client: str
) -> str:
    """The first such frame on an interface while a client gets a page from that address."""
    command = place.inside("tcpdump", "-n", "-e", "-l", "-c", "1", "-i", interface, wanted)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as capture:
        try:
            assert capture.stderr is not None
            while b"listening on" not in (line := capture.stderr.readline()):
                if not line:
                    raise LabFault("tcpdump does not start", "python3 -m lab up --only ovn")
            print(f"$ swarmctl exec {client} wget -O - http://{address}/")
            print(swarm.run("exec", client, "wget", "-q", "-O", "-", f"http://{address}/").strip())
            if not procs.wait_until(lambda: capture.poll() is not None, CAPTURE_S):
                raise LabFault("nothing was seen between the hosts")
            assert capture.stdout is not None
            return capture.stdout.read().decode().strip()
        finally:
            if capture.poll() is None:
                capture.kill()
