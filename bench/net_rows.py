"""How long OVN's northbound database takes: 1,000 subports at once, and reading 10,000 ports anew.

A server of its own in a temporary folder, no other OVN daemons: what is measured is our side and
the database's. Prints figures, and judges none.

    python3 -m bench.net_rows [--ports 10000] [--subports 1000] [--json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio
from attrs import evolve

from swarmctl import garbage
from swarmctl.net.diff import difference, transactions
from swarmctl.net.model import Direction, Network, PortWish, Rule, SecurityGroup, Wishes, subnet
from swarmctl.net.names import mac_address, port_name
from swarmctl.net.ovn import OvnNorthbound
from swarmctl.net.rows import desired_rows
from swarmctl.proto import incarnation as incarnations

CLUSTER: Final = "c0ffee00" * 4
SCHEMA: Final = Path("/usr/share/ovn/ovn-nb.ovsschema")
START_S: Final = 10.0
ROUNDS: Final = 3


def wishes(ports: int, subports: int) -> Wishes:
    """One network with a security group, VMs on it, and so many pods on trunks of theirs."""
    vms = [_port(number, "vm") for number in range(ports)]
    pods = [
        evolve(_port(ports + number, "pod"), parent=vms[number % 50].name, vlan=1 + number // 50)
        for number in range(subports)
    ]
    return Wishes(
        networks=(Network("acme", "front", (subnet("10.0.0.0/8"),), 1442),),
        groups=(SecurityGroup("acme", "web", (Rule(Direction.INGRESS),)),),
        ports=(*vms, *pods),
    )


def _port(number: int, service: str) -> PortWish:
    incarnation = incarnations.make(7, number)
    return PortWish(
        name=port_name(CLUSTER, incarnation, 0),
        tenant="acme",
        network="front",
        service=f"{service}{number // 100}",
        slot=1 + number % 100,
        mac=mac_address(CLUSTER, incarnation, 0),
        addresses=(f"10.{1 + number // 62500}.{number // 250 % 250}.{2 + number % 250}",),
        security_groups=("web",),
    )


async def timed(action: Callable[[], Awaitable[Any]]) -> float:
    """Seconds that it took."""
    began_s = time.perf_counter()
    await action()
    return time.perf_counter() - began_s


def server_cpu_s(pid: int) -> float:
    """What the database server has used of the processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(socket: Path, server: int, ports: int, subports: int) -> dict[str, float]:
    """All figures, in seconds; medians of several rounds but for the filling.

    On a busy machine the time is that of waiting, too: ``…_cpu`` is what both sides computed.
    """
    figures: dict[str, float] = {}
    async with trio.open_nursery() as nursery:
        northbound = OvnNorthbound([f"unix:{socket}"], CLUSTER)
        nursery.start_soon(northbound.run)
        await northbound.take_term(7)

        began_s = time.perf_counter()
        before = desired_rows(CLUSTER, wishes(ports, 0))
        figures["rows_computed"] = time.perf_counter() - began_s
        after = desired_rows(CLUSTER, wishes(ports, subports))
        began_s = time.perf_counter()
        for piece in transactions(difference({}, before)):
            await northbound.apply(piece)
        figures["filled"] = time.perf_counter() - began_s

        bulk, undone, one = [], [], []
        for _ in range(ROUNDS):
            more, less = difference(before, after), difference(after, before)
            bulk.append(await timed(lambda more=more: northbound.apply(more)))  # type: ignore[misc]
            undone.append(await timed(lambda less=less: northbound.apply(less)))  # type: ignore[misc]
        figures["subports_in_one_transaction"] = statistics.median(bulk)
        figures["subports_removed"] = statistics.median(undone)

        single = desired_rows(CLUSTER, wishes(ports, 1))
        for _ in range(ROUNDS):
            operations = difference(before, single)
            one.append(await timed(lambda: northbound.apply(operations)))  # noqa: B023 - at once
            await northbound.apply(difference(single, before))
        figures["one_subport"] = statistics.median(one)
        cpu_s = time.process_time() + server_cpu_s(server)
        figures["read_anew"] = statistics.median(
            [await timed(northbound.read) for _ in range(ROUNDS)]
        )
        cpu_s = time.process_time() + server_cpu_s(server) - cpu_s
        figures["read_anew_cpu"] = cpu_s / ROUNDS
        found = await northbound.read()
        began_s = time.perf_counter()
        left = difference(found, before)
        figures["compared"] = time.perf_counter() - began_s
        assert left == [], f"{len(left)} rows are not as wanted"
        nursery.cancel_scope.cancel()
    return figures


def serve(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A database server of our own."""
    database, socket = folder / "nb.db", folder / "nb.sock"
    subprocess.run(["ovsdb-tool", "create", database, SCHEMA], check=True, timeout=START_S)
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "ovsdb-server", str(database)),
            f"--remote=punix:{socket}",
            f"--unixctl={folder}/ctl",
        ],
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + START_S
    while not socket.exists():
        assert time.monotonic() < deadline_s, "ovsdb-server does not start"
        time.sleep(0.01)
    return process, socket


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ports", type=int, default=10_000)
    parser.add_argument("--subports", type=int, default=1_000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, socket = serve(Path(folder))
        try:
            garbage.tune()  # as the controller does
            figures = trio.run(measure, socket, process.pid, chosen.ports, chosen.subports)
        finally:
            process.kill()
            process.wait(START_S)
    print(f"{chosen.ports} ports there, {chosen.subports} subports")
    for name, seconds in figures.items():
        print(f"{name:<30} {seconds * 1000:10.1f} ms")
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
