"""`make demo-net`: two hosts on this machine, tenant networks over both, and packets to look at.

Theory of operation. The hosts are those of `lab.swarm`; commands of a user run where its
controller is. A second run finds what is up, and brings back what is missing of it. What is shown
at the end is not what was asked for but what passes: a page that comes over the hosts, a frame of
it as it was between them, and a question to the other network that nobody answers.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from lab import procs
from lab.config import Paths
from lab.demo.cluster import ROOT
from lab.faults import LabFault
from lab.report import Report, table
from lab.swarm import Swarm, folder_of, remove

LAB = "demonet"
STACK_FILE = "lab/demo-net.yaml"
FRONT = "shop_front"
LAUNCH_TIMEOUT = "180s"
CAPTURE_S = 30.0
SHOWN_S = 200.0  # the launch, and the way to it


def up(paths: Paths, lab: str = LAB) -> int:
    """Bring it up, prove it, and show it; ``lab`` is its name among others on this machine.

    Raises:
        LabFault: a step failed, or packets go where they should not.
    """
    began = time.monotonic()
    swarm = Swarm(lab, 2, ("oci",), paths=paths)
    with Report() as said, said.step("hosts") as step:
        if _is_up(swarm):
            step.kept("2 hosts, a controller and 2 agents are up already")
        else:
            step.progress("2 hosts with OVN, a controller, 2 agents")
            swarm.start()
            step.done("2 hosts with OVN, a controller, 2 agents")
    _show(swarm, "apply", "-f", STACK_FILE, "--wait", "--timeout", LAUNCH_TIMEOUT)
    _show(swarm, "ps")
    _show(swarm, "network", "ls")
    _show_paths(swarm)
    _show_packets(swarm)
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


def _show(swarm: Swarm, *words: str) -> None:
    """Run a user's command with its output where ours goes.

    Raises:
        LabFault: it failed.
    """
    print(f"$ swarmctl {' '.join(words)}", flush=True)
    done = subprocess.run(
        swarm.command(*words), stdin=subprocess.DEVNULL, cwd=ROOT, timeout=SHOWN_S, check=False
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
    seen = _captured(swarm, ports[client]["host"], address, client)
    print(f"between the hosts, as tcpdump sees it:\n{seen}", flush=True)
    store = next(iter(swarm.instances("store").values()))["addresses"][0]
    if swarm.call("exec", client, "ping", "-c", "2", "-W", "1", store).returncode == 0:
        raise LabFault(f"{client} reaches {store}, which is on another network")
    print(f"$ swarmctl exec {client} ping {store}: no answer, it is on another network")


def _captured(swarm: Swarm, host: str, address: str, client: str) -> str:
    """The first frame of a page's way from that address, on the cable of a host."""
    place = swarm.hosts.central.place
    command = place.inside("tcpdump", "-n", "-l", "-c", "1", "-i", host, "udp port 6081")
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
