"""An Open vSwitch of a test's own: two daemons in a network namespace that goes with the test."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import define

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
START_S = 60  # each command takes a moment on an idle machine


def need_ovs() -> None:
    """Skip where Open vSwitch, or the right to use it, is missing."""
    missing = [name for name in ("ovsdb-server", "ovs-vswitchd", "ip") if not shutil.which(name)]
    if missing or not SCHEMA.exists():
        pytest.skip(f"needs Debian's openvswitch-switch and iproute2: no {missing or SCHEMA}")
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces")


def run(*command: str) -> str:
    """Run a command that works; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace; its path."""
    run("ip", "netns", "add", name)
    try:
        yield f"/run/netns/{name}"
    finally:
        run("ip", "netns", "del", name)


@define
class OvsSandbox:
    """One switch: the namespace that it is in, and its database."""

    namespace: str
    folder: Path
    _server: "subprocess.Popen[bytes] | None" = None
    _switch: "subprocess.Popen[bytes] | None" = None

    @property
    def remote(self) -> str:
        """Where its database listens."""
        return f"unix:{self.folder}/db.sock"

    def vsctl(self, *command: str) -> str:
        """``ovs-vsctl`` on it."""
        return run("ovs-vsctl", f"--timeout={START_S}", f"--db={self.remote}", *command)

    def install(self, device: str) -> None:
        """Say what ovn-controller says when a port's flows are there."""
        self.vsctl("set", "Interface", device, "external_ids:ovn-installed=true")

    def start_database(self) -> None:
        """Start ovsdb-server; done when it answers."""
        punix = f"--remote=punix:{self.folder}/db.sock"
        self._server = daemon(self, "ovsdb-server", str(self.folder / "conf.db"), punix)
        self.vsctl("--retry", "--no-wait", "init")

    def end_database(self) -> None:
        """End it; nothing happens when it does not run."""
        server, self._server = self._server, None
        if server is not None:
            end(server)

    def start_switch(self) -> None:
        """Start ovs-vswitchd."""
        self._switch = daemon(self, "ovs-vswitchd", self.remote)

    def end_switch(self) -> None:
        """End it; nothing happens when it does not run."""
        switch, self._switch = self._switch, None
        if switch is not None:
            end(switch)

    def kill_switch(self) -> None:
        """End it as a fault does, and start it again."""
        assert self._switch is not None, "it runs"
        self._switch.kill()
        self.end_switch()
        self.start_switch()


def daemon(sandbox: OvsSandbox, name: str, *options: str, log: str = "") -> subprocess.Popen[bytes]:
    """One of the switch's daemons, where the switch is; ``log`` where there are two of a name."""
    inside = ["nsenter", f"--net={sandbox.namespace}"] if sandbox.namespace else []
    command = [*inside, name, *options]
    command += ["-vconsole:off", "-vsyslog:off"]
    if name != "ovn-controller":  # which knows no such option, and has one in the folder anyway
        command.append(f"--unixctl={sandbox.folder}/{log or name}.ctl")
    environment = os.environ | dict.fromkeys(
        ("OVS_RUNDIR", "OVS_DBDIR", "OVN_RUNDIR", "OVN_DBDIR"), str(sandbox.folder)
    )
    with (sandbox.folder / f"{log or name}.out").open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a daemon, by force when it does not listen."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


@contextmanager
def ovs(name: str) -> Iterator[OvsSandbox]:
    """A switch with the bridge ``br-int`` on the userspace datapath, in a namespace of its own.

    ``name`` is unique on the machine, for the namespace is called so.
    """
    with namespace(name) as path:
        run("ip", "-n", name, "link", "set", "lo", "up")
        with _running(path, "br-int") as sandbox:
            yield sandbox


@contextmanager
def ovs_beside_libvirt(bridge: str) -> Iterator[OvsSandbox]:
    """A switch where libvirtd is, since its VMs' taps are there; nothing leads out of it.

    ``bridge`` is unique on the machine, and is named as OVN's to integrate.
    """
    with _running("", bridge) as sandbox:
        sandbox.vsctl("set", "Open_vSwitch", ".", f"external_ids:ovn-bridge={bridge}")
        yield sandbox


@contextmanager
def _running(path: str, bridge: str) -> Iterator[OvsSandbox]:
    with ExitStack() as stack:
        # Paths of sockets are short.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ovs-")))
        sandbox = OvsSandbox(path, folder)
        run("ovsdb-tool", "create", str(folder / "conf.db"), str(SCHEMA))
        stack.callback(sandbox.end_database)
        sandbox.start_database()
        stack.callback(sandbox.end_switch)
        sandbox.start_switch()
        sandbox.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
        # Its devices go with it.
        stack.callback(sandbox.vsctl, "del-br", bridge)
        yield sandbox
