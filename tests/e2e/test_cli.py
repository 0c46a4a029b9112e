"""The executable as its users have it: ``dev``, and the commands against it, on real daemons."""

import json
import os
import pty
import select
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import docker
import pytest
from attrs import define, field

from tests.e2e.cluster import IMAGE, SWARMCTL, Ended, docker_client, run_swarmctl, until

# With the agent's and the controller's imports on a busy machine.
START_DEADLINE_S = 180.0
# A bridge is of no use here, and costs time.
BOX = ("--network", "none", IMAGE)
TALKS = "trap 'exit 0' TERM; echo out; echo err >&2; while :; do sleep 0.1; done"


@define(eq=False)
class Dev:
    """One ``swarmctl dev`` with a folder, a configuration and a port of its own."""

    folder: Path
    drivers: str
    environment: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if "SWARMCTL" not in key}
        self.environment = kept | {"SWARMCTL_CONFIG": str(self.folder / "config")}

    @property
    def data(self) -> Path:
        return self.folder / "dev"

    def run(self, *arguments: str) -> Ended:
        return run_swarmctl(self.environment, *arguments, deadline_s=START_DEADLINE_S)

    def start(self, *more: str) -> Ended:
        chosen = ("--data", str(self.data), "--name", "n1", "--drivers", self.drivers)
        listen = () if "--listen" in more else ("--listen", "127.0.0.1:0")
        return self.run("dev", "--detach", *chosen, *listen, *more)

    def stop(self) -> Ended:
        return self.run("dev", "--stop", "--data", str(self.data))

    def ps(self, *arguments: str) -> list[dict]:
        ended = self.run("ps", "-o", "json", *arguments)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    def pid(self, daemon: str) -> int:
        return int((self.data / f"{daemon}.pid").read_text())

    def close(self) -> None:
        self.stop()
        key = self.data / "controller" / "cluster.key"
        if "docker" not in self.drivers or not key.exists():
            return
        label = f"swarmctl.cluster={json.loads(key.read_text())['cluster_id']}"
        with closing(docker_client()) as client:
            for row in client.containers(all=True, filters={"label": label}):
                client.remove_container(row["Id"], force=True, v=True)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):
    """One with Docker, for all tests that leave it running."""
    dev = Dev(tmp_path_factory.mktemp("shared"), "docker,sim")
    try:
        started = dev.start()
        assert started.code == 0, started.err
        yield dev
    finally:
        dev.close()


@pytest.fixture
def dev(shared: Dev):
    """The module's, without services after each test."""
    yield shared
    names = shared.run("service", "ls", "-o", "name").out.split()
    if names:
        assert shared.run("rm", "--wait", *names).code == 0


@pytest.fixture
def own(tmp_path: Path):
    """One without Docker, that a test starts and stops itself."""
    made = Dev(tmp_path, "sim")
    try:
        yield made
    finally:
        made.close()


# --- dev -------------------------------------------------------------------------------------


def test_dev_is_ready_when_it_returns(own: Dev):
    """The next command just works; a second dev on the folder is refused; stop ends it all."""
    started = own.start()
    assert started.code == 0, started.err
    assert "node        n1, ready" in started.out
    pids = [own.pid(name) for name in ("dev", "controller", "agent")]
    [node] = json.loads(own.run("node", "ls", "-o", "json").out)
    assert (node["node"], node["state"], node["drivers"]) == ("n1", "ready", ["sim"])

    again = own.start()
    assert again.code == 1
    assert "swarmctl dev runs already" in again.err
    assert f"swarmctl dev --stop --data {own.data}" in again.err

    assert own.stop().code == 0
    assert not any(alive(pid) for pid in pids)
    assert not list(own.data.glob("*.pid"))
    assert own.run("ps").code == 3
    assert own.stop().code == 1


@pytest.fixture(scope="module")
def reviving(tmp_path_factory: pytest.TempPathFactory):
    """One without Docker and with an instance, whose daemons are killed."""
    made = Dev(tmp_path_factory.mktemp("reviving"), "sim")
    try:
        assert made.start().code == 0
        assert made.run("run", "--name", "web", "--driver", "sim", "--wait", "x").code == 0
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("victims", [("controller",), ("agent",), ("controller", "agent")])
def test_dev_starts_again_what_was_killed(reviving: Dev, victims: tuple[str, ...]):
    """And says so in its log; instances and services are as they were."""
    [before] = reviving.ps()
    log = reviving.data / "dev.log"
    said_before = log.stat().st_size
    for victim in victims:
        os.kill(reviving.pid(victim), signal.SIGKILL)
    # First this: until it is noticed that an agent was killed, ps says what was so before.
    for victim in victims:
        said = f"the {victim} was killed by SIGKILL".encode()
        until(lambda said=said: said in log.read_bytes()[said_before:], what=str(said))

    def back() -> bool:
        ended = reviving.run("ps", "-o", "json")
        [shown] = json.loads(ended.out) if ended.code == 0 else [before]
        # A simulated instance lives in the agent: it is started again there, in another attempt.
        lives_on = shown["attempt"] == before["attempt"]
        return (
            ended.code == 0 and shown["state"] == "running" and lives_on == ("agent" not in victims)
        )

    until(back, START_DEADLINE_S, "the cluster back")
    assert reviving.ps()[0]["incarnation"] == before["incarnation"]


def test_the_daemons_end_with_a_killed_dev(own: Dev):
    """A supervisor that is killed leaves nothing that the next start stumbles over."""
    assert own.start().code == 0
    pids = [own.pid(name) for name in ("controller", "agent")]
    os.kill(own.pid("dev"), signal.SIGKILL)

    until(
        lambda: not any(alive(pid) for pid in pids),
        START_DEADLINE_S,
        "both daemons gone",
    )
    assert own.start().code == 0


def test_a_port_in_use_is_named(dev: Dev, tmp_path: Path):
    """Exit code 1, the address and --listen; nothing is left running."""
    context = json.loads((dev.data / "controller" / "admin.context").read_text())
    [address] = context["addresses"]
    other = Dev(tmp_path / "other", "sim")
    ended = other.start("--listen", address)

    assert ended.code == 1
    assert f"error: {address}: another process listens on this address" in ended.err
    assert "--listen" in ended.err
    assert not list(other.data.glob("*.pid"))


def test_dev_in_the_foreground_stops_at_ctrl_c(own: Dev):
    """It shows what runs, and ends cleanly with both daemons."""
    own.folder.mkdir(exist_ok=True)
    arguments = ["--data", str(own.data), "--listen", "127.0.0.1:0", "--drivers", "sim"]
    with subprocess.Popen(
        [*SWARMCTL, "dev", *arguments, "--name", "n1"],
        env=own.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(2)]
        assert shown[1].split() == ["node", "n1,", "ready"]
        pids = [own.pid(name) for name in ("controller", "agent")]
        process.send_signal(signal.SIGINT)
        assert process.wait(START_DEADLINE_S) == 0
    assert not any(alive(pid) for pid in pids)


def test_a_data_folder_without_permission(own: Dev):
    """One line: the folder and why; exit code 1."""
    blocker = own.folder / "file"
    blocker.write_text("")
    ended = own.run("controller", "--data", str(blocker / "data"), "--listen", "127.0.0.1:0")

    assert ended.code == 1
    assert str(blocker) in ended.err
    assert "Traceback" not in ended.err


def test_two_controllers_on_one_folder(dev: Dev):
    """The second names the first; exit code 1."""
    folder = dev.data / "controller"
    ended = dev.run("controller", "--data", str(folder), "--listen", "127.0.0.1:0")

    assert ended.code == 1
    assert f"in use by process {dev.pid('controller')}" in ended.err


# --- services on Docker ----------------------------------------------------------------------


def test_run_wait_ends_when_all_run(dev: Dev):
    """Docker agrees with ps about every container."""
    ended = dev.run("run", "--name", "web", "--replicas", "3", "--wait", *BOX, "sh", "-c", TALKS)
    assert (ended.code, ended.out) == (0, "web\n")
    assert ended.lines[-1].startswith("web: 3 running")

    shown = dev.ps()
    assert [one["state"] for one in shown] == ["running"] * 3
    with closing(docker_client()) as client:
        for one in shown:
            assert client.inspect_container(one["runtime_id"])["State"]["Running"]
    assert dev.run("scale", "web=1", "--wait").code == 0
    assert dev.run("rm", "web", "--wait").code == 0
    assert dev.ps() == []
    with closing(docker_client()) as client, pytest.raises(docker.errors.NotFound):
        client.inspect_container(shown[0]["runtime_id"])


def test_trace_shows_the_launch_and_the_path(dev: Dev):
    """Step by step from the commit to the first good check, and Docker's bridge and port."""
    arguments = ["--name", "web", "-p", "80", "--health-cmd", "true", "--health-interval", "1s"]
    dev.run("run", *arguments, "--wait", IMAGE, "sh", "-c", TALKS)
    ended = dev.run("trace", "web", "-o", "json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)

    assert [one["step"] for one in found["steps"]] == [
        *("accepted", "placed", "sent"),
        *("received", "journaled", "preparing", "prepared", "starting", "created", "running"),
        "healthy",
    ]
    totals = [one["total_ms"] for one in found["steps"]]
    assert totals == sorted(totals)
    assert totals[0] == 0
    assert found["steps"][-1]["when"].endswith("Z")
    assert found["clocks"]["used"] is True
    [path] = found["networks"]
    with closing(docker_client()) as client:
        inspected = client.inspect_container(dev.ps()[0]["runtime_id"])
    [ends] = inspected["NetworkSettings"]["Networks"].values()
    assert (path["mac"], path["addresses"]) == (ends["MacAddress"], [ends["IPAddress"]])
    assert (path["bridge"], path["nat"], path["published"]) == (
        "docker0",
        True,
        dev.ps()[0]["ports"],
    )

    table = dev.run("trace", "web.1")
    assert table.out.startswith("web.1 running (healthy) on n1")
    assert "the node's clock" in table.err
    assert dev.run("trace", "wbe").code == 1
    assert dev.run("trace", "web", "--to", "wbe.1").err.startswith("error: no service or instance")
    outside = dev.run("trace", "web", "--to", "10.1.2.3").out.splitlines()[-1]
    assert outside.startswith("to 10.1.2.3: no path:")
    assert outside.endswith("on no tenant network")


def test_logs_name_the_instance_and_keep_the_streams_apart(dev: Dev):
    """Several instances are prefixed, one alone is not; stderr stays stderr."""
    dev.run("run", "--name", "web", "--replicas", "2", "--wait", *BOX, "sh", "-c", TALKS)

    def both_said() -> Ended | None:
        said = dev.run("logs", "web")
        return said if (said.out.count("out"), said.err.count("err")) == (2, 2) else None

    both = until(both_said, what="both lines of both")
    assert sorted(both.out.splitlines()) == ["web.1 | out", "web.2 | out"]
    assert sorted(both.err.splitlines()) == ["web.1 | err", "web.2 | err"]
    alone = dev.run("logs", "web.1", "--timestamps")
    assert alone.out.endswith("Z out\n")


def test_exec_passes_input_output_and_exit_code(dev: Dev):
    """A pipe is read to its end, bytes untouched, the command's own exit code."""
    dev.run("run", "--name", "web", "--wait", *BOX, "sh", "-c", TALKS)
    data = bytes(range(256)) * 1000
    command = [*SWARMCTL, "exec", "-i", "web.1", "sh", "-c", "cat; exit 7"]
    done = subprocess.run(
        command, env=dev.environment, input=data, capture_output=True, timeout=60, check=False
    )

    assert done.stdout == data
    assert done.returncode == 7
    assert dev.run("exec", "web", "echo", "hi").out == "hi\n"
    assert dev.run("exec", "-it", "web", "sh").code == 2


def test_exec_with_a_terminal(dev: Dev):
    """Keys go in raw, the command sees the window's size, and the terminal is given back."""
    dev.run("run", "--name", "web", "--wait", *BOX, "sh", "-c", TALKS)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(dev.environment)
        os.execv(SWARMCTL[0], [*SWARMCTL, "exec", "-it", "web.1", "sh"])
    try:
        read_until(terminal, b"#")
        os.write(terminal, b"tty; echo a$((1+1))b; exit 5\r")
        said = read_until(terminal, b"a2b")
        assert b"/dev/pts/" in said
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5


def read_until(descriptor: int, mark: bytes) -> bytes:
    """What a terminal says, up to ``mark``."""
    said, end = b"", time.monotonic() + 30.0
    while mark not in said:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert readable, f"{mark!r} did not come: {said!r}"
        said += os.read(descriptor, 4096)
    return said


@pytest.mark.parametrize(("script", "code"), [("echo hello", 0), ("echo hello; exit 3", 3)])
def test_run_rm_is_a_job_in_the_foreground(dev: Dev, script: str, code: int):
    """Its output, its exit code, and nothing is left."""
    ended = dev.run("run", "--rm", *BOX, "sh", "-c", script)

    assert (ended.code, ended.out) == (code, "hello\n"), ended.err
    assert dev.run("service", "ls", "-o", "name").out == ""


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([*BOX, "nosuchcommand"], "nosuchcommand does not exist in the image", 1),
        (["no-such-registry.invalid/x:1"], "no-such-registry.invalid/x:1", 1),
        (["--cpus", "1000", IMAGE], "lacks cpu (need 1000", 4),
        (["--constraint", "node.labels.zone == moon", IMAGE], "node.labels.zone == moon", 4),
    ],
)
def test_a_launch_that_cannot_work_is_explained(
    dev: Dev, arguments: list[str], said: str, code: int
):
    """--wait ends with the reason; explain says the same."""
    ended = dev.run("run", "--name", "bad", "--wait", "--timeout", "40s", *arguments)

    assert ended.code == code
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert said in dev.run("explain", "bad.1").out


def test_restart_waits_for_the_new_run(dev: Dev):
    """When it returns, another attempt runs."""
    dev.run("run", "--name", "web", "--wait", *BOX, "sh", "-c", TALKS)
    [before] = dev.ps()

    assert dev.run("restart", "web.1", "--wait").code == 0
    [after] = dev.ps()
    assert after["state"] == "running"
    assert after["attempt"] == before["attempt"] + 1


def test_a_reader_that_has_enough_ends_nothing_badly(dev: Dev):
    """``swarmctl ps | head``: no traceback, no complaint."""
    dev.run("run", "--name", "web", "--driver", "sim", "--replicas", "2000", "--wait", "x")
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(SWARMCTL)} ps -o wide | head -1"],
        env=dev.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.startswith("INSTANCE")
    assert done.stderr == ""
