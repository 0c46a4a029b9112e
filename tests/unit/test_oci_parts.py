"""The pure parts of the oci driver: references, users, configurations, states, logs, errors."""

import signal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.agent.drivers.api import EventKind, Launch, Owner, Phase
from swarmctl.agent.drivers.oci import bundle, faults, state
from swarmctl.agent.drivers.oci.bundle import Machine, Surroundings
from swarmctl.agent.drivers.oci.events import Teller
from swarmctl.agent.drivers.oci.host import own_capabilities
from swarmctl.agent.drivers.oci.images import ImageConfig, read_config
from swarmctl.agent.drivers.oci.layout import container_id
from swarmctl.agent.drivers.oci.logs import Parser, chunks_of, last_lines
from swarmctl.agent.drivers.oci.mounts import hosts_file, inside, resolver_file
from swarmctl.agent.drivers.oci.reference import parse_reference
from swarmctl.agent.drivers.oci.seccomp import filter_of
from swarmctl.agent.drivers.oci.users import Identity, identify
from swarmctl.agent.guard import CONTAINER_ID
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import InvalidSpec, LaunchFailed, NotFound
from swarmctl.proto.messages import Attachment
from swarmctl.spec.models import ContainerSpec, PortMapping, Resources, Template

OWNER = Owner("c1", "n1")
MACHINE = Machine(cpus=2)
IMAGE = ImageConfig(
    entrypoint=("/entry",),
    command=("serve",),
    environment=("PATH=/bin", "A=image", "B=image"),
    user="web",
    working_dir="/srv",
    stop_signal="SIGQUIT",
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\nbroken\n"
GROUP = "root:x:0:\nwww:x:34:\nlogs:x:7:other,web\nmail:x:8:web\n"


def launch_of(
    resources: Resources | None = None, attachments: tuple[Attachment, ...] = (), **fields
) -> Launch:
    fields = {"image": "box", "network": "none"} | fields
    template = Template(container=ContainerSpec(**fields), limits=resources or Resources())
    return Launch("web", 3, incarnations.make(1, 7), template, attachments=attachments)


def config_of(launch: Launch, image: ImageConfig = IMAGE, **surroundings) -> dict:
    around = Surroundings("/root/fs", "/swarmctl/x", **surroundings)
    return bundle.config(launch, image, Identity(33, 34, (7,), "/var/www"), around, MACHINE)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "registry"),
    [
        ("nginx", "docker://nginx:latest", "docker.io"),
        ("nginx:1.27", "docker://nginx:1.27", "docker.io"),
        ("team/app", "docker://team/app:latest", "docker.io"),
        ("host.example:5000/a/b:c", "docker://host.example:5000/a/b:c", "host.example:5000"),
        ("localhost/a", "docker://localhost/a:latest", "localhost"),
        ("docker://a.b/c:1", "docker://a.b/c:1", "a.b"),
        ("docker-daemon:box", "docker-daemon:box:latest", ""),
        ("docker-daemon:a/box:2", "docker-daemon:a/box:2", ""),
        ("oci:/srv/images/web", "oci:/srv/images/web:latest", ""),
        ("oci:/srv/images/web:v2", "oci:/srv/images/web:v2", ""),
        ("oci-archive:/srv/web.tar", "oci-archive:/srv/web.tar", ""),
        ("docker-archive:/srv/web.tar:web:v2", "docker-archive:/srv/web.tar:web:v2", ""),
        (f"a/b:tag@sha256:{'0' * 64}", f"docker://a/b@sha256:{'0' * 64}", "docker.io"),
    ],
)
def test_a_name_says_where_the_image_is(text, source, registry):
    """Plain names are a registry's; the others say it, as they do to skopeo."""
    reference = parse_reference(text)

    assert (reference.source, reference.registry) == (source, registry)


@pytest.mark.parametrize(
    "text",
    [
        "Not-A-Name",
        "a b",
        "oci:relative/path",
        "oci:",
        "a//b",
        "docker://",
        "a:tag:tag",
        "a@sha256:1",
    ],
)
def test_what_is_no_image_is_the_users_error(text):
    """The name is quoted, and where it was."""
    with pytest.raises(InvalidSpec) as raised:
        parse_reference(text, "web.1")

    assert raised.value.where == "web.1"


def test_only_loopback_registries_go_without_tls():
    """As for Docker."""
    insecure = [
        host
        for host in ("127.0.0.1:5000", "localhost:5000", "registry.example", "127.example:5000")
        if parse_reference(f"{host}/box").is_insecure
    ]

    assert insecure == ["127.0.0.1:5000", "localhost:5000"]


def test_an_id_is_unique_and_what_the_guard_looks_for():
    """Cluster, node and incarnation all count; the guard finds it in a cgroup's path."""
    ids = {
        container_id(Owner(cluster, node), incarnations.make(1, number))
        for cluster in ("c1", "c2")
        for node in ("n1", "n2")
        for number in (1, 2)
    }

    assert len(ids) == 8
    assert all(CONTAINER_ID.fullmatch(one.encode()) for one in ids)


# --- users ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", Identity(0, 0, (), "/root")),
        ("web", Identity(33, 34, (7, 8), "/var/www")),
        ("33", Identity(33, 34, (7, 8), "/var/www")),
        ("web:www", Identity(33, 34, (), "/var/www")),
        ("web:9", Identity(33, 9, (), "/var/www")),
        ("1000", Identity(1000, 0, (), "/")),
        ("1000:1000", Identity(1000, 1000, (), "/")),
    ],
)
def test_users_and_groups_are_looked_up_in_the_image(user, identity):
    """Numbers need no entry; the other groups of a named user come with it, unless one is said."""
    assert identify(user, PASSWD, GROUP) == identity


@pytest.mark.parametrize("user", ["nobody", "web:nobody", "-1", "99999999999999"])
def test_an_unknown_user_is_the_users_error(user):
    """The name is in the error."""
    with pytest.raises(InvalidSpec, match="does not exist in the image"):
        identify(user, PASSWD, GROUP, "web.1")


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["/entry", "serve"]),
        ({"command": ("run", "-v")}, ["/entry", "run", "-v"]),
        ({"command": ()}, ["/entry"]),
        ({"entrypoint": ("sh",)}, ["sh"]),
        ({"entrypoint": ("sh", "-c"), "command": ("true",)}, ["sh", "-c", "true"]),
        ({"entrypoint": (), "command": ("true",)}, ["true"]),
    ],
)
def test_entrypoint_and_command_are_dockers(fields, words):
    """An entrypoint of the spec's takes the image's command away; a command alone does not."""
    assert config_of(launch_of(**fields))["process"]["args"] == words


def test_nothing_to_run_is_the_users_error():
    """Neither the image nor the service says a command."""
    with pytest.raises(InvalidSpec, match="no command"):
        config_of(launch_of(), ImageConfig())


def test_environment_is_overlaid():
    """Ours, then the image's, then the spec's; HOME is the user's unless someone says another."""
    process = config_of(launch_of(environment={"B": "spec", "C": "=x"}, tty=True))["process"]

    assert process["env"] == [
        "PATH=/bin", "HOSTNAME=web-3", "TERM=xterm", "A=image", "B=spec", "C==x", "HOME=/var/www",
    ]  # fmt: skip
    assert process["terminal"] is True
    assert process["user"] == {"uid": 33, "gid": 34, "additionalGids": [7]}
    assert process["cwd"] == "/srv"


def test_limits_reach_the_cgroup():
    """CPU as a quota, memory with no swap beyond it; without limits there are none."""
    limited = config_of(launch_of(Resources(cpu_millis=250, memory_bytes=64 << 20)))
    free = config_of(launch_of())

    assert limited["linux"]["resources"]["cpu"] == {"quota": 25_000, "period": 100_000}
    assert limited["linux"]["resources"]["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert set(free["linux"]["resources"]) == {"devices"}
    assert limited["linux"]["cgroupsPath"] == "/swarmctl/x"


@pytest.mark.parametrize("limits", [Resources(cpu_millis=2001), Resources(memory_bytes=1 << 20)])
def test_impossible_limits_are_the_users_error(limits):
    """More cpus than there are, or memory in which nothing starts."""
    with pytest.raises(InvalidSpec):
        config_of(launch_of(limits))


def test_capabilities_are_dockers_and_the_added():
    """With or without CAP_; ALL is what the node has; another user than root begins without."""
    added = bundle.capabilities(("CAP_NET_ADMIN", "CHOWN"), MACHINE)
    few = Machine(2, capabilities=("CHOWN", "KILL"))

    assert added == [f"CAP_{name}" for name in (*bundle.CAPABILITIES, "NET_ADMIN")]
    assert bundle.capabilities(("ALL",), few) == ["CAP_CHOWN", "CAP_KILL"]
    assert bundle.capabilities((), few) == ["CAP_CHOWN", "CAP_KILL"]
    with pytest.raises(InvalidSpec, match="NET_ADMIN"):
        bundle.capabilities(("NET_ADMIN",), few)
    powers = config_of(launch_of())["process"]["capabilities"]
    assert powers["effective"] == []
    assert len(powers["bounding"]) == len(bundle.CAPABILITIES)


def test_the_nodes_own_capabilities_are_read():
    """Each has its bit; what a later kernel adds is passed over."""
    assert own_capabilities("Name:\tx\nCapBnd:\tff00000000000021\n") == ("CHOWN", "KILL")


def test_networks_become_namespaces():
    """None is a namespace of its own, host is the machine's, a plugged one is at its path."""

    def network_of(launch, **surroundings):
        spaces = config_of(launch, **surroundings)["linux"]["namespaces"]
        return [one for one in spaces if one["type"] == "network"]

    assert network_of(launch_of()) == [{"type": "network"}]
    assert network_of(launch_of(network="host")) == []
    assert network_of(launch_of(network="front"), namespace="/run/netns/x") == [
        {"type": "network", "path": "/run/netns/x"}
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network": ""}, "no NAT network"),
        ({"network": "front"}, "no network front"),
        ({"ports": (PortMapping(80, 8080),)}, "publishes no ports"),
    ],
)
def test_networks_that_need_docker_are_refused(fields, words):
    """There is no NAT of our own, and it says so."""
    with pytest.raises(InvalidSpec, match=words):
        bundle.check_network(launch_of(**fields))


def test_a_tenant_network_makes_any_name_right():
    """What is plugged has a name that this driver need not know."""
    port = Attachment("p1", "t/front", "02:00:00:00:00:01", ("10.0.0.7/24",), dns=("10.0.0.2",))
    bundle.check_network(launch_of(network="front", attachments=(port,)))

    assert "10.0.0.7\tweb-3\n" in hosts_file("web-3", (port,))
    assert resolver_file((port,)) == "nameserver 10.0.0.2\n"
    assert resolver_file(()) == ""


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("quit", signal.SIGQUIT),
        ("9", signal.SIGKILL),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-1", signal.SIGRTMAX - 1),
        ("SIGNONSENSE", signal.SIGTERM),
        ("9999", signal.SIGTERM),
    ],
)
def test_stop_signals_are_understood(name, number):
    """Names, numbers and real-time signals; an image that says nonsense is stopped all the same."""
    assert bundle.signal_number(name) == number


def test_an_image_may_say_nothing():
    """Every part of an image's configuration may be missing or null."""
    assert read_config({}) == read_config({"Cmd": None, "Env": None, "User": None}) == ImageConfig()


def test_links_of_an_image_are_not_followed_out_of_it(tmp_path):
    """A link on the way to a file may lead to the host's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").symlink_to("/etc/passwd")
    (tmp_path / "etc" / "group").write_text("")

    assert inside(tmp_path, "/etc/passwd") is None
    assert inside(tmp_path, "/etc/group") == tmp_path / "etc" / "group"


PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}},
        {"names": ["arm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {
            "names": ["mount"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ", "x": 1}],
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
    ],
}


def test_the_seccomp_profile_is_cut_to_the_container():
    """Rules of other architectures go, and those of capabilities that it has, or lacks."""
    usual = filter_of(PROFILE, bundle.capabilities((), MACHINE), "x86_64")
    mighty = filter_of(PROFILE, bundle.capabilities(("SYS_ADMIN",), MACHINE), "aarch64")

    assert usual["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert usual["defaultErrnoRet"] == 38
    assert usual["syscalls"] == [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["mount"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        },
    ]
    assert [rule["names"] for rule in mighty["syscalls"]] == [["read"], ["arm"], ["mount"]]
    assert filter_of(PROFILE, (), "riscv64") is None


# --- states and events ----------------------------------------------------------------------------

RECORD = state.new_record(
    OWNER, launch_of(), stop_signal="SIGTERM", storage="copy", image="/i", tty=False,
    namespace=False,
)  # fmt: skip
START = state.Start(1, 2, "boot", 100.0)
END = state.End(3, 105.0)


@pytest.mark.parametrize(
    ("start", "end", "phase", "code", "reason"),
    [
        (None, None, Phase.CREATED, None, ""),
        (START, None, Phase.RUNNING, None, ""),
        (START, END, Phase.EXITED, 3, ""),
        (START, state.End(137, 1.0), Phase.EXITED, 137, "ended by SIGKILL"),
        (START, state.End(137, 1.0, out_of_memory=True), Phase.EXITED, 137, "more memory"),
        (START, state.End(None, 0.0), Phase.EXITED, None, "nobody watched"),
    ],
)
def test_the_phase_follows_from_the_files(start, end, phase, code, reason):
    """Started or not, ended or not, and what is known of the end."""
    found = state.found(state.State(RECORD, start, end), "id")

    assert (found.phase, found.exit_code) == (phase, code)
    assert reason in found.reason
    assert (found.service, found.slot, found.runtime_id) == ("web", 3, "id")


STEPS = [
    state.State(RECORD),
    state.State(RECORD, START),
    state.State(RECORD, START, END),
    state.State(RECORD, state.Start(4, 5, "boot", 110.0)),
    state.State(RECORD, state.Start(4, 5, "boot", 110.0), state.End(0, 120.0)),
    None,
]


@given(st.lists(st.booleans(), min_size=len(STEPS) - 1, max_size=len(STEPS) - 1))
def test_looks_that_are_missed_lose_no_end(seen):
    """Whichever states are seen, the last start is told before its end, and nothing twice."""
    teller = Teller(lambda: 200.0)
    looks = [step for step, look in zip(STEPS[:-1], seen, strict=True) if look]
    told = [event for step in looks for event in teller.note("id", step)]

    assert len(told) == len(set(told))
    last = looks[-1] if looks else None
    if last is not None and last.end is not None:
        assert [event.kind for event in told[-2:]] == [EventKind.STARTED, EventKind.EXITED]
        assert told[-1].exit_code == last.end.code
    gone = teller.note("id", None)
    assert [event.kind for event in gone] == ([EventKind.REMOVED] if looks else [])


# --- logs -----------------------------------------------------------------------------------------

LOG = (
    b"2026-11-29T21:24:26.899396748+00:00 stdout F out 1\n"
    b"2026-11-29T21:24:26.899477518+00:00 stderr F oops\n"
    b"2026-11-29T21:24:27.000000001+00:00 stdout P half \n"
    b"2026-11-29T21:24:27.500000000+00:00 stdout F a line\n"
    b"2026-11-29T21:24:28.000000000+00:00 stdout P prompt> \n"
)


@given(st.lists(st.integers(0, len(LOG)), max_size=8))
def test_logs_are_read_in_any_pieces(cuts):
    """However the file is read, the same comes out."""
    parser = Parser()
    edges = [0, *sorted(cuts), len(LOG)]
    lines = [line for first, last in pairwise(edges) for line in parser.feed(LOG[first:last])]
    chunks = chunks_of(lines, timestamps=False)

    out = b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout")
    assert out == b"out 1\nhalf a line\nprompt> "
    assert b"".join(chunk.data for chunk in chunks if chunk.stream == "stderr") == b"oops\n"


def test_times_are_at_the_beginning_of_lines_only():
    """The second piece of a line has none before it."""
    chunks = chunks_of(Parser().feed(LOG), timestamps=True)

    assert chunks[0].data == b"2026-11-29T21:24:26.899396748+00:00 out 1\n"
    assert chunks[2].data.startswith(b"2026-11-29T21:24:27.000000001+00:00 half a line\n")
    assert chunks[0].at == pytest.approx(chunks[1].at, abs=0.001)
    assert chunks[0].at > 1.7e9


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, b""),
        (1, b"prompt> "),
        (2, b"half a line\nprompt> "),
        (3, b"oops\nhalf a line\nprompt> "),
        (9, b"out 1\noops\nhalf a line\nprompt> "),
    ],
)
def test_the_tail_counts_lines_and_not_pieces(count, text):
    """A line has all its pieces; one that has no end yet counts."""
    lines = last_lines(Parser().feed(LOG), count)

    assert b"".join(line.text for line in lines) == text


def test_what_is_no_log_line_is_left_out():
    """A file that was cut off in the middle of a line does no harm."""
    assert Parser().feed(b"F half a li\n\xff\xfe\n\n") == []


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            'unable to start container process: exec: "nope": executable file not found in $PATH',
            InvalidSpec,
            "command nope does not exist",
        ),
        (
            'unable to start container process: exec: "/etc/passwd": permission denied',
            InvalidSpec,
            "not executable",
        ),
        ("exec /bin/arm: exec format error", InvalidSpec, "no program for this machine"),
        ("write /x: no space left on device", LaunchFailed, "disk is full"),
        ("something\nelse " + "x" * 900, LaunchFailed, "could not start it"),
    ],
)
def test_runcs_words_become_errors_by_who_is_at_fault(text, error, words):
    """What a user can do something about is the user's; the rest is quoted, shortened."""
    found = faults.translate(text, "web.1", "start it")

    assert type(found) is error
    assert words in found.what
    assert len(found.what) < 600


@pytest.mark.parametrize(
    ("image", "text", "error", "words"),
    [
        ("a.b/c", "reading manifest latest: manifest unknown", NotFound, "registry a.b"),
        ("a.b/c", "requested access to the resource is denied", NotFound, "login"),
        (
            "a.b/c",
            "pinging: dial tcp 1.2.3.4:443: connect: refused",
            LaunchFailed,
            "cannot be asked",
        ),
        ("docker-daemon:c", "reference does not exist", NotFound, "on the node"),
        ("a.b/c", "gzip: invalid header", LaunchFailed, "invalid header"),
    ],
)
def test_skopeos_words_tell_unknown_images_from_registries_out_of_reach(image, text, error, words):
    """One is the user's fault, the other the environment's."""
    found = faults.translate_copy(parse_reference(image), text, "web.1")

    assert type(found) is error
    assert words in f"{found.what} {found.hint}"
