"""The pure parts of the docker driver: requests, answers, errors, frames."""

import base64
import struct

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.agent.drivers import made_of
from swarmctl.agent.drivers.api import EventKind, Launch, NodeLink, Owner, Phase
from swarmctl.agent.drivers.docker.config import (
    LABEL_TEMPLATE,
    container_body,
    holder_body,
    holder_name,
    identity,
    identity_of,
    template_of,
)
from swarmctl.agent.drivers.docker.driver import STALE_START
from swarmctl.agent.drivers.docker.events import Translator
from swarmctl.agent.drivers.docker.faults import TEXT_MAX_CHARS, translate, translate_pull
from swarmctl.agent.drivers.docker.holders import program
from swarmctl.agent.drivers.docker.images import split_image
from swarmctl.agent.drivers.docker.links import link_of
from swarmctl.agent.drivers.docker.logs import Lines
from swarmctl.agent.drivers.docker.report import epoch, found_of_row
from swarmctl.agent.drivers.docker.streams import Demultiplexer
from swarmctl.agent.drivers.docker.wire import Endpoint, parse_endpoint
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import (
    Conflict,
    DriverUnavailable,
    InvalidSpec,
    LaunchFailed,
    NotFound,
)
from swarmctl.proto.messages import Attachment
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, PortMapping, Resources, Template

OWNER = Owner("c1", "n1")


def launch_of(resources: Resources | None = None, **fields) -> Launch:
    template = Template(
        container=ContainerSpec("app", **fields),
        limits=resources or Resources(),
        labels={"swarmctl.node": "forged"},
    )
    return Launch("web", 3, incarnations.make(7, 42), template, "acme")


def test_labels_come_back_as_the_identity():
    """What create writes is what list reads; a user's label cannot pretend otherwise."""
    launch = launch_of()
    labels = container_body(OWNER, launch)["Labels"]

    assert identity_of(labels) == identity(OWNER, launch)
    assert identity_of(labels | {"swarmctl.incarnation": "x"}) is None
    assert identity_of({}) is None


def test_the_label_of_the_template_tells_no_values_of_variables():
    """Labels get around; the values come back from where Docker has them."""
    launch = launch_of(environment={"PASSWORD": "hunter2", "EMPTY": ""})
    body = container_body(OWNER, launch)
    label = body["Labels"][LABEL_TEMPLATE]
    config = {"Labels": body["Labels"], "Env": [*body["Env"], "LANG=of the image"]}

    assert b"hunter2" not in base64.b64decode(label)
    assert wire.decode_template(template_of(config)) == launch.template


@pytest.mark.parametrize("label", [None, "", "!", "AAAA", base64.b64encode(b"\x81").decode()])
def test_a_missing_or_damaged_template_is_not_known(label):
    """Containers of older releases have none."""
    labels = {} if label is None else {LABEL_TEMPLATE: label}

    assert template_of({"Labels": labels, "Env": None}) == b""
    assert template_of({"Labels": None}) == b""


def test_a_template_too_long_for_a_label_is_left_out():
    """And a user's label is not taken for ours."""
    launch = launch_of(command=("x" * made_of.TEXT_MAX_CHARS,))
    forged = attrs.evolve(launch.template, labels={LABEL_TEMPLATE: "forged"})
    labels = container_body(OWNER, attrs.evolve(launch, template=forged))["Labels"]

    assert labels[LABEL_TEMPLATE] == ""


def test_unset_fields_are_left_to_the_image():
    """A spec that says nothing overrides nothing of the image."""
    body = container_body(OWNER, launch_of())

    assert not {"Cmd", "Entrypoint", "User", "WorkingDir", "StopSignal"} & set(body)
    assert "NanoCpus" not in body["HostConfig"]
    assert body["Hostname"] == "web-3"


def test_an_instance_on_tenant_networks_joins_its_holder():
    """Docker takes name, resolver and hosts from the holder; the holder is no instance."""
    port = Attachment(
        "p0", "acme/front", "02:00:00:00:00:01", ("10.20.0.7/24",), dns=("10.20.0.1",)
    )
    launch = attrs.evolve(launch_of(network="ignored"), attachments=(port,))
    body, holder = container_body(OWNER, launch), holder_body(OWNER, launch, "holder")

    assert body["HostConfig"]["NetworkMode"] == f"container:{holder_name(OWNER, launch)}"
    assert "Hostname" not in body
    assert "NetworkingConfig" not in body
    assert holder["Hostname"] == "web-3"
    assert holder["HostConfig"]["Dns"] == ["10.20.0.1"]
    assert holder["HostConfig"]["ExtraHosts"] == ["web-3:10.20.0.7"]
    assert identity_of(body["Labels"]) == identity(OWNER, launch)
    assert identity_of(holder["Labels"]) is None


def test_ports_of_an_instance_on_tenant_networks_are_not_the_nodes():
    """They are reached by the address that the service has there."""
    port = Attachment("p0", "acme/front", "02:00:00:00:00:01", ("10.20.0.7/24",))
    launch = attrs.evolve(launch_of(ports=(PortMapping(80),)), attachments=(port,))
    body = container_body(OWNER, launch)

    assert "ExposedPorts" not in body
    assert not body["HostConfig"].get("PortBindings")


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_holders_program_is_an_elf_file_of_its_machine(architecture):
    """The kernel reads a header, one segment that covers the file, and an entry inside it."""
    content = program(architecture)
    machine, entry = struct.unpack_from("<H", content, 18)[0], struct.unpack_from("<Q", content, 24)

    assert content[:4] == b"\x7fELF"
    assert machine == {"x86_64": 62, "aarch64": 183}[architecture]
    assert 0x400000 < entry[0] < 0x400000 + len(content)
    with pytest.raises(LaunchFailed, match="not riscv64"):
        program("riscv64")


def test_tiny_cpu_share_is_raised_to_what_docker_takes():
    """Docker's least is a hundredth of a core."""
    assert (
        container_body(OWNER, launch_of(Resources(cpu_millis=1)))["HostConfig"]["NanoCpus"]
        == 10_000_000
    )


def test_ports_with_and_without_host_port():
    """Two bindings of a port stay two; none asks Docker to choose."""
    ports = (
        PortMapping(80),
        PortMapping(80, 8080, host_ip="127.0.0.1"),
        PortMapping(53, 53, "udp"),
    )
    host = container_body(OWNER, launch_of(ports=ports))["HostConfig"]

    assert host["PortBindings"] == {
        "80/tcp": [
            {"HostIp": "", "HostPort": ""},
            {"HostIp": "127.0.0.1", "HostPort": "8080"},
        ],
        "53/udp": [{"HostIp": "", "HostPort": "53"}],
    }


@pytest.mark.parametrize(
    ("status", "text", "error", "words"),
    [
        (404, "No such image: app:latest", NotFound, "app:latest"),
        (
            400,
            (
                'OCI runtime create failed: runc create failed: exec: "nope": '
                "executable file not found in $PATH: unknown"
            ),
            InvalidSpec,
            "nope",
        ),
        (
            500,
            (
                "driver failed programming external connectivity on endpoint x: "
                "Bind for 0.0.0.0:8080 failed: port is already allocated"
            ),
            LaunchFailed,
            "0.0.0.0:8080",
        ),
        (500, "listen tcp4 0.0.0.0:22: bind: address already in use", LaunchFailed, "0.0.0.0:22"),
        (400, "No command specified", InvalidSpec, "command"),
        (500, "mkdir /x: no space left on device", LaunchFailed, "full"),
        (400, "something new", InvalidSpec, "something new"),
        (409, "is paused", Conflict, "is paused"),
        (500, "x" * 10_000, LaunchFailed, "x" * 100),
    ],
)
def test_texts_of_dockerd_become_errors_by_blame(status, text, error, words):
    """Known texts name what to change; unknown ones keep their words, within bounds."""
    got = translate(status, text, "web.3", "start it")

    assert type(got) is error
    assert words in got.what
    assert got.where == "web.3"
    assert len(got.what) < TEXT_MAX_CHARS + 100


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('Get "https://r/v2/": dial tcp: lookup r: no such host', LaunchFailed),
        ("pull access denied for x, repository does not exist or may require login", NotFound),
        ("manifest for r/x:1 not found: manifest unknown", NotFound),
        ("unauthorized: authentication required", NotFound),
        ("invalid reference format", InvalidSpec),
        ("disk quota exceeded", LaunchFailed),
    ],
)
def test_pull_errors_tell_unknown_from_unreachable(text, error):
    """Docker answers both alike; the text tells them apart."""
    assert type(translate_pull("r/x:1", "r", text, "web.3")) is error


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("busybox", ("docker.io", "busybox", "latest")),
        ("a/b:1.2", ("docker.io", "a/b", "1.2")),
        ("localhost:5000/a/b", ("localhost:5000", "localhost:5000/a/b", "latest")),
        ("r.example/a:t", ("r.example", "r.example/a", "t")),
        ("a@sha256:00", ("docker.io", "a", "sha256:00")),
        ("r.example:1/a:t@sha256:00", ("r.example:1", "r.example:1/a", "sha256:00")),
    ],
)
def test_image_names_are_split_as_docker_does(image, parts):
    """A colon before the last slash is a port, after it a tag."""
    assert split_image(image) == parts


def test_rows_of_others_are_not_ours():
    """A container without our labels is nobody's instance."""
    assert found_of_row({"Id": "x", "State": "running", "Labels": None}) is None


def test_row_has_exit_code_and_ports_once():
    """The exit code is read from the text, and an IPv6 twin of a port is left out."""
    labels = container_body(OWNER, launch_of())["Labels"]
    ports = [
        {"PrivatePort": 80, "PublicPort": 9, "Type": "tcp", "IP": ip} for ip in ("0.0.0.0", "::")
    ]
    row = {
        "Id": "x",
        "State": "exited",
        "Status": "Exited (137) 2 hours ago",
        "Labels": labels,
        "Ports": ports,
    }
    found = found_of_row(row)

    assert found.phase is Phase.EXITED
    assert found.exit_code == 137
    assert found.ports == (PortMapping(80, 9),)


def test_epoch_of_dockers_times():
    """Nine digits are cut to six, and Go's zero time is unknown."""
    assert epoch("1970-01-01T00:00:01.500000123Z") == 1.5
    assert epoch("0001-01-01T00:00:00Z") == 0.0
    assert epoch(None) == 0.0


def test_end_after_oom_says_so():
    """The memory's end comes in an event before, and is the reason of the next one."""
    attributes = container_body(OWNER, launch_of())["Labels"] | {"exitCode": "137"}
    translator = Translator()
    raw = {"Actor": {"ID": "x", "Attributes": attributes}, "timeNano": 2_000_000_000}

    assert translator.translate(raw | {"Action": "oom"}) is None
    first = translator.translate(raw | {"Action": "die"})
    second = translator.translate(raw | {"Action": "die"})
    assert first.kind is EventKind.EXITED
    assert (first.exit_code, first.at) == (137, 2.0)
    assert "memory" in first.reason
    assert second.reason == "ended by SIGKILL"


def frame(stream: int, text: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50)), max_size=10),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_frames_survive_any_cut(frames, cuts):
    """However the bytes are cut, each stream's output is whole and in order."""
    data = b"".join(frame(*one) for one in frames)
    demultiplexer = Demultiplexer()
    got = {"stdout": b"", "stderr": b""}
    for turn in range(len(data)):
        size = cuts[turn % len(cuts)]
        piece, data = data[:size], data[size:]
        for stream, text in demultiplexer.feed(piece):
            got[stream] += text

    assert got["stdout"] == b"".join(text for stream, text in frames if stream == 1)
    assert got["stderr"] == b"".join(text for stream, text in frames if stream == 2)


def test_what_is_no_frame_is_an_error():
    """Bytes that are not Docker's framing are refused, not shown as output."""
    with pytest.raises(LaunchFailed):
        Demultiplexer().feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(LaunchFailed):
        Lines().feed(b"GET / HTTP/1.1\r\n", keep_stamps=False)


@given(st.integers(0, 6), st.integers(0, 6))
def test_lines_seen_before_are_left_out(seen, overlap):
    """After the cut of a followed answer, only what is new of the rest comes, each line once."""
    stamps = [f"2026-01-01T00:00:0{n // 2}.000000000Z".encode() for n in range(8)]
    frames = [frame(1, stamp + b" line %d\n" % n) for n, stamp in enumerate(stamps)]
    lines = Lines()
    before = lines.feed(b"".join(frames[:seen]), keep_stamps=False)
    lines.again()
    # The second answer may only begin between times, as `since` does.
    first = max(0, (seen - overlap) // 2 * 2) if seen else 0
    after = lines.feed(b"".join(frames[first:]), keep_stamps=False)

    text = b"".join(chunk.data for chunk in before + after)
    assert text == b"".join(b"line %d\n" % n for n in range(8))


def test_addresses_of_dockerd():
    """Sockets and hosts are understood; what an agent's own dockerd never has is refused."""
    assert parse_endpoint("unix:///run/d.sock") == Endpoint(path="/run/d.sock")
    assert parse_endpoint("tcp://[::1]:2375") == Endpoint(host="::1", port=2375)
    for bad in ("ssh://x", "tcp://x", "nothing", "tcp://x:port"):
        with pytest.raises(InvalidSpec):
            parse_endpoint(bad)


def test_unavailable_is_temporary():
    """An agent may try again what failed because dockerd was busy."""
    assert isinstance(translate(503, "busy", "web.3", "start it"), DriverUnavailable)
    assert translate(503, "busy", "web.3", "start it").temporary


@pytest.mark.parametrize(
    ("text", "stale"),
    [
        ('failed to create task: task "1f" already exists: unknown', True),
        ("container with given ID already exists", True),
        ("OCI runtime create failed: container's cgroup id already in use", True),
        ("failed to start shim: mkdir /run/containerd/task/moby/1f2e: file exists", True),
        ("listen tcp 0.0.0.0:80: bind: address already in use", False),
        ("mkdir /srv/data: file exists", False),
    ],
)
def test_what_a_killed_dockerd_left_half_started_is_recognised(text, stale):
    """Such a container is made anew; others keep their error."""
    assert bool(STALE_START.search(text)) is stale


ENDS = {"MacAddress": "02:42:ac:11:00:02", "IPAddress": "172.17.0.2", "Gateway": "172.17.0.1"}


@pytest.mark.parametrize(
    ("network", "bridge", "nat"),
    [
        (
            {"Driver": "bridge", "Options": {"com.docker.network.bridge.name": "docker0"}},
            "docker0",
            True,
        ),
        ({"Driver": "bridge", "Id": "0123456789abcdef"}, "br-0123456789ab", True),
        (
            {"Driver": "bridge", "Id": "0123456789abcdef", "Internal": True},
            "br-0123456789ab",
            False,
        ),
        ({"Driver": "macvlan", "Id": "0123456789abcdef"}, "", False),
    ],
)
def test_a_containers_interface_is_on_its_networks_bridge(network, bridge, nat):
    """By the bridge's own name, or the one that Docker makes of the network's id."""
    assert link_of("mine", ENDS, network) == NodeLink(
        "mine", "02:42:ac:11:00:02", ("172.17.0.2",), "172.17.0.1", bridge, nat=nat
    )
