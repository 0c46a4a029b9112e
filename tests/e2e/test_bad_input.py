"""Bad input and a bad world: one clear line, the right exit code, nothing lost or half-made."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from swarmctl.proto import codec
from swarmctl.proto.errors import StorageFault
from swarmctl.proto.messages import Refuse, Request
from tests.e2e.cluster import (
    IMAGE,
    MIB,
    Cluster,
    Ended,
    box,
    docker_client,
    run_swarmctl,
    until,
)
from tests.integration import real_instances

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# Room enough not to be sick from the start (an agent wants 128 MiB free), and to be well again
# after it was full (it wants half as much more then).
AGENT_DISK_BYTES = 256 * MIB
# An answer that comes at once, of a controller that waits for the CPU.
ANSWER_S = 30.0


def assert_says(ended: Ended, code: int, *parts: str) -> None:
    """It ended with ``code`` and one error of at most two lines that has all ``parts``."""
    assert ended.code == code, (ended.code, ended.err)
    assert "Traceback" not in ended.err
    errors = [line for line in ended.lines if line.startswith("error: ")]
    assert len(errors) == 1, ended.err
    said = "\n".join(ended.lines[ended.lines.index(errors[0]) :])
    assert len(said.splitlines()) <= 2, said
    for part in parts:
        assert part in said, (part, said)


def assert_nothing_runs(cluster: Cluster) -> None:
    """Nothing runs, and the services can be taken away without a trace."""
    assert not any(one.running for one in cluster.containers().values())
    assert cluster.domains() == {}
    cluster.remove_all()
    assert cluster.containers() == {}


def sickness(cluster: Cluster) -> str:
    """Why the only node is sick; empty when it is not."""
    [node] = cluster.call("node.list")
    return " ".join(node["reasons"]) if node["state"] == "sick" else ""


# --- what a user types -----------------------------------------------------------------------


def test_unknown_image(cluster: Cluster):
    """The line names the instance, the node and the image, and says what to check."""
    done = cluster.swarmctl("run", "--wait", "--name", "web", "no.invalid/image:none")
    assert_says(done, 1, "web.1 failed on n", "no.invalid/image:none", "check the image's name")
    assert_nothing_runs(cluster)


def test_command_that_the_image_lacks(cluster: Cluster):
    """The line names the instance, the node and the command."""
    done = cluster.swarmctl("run", "--wait", "--name", "web", IMAGE, "nosuchcommand")
    assert_says(done, 1, "web.1 failed on n", "nosuchcommand does not exist in the image")
    assert_nothing_runs(cluster)


def test_memory_of_12_gigs(cluster: Cluster):
    """A size that is none is wrong usage, with the way to write it."""
    done = cluster.swarmctl("run", "--memory", "12 gigs", IMAGE, "sleep", "60")
    assert_says(done, 2, '--memory: "12 gigs" is not a size', 'write "12g"')
    assert not cluster.call("service.list")


def test_a_thousand_cpus(cluster: Cluster):
    """What fits nowhere is counted by reason, and has an exit code of its own."""
    done = cluster.swarmctl("run", "--wait", "--name", "web", "--cpus", "1000", IMAGE, "sleep", "9")
    assert_says(done, 4, "0 of 2 nodes fit", "lack cpu (need 1000", "it stays pending")
    assert cluster.states() == {"web.1": "pending"}
    assert_nothing_runs(cluster)


def test_name_with_a_slash(cluster: Cluster):
    """A name that cannot be one is wrong usage, with one that can."""
    done = cluster.swarmctl("run", "--name", "a/b", IMAGE, "sleep", "60")
    assert_says(done, 2, '--name: "a/b" cannot be a service name', '"a-b"')
    assert not cluster.call("service.list")


def test_host_port_in_use(cluster: Cluster):
    """The line names the port; once it is free the instance runs by itself."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        done = cluster.swarmctl(
            *("run", "--wait", "--name", "web", "--stop-timeout", "1s", "-p", f"{port}:80"),
            *(IMAGE, "sleep", "60"),
        )
        assert_says(done, 1, "web.1 failed on n", f":{port}", "choose another host port")
        assert not any(one.running for one in cluster.containers().values())
    cluster.await_states({"web.1": "running"})


def test_corrupt_qcow2(cluster: Cluster):
    """A disk image that is damaged is named, and no domain is left."""
    image = cluster.folder / "corrupt.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(range(256)) * 40)
    done = cluster.swarmctl("run", "--wait", "--name", "db", "--vm", str(image))
    assert_says(done, 1, "db.1 failed on n1", str(image), "is it corrupt")
    assert_nothing_runs(cluster)


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("services:\n  web:\n\timage: x\n", ":3", "a tab"),
        (
            f"services:\n  web:\n    image: {IMAGE}\n    deploy:\n      replicas: many\n",
            ":5: services.web.deploy.replicas",
            'not "many"',
        ),
        (
            f"services:\n  ok:\n    image: {IMAGE}\n  web:\n    imgae: x\n",
            ":5: services.web",
            "image",
        ),
    ],
    ids=["tab", "type", "typo"],
)
def test_stack_file_that_is_wrong(cluster: Cluster, text: str, place: str, what: str):
    """File, line and field are named, and nothing of the file is applied."""
    file = cluster.folder / "stack.yaml"
    file.write_text(text)
    done = cluster.swarmctl("apply", "-f", str(file))
    assert done.code == 2, done.err
    assert f"{file}{place}" in done.err
    assert what in done.err
    assert "Traceback" not in done.err
    assert not cluster.call("service.list")


def test_no_controller_in_reach(cluster: Cluster):
    """Nobody at the context's address has an exit code of its own."""
    cluster.controller.stop()
    done = cluster.swarmctl("ps")
    assert_says(done, 3, cluster.address, "running?")


# --- daemons that cannot be ------------------------------------------------------------------


def test_two_controllers_on_one_folder(cluster: Cluster):
    """The second one names the first and goes; the first serves on."""
    assert cluster.controller.process is not None
    pid = cluster.controller.process.pid
    done = cluster.swarmctl("controller", "--data", str(cluster.data), "--listen", "127.0.0.1:0")
    assert_says(done, 1, str(cluster.data), f"in use by process {pid} (controller)", "--data")
    until(cluster.all_ready, what="all nodes ready")


def test_two_controllers_on_one_port(cluster: Cluster):
    """The second one names the address and goes; the first serves on."""
    folder = cluster.folder / "second"
    done = cluster.swarmctl("controller", "--data", str(folder), "--listen", cluster.address)
    assert_says(done, 1, f"{cluster.address}: another process listens", "--listen")
    until(cluster.all_ready, what="all nodes ready")


@pytest.mark.parametrize("kind", ["controller", "agent"])
def test_data_folder_without_permission(cluster: Cluster, tmp_path: Path, kind: str):
    """The line names the folder and the reason, and nothing is made."""
    folder = Path("/tmp") / f"swarmctl-e2e-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o755)
    token = folder / "token"
    shutil.copy(cluster.data / "join.token", token)
    token.chmod(0o644)
    arguments = {
        "controller": ["controller", "--data", str(folder / "c"), "--listen", "127.0.0.1:0"],
        "agent": ["agent", "--data", str(folder / "a"), "--join", str(token), "--name", "n9"],
    }[kind]
    environment = cluster.environment | {"HOME": str(tmp_path), "SWARMCTL_CONTEXT": ""}
    try:
        done = run_swarmctl(environment, *arguments, prefix=NOBODY)
        assert_says(done, 1, str(folder), "cannot be made: permission denied", "access")
        assert [one.name for one in folder.iterdir()] == ["token"]
    finally:
        shutil.rmtree(folder)


# --- a full disk -----------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(place: Path, size_bytes: int = 6 * MIB) -> Iterator[Path]:
    """A file system of its own at ``place``."""
    place.mkdir(parents=True)
    options = f"size={size_bytes},mode=0711"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave not one free block."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)
    return ballast


def test_controller_starts_on_a_full_disk(own: Cluster):
    """A controller that cannot write says so, and starts once there is room."""
    with small_disk(own.data):
        ballast = fill(own.data)
        done = own.swarmctl(*own.controller.arguments)
        assert_says(done, 1, str(own.data), "full", "free some space")
        ballast.unlink()
        own.controller.start()
        own.controller.stop()


def applied_until_full(cluster: Cluster) -> list[str]:
    """The services that were taken before the store refused one."""
    names: list[str] = []
    for number in range(4_000):
        try:
            cluster.apply(box(f"s{number}", replicas=0))
        except StorageFault:
            return names
        names.append(f"s{number}")
    raise AssertionError("all of them had room")


def test_controllers_disk_fills(own: Cluster):
    """A change is refused and not half-made, looking goes on, and it works again with room.

    A container and a VM are the same runs throughout, a new start of the controller included.
    """
    with small_disk(own.data):
        own.agent("n1", drivers=real_instances.DRIVERS)
        own.start()
        with real_instances.untouched(own, own.call):
            ballast = fill(own.data)
            # What the database's file has room for is taken still; a change is acknowledged or not.
            names = applied_until_full(own)
            done = own.swarmctl("run", "--detach", "--replicas", "0", "--name", "late", IMAGE)
            assert_says(done, 1, "full", "free some space")
            assert own.states() == {"real.1": "running", "vm.1": "running"}

            ballast.unlink()
            own.apply(box("after"))
            own.wait("after")
            own.controller.kill()
            own.controller.start()
            listed = {one["service"] for one in own.call("service.list")}
            assert listed == {*real_instances.SERVICES, "after", *names}
            own.remove("after")
        # The folder that would tell whose they are goes with the disk.
        own.remove(*real_instances.SERVICES)
        own.controller.stop()


def test_agents_disk_fills(own: Cluster):
    """Launches wait while the intent to make them cannot be kept; the node is sick and says why.

    What runs there runs on.
    """
    with small_disk(own.folder / "n1", AGENT_DISK_BYTES):
        own.agent("n1", drivers=real_instances.DRIVERS)
        own.start()
        with real_instances.untouched(own, own.call) as before:
            ballast = fill(own.folder / "n1")
            spec = box("web", 3)
            large = evolve(spec.template, labels={"ballast": "x" * 300_000})
            own.apply(evolve(spec, template=large))

            # Not the first reason that there is: a disk that is short of room may be said before.
            until(lambda: "journal" in sickness(own), what="sick of its journal")
            assert own.containers() == before.containers
            ballast.unlink()
            own.wait("web")
            assert len(own.containers()) == 3 + len(before.containers)
            until(own.all_ready, what="healed")
            own.remove("web")
        own.remove(*real_instances.SERVICES)
        own.agents["n1"].kill()


# --- Docker goes away ------------------------------------------------------------------------


def lives(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class PrivateDocker:
    """A dockerd of the test's own, beside the machine's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        folder = self.folder
        folder.mkdir(exist_ok=True)
        with (folder / "dockerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    # In a network namespace of its own: with --bridge=none a dockerd takes
                    # docker0 away from whoever it shares one with.
                    *("unshare", "--net", "dockerd"),
                    *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
                    *("--pidfile", f"{folder}/pid", "--host", self.host),
                    *("--bridge=none", "--iptables=false", "--storage-driver", "vfs"),
                    "--live-restore",
                ],
                stdout=log,
                stderr=log,
            )
        until(self.answers, what="dockerd's answer")

    def answers(self) -> bool:
        """Whether it does. Not by the SDK, which leaks a socket when nobody is there."""
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(5.0)
            try:
                knock.connect(f"{self.folder}/docker.sock")
                knock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return knock.recv(100).startswith(b"HTTP/1.0 200")
            except OSError:
                return False

    def load(self) -> None:
        """Give it the test image."""
        with closing(docker_client()) as client, closing(docker_client(self.host)) as ours:
            data = b"".join(client.get_image(IMAGE))
            for _ in ours.load_image(data):
                pass

    def kill(self) -> None:
        """``kill -9`` of it and its containerd; what they run goes on without them."""
        assert self.process is not None
        pid_file = self.folder / "exec/containerd/containerd.pid"
        containerd = int(pid_file.read_text())
        self.process.kill()
        self.process.wait()
        self.process = None
        # It dies of its parent's death, a little later; a dockerd that starts meanwhile would take
        # it for alive, and wait for it for ever.
        with contextlib.suppress(ProcessLookupError):
            os.kill(containerd, signal.SIGKILL)
        until(lambda: not lives(containerd), what="the end of containerd")
        pid_file.unlink()

    def close(self) -> None:
        """Remove its containers, end it and what it started."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        # containerd, the shims and what they run all have our folder in their command line, or
        # such a parent.
        for pid in self._left_behind():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self._left_behind(), what="the end of all of them")
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed([one for one in mounts if one.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "--lazy", mount], check=True)

    def _left_behind(self) -> list[int]:
        parents: dict[int, int] = {}
        ours: set[int] = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It has ended.
            if fields[0] == "Z":
                continue
            parents[int(entry.name)] = int(fields[1])
            if f"{self.folder}/".encode() in command:
                ours.add(int(entry.name))
        return [pid for pid in parents if pid in ours or parents[pid] in ours]


@pytest.fixture
def private_docker():
    # Short: the sockets in it have names of 100 characters at the most.
    folder = Path("/tmp") / f"swd-{secrets.token_hex(3)}"
    dockerd = PrivateDocker(folder)
    dockerd.start()
    dockerd.load()
    try:
        yield dockerd
    finally:
        dockerd.close()
        shutil.rmtree(folder)


def test_docker_stopped_amid_launches(own: Cluster, private_docker: PrivateDocker):
    """Dockerd hangs and dies amid launches: the node is sick meanwhile, and all run in the end."""
    own.agent("n1", "--docker-host", private_docker.host)
    own.start()
    own.apply(box("web", 16))
    until(lambda: own.containers(host=private_docker.host), what="the first container")
    assert private_docker.process is not None
    private_docker.process.send_signal(signal.SIGSTOP)
    assert set(own.states().values()) != {"running"}, "it was too late to be amid launches"
    private_docker.kill()

    until(lambda: "docker" in sickness(own), what="the node sick of Docker")
    private_docker.start()
    # Not by wait, which gives up at the first failure that a try a moment later will mend.
    own.await_states({f"web.{slot}": "running" for slot in range(1, 17)})
    until(own.all_ready, what="the node ready")

    runs = own.containers(host=private_docker.host)
    assert len(runs) == 16
    assert all(one.running for one in runs.values())
    with closing(docker_client(private_docker.host)) as client:
        assert len(client.containers(all=True)) == 16
    shown = own.ps()
    assert {name: one["runtime_id"] for name, one in shown.items()} == {
        name: one.id for name, one in runs.items()
    }
    own.remove("web")


# --- random bytes ----------------------------------------------------------------------------


def test_random_bytes_on_the_port(cluster: Cluster):
    """Strangers who send noise harm nobody: sessions and requests go on."""
    cluster.apply(box("web"))
    cluster.wait("web")
    before = cluster.containers()

    def noise() -> None:
        for size in (1, 10, 64, 1_000, 100_000):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", cluster.port), 5.0) as stranger,
            ):
                stranger.sendall(secrets.token_bytes(size))
                stranger.settimeout(0.2)
                stranger.recv(100)

    strangers = [threading.Thread(target=noise) for _ in range(4)]
    for one in strangers:
        one.start()
    for one in strangers:
        one.join()

    until(cluster.all_ready, what="all nodes ready")
    assert cluster.states() == {"web.1": "running"}
    assert cluster.containers() == before


def test_malformed_messages_are_answered(cluster: Cluster):
    """Noise over a connection that was let in is answered one by one, and requests go on."""
    with cluster.client() as client:
        for size in (0, 1, 100, 10_000):
            client.connection.send(secrets.token_bytes(size))
            answer = codec.decode(client.connection.receive(ANSWER_S))
            assert isinstance(answer, Refuse), answer
            assert answer.what
    with cluster.client() as client:
        client.connection.send(codec.encode(Request(1, "no.such.method", {}, 1_000)))
        assert "no.such.method" in str(codec.decode(client.connection.receive(ANSWER_S)))
        assert client.call("cluster.info")["nodes"] == 2


def test_unreadable_service_is_refused(cluster: Cluster):
    """A request that no client of ours sends is refused whole."""
    good = evolve(box("good"), replicas=1)
    bad = evolve(box("bad"), replicas=-5)
    with pytest.raises(Exception, match="replicas"):
        cluster.apply(good, bad)
    assert not cluster.call("service.list")
