"""The docker driver against a real dockerd."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
import pytest
import trio
from attrs import evolve

from swarmctl.agent.drivers.api import Driver, EventKind, Exec, Logs, Owner, Phase
from swarmctl.agent.drivers.docker import DockerDriver
from swarmctl.proto.errors import (
    DriverUnavailable,
    InvalidSpec,
    LaunchFailed,
    NotFound,
    UserError,
)
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

IMAGE = "swarmctl/testbox"
TALK = "echo out 1; sleep 0.1; echo out 2; echo oops >&2; sleep 0.1; echo out 3"
SCRIPTS = {
    Behaviour.RUNS: "trap 'exit 0' TERM; while :; do sleep 0.1; done",
    Behaviour.STUBBORN: "trap '' TERM; while :; do sleep 0.1; done",
    Behaviour.ENDS: "exit 0",
    Behaviour.ENDS_WITH_3: "exit 3",
    Behaviour.TALKS: TALK + "; exec sleep 600",
    Behaviour.TALKS_AND_ENDS: TALK,
}


class EmptyRegistry(BaseHTTPRequestHandler):
    """A registry without images: it answers as one does, and has nothing."""

    def do_GET(self):
        """Say that the API is there, and that everything asked for is not."""
        known = self.path == "/v2/"
        body = (
            {}
            if known
            else {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        )
        payload = json.dumps(body).encode()
        self.send_response(200 if known else 404)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_HEAD = do_GET  # noqa: N815 - the server looks for that name

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="session")
def registry() -> Iterator[str]:
    """The address of a registry that has no image."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), EmptyRegistry)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class DockerHarness(Harness):
    def __init__(self, client: docker.APIClient, registry: str):
        self.client = client
        self.registry = registry
        self.drivers: list[DockerDriver] = []
        super().__init__()

    def driver_for(self, owner) -> Driver:
        driver = DockerDriver(owner)
        self.drivers.append(driver)
        return driver

    def template(self, behaviour):
        if behaviour is Behaviour.NO_IMAGE:
            return container(image=f"{self.registry}/nothing")
        if behaviour is Behaviour.NO_COMMAND:
            return container(command=("no-such-command",))
        return container(command=("sh", "-c", SCRIPTS[behaviour]))

    async def kill(self, found):
        await trio.to_thread.run_sync(self.client.kill, found.runtime_id)

    async def vanish(self, found):
        await trio.to_thread.run_sync(
            lambda: self.client.remove_container(found.runtime_id, force=True)
        )

    async def clean_up(self):
        await trio.to_thread.run_sync(self.sweep)
        for driver in self.drivers:
            driver.close()

    def sweep(self):
        """Remove whatever has the test's cluster in its label, past the driver."""
        for cluster in (self.owner.cluster_id, "other" + self.owner.cluster_id):
            label = f"swarmctl.cluster={cluster}"
            for row in self.client.containers(all=True, filters={"label": label}):
                with contextlib.suppress(docker.errors.APIError):
                    self.client.remove_container(row["Id"], force=True, v=True)


def container(image: str = IMAGE, resources: Resources | None = None, **fields) -> Template:
    fields.setdefault("network", "none")
    fields.setdefault("command", ("sh", "-c", SCRIPTS[Behaviour.RUNS]))
    return Template(container=ContainerSpec(image=image, **fields), limits=resources or Resources())


@pytest.fixture
def client() -> Iterator[docker.APIClient]:
    """The SDK, to do things behind the driver's back."""
    client = docker.APIClient(version="auto")
    yield client
    client.close()


@pytest.fixture
async def harness(client, registry):
    harness = DockerHarness(client, registry)
    yield harness
    await harness.clean_up()


class TestDockerDriver(DriverContract, ExitCodeContract, LogsContract, ExecContract):
    """The contract, for containers."""

    async def test_has_the_abilities_that_are_tested(self, harness):
        """It is known by its protocols to keep output and to run commands."""
        assert isinstance(harness.driver, Logs)
        assert isinstance(harness.driver, Exec)


async def run(harness, **fields):
    """Launch one container; the launch and what was found."""
    launch = evolve(harness.launch(), template=container(**fields))
    return launch, await harness.run(launch)


async def output_of(harness, **fields) -> str:
    """What a container that ends prints on stdout."""
    launch, _ = await run(harness, **fields)
    text = bytearray()
    with trio.fail_after(harness.deadline_s):
        logs = harness.driver.logs(launch.incarnation, follow=True, tail=None, timestamps=False)
        async with aclosing(logs):
            async for chunk in logs:
                text += chunk.data if chunk.stream == "stdout" else b""
    return text.decode()


async def test_every_field_reaches_the_container(harness, client, tmp_path):
    """What the spec says is what `docker inspect` shows."""
    (tmp_path / "file").write_text("bound")
    launch = evolve(
        harness.launch(),
        template=container(
            entrypoint=("sh", "-c"),
            command=(SCRIPTS[Behaviour.RUNS],),
            environment={"A": "1", "B": "two words"},
            user="1000:1000",
            working_dir="/tmp",
            hostname="elsewhere",
            mounts=(
                Mount("bind", str(tmp_path), "/bound", read_only=True),
                Mount("volume", "", "/kept"),
                Mount("tmpfs", "", "/scratch", size_bytes=1 << 20),
            ),
            cap_add=("NET_ADMIN",),
            stop_signal="SIGINT",
            tty=True,
            resources=Resources(cpu_millis=250, memory_bytes=64 << 20),
        ),
    )
    launch = evolve(launch, template=evolve(launch.template, labels={"mine": "yes"}))
    found = await harness.run(launch)
    info = client.inspect_container(found.runtime_id)
    config, host = info["Config"], info["HostConfig"]

    assert config["Entrypoint"] == ["sh", "-c"]
    assert config["Cmd"] == [SCRIPTS[Behaviour.RUNS]]
    assert {"A=1", "B=two words"} <= set(config["Env"])
    assert config["User"] == "1000:1000"
    assert config["WorkingDir"] == "/tmp"
    assert config["Hostname"] == "elsewhere"
    assert config["StopSignal"] == "SIGINT"
    assert config["Tty"] is True
    assert config["Labels"]["mine"] == "yes"
    assert config["Labels"]["swarmctl.service"] == "web"
    assert host["NanoCpus"] == 250_000_000
    assert host["Memory"] == 64 << 20
    assert host["CapAdd"][0].endswith("NET_ADMIN")
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    mounts = {mount["Destination"]: mount for mount in info["Mounts"]}
    assert mounts["/bound"]["RW"] is False
    assert mounts["/kept"]["Type"] == "volume"
    assert {mount["Target"] for mount in host["Mounts"]} == {"/bound", "/kept", "/scratch"}


async def test_remove_takes_anonymous_volumes_with_it(harness, client):
    """An unnamed volume goes with its container."""
    launch, found = await run(harness, mounts=(Mount("volume", "", "/kept"),))
    (mount,) = client.inspect_container(found.runtime_id)["Mounts"]
    await harness.driver.remove(launch.incarnation)

    with pytest.raises(docker.errors.NotFound):
        client.inspect_volume(mount["Name"])


async def test_hostname_is_the_instances_by_default(harness):
    """A container that is told no hostname is called after its instance."""
    assert await output_of(harness, command=("hostname",)) == "web-1\n"


async def test_published_port_and_address_are_found(harness):
    """The address on the bridge and the port that Docker chose are told by start and by list."""
    launch, started = await run(harness, network="", ports=(PortMapping(80),))
    listed = await harness.find(launch.incarnation)

    assert started.addresses
    assert started.addresses == listed.addresses
    assert started.ports == listed.ports
    assert started.ports[0].container_port == 80
    assert started.ports[0].host_port > 0


async def test_port_in_use_names_the_port(harness):
    """A second container on the same host port is refused with the port's number."""
    _, first = await run(harness, network="", ports=(PortMapping(80),))
    port = first.ports[0].host_port
    with pytest.raises(LaunchFailed, match=str(port)) as raised:
        await run(harness, network="", ports=(PortMapping(80, port),))
    await harness.driver.remove(max(f.incarnation for f in await harness.driver.list()))

    assert "port" in raised.value.hint
    assert len(await harness.driver.list()) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": ("/etc/passwd",)}, "not executable"),
        ({"user": "nobody-of-that-name"}, "user nobody-of-that-name"),
        ({"network": "no-such-network"}, "no-such-network"),
        ({"mounts": (Mount("bind", "/no/such/folder", "/x"),)}, "/no/such/folder"),
        ({"resources": Resources(memory_bytes=1024)}, "memory"),
        ({"resources": Resources(cpu_millis=9_000_000)}, "cpus"),
        ({"image": "Not A Name"}, "name"),
    ],
)
async def test_specs_that_cannot_work_are_the_users_error(harness, fields, words):
    """The error says which part of the spec is wrong."""
    with pytest.raises(UserError) as raised:
        await run(harness, **fields)

    assert words in raised.value.what
    assert raised.value.where == "web.1"


async def test_registry_out_of_reach_is_not_an_unknown_image(harness):
    """Nobody at the registry's address is the environment's fault, and names the registry."""
    with pytest.raises(LaunchFailed, match=r"127\.0\.0\.1:1 "):
        await run(harness, image="127.0.0.1:1/some/image:tag")


async def test_unknown_image_names_registry_and_image(harness, registry):
    """A registry that says no is quoted as such; everyone who waits for the pull hears it."""
    errors = []

    async def launch() -> None:
        try:
            await run(harness, image=f"{registry}/nothing:1.2")
        except NotFound as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(launch)

    assert len(errors) == 5
    assert registry in errors[0].what
    assert "nothing:1.2" in errors[0].what


async def test_image_checks_are_one_for_many_launches(harness, monkeypatch):
    """Forty launches of one image ask dockerd about it once."""
    asked = []
    inspect = docker.APIClient.inspect_image

    def count(self, image):
        asked.append(image)
        return inspect(self, image)

    monkeypatch.setattr(docker.APIClient, "inspect_image", count)
    launch = harness.launch()
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(harness.driver.prepare, launch, ignore)

    assert asked == [IMAGE]


async def test_removed_image_is_noticed_by_create(harness, client, registry):
    """An image that vanished after it was seen is looked for again, and then reported missing."""
    name = f"{registry}/fleeting"
    client.tag(f"{IMAGE}:latest", name, "latest")
    launch = evolve(harness.launch(), template=container(image=name))
    await harness.driver.prepare(launch, ignore)
    client.remove_image(name)
    with pytest.raises(NotFound, match="fleeting"):
        await harness.driver.create(launch)
    client.tag(f"{IMAGE}:latest", name, "latest")
    try:
        assert await harness.driver.create(launch)
        await harness.driver.remove(launch.incarnation)
    finally:
        client.remove_image(name)


async def test_name_taken_by_another_container_is_refused(harness, client):
    """A container that has our name without our labels is not taken for ours."""
    launch = harness.launch()
    name = await _name_of(harness, launch)
    foreign = client.create_container(f"{IMAGE}:latest", "true", name=name)["Id"]
    try:
        with pytest.raises(LaunchFailed, match=name):
            await harness.driver.create(launch)
    finally:
        client.remove_container(foreign)


async def _name_of(harness, launch) -> str:
    container_id = await harness.driver.create(launch)
    name = harness.client.inspect_container(container_id)["Name"].lstrip("/")
    await harness.driver.remove(launch.incarnation)
    return name


async def test_output_of_a_terminal_is_one_stream(harness):
    """A container with a terminal has no frames around its output."""
    text = await output_of(harness, tty=True, command=("sh", "-c", "echo a; echo b >&2"))

    assert text == "a\r\nb\r\n"


async def test_much_output_arrives_whole(harness):
    """Half a megabyte of lines, short of a rotation of the log, comes through in order."""
    text = await output_of(harness, command=("sh", "-c", "seq 1 100000"))

    assert text == "".join(f"{n}\n" for n in range(1, 100_001))


async def test_out_of_memory_is_the_reason(harness):
    """A container that was killed for its memory says so."""
    launch = evolve(
        harness.launch(),
        template=container(
            command=("sh", "-c", "head -c 200m /dev/zero | tail"),
            resources=Resources(memory_bytes=16 << 20),
        ),
    )
    async with harness.driver.events() as channel:
        await harness.run(launch)
        event = await next_event(channel, EventKind.EXITED, launch.incarnation, harness.deadline_s)
    found = await harness.await_phase(launch.incarnation, Phase.EXITED)

    assert "memory" in event.reason + found.reason


async def test_absent_dockerd_is_told(tmp_path):
    """Without dockerd probe says why not, calls say unavailable, and events still open."""
    driver = DockerDriver(Owner("c", "n"), f"unix://{tmp_path}/none.sock")
    health = await driver.probe()
    with pytest.raises(DriverUnavailable):
        await driver.list()
    with trio.fail_after(30):
        async with driver.events():
            pass

    assert not health.available
    assert "dockerd" in health.reason


@pytest.mark.alone
async def test_silent_dockerd_is_told_within_three_seconds(tmp_path):
    """A dockerd that accepts and never answers (stopped by a signal) does not hang a probe."""
    path = str(tmp_path / "silent.sock")
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    with listener:
        await listener.bind(path)
        listener.listen(8)
        driver = DockerDriver(Owner("c", "n"), f"unix://{path}")
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(_expect_unavailable, driver)
    assert trio.current_time() - began < 3.0


async def _expect_unavailable(driver):
    health = await driver.probe()
    assert not health.available
    assert "hung" in health.reason


class Relay:
    """A socket before dockerd's, to cut connections as a dying dockerd does."""

    def __init__(self, path: str):
        self.path = path
        self.scope = trio.CancelScope()

    async def run(self, task_status):
        """Pass connections on, until ``scope`` is cancelled."""
        self.scope = trio.CancelScope()
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        with listener, self.scope:
            await listener.bind(self.path)
            listener.listen(64)
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    accepted, _ = await listener.accept()
                    nursery.start_soon(self._pass_on, trio.SocketStream(accepted))

    async def _pass_on(self, near):
        far = await trio.open_unix_socket("/var/run/docker.sock")
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, near, far)
            nursery.start_soon(self._copy, far, near)

    async def _copy(self, source, sink):
        try:
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()
        except trio.BrokenResourceError:
            pass  # the other end went first


async def test_events_resync_after_dockerd_was_away(tmp_path, harness):
    """When the stream breaks it says so; when dockerd is back a RESYNC comes, and events go on."""
    relay = Relay(str(tmp_path / "relay.sock"))
    driver = DockerDriver(harness.owner, f"unix://{relay.path}")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            async with driver.events() as channel:
                await harness.run(harness.launch())
                assert (await channel.receive()).kind is EventKind.STARTED
                relay.scope.cancel()
                os.unlink(relay.path)  # noqa: PTH108 - as short as a dying dockerd does it
                kinds = [(await channel.receive()).kind]
                missed = harness.launch()
                await harness.run(missed)
                await nursery.start(relay.run)
                kinds.append((await channel.receive()).kind)
                after = harness.launch()
                await harness.run(after)
                await next_event(channel, EventKind.STARTED, after.incarnation, 30)
            relay.scope.cancel()

    assert kinds == [EventKind.INTERRUPTED, EventKind.RESYNC]


async def test_list_of_many_asks_once_for_each(harness, monkeypatch):
    """A second list of what did not change is one request."""
    for _ in range(3):
        await harness.run(harness.launch())
    first = await harness.driver.list()
    inspected = []
    monkeypatch.setattr(docker.APIClient, "inspect_container", lambda *args: inspected.append(args))
    second = await harness.driver.list()

    assert first == second
    assert len(second) == 3
    assert inspected == []


async def test_abandoned_calls_share_no_connection(harness):
    """While given-up stops still wait in dockerd, other calls work: what they see has not ended."""
    launches = [harness.launch(Behaviour.STUBBORN) for _ in range(3)]
    for launch in launches:
        await harness.run(launch)
    with trio.move_on_after(0.2):
        async with trio.open_nursery() as nursery:
            for launch in launches:
                nursery.start_soon(harness.driver.stop, launch.incarnation, 5.0)
    with trio.fail_after(harness.deadline_s):
        found = await harness.driver.list()
    assert [one.phase for one in found] == [Phase.RUNNING] * 3

    async def ended() -> bool:
        return all(found.phase is Phase.EXITED for found in await harness.driver.list())

    await eventually(ended, harness.deadline_s)


async def test_bad_address_is_refused():
    """An address that is neither a socket nor a host is an error at once."""
    with pytest.raises(InvalidSpec):
        DockerDriver(Owner("c", "n"), "ssh://somewhere")
