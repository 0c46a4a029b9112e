"""The image: a controller in one container, reached from outside; an agent in another."""

import io
import json
import tarfile
from contextlib import closing

import docker
import pytest

from tests.e2e.cluster import IMAGE, docker_client, free_port, run_swarmctl, until

SWARMCTL_IMAGE = "swarmctl/swarmctl:latest"
DATA = "/var/lib/swarmctl"


@pytest.fixture(scope="module")
def client():
    """Docker's SDK, and the image in Docker."""
    with closing(docker_client()) as made:
        assert made.images(SWARMCTL_IMAGE), "make image comes first; make test does that"
        yield made


@pytest.fixture(scope="module")
def controller(client, tmp_path_factory):
    """A controller in a container; its folder with the context and the token, copied out."""
    folder = tmp_path_factory.mktemp("image")
    port = free_port()
    arguments = ["controller", "--listen", "tcp://0.0.0.0:7077", "--data", DATA]
    container = client.create_container(
        SWARMCTL_IMAGE,
        [*arguments, "--advertise", f"tcp://127.0.0.1:{port}"],
        ports=[7077],
        host_config=client.create_host_config(port_bindings={7077: ("127.0.0.1", port)}),
    )["Id"]
    try:
        client.start(container)
        for name in ("admin.context", "join.token"):
            content = until(lambda name=name: read_file(client, container, f"{DATA}/{name}"))
            (folder / name).write_bytes(content)
        yield folder
    finally:
        print(client.logs(container).decode(errors="replace"))  # noqa: T201 - captured
        client.remove_container(container, force=True, v=True)


@pytest.fixture
def agent(client, controller):
    """An agent in a container, with the machine's Docker."""
    token = (controller / "join.token").read_text().strip()
    arguments = ["agent", "--join", token, "--name", "boxed", "--drivers", "docker,libvirt"]
    socket = "/var/run/docker.sock"
    container = client.create_container(
        SWARMCTL_IMAGE,
        [*arguments, "--data", DATA],
        volumes=[socket],
        host_config=client.create_host_config(binds=[f"{socket}:{socket}"], network_mode="host"),
    )["Id"]
    try:
        client.start(container)
        yield container
    finally:
        print(client.logs(container).decode(errors="replace"))  # noqa: T201 - captured
        client.remove_container(container, force=True, v=True)


def read_file(client, container, path):
    """A file in a container; None while there is none, or an empty one."""
    try:
        chunks, _ = client.get_archive(container, path)
    except docker.errors.NotFound:
        return None
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        return archive.extractfile(archive.getmembers()[0]).read()


def swarmctl(folder, *arguments):
    """A command of the client outside; what it printed, None when it failed."""
    environment = {"SWARMCTL_CONTEXT": str(folder / "admin.context"), "PATH": "/usr/bin:/bin"}
    ended = run_swarmctl(environment, *arguments)
    return ended.out if ended.code == 0 else None


def test_it_runs_the_binary(client):
    """What the base has is enough for it."""
    container = client.create_container(SWARMCTL_IMAGE, ["--version"])["Id"]
    try:
        client.start(container)
        assert client.wait(container)["StatusCode"] == 0
        assert client.logs(container).startswith(b"swarmctl ")
    finally:
        client.remove_container(container, force=True, v=True)


def test_a_controller_in_it_answers_outside(controller):
    """The context that it wrote leads to it through the published port."""
    assert json.loads(until(lambda: swarmctl(controller, "ps", "-o", "json"))) == []


def test_an_agent_in_it_launches_containers(client, controller, agent):
    """With Docker's socket it is a node like another; what libvirt lacks there is its daemon."""

    def node():
        listed = json.loads(swarmctl(controller, "node", "ls", "-o", "json") or "[]")
        return next((each for each in listed if each["state"] in ("ready", "sick")), None)

    until(node, what="the node ready")
    command = ("sh", "-c", "trap exit TERM; sleep 600 & wait")
    options = ("--name", "inner", "--network", "none")
    try:
        assert swarmctl(controller, "run", "--wait", *options, IMAGE, *command) is not None
        (shown,) = json.loads(swarmctl(controller, "ps", "-o", "json"))
        assert (shown["node"], shown["state"]) == ("boxed", "running")
        assert client.inspect_container(shown["runtime_id"])["State"]["Running"]
        told = swarmctl(controller, "node", "inspect", "boxed", "-o", "json")
        assert "libvirt-sock" in told
        assert "cannot be loaded" not in told
    finally:
        assert swarmctl(controller, "rm", "--wait", "inner") is not None
    assert agent in {each["Id"] for each in client.containers()}
