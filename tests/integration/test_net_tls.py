"""OVN's northbound database at ``ssl:``: a real ovsdb-server, certificates made by ``ovs-pki``.

OVN's own set-up: one authority, whose certificates server and client show each other; names
of hosts do not count, and at 127.0.0.1 the server's certificate is not for that.
"""

import os
import shutil
import subprocess

import pytest
import trio
from attrs import evolve, frozen

from lab import procs
from swarmctl.net.diff import difference
from swarmctl.net.model import Wishes
from swarmctl.net.ovn import OvnNorthbound
from swarmctl.net.rows import desired_rows
from swarmctl.net.tls import Credentials, tls_context
from swarmctl.proto.errors import DeadlineExceeded, InvalidSpec
from tests.e2e.cluster import Daemon, free_port, run_swarmctl
from tests.integration.test_net_ovn import SCHEMA, START_S
from tests.unit.net.wishes import CLUSTER, network

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("ovsdb-server", "ovs-pki", "ovn-nbctl"))) or not SCHEMA.exists(),
    reason="no ovsdb-server with OVN's schema: `python3 -m lab up --only ovn` brings it",
)
WANTED = desired_rows(CLUSTER, Wishes(networks=(network(),)))


@frozen
class Authority:
    """A folder with an authority of its own, and what it has signed."""

    folder: os.PathLike

    def pki(self, *words):
        """``ovs-pki`` on it."""
        command = ["ovs-pki", f"--dir={self.folder}/pki", f"--log={self.folder}/log", *words]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=START_S)

    def sign(self, name):
        """A certificate of that name; what its holder needs."""
        self.pki("-u", "req+sign", name)
        return Credentials(
            self.folder / f"{name}-privkey.pem",
            self.folder / f"{name}-cert.pem",
            self.folder / "pki" / "switchca" / "cacert.pem",
        )


@pytest.fixture(scope="module")
def make_authority(tmp_path_factory):
    """Makes authorities."""

    def make():
        made = Authority(tmp_path_factory.mktemp("pki"))
        made.pki("init")
        return made

    return make


@pytest.fixture(scope="module")
def ours(make_authority):
    """The authority that both ends know."""
    return make_authority()


@pytest.fixture(scope="module")
def foreign(make_authority):
    """Another one."""
    return make_authority()


@pytest.fixture(scope="module")
def own(ours):
    """What the controller has."""
    return ours.sign("controller")


@pytest.fixture(scope="module")
def server(ours, tmp_path_factory):
    """A database for holders of our authority's certificates; where it is."""
    folder, shown = tmp_path_factory.mktemp("nb"), ours.sign("localhost")
    subprocess.run(["ovsdb-tool", "create", folder / "nb.db", SCHEMA], check=True, timeout=START_S)
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "ovsdb-server", str(folder / "nb.db")),
                f"--remote=pssl:{port}:{host}",
                f"--remote=punix:{folder}/nb.sock",
                f"--private-key={shown.private_key}",
                f"--certificate={shown.certificate}",
                f"--ca-cert={shown.authority}",
                f"--unixctl={folder}/ctl",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        assert procs.wait_until((folder / "nb.sock").exists, START_S)
        yield f"ssl:{address}", f"unix:{folder}/nb.sock"
    finally:
        process.kill()
        process.wait(START_S)


async def until_said(northbound, why):
    """Nothing is read, and sooner or later it is said why: a reset may come before the alert."""
    with trio.fail_after(START_S):
        while True:
            with pytest.raises(DeadlineExceeded) as caught:
                await northbound.read()
            if why in caught.value.what:
                return


async def test_rows_are_written_by_who_shows_a_certificate(server, own, nursery):
    """Though the server's is for no host: it is of the authority."""
    northbound = OvnNorthbound([server[0]], CLUSTER, own)
    nursery.start_soon(northbound.run)
    await northbound.take_term(7)
    await northbound.apply(difference(await northbound.read(), WANTED))

    assert await northbound.read() == WANTED
    await northbound.apply(difference(WANTED, {}))
    nursery.cancel_scope.cancel()


async def test_who_shows_no_such_certificate_is_refused_and_hears_why(
    server, own, foreign, nursery, monkeypatch
):
    """None at all, or another authority's: what the server says is what an operator reads."""
    monkeypatch.setattr("swarmctl.net.ovn.CALL_S", 1.0)
    # Without files it is as anywhere: the system's authorities, and the host's name.
    monkeypatch.setenv("SSL_CERT_FILE", str(own.authority))
    named = server[0].replace("127.0.0.1", "localhost")
    stranger = evolve(foreign.sign("stranger"), authority=own.authority)
    for address, credentials, why in (
        (named, None, "CERTIFICATE_REQUIRED"),
        (server[0], stranger, "UNKNOWN_CA"),
        (server[0], None, "not valid for '127.0.0.1'"),
    ):
        northbound = OvnNorthbound([address], CLUSTER, credentials)
        nursery.start_soon(northbound.run)
        await until_said(northbound, why)
    nursery.cancel_scope.cancel()


async def test_a_server_of_another_authority_is_not_believed(
    server, own, foreign, nursery, monkeypatch, tmp_path
):
    """Until the file is the right one: it is read for each connection."""
    monkeypatch.setattr("swarmctl.net.ovn.CALL_S", 1.0)
    believed = tmp_path / "cacert.pem"
    shutil.copy(foreign.sign("unused").authority, believed)
    northbound = OvnNorthbound([server[0]], CLUSTER, evolve(own, authority=believed))
    nursery.start_soon(northbound.run)
    await until_said(northbound, f"{server[0]}: self-signed certificate in certificate chain")
    believed.unlink()
    await until_said(northbound, "No such file")
    shutil.copy(own.authority, believed)
    monkeypatch.setattr("swarmctl.net.ovn.CALL_S", float(START_S))
    with trio.fail_after(START_S):
        await northbound.wait_connected(0)

    assert await northbound.read() == {}
    nursery.cancel_scope.cancel()


def test_files_that_do_not_go_together_are_refused(own, foreign):
    """Another's key, and what is no certificate: the file is named."""
    other = foreign.sign("other")
    for credentials, why in (
        (evolve(own, private_key=other.private_key), "KEY_VALUES_MISMATCH"),
        (evolve(own, certificate=own.private_key), "cannot be used as a certificate"),
        (evolve(own, authority=own.private_key), "cannot be used as an authority's certificate"),
    ):
        with pytest.raises(InvalidSpec, match=why):
            tls_context(credentials)


def test_a_controller_tells_ovn_with_its_certificate(server, own, tmp_path):
    """By its options, as a user starts it."""
    remote, local = server
    environment = os.environ | {"SWARMCTL_CONFIG": str(tmp_path / "config")}
    data = tmp_path / "controller"
    files = [
        *("--ovn-private-key", str(own.private_key), "--ovn-certificate", str(own.certificate)),
        *("--ovn-ca-cert", str(own.authority)),
    ]
    listen = f"tcp://127.0.0.1:{free_port()}"
    arguments = ["controller", "--data", str(data), "--listen", listen, "--ovn", remote, *files]
    daemon = Daemon("controller", arguments, tmp_path / "log", environment)
    daemon.start()
    try:
        context = ("--context", str(data / "admin.context"))
        made = run_swarmctl(environment, *context, "network", "create", "front")
        assert made.code == 0, made.err

        def told():
            command = ["ovn-nbctl", f"--db={local}", f"--timeout={START_S}", "ls-list"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            return "net:default:front" in done.stdout

        assert procs.wait_until(told, START_S)
    finally:
        daemon.stop()
