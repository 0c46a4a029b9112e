"""`python3 -m lab up|status|down|purge`: the lab's command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from lab import down, hosts, status, up
from lab.config import PARTS, Paths, paths_from
from lab.faults import Interrupted, LabFault
from lab.report import Report
from lab.state import exclusive

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; wrong usage ends the program with code 2."""
    parser = argparse.ArgumentParser(
        prog="python3 -m lab",
        description="Real Docker and libvirt daemons, a test image and a test guest.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "install what is missing and start what is not running"),
        ("status", "show what is there and whose it is"),
        ("down", "stop what the lab started, give back what it changed"),
        ("purge", "down, and remove the test image and the cache"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name in ("up", "down"):
            command.add_argument(
                "--only",
                type=parts_of,
                default=PARTS,
                metavar="PARTS",
                help=f"comma-separated: {','.join(PARTS)}",
            )
        if name == "status":
            command.add_argument("--json", action="store_true", help="for programs")
    text = "several hosts on this machine, in network namespaces, on OVN"
    command = commands.add_parser("hosts", help=text, description=text)
    command.add_argument("action", choices=("up", "down"))
    command.add_argument("--name", default="demo", type=lab_name, help="of this lab of hosts")
    command.add_argument("--count", default=2, type=host_count, help="how many hosts")
    return parser.parse_args(arguments)


def lab_name(text: str) -> str:
    """A name that fits those of namespaces and sockets.

    Raises:
        argparse.ArgumentTypeError: it does not.
    """
    if not (text.isascii() and text.isalnum() and len(text) <= hosts.NAME_MAX):
        raise argparse.ArgumentTypeError(f"up to {hosts.NAME_MAX} letters and digits")
    return text


def host_count(text: str) -> int:
    """How many hosts.

    Raises:
        argparse.ArgumentTypeError: too many, or none.
    """
    if not (text.isdecimal() and 0 < int(text) <= hosts.HOSTS_MAX):
        raise argparse.ArgumentTypeError(f"from 1 to {hosts.HOSTS_MAX}")
    return int(text)


def parts_of(text: str) -> tuple[str, ...]:
    """A comma-separated list of parts, in the lab's own order.

    Raises:
        argparse.ArgumentTypeError: one is not a part.
    """
    wanted = {word.strip() for word in text.split(",") if word.strip()}
    unknown = wanted - set(PARTS)
    if unknown or not wanted:
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown)) or 'nothing'}: choose from {', '.join(PARTS)}"
        )
    return tuple(part for part in PARTS if part in wanted)


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code."""
    chosen = parse(arguments)
    paths = paths_from()
    if chosen.command == "status":
        return show_status(paths, as_json=chosen.json)
    report = Report()
    try:
        with exclusive(paths):
            return _change(chosen, paths, report)
    except LabFault as fault:
        print(f"lab: {fault.what}" + (f"; {fault.hint}" if fault.hint else ""), file=sys.stderr)
        return EXIT_FAILED
    except (Interrupted, KeyboardInterrupt):
        report.say("")
        print("lab: interrupted; run it again to go on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def _change(chosen: argparse.Namespace, paths: Paths, report: Report) -> int:
    if chosen.command == "up":
        return up.up(paths, chosen.only, report, ask=os.environ.get("YES") != "1")
    if chosen.command == "hosts":
        return change_hosts(chosen.action, chosen.name, chosen.count, report)
    if chosen.command == "down":
        return down.down(paths, chosen.only, report)
    return down.purge(paths, report)


def change_hosts(action: str, name: str, count: int, report: Report) -> int:
    """Make a lab of hosts, or take it away.

    Raises:
        LabFault: something of it fails.
    """
    with report, report.step("hosts") as step:
        if action == "down":
            hosts.remove(name)
            step.done(f"{name} is gone")
            return 0
        step.progress(f"{count} hosts")
        made = hosts.Hosts(name, count).start()
        step.done(f"{count} hosts, northbound database at {made.northbound}")
        for host in made.hosts:
            report.say(
                f"     {host.name}  namespace {host.place.namespace}, "
                f"{host.address}, switch {host.switch.remote}"
            )
    return 0


def show_status(paths: Paths, *, as_json: bool) -> int:
    """Print the status; 0 when every part is up."""
    found = status.collect(paths)
    print(json.dumps(found, indent=2) if as_json else status.as_table(found))
    return 0 if found["ok"] else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
