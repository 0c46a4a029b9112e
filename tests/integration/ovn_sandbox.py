"""OVN on a test's own switch: its two databases, northd and a controller, in the same namespace."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import frozen

from tests.integration.ovs_sandbox import START_S, OvsSandbox, daemon, end, need_ovs, ovs, run

SCHEMAS = {
    "nb": Path("/usr/share/ovn/ovn-nb.ovsschema"),
    "sb": Path("/usr/share/ovn/ovn-sb.ovsschema"),
}


def need_ovn() -> None:
    """Skip where OVN, or what it stands on, is missing."""
    need_ovs()
    missing = [
        name for name in ("ovn-northd", "ovn-controller", "ovn-nbctl") if not shutil.which(name)
    ]
    if missing or not all(path.exists() for path in SCHEMAS.values()):
        pytest.skip(f"needs Debian's ovn-central and ovn-host: no {missing or 'schemas'}")


def appear(path: Path) -> None:
    """Wait for a server's socket."""
    give_up_at = time.monotonic() + START_S
    while not path.exists():
        assert time.monotonic() < give_up_at, f"{path} did not appear"
        time.sleep(0.02)


@frozen
class OvnSandbox:
    """One host of OVN with everything on it."""

    switch: OvsSandbox

    def nbctl(self, *command: str) -> str:
        """``ovn-nbctl`` on its northbound database."""
        database = f"--db=unix:{self.switch.folder}/nb.sock"
        return run("ovn-nbctl", f"--timeout={START_S}", database, *command)


def _database(stack: ExitStack, switch: OvsSandbox, name: str) -> str:
    folder = switch.folder
    run("ovsdb-tool", "create", str(folder / f"{name}.db"), str(SCHEMAS[name]))
    remote = f"unix:{folder}/{name}.sock"
    served = daemon(
        switch, "ovsdb-server", str(folder / f"{name}.db"), f"--remote=p{remote}", log=name
    )
    stack.callback(end, served)
    appear(folder / f"{name}.sock")
    return remote


@contextmanager
def ovn(name: str) -> Iterator[OvnSandbox]:
    """OVN on a switch of its own; ``name`` is that of the namespace."""
    with ovs(name) as switch, ExitStack() as stack:
        north, south = (_database(stack, switch, each) for each in SCHEMAS)
        northd = daemon(switch, "ovn-northd", f"--ovnnb-db={north}", f"--ovnsb-db={south}")
        stack.callback(end, northd)
        # Without the last one, ovn-controller 23.03 (seen in 4 starts of 7) took no port that came
        # right after its start, ever: it waits for a part of its database that it then overlooks.
        switch.vsctl(
            "set", "Open_vSwitch", ".", "external_ids:system-id=host1",
            f"external_ids:ovn-remote={south}", "external_ids:ovn-encap-type=geneve",
            "external_ids:ovn-encap-ip=127.0.0.1",
            "external_ids:ovn-bridge-datapath-type=netdev", "external_ids:ovn-monitor-all=true",
        )  # fmt: skip
        controller = daemon(switch, "ovn-controller", switch.remote)
        stack.callback(end, controller)
        sandbox = OvnSandbox(switch)
        # Ports come when it has registered and been through a round, not right after its start.
        sandbox.nbctl("--wait=sb", "init")
        known = ("wait-until", "Chassis", "host1")
        run("ovn-sbctl", f"--timeout={START_S}", f"--db={south}", *known)
        sandbox.nbctl("--wait=hv", "sync")
        yield sandbox
