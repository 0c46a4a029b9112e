"""The oci driver on the real runc, conmon, skopeo and umoci."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from attrs import evolve

from swarmctl.agent import guard
from swarmctl.agent.drivers.api import Driver, EventKind, Exec, KillsCommand, Logs, Phase
from swarmctl.agent.drivers.oci import OciDriver, images, monitor, state
from swarmctl.agent.drivers.oci.layout import Layout
from swarmctl.agent.drivers.oci.rootfs import COPY
from swarmctl.agent.drivers.oci.rotation import rotate
from swarmctl.agent.drivers.oci.state import read_pid
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, NotFound, UserError
from swarmctl.proto.messages import Attachment
from swarmctl.spec.models import ContainerSpec, Mount, PortMapping, Resources, Template
from tests.integration.driver_contract import (
    Behaviour,
    DriverContract,
    ExecContract,
    ExitCodeContract,
    Harness,
    LogsContract,
    eventually,
    ignore,
    next_event,
)
from tests.oci_leftovers import take_all_away, take_away

TALK = "echo out 1; sleep 0.1; echo out 2; echo oops >&2; sleep 0.1; echo out 3"
SCRIPTS = {
    Behaviour.RUNS: "trap 'exit 0' TERM; while :; do sleep 0.1; done",
    Behaviour.STUBBORN: "trap '' TERM; while :; do sleep 0.1; done",
    Behaviour.ENDS: "exit 0",
    Behaviour.ENDS_WITH_3: "exit 3",
    Behaviour.TALKS: TALK + "; exec sleep 600",
    Behaviour.TALKS_AND_ENDS: TALK,
}


@pytest.fixture(scope="session")
def box(tmp_path_factory) -> str:
    """The test image as an OCI layout on this machine; the name of it."""
    folder = tmp_path_factory.mktemp("box") / "layout"
    command = ["skopeo", "copy", "-q", "docker-daemon:swarmctl/testbox:latest", f"oci:{folder}:box"]
    subprocess.run(command, check=True, timeout=60)
    return f"oci:{folder}:box"


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A driver's folder, in which nothing is left at the end."""
    folder = tmp_path_factory.mktemp("oci") / "root"
    yield folder
    take_all_away(folder)
    shutil.rmtree(folder, ignore_errors=True)


class OciHarness(Harness):
    def __init__(self, root: Path, box: str):
        self.root = root
        self.box = box
        self.layout = Layout(root)
        super().__init__()

    def driver_for(self, owner) -> Driver:
        return OciDriver(owner, self.root)

    def template(self, behaviour):
        if behaviour is Behaviour.NO_IMAGE:
            return self.container(image=self.box + "-not")
        if behaviour is Behaviour.NO_COMMAND:
            return self.container(command=("no-such-command",))
        return self.container(command=("sh", "-c", SCRIPTS[behaviour]))

    def container(self, resources: Resources | None = None, **fields) -> Template:
        fields = {
            "image": self.box,
            "network": "none",
            "command": ("sh", "-c", SCRIPTS[Behaviour.RUNS]),
        } | fields
        return Template(container=ContainerSpec(**fields), limits=resources or Resources())

    def place(self, found):
        return self.layout.place(found.runtime_id)

    async def kill(self, found):
        os.kill(read_pid(self.place(found).pid_file), signal.SIGKILL)

    async def vanish(self, found):
        await trio.to_thread.run_sync(take_away, self.layout, found.runtime_id)

    async def clean_up(self):
        await trio.to_thread.run_sync(take_all_away, self.root)

    async def run_one(self, **fields):
        """Launch one container; the launch and what was found."""
        launch = evolve(self.launch(), template=self.container(**fields))
        return launch, await self.run(launch)

    async def output_of(self, **fields) -> str:
        """What a container that ends prints on stdout."""
        launch, _ = await self.run_one(**fields)
        text = bytearray()
        with trio.fail_after(self.deadline_s):
            logs = self.driver.logs(launch.incarnation, follow=True, tail=None, timestamps=False)
            async with aclosing(logs):
                async for chunk in logs:
                    text += chunk.data if chunk.stream == "stdout" else b""
        return text.decode()


@pytest.fixture
async def harness(root, box):
    harness = OciHarness(root, box)
    yield harness
    await harness.clean_up()


class TestOciDriver(DriverContract, ExitCodeContract, LogsContract, ExecContract):
    """The contract, for containers that runc runs."""

    async def test_has_the_abilities_that_are_tested(self, harness):
        """It is known by its protocols to keep output and to run commands."""
        assert isinstance(harness.driver, Logs)
        assert isinstance(harness.driver, Exec)


# --- what a container is made of ------------------------------------------------------------------


async def test_every_field_reaches_the_container(harness, tmp_path):
    """What the spec says is what is found inside."""
    (tmp_path / "file").write_text("bound\n")
    tmp_path.chmod(0o755)
    script = (
        "id -u; id -g; pwd; hostname; echo $A; cat /bound/file; touch /bound/x || echo ro; "
        "grep -c scratch /proc/mounts; grep CapBnd /proc/self/status; "
        "grep Seccomp: /proc/self/status; touch /tmp/x && echo written; "
        "cat /etc/hostname; ls /proc | grep -c '^[0-9]'"
    )
    text = await harness.output_of(
        entrypoint=("sh", "-c"),
        command=(script,),
        environment={"A": "two words"},
        user="1000:1001",
        working_dir="/made/for/it",
        hostname="elsewhere",
        mounts=(
            Mount("bind", str(tmp_path), "/bound", read_only=True),
            Mount("tmpfs", "", "/scratch", size_bytes=1 << 20),
        ),
        cap_add=("NET_ADMIN",),
    )
    lines = text.splitlines()

    assert lines[:8] == [
        "1000",
        "1001",
        "/made/for/it",
        "elsewhere",
        "two words",
        "bound",
        "ro",
        "1",
    ]
    assert int(lines[8].split()[1], 16) >> 12 & 1, "CAP_NET_ADMIN"
    assert lines[9].split()[1] == "2", "a filter"
    assert lines[10:12] == ["written", "elsewhere"]
    assert int(lines[12]) < 10, "it sees its own processes alone"


async def test_limits_are_the_cgroups(harness):
    """Memory and cpu limits are those of the container's cgroup, by whatever version."""
    limits = Resources(cpu_millis=250, memory_bytes=64 << 20)
    _, found = await harness.run_one(resources=limits)

    assert cgroup_limits(harness.place(found).cgroup) == (64 << 20, 25_000)


async def test_running_out_of_memory_is_the_reason(harness):
    """What the kernel killed for want of memory says so."""
    launch, _ = await harness.run_one(
        command=("sh", "-c", "x=x; while :; do x=$x$x; done"),
        resources=Resources(memory_bytes=16 << 20),
    )
    found = await harness.await_phase(launch.incarnation, Phase.EXITED)

    assert found.exit_code == 137
    assert "memory" in found.reason


async def test_all_capabilities_are_those_that_the_machine_gives(harness):
    """`cap_add: [ALL]` starts also where the agent itself has not all of them."""
    text = await harness.output_of(command=("cat", "/proc/self/status"), cap_add=("ALL",))
    ours = (line for line in own_status() if line.startswith("CapBnd"))

    assert set(ours) <= set(text.splitlines())


async def test_a_terminal_is_one(harness):
    """A container with a terminal writes to it, and its output is kept."""
    assert (await harness.output_of(command=("tty",), tty=True)).startswith("/dev/pts/")


async def test_volumes_are_kept_by_name(harness):
    """A named volume begins with the image's content and stays; an unnamed one goes."""
    name = f"v{harness.owner.cluster_id}"
    mounts = (Mount("volume", name, "/www"), Mount("volume", "", "/scratch"))
    first = await harness.output_of(
        command=("sh", "-c", "cat /www/index.html; echo kept > /www/new; touch /scratch/x"),
        mounts=mounts,
    )
    for found in await harness.driver.list():
        await harness.driver.remove(found.incarnation)
    second = await harness.output_of(command=("cat", "/www/new"), mounts=mounts)

    assert first == "swarmctl testbox\n"
    assert second == "kept\n"
    assert [path.name for path in harness.layout.volumes.iterdir()] == [name]


async def test_the_image_is_not_written_to(harness):
    """What one container writes, another one of the same image does not see."""
    await harness.output_of(command=("sh", "-c", "echo x > /www/index.html; rm -r /srv"))

    assert await harness.output_of(command=("cat", "/www/index.html")) == "swarmctl testbox\n"


async def test_without_overlays_each_gets_a_copy(harness, monkeypatch):
    """Where the kernel has no overlay, a container still has a root that it can write to."""
    monkeypatch.setattr("swarmctl.agent.drivers.oci.host.storage_of", lambda _: COPY)
    harness.driver = harness.driver_for(harness.owner)
    health = await harness.driver.probe()
    text = await harness.output_of(command=("sh", "-c", "echo mine > /www/new; cat /www/*"))

    assert health.facts["storage"] == COPY
    assert sorted(text.splitlines()) == ["mine", "swarmctl testbox"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": ("/etc/passwd",)}, "not executable"),
        ({"user": "nobody-of-that-name"}, "user nobody-of-that-name"),
        ({"network": "no-such-network"}, "no-such-network"),
        ({"network": ""}, "no NAT network"),
        ({"ports": (PortMapping(80),)}, "no ports"),
        ({"mounts": (Mount("bind", "/no/such/folder", "/x"),)}, "/no/such/folder"),
        ({"resources": Resources(memory_bytes=1024)}, "memory"),
        ({"resources": Resources(cpu_millis=9_000_000)}, "cpus"),
        ({"image": "Not A Name"}, "name"),
        ({"image": "oci:/no/such/layout"}, "/no/such/layout"),
    ],
)
async def test_specs_that_cannot_work_are_the_users_error(harness, fields, words):
    """The error says which part of the spec is wrong."""
    with pytest.raises(UserError) as raised:
        await harness.run_one(**fields)

    assert words in raised.value.what
    assert raised.value.where == "web.1"


def own_status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def network_namespace() -> str:
    return str(Path("/proc/self/ns/net").readlink())


def cgroup_limits(path: str) -> tuple[int, int]:
    """The memory limit and the cpu quota of a cgroup, by whatever version."""
    places = guard.mounts()
    if "memory" in places:
        memory = Path(places["memory"] + path, "memory.limit_in_bytes").read_text()
        quota = Path(places["cpu"] + path, "cpu.cfs_quota_us").read_text()
    else:
        memory = Path(places[""] + path, "memory.max").read_text()
        quota = Path(places[""] + path, "cpu.max").read_text().split()[0]
    return int(memory), int(quota)


def left_of(root: Path, place) -> list[str]:
    """What there is of a container: mounts, cgroups, files, processes."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if place.id in line]
    cgroups = [Path(one + place.cgroup) for one in set(guard.mounts().values())]
    found += [str(path) for path in (*cgroups, *root.rglob(f"*{place.id}*")) if path.exists()]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes()
            found += [str(words)] if place.id.encode() in words else []
    return found


def commands_in(container: str) -> bytes:
    found = b""
    for pid in guard.find(frozenset({container.encode()})):
        with contextlib.suppress(OSError):  # It has just ended.
            found += Path(f"/proc/{pid}/cmdline").read_bytes()
    return found


# --- networks -------------------------------------------------------------------------------------


async def test_without_a_network_there_is_loopback_alone(harness):
    """A container on no network has a loopback that is up, and nothing else."""
    text = await harness.output_of(command=("ip", "-o", "link"))

    assert "lo:" in text
    assert len(text.splitlines()) == 1


async def test_the_hosts_network_is_the_hosts(harness):
    """A container on the host's network sees what the machine has."""
    text = await harness.output_of(command=("readlink", "/proc/self/ns/net"), network="host")

    assert text.strip() == network_namespace()


async def test_a_namespace_is_there_to_be_plugged_before_the_start(harness):
    """Between create and start ports can be put into it; it goes with the container."""
    port = Attachment("p1", "acme/front", "02:00:00:00:00:01", ("10.9.8.7/24",))
    launch = evolve(
        harness.launch(),
        template=harness.container(
            network="front", command=("sh", "-c", "ip -o link; cat /etc/hosts; sleep 600")
        ),
        attachments=(port,),
    )
    driver = harness.driver
    await driver.prepare(launch, ignore)
    place = harness.layout.place(await driver.create(launch))
    command = ["ip", "-n", place.namespace, "link", "add", "plugged", "type", "veth"]
    await trio.run_process(command)
    found = await driver.start(launch)

    async def said() -> bool:
        chunks = [
            chunk.data
            async for chunk in driver.logs(
                launch.incarnation, follow=False, tail=None, timestamps=False
            )
        ]
        return b"plugged" in b"".join(chunks) and b"10.9.8.7\tweb-1" in b"".join(chunks)

    await eventually(said, harness.deadline_s)
    assert await driver.network_namespace(launch.incarnation) == str(place.namespace_path)
    await driver.remove(launch.incarnation)

    assert found.addresses == ("10.9.8.7",)
    assert not place.namespace_path.exists()


# --- agents and monitors that die -----------------------------------------------------------------

LAUNCHER = """
import sys, trio
from pathlib import Path
from attrs import evolve
from swarmctl.agent.drivers.api import Launch, Owner
from swarmctl.agent.drivers.oci import OciDriver
from swarmctl.spec.models import ContainerSpec, Template

async def main(cluster, root, image, incarnation):
    script = "until [ -e /go ]; do sleep 0.1; done; echo on; exit 5"
    spec = ContainerSpec(image, network="none", command=("sh", "-c", script))
    launch = Launch("web", 1, int(incarnation), Template(container=spec))
    driver = OciDriver(Owner(cluster, "n1"), Path(root))
    await driver.prepare(launch, print)
    await driver.create(launch)
    await driver.start(launch)
    print("runs", flush=True)
    await trio.sleep_forever()

trio.run(main, *sys.argv[1:])
"""


def launch_and_die(arguments: tuple[str, ...]) -> None:
    """Run the launcher until it says that the container runs, and kill it with all that is its."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert b"runs\n" in iter(process.stdout.readline, b"")
        os.killpg(process.pid, signal.SIGKILL)


async def test_a_container_outlives_the_agent_and_its_end_is_kept(harness):
    """The agent's whole process group is killed; what it started runs on and is seen."""
    incarnation = harness.launch().incarnation
    arguments = (harness.owner.cluster_id, str(harness.root), harness.box, str(incarnation))
    await trio.to_thread.run_sync(launch_and_die, arguments)
    running = await harness.find(incarnation)
    (harness.place(running).rootfs / "go").touch()
    ended = await harness.await_phase(incarnation, Phase.EXITED)
    logs = harness.driver.logs(incarnation, follow=True, tail=None, timestamps=False)
    text = b"".join([chunk.data async for chunk in logs])

    assert running.phase is Phase.RUNNING
    assert ended.exit_code == 5
    assert ended.finished_at >= ended.started_at
    assert text == b"on\n"


async def test_an_end_without_a_monitor_is_told(harness):
    """A container whose monitor is killed runs on; its end is noticed all the same."""
    launch = harness.launch()
    async with harness.driver.events() as channel:
        found = await harness.run(launch)
        os.kill(read_pid(harness.place(found).monitor_pid_file), signal.SIGKILL)
        still = await harness.find(launch.incarnation)
        await harness.kill(found)
        event = await next_event(channel, EventKind.EXITED, launch.incarnation, harness.deadline_s)

    again = await harness.driver.start(launch)

    assert still.phase is Phase.RUNNING
    assert event.exit_code is None
    assert "nobody watched" in event.reason
    assert again.phase is Phase.RUNNING


async def test_the_guard_finds_and_kills_it(harness):
    """A fenced container is found by its id in its processes' cgroups, and not its monitor."""
    launch, found = await harness.run_one(command=("sh", "-c", "sleep 600 & sleep 600"))
    names = frozenset({found.runtime_id.encode()})
    first = read_pid(harness.place(found).pid_file)
    processes = guard.find(names)
    for pid, cgroups in processes.items():
        guard.kill(pid, cgroups, names, guard.mounts())
    ended = await harness.await_phase(launch.incarnation, Phase.EXITED)

    assert first in processes
    assert read_pid(harness.place(found).monitor_pid_file) not in processes
    assert ended.exit_code == 137
    assert guard.find(names) == {}


async def test_a_machine_that_was_restarted_runs_nothing(harness):
    """A start of an earlier boot says that it ended, and the next start mounts anew."""
    launch, found = await harness.run_one()
    place = harness.place(found)
    await harness.kill(found)
    await harness.await_phase(launch.incarnation, Phase.EXITED)
    await trio.to_thread.run_sync(monitor.await_end, place)
    place.exit.unlink()
    state.write_start(place, state.Start(os.getpid(), guard.began(os.getpid()), "earlier", 1.0))
    await trio.run_process(["umount", str(place.rootfs)])
    before = await harness.find(launch.incarnation)
    again = await harness.driver.start(launch)

    assert before.phase is Phase.EXITED
    assert before.exit_code is None
    assert again.phase is Phase.RUNNING


async def test_remove_leaves_nothing(harness):
    """No process, mount, cgroup, record or folder."""
    launch, found = await harness.run_one(mounts=(Mount("volume", "", "/kept"),))
    place = harness.place(found)
    before = left_of(harness.root, place)
    await harness.driver.remove(launch.incarnation)

    assert len(before) > 5
    assert left_of(harness.root, place) == []


async def test_what_was_half_made_is_swept(harness):
    """Folders of an agent that is no more go when the next one begins."""
    harness.layout.make()
    names = (".making-999999999-x", ".going-999999999-x", ".trial-999999999-x")
    for name in names:
        (harness.layout.containers / name).mkdir()
    await harness.driver.list()

    assert not any((harness.layout.containers / name).exists() for name in names)


async def test_what_runs_without_its_folder_is_swept(harness):
    """A container whose folder someone took away does not run for ever."""
    _, found = await harness.run_one()
    place = harness.place(found)
    await trio.run_process(["umount", "-l", str(place.rootfs)])
    shutil.rmtree(place.folder)
    assert await harness.driver_for(harness.owner).list() == []

    async def gone() -> bool:
        return left_of(harness.root, place) == []

    await eventually(gone, harness.deadline_s)


async def test_what_the_power_took_is_swept(harness):
    """A container whose record is an empty file was never finished; it goes."""
    _, found = await harness.run_one()
    place = harness.place(found)
    place.record.write_text("")
    await harness.driver_for(harness.owner).list()

    async def gone() -> bool:
        return left_of(harness.root, place) == []

    await eventually(gone, harness.deadline_s)


async def test_a_folder_that_cannot_be_used_is_said(harness, tmp_path):
    """A driver whose folder is no folder is not available, and its calls say so."""
    (tmp_path / "file").write_text("")
    driver = OciDriver(harness.owner, tmp_path / "file" / "oci")
    health = await driver.probe()
    with pytest.raises(DriverUnavailable):
        await driver.list()

    assert not health.available
    assert str(tmp_path) in health.reason


async def test_a_command_ends_with_its_session(harness):
    """Leaving ends the command in the container, so that nothing is left to run for nobody."""
    launch, found = await harness.run_one()
    async with harness.driver.exec(
        launch.incarnation, ("sleep", "4242"), tty=False, stdin=False
    ) as terminal:
        assert isinstance(terminal, KillsCommand)

    async def gone() -> bool:
        return b"4242" not in commands_in(found.runtime_id)

    await eventually(gone, harness.deadline_s)


async def test_a_command_that_is_not_there_is_the_users_error(harness):
    """What runc says of it is an error, not output."""
    launch, _ = await harness.run_one()
    with pytest.raises(UserError, match="no-such-command"):
        async with harness.driver.exec(
            launch.incarnation, ("no-such-command",), tty=False, stdin=False
        ):
            raise AssertionError("not reached")


# --- output ---------------------------------------------------------------------------------------


async def test_output_is_rotated_without_a_gap(harness):
    """A file that is put aside is read before its successor, also by one who follows."""
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.01; done"
    launch, found = await harness.run_one(command=("sh", "-c", script))
    place = harness.place(found)
    text = bytearray()

    async def follow() -> None:
        logs = harness.driver.logs(launch.incarnation, follow=True, tail=None, timestamps=False)
        async with aclosing(logs):
            async for chunk in logs:
                text.extend(chunk.data)

    with trio.fail_after(harness.deadline_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for _ in range(2):
                await eventually(
                    lambda: trio.to_thread.run_sync(rotate, place, 2_000), harness.deadline_s
                )
    logs = harness.driver.logs(launch.incarnation, follow=False, tail=None, timestamps=False)
    kept = b"".join([chunk.data async for chunk in logs])
    last = harness.driver.logs(launch.incarnation, follow=False, tail=150, timestamps=False)
    tail = b"".join([chunk.data async for chunk in last])
    numbers = [str(number) for number in range(1, 301)]

    assert text.decode().split() == numbers
    assert kept.decode().split() == numbers
    assert tail.decode().split() == numbers[150:]
    assert {path.name for path in place.folder.glob("log*")} == {"log", "log.1", "log.2"}


# --- images ---------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path):
    """A real registry of the test's own on loopback; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, (tmp_path / "registry.log").read_text()
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def copy(source: str, target: str, *options: str) -> None:
    subprocess.run(["skopeo", "copy", "-q", *options, source, target], check=True, timeout=60)


async def test_images_come_from_where_they_are(harness, registry, tmp_path):
    """A registry, an archive and the node's Docker give the same image, unpacked once a digest."""
    copy(harness.box, f"oci-archive:{tmp_path}/box.tar")
    copy(harness.box, f"docker://{registry}/team/box:1", "--dest-tls-verify=false")
    names = (
        f"{registry}/team/box:1",
        f"oci-archive:{tmp_path}/box.tar",
        "docker-daemon:swarmctl/testbox",
        "swarmctl/testbox",
        harness.box,
    )
    for name in names:
        assert await harness.output_of(image=name, command=("cat", "/www/index.html")), name
    digests = [path.name for path in harness.layout.images.iterdir()]

    assert len(digests) <= 2, "Docker's own may be compressed otherwise"
    assert all(len(digest) == 64 for digest in digests)


async def test_a_registry_without_the_image_is_quoted(harness, registry):
    """The user's error, with the registry's address."""
    with pytest.raises(NotFound, match=registry):
        await harness.run_one(image=f"{registry}/nothing:1.2")


async def test_a_registry_out_of_reach_is_not_an_unknown_image(harness):
    """Nobody at the registry's address is the environment's fault, and names the registry."""
    with pytest.raises(LaunchFailed, match=r"127\.0\.0\.1:1 "):
        await harness.run_one(image="127.0.0.1:1/some/image:tag")


async def test_a_layout_that_changed_is_unpacked_anew(harness, tmp_path):
    """A layout on the node is looked at again for each launch."""
    layout = tmp_path / "layout"
    copy(harness.box, f"oci:{layout}:v")
    name = f"oci:{layout}:v"
    before = await harness.output_of(image=name, command=None, entrypoint=("sh", "-c", "echo $X"))
    change = ["umoci", "config", "--image", f"{layout}:v", "--config.env", "X=changed"]
    await trio.run_process(change)
    after = await harness.output_of(image=name, command=None, entrypoint=("sh", "-c", "echo $X"))

    assert (before, after) == ("\n", "changed\n")


async def test_launches_at_once_bring_an_image_once(harness, tmp_path, monkeypatch):
    """Twenty launches of an image that is not here copy it once."""
    copy(harness.box, f"oci:{tmp_path}/layout:v")
    copied = []
    real = images.run_to_end

    async def count(*command, **options):
        copied.append(command[0])
        return await real(*command, **options)

    monkeypatch.setattr(images, "run_to_end", count)
    launch = evolve(harness.launch(), template=harness.container(image=f"oci:{tmp_path}/layout:v"))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(harness.driver.prepare, launch, ignore)

    assert copied.count("skopeo") == 1


async def test_a_removed_image_is_noticed_by_create(harness):
    """An image that someone removed after it was prepared is brought again."""
    launch = harness.launch()
    await harness.driver.prepare(launch, ignore)
    for folder in harness.layout.images.iterdir():
        shutil.rmtree(folder)
    await harness.driver.create(launch)
    found = await harness.driver.start(launch)

    assert found.phase is Phase.RUNNING


# --- the node -------------------------------------------------------------------------------------


async def test_missing_programs_are_named(harness, monkeypatch):
    """A node without runc says so, and what to install."""
    monkeypatch.setattr("swarmctl.agent.drivers.oci.host.PATH", "/nowhere")
    health = await harness.driver.probe()

    assert not health.available
    assert "runc" in health.reason
    assert "install" in health.reason


async def test_facts_tell_storage_and_cgroups(harness):
    """`node inspect` shows what containers get here."""
    health = await harness.driver.probe()

    assert health.facts["storage"] in ("overlay", "copy")
    assert health.facts["cgroup_version"] in ("1", "2", "hybrid")
