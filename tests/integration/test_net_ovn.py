"""The northbound on a real ovsdb-server: the contract, and what only a real one can do."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from lab import procs
from swarmctl.net.diff import difference
from swarmctl.net.model import Wishes
from swarmctl.net.ovn import OvnNorthbound
from swarmctl.net.rows import desired_rows
from tests.unit.net.northbound_contract import Harness, NorthboundContract
from tests.unit.net.wishes import CLUSTER, network, port

SCHEMA = Path("/usr/share/ovn/ovn-nb.ovsschema")
START_S = 60

pytestmark = pytest.mark.skipif(
    shutil.which("ovsdb-server") is None or not SCHEMA.exists(),
    reason="no ovsdb-server with OVN's schema: `python3 -m lab up --only ovn` brings it",
)


class OvnHarness(Harness):
    """A server of its own for each test, on a socket in the test's folder."""

    def __init__(self, folder, nursery):
        self.folder = folder
        self.nursery = nursery
        self.socket = folder / "nb.sock"
        self.process = None
        self.make_database()

    def make_database(self):
        """An empty one, in place of what there is."""
        file = self.folder / "nb.db"
        file.unlink(missing_ok=True)
        subprocess.run(["ovsdb-tool", "create", file, SCHEMA], check=True, timeout=START_S)

    def start(self):
        """Start the server and wait until it listens."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "ovsdb-server", str(self.folder / "nb.db")),
                    f"--remote=punix:{self.socket}",
                    f"--unixctl={self.folder}/ctl",
                ],
                stdout=log,
                stderr=log,
            )
        assert procs.wait_until(self.socket.exists, START_S)

    async def open(self, cluster_id=CLUSTER):
        if self.process is None:
            self.start()
        northbound = OvnNorthbound([f"unix:{self.socket}"], cluster_id)
        self.nursery.start_soon(northbound.run)
        return northbound

    async def go_away(self):
        self.process.kill()
        self.process.wait(START_S)
        self.socket.unlink(missing_ok=True)

    async def come_back(self):
        self.start()

    def nbctl(self, *words):
        """What an operator does."""
        done = subprocess.run(
            ["ovn-nbctl", f"--db=unix:{self.socket}", f"--timeout={START_S}", *words],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def close(self):
        """End the server."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(START_S)


class TestOvnNorthbound(NorthboundContract):
    @pytest.fixture
    def harness(self, tmp_path, nursery):
        harness = OvnHarness(tmp_path, nursery)
        yield harness
        harness.close()

    async def test_what_others_made_stays(self, northbound, harness):
        """Their rows, and their ports and notes on rows of ours."""
        world = Wishes(networks=(network(),), ports=(port(1),))
        await self.converge(northbound, world)
        switch = f"{CLUSTER[:8]}:net:acme:front"
        harness.nbctl("ls-add", "theirs")
        harness.nbctl("lsp-add", switch, "their-port")
        harness.nbctl("set", "logical_switch", switch, "external_ids:theirs=1")
        wanted = await self.converge(northbound, Wishes(networks=(network(),)))

        assert await northbound.read() == wanted
        assert "theirs" in harness.nbctl("ls-list")
        assert "their-port" in harness.nbctl("lsp-list", switch)
        assert harness.nbctl("get", "logical_switch", switch, "external_ids:theirs") == '"1"'

    async def test_what_others_changed_is_put_right(self, northbound, harness):
        """A row of ours that was deleted or altered is found at the next comparison."""
        world = Wishes(networks=(network(),), ports=(port(1), port(2)))
        await self.converge(northbound, world)
        harness.nbctl("lsp-del", port(1).name)
        harness.nbctl("lsp-set-addresses", port(2).name, "unknown")
        wanted = await self.converge(northbound, world)

        assert await northbound.read() == wanted

    async def test_a_row_made_twice_is_taken_away(self, northbound, harness):
        """One of the two stays, whichever."""
        await self.converge(northbound, Wishes(networks=(network(),), ports=(port(1),)))
        key = "dns/acme/front/web"
        harness.nbctl(
            "create",
            "dns",
            f"external_ids:swarmctl-cluster={CLUSTER}",
            f'external_ids:swarmctl-id="{key}"',
        )
        assert len([one for one in await northbound.read() if one.startswith(key)]) == 2
        wanted = await self.converge(northbound, Wishes(networks=(network(),), ports=(port(1),)))

        assert await northbound.read() == wanted

    async def test_a_new_database_is_filled(self, northbound, harness):
        """Its file is lost: the term and the rows are written again."""
        world = Wishes(networks=(network(),), ports=(port(1),))
        wanted = await self.converge(northbound, world)
        seen = await northbound.wait_connected(0)
        await harness.go_away()
        harness.make_database()
        await harness.come_back()
        await northbound.wait_connected(seen)

        assert await northbound.read() == {}
        await northbound.apply(difference({}, wanted))
        assert await northbound.read() == wanted
        assert "=" in harness.nbctl("get", "nb_global", ".", "external_ids")

    async def test_a_server_that_hangs_is_an_error_and_then_none(
        self, northbound, harness, monkeypatch
    ):
        """The call ends at its deadline; when the server goes on, so do we."""
        monkeypatch.setattr("swarmctl.net.ovn.CALL_S", 0.5)
        wanted = desired_rows(CLUSTER, Wishes(networks=(network(),)))
        harness.process.send_signal(signal.SIGSTOP)
        with pytest.raises(Exception, match="did not answer within"):
            await northbound.apply(difference({}, wanted))
        harness.process.send_signal(signal.SIGCONT)
        monkeypatch.setattr("swarmctl.net.ovn.CALL_S", 15.0)
        # It may have been done or not: whoever compares anew finds out.
        await self.converge(northbound, Wishes(networks=(network(),)))

        assert await northbound.read() == wanted


class Member:
    """One server of a database with three."""

    def __init__(self, folder, name, first):
        self.folder, self.name, self.first = folder, name, first
        self.remote = f"unix:{folder}/{name}.sock"
        self.raft = f"unix:{folder}/{name}.raft"
        self.process = None

    def start(self):
        """Start it; it serves when it has joined."""
        file = f"{self.folder}/{self.name}.db"
        command = ["ovsdb-tool", "create-cluster", file, SCHEMA, self.raft]
        if self is not self.first:
            join = ["join-cluster", file, "OVN_Northbound", self.raft, self.first.raft]
            command = ["ovsdb-tool", *join]
        subprocess.run(command, check=True, timeout=START_S)
        self.process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "ovsdb-server", file),
                f"--remote=p{self.remote}",
                f"--unixctl={self.folder}/{self.name}.ctl",
            ],
            stderr=subprocess.DEVNULL,
        )
        assert procs.wait_until(lambda: self.status("Status") == "cluster member", START_S)

    def status(self, what):
        """What it says of itself."""
        command = ["ovs-appctl", "-t", f"{self.folder}/{self.name}.ctl", "cluster/status"]
        done = subprocess.run(
            [*command, "OVN_Northbound"], capture_output=True, text=True, check=False
        )
        lines = (line.partition(": ") for line in done.stdout.splitlines())
        return next((value for key, _, value in lines if key == what), "")

    def kill(self):
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_S)
            self.process = None


@pytest.fixture
def members(tmp_path):
    """Three servers; the first leads."""
    first = Member(tmp_path, "m1", None)
    first.first = first
    every = [first, Member(tmp_path, "m2", first), Member(tmp_path, "m3", first)]
    try:
        for member in every:
            member.start()
        yield every
    finally:
        for member in every:
            member.kill()


def leader_of(members):
    """Who leads, once one does: on a busy machine they may be about to elect another."""
    found = []

    def known():
        found[:] = [one for one in members if one.status("Role") == "leader"]
        return len(found) == 1

    assert procs.wait_until(known, START_S), "nobody leads"
    return found[0]


async def test_of_several_servers_the_leader_is_used(members, nursery):
    """When it is killed the next one is found, with all that was written."""
    leader = leader_of(members)
    followers = [one for one in members if one is not leader]
    northbound = OvnNorthbound([one.remote for one in (*followers, leader)], CLUSTER)
    nursery.start_soon(northbound.run)
    await northbound.take_term(7)
    wanted = desired_rows(CLUSTER, Wishes(networks=(network(),), ports=(port(1),)))
    await northbound.apply(difference({}, wanted))
    seen = await northbound.wait_connected(0)
    leader.kill()
    await northbound.wait_connected(seen)

    assert await northbound.read() == wanted
    await northbound.apply(difference(wanted, {}))
    assert await northbound.read() == {}
    nursery.cancel_scope.cancel()


async def test_a_server_that_leads_no_more_is_left(members, nursery):
    """It was away for a moment, its connection held; what it has may be behind."""
    leader = leader_of(members)
    northbound = OvnNorthbound([one.remote for one in members], CLUSTER)
    nursery.start_soon(northbound.run)
    await northbound.take_term(7)
    seen = await northbound.wait_connected(0)
    leader.process.send_signal(signal.SIGSTOP)
    others = [one for one in members if one is not leader]
    try:
        leader_of(others)
    finally:
        leader.process.send_signal(signal.SIGCONT)
    assert procs.wait_until(lambda: leader.status("Role") == "follower", START_S)

    assert await northbound.read() == {}
    assert await northbound.wait_connected(seen) > seen
    nursery.cancel_scope.cancel()
