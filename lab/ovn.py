"""OVN: its databases with ``ovn-northd`` in one place, ``ovn-controller`` beside each switch.

``ovn-northd`` turns the northbound database (what is wanted) into the southbound one (flows), and
each host's ``ovn-controller`` turns that into flows of its own switch. Hosts reach the southbound
database over TCP in the lab's own network, where nothing else is.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import procs
from lab.ovs import Place, Switch

NORTHBOUND_SCHEMA = Path("/usr/share/ovn/ovn-nb.ovsschema")
SOUTHBOUND_SCHEMA = Path("/usr/share/ovn/ovn-sb.ovsschema")
NORTHBOUND_PORT = 6641
SOUTHBOUND_PORT = 6642
INTEGRATION_BRIDGE = "br-int"


def version() -> str | None:
    """The installed version, or None where there is none."""
    if procs.which("ovn-northd") is None or procs.which("ovn-controller") is None:
        return None
    try:
        said = procs.run(["ovn-northd", "--version"], timeout_s=10)
    except (subprocess.SubprocessError, OSError):
        return None
    return said.split("\n", 1)[0].rpartition(" ")[2] or None


class Central:
    """The databases and ``ovn-northd``."""

    def __init__(self, place: Place, address: str) -> None:
        self.place = place
        self.address = address

    @property
    def northbound(self) -> str:
        """The northbound database's address, for anything on this machine."""
        return f"unix:{self.place.folder / 'nb.sock'}"

    @property
    def southbound(self) -> str:
        """The southbound database's, for the hosts."""
        return f"tcp:{self.address}:{SOUTHBOUND_PORT}"

    def start(self) -> None:
        """Start all three.

        Raises:
            LabFault: one does not.
        """
        self.start_northbound()
        southbound = self.place.serve_database(
            "sb", SOUTHBOUND_SCHEMA, [f"ptcp:{SOUTHBOUND_PORT}:{self.address}"]
        )
        self.place.spawn(
            "northd",
            "ovn-northd",
            f"--ovnnb-db={self.northbound}",
            f"--ovnsb-db=unix:{southbound}",
            f"--unixctl={self.place.folder}/northd.ctl",
        )

    def start_northbound(self) -> None:
        """Start the northbound database alone."""
        listen = f"ptcp:{NORTHBOUND_PORT}:{self.address}"
        self.place.serve_database("nb", NORTHBOUND_SCHEMA, [listen])


def join(switch: Switch, central: Central, address: str) -> None:
    """Make a host of a switch: its ``ovn-controller``, with tunnels from that address.

    Raises:
        LabFault: it does not start.
    """
    switch.vsctl(
        *("--no-wait", "set", "Open_vSwitch", "."),
        f"external_ids:ovn-remote={central.southbound}",
        "external_ids:ovn-encap-type=geneve",
        f"external_ids:ovn-encap-ip={address}",
        f"external_ids:ovn-bridge={INTEGRATION_BRIDGE}",
        "external_ids:ovn-bridge-datapath-type=netdev",
        # OVN 23.03 may miss a port that is plugged right after its start, and never look again;
        # one that follows all of the database does not.
        "external_ids:ovn-monitor-all=true",
    )
    start_controller(switch)


def start_controller(switch: Switch) -> None:
    """Start ``ovn-controller`` over a switch that has its settings."""
    switch.place.spawn("controller", "ovn-controller", switch.remote)
