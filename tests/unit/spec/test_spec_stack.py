"""What stack files mean, beyond what the example files show."""

import json
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.net.model import (
    Direction,
    Protocol,
    Provider,
    Remote,
    RemoteKind,
    Rule,
    SecurityGroup,
    Subnet,
)
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec import yamltree
from swarmctl.spec.models import Mount, NetworkUse, PortMapping, Resources
from swarmctl.spec.networks import NetworkDefinition
from swarmctl.spec.stack import load_stack


def load(*texts, environment=None, files=None, **options):
    files = files or {}

    def read_file(path):
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    named = [(f"{number}.yaml", text) for number, text in enumerate(texts, start=1)]
    return load_stack(named, environment or {}, read_file, **({"folder": "/p/shop"} | options))


def web(fields, **options):
    """The container of a service with these fields."""
    body = "".join(f"    {line}\n" for line in fields.splitlines())
    stack = load(f"services:\n  web:\n    image: i\n{body}", **options)
    return stack.services[0].template.container


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("22:22", "22:22"),
        ("1.10", "1.10"),
        ("0x10", "0x10"),
        ("true", "true"),
        ('"~"', "~"),
        ("2001-01-01", "2001-01-01"),
    ],
)
def test_scalars_keep_their_text(text, value):
    """A text field takes what was written, not what YAML 1.1 would make of it."""
    assert web(f"environment: {{A: {text}}}").environment == {"A": value}


@pytest.mark.parametrize(
    ("text", "mappings"),
    [
        ("80", [PortMapping(80)]),
        ("22:22", [PortMapping(22, 22)]),
        ('"8080:80/udp"', [PortMapping(80, 8080, "udp")]),
        ('"127.0.0.1:8080:80"', [PortMapping(80, 8080, "tcp", "127.0.0.1")]),
        ('"127.0.0.1::80"', [PortMapping(80, 0, "tcp", "127.0.0.1")]),
        ('"[::1]:8080:80"', [PortMapping(80, 8080, "tcp", "::1")]),
        ('"[::1]::80"', [PortMapping(80, 0, "tcp", "::1")]),
        ('"3000-3001"', [PortMapping(3000), PortMapping(3001)]),
        ('"90-91:80-81"', [PortMapping(80, 90), PortMapping(81, 91)]),
        ('{target: 80, published: "8080", protocol: udp}', [PortMapping(80, 8080, "udp")]),
        ("{target: 80, host_ip: 10.0.0.1}", [PortMapping(80, 0, "tcp", "10.0.0.1")]),
    ],
)
def test_ports_in_every_syntax(text, mappings):
    """Short, long, ranges, addresses and protocols."""
    assert list(web(f"ports: [{text}]").ports) == mappings


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("data:/d", Mount("volume", "shop_data", "/d")),
        ("outer:/d:ro", Mount("volume", "real", "/d", read_only=True)),
        ("/srv:/d/", Mount("bind", "/srv", "/d")),
        ("../x:/d", Mount("bind", "/p/x", "/d")),
        ("~/x:/d", Mount("bind", "/home/u/x", "/d")),
        ("/d", Mount("volume", "", "/d")),
        (
            "{type: tmpfs, target: /d, tmpfs: {size: 64m}}",
            Mount("tmpfs", "", "/d", False, 64 << 20),
        ),
        ("{type: bind, source: /s, target: /d, read_only: true}", Mount("bind", "/s", "/d", True)),
    ],
)
def test_volumes_in_every_syntax(text, mount):
    """Named, external, bound, anonymous and in memory."""
    item = text if text.startswith("{") else f'"{text}"'
    declared = "\nvolumes: {data: {}, outer: {external: true, name: real}}"

    stack = load(
        f"services: {{web: {{image: i, volumes: [{item}]}}}}{declared}",
        environment={"HOME": "/home/u"},
    )

    assert stack.services[0].template.container.mounts == (mount,)


def test_command_as_text_and_as_list():
    """A text is split like a shell's words; a list is taken as it is; nothing is the image's."""
    assert web("command: sh -c 'a b'").command == ("sh", "-c", "a b")
    assert web("command: [sh, -c, a b]").command == ("sh", "-c", "a b")
    assert web("command: []").command == ()
    assert web("command:").command is None
    assert web("entrypoint: /run.sh 1").entrypoint == ("/run.sh", "1")


def test_environment_files_come_first():
    """``environment`` wins over ``env_file``; later files win over earlier ones."""
    files = {"/p/shop/a.env": "A=1\nB=1\nC=1\n", "/p/shop/b.env": "B=2\nC=2\n"}

    container = web("env_file: [a.env, {path: b.env}]\nenvironment: [C=3]", files=files)

    assert container.environment == {"A": "1", "B": "2", "C": "3"}
    assert web("env_file: [{path: none.env, required: false}]").environment == {}


def test_merge_keys_and_aliases():
    """``<<`` takes one map or several; what is written beside it wins, then the first of them."""
    stack = load(
        "x-a: &a {image: a, user: a, tty: true}\n"
        "x-b: &b {image: b, working_dir: /b}\n"
        "services:\n"
        "  one: {<<: *a, user: own}\n"
        "  two: {<<: [*b, *a]}\n"
        "  three: *b\n"
    )
    one, two, three = (service.template.container for service in stack.services)

    assert (one.image, one.user, one.tty) == ("a", "own", True)
    assert (two.image, two.user, two.working_dir) == ("b", "a", "/b")
    assert three.image == "b"


def test_later_files_change_and_add():
    """Maps merge by key, lists join, commands and mounts at one place are replaced."""
    base = (
        "services:\n"
        "  web:\n"
        "    image: i:1\n"
        "    command: [a, b]\n"
        "    environment: [A=1, B=1]\n"
        "    ports: ['80:80']\n"
        "    volumes: ['/one:/data', '/logs:/logs']\n"
        "    deploy: {replicas: 1, resources: {limits: {memory: 64m}}}\n"
    )
    over = (
        "services:\n"
        "  web:\n"
        "    image: i:2\n"
        "    command: [c]\n"
        "    environment: {B: 2}\n"
        "    ports: ['80:80', '443:443']\n"
        "    volumes: ['/two:/data']\n"
        "    deploy: {replicas: 3}\n"
        "  new: {image: n}\n"
    )

    web_, new = load(base, over).services
    container = web_.template.container

    assert (container.image, container.command) == ("i:2", ("c",))
    assert container.environment == {"A": "1", "B": "2"}
    assert container.ports == (PortMapping(80, 80), PortMapping(443, 443))
    assert set(container.mounts) == {
        Mount("bind", "/two", "/data"),
        Mount("bind", "/logs", "/logs"),
    }
    assert web_.replicas == 3
    assert web_.template.limits == Resources(memory_bytes=64 << 20)
    assert new.name == "new"


def test_errors_name_the_file_they_are_in():
    """After merging, a fault is still reported in the file that has it."""
    base = "services:\n  web:\n    image: i\n    restart: never\n"

    with pytest.raises(InvalidSpec, match=r"^1\.yaml:4: services\.web\.restart: "):
        load(base, "services:\n  web:\n    user: root\n")


@pytest.mark.parametrize(
    ("text", "environment", "options", "name"),
    [
        ("", {}, {}, "shop"),
        ("name: blog\n", {}, {}, "blog"),
        ("name: blog\n", {"COMPOSE_PROJECT_NAME": "other"}, {}, "other"),
        ("", {}, {"folder": "/srv/My Shop!"}, "my-shop"),
        ("", {}, {"default_name": "given"}, "given"),
        ("", {}, {"folder": "/"}, "default"),
    ],
)
def test_stack_names(text, environment, options, name):
    """Environment, file, then the folder, made into a name."""
    stack = load(f"{text}services: {{web: {{image: i}}}}", environment=environment, **options)

    assert stack.name == name
    assert stack.services[0].stack == name


def test_networks_of_the_node():
    """External networks by their name; the node's own for the rest; modes as they are."""
    declared = "networks: {outer: {external: true}, default: {}, old: {external: {name: legacy}}}"

    def network(fields):
        stack = load(f"services: {{web: {{image: i, {fields}}}}}\n{declared}")
        assert stack.services[0].template.networks == ()
        return stack.services[0].template.container.network

    assert network("networks: [outer]") == "outer"
    assert network("networks: [old]") == "legacy"
    assert network("networks: [default]") == ""
    assert network("tty: true") == ""
    assert network("network_mode: host") == "host"


def test_an_external_network_is_a_tenants_where_there_is_one():
    """What is made elsewhere is a tenant network when the tenant has one of that name."""
    text = "services: {web: {image: i, networks: [outer]}}\nnetworks: {outer: {external: true}}"

    [web] = load(text, tenant_networks=["outer"]).services

    assert web.template.networks == (NetworkUse("outer"),)
    assert web.template.container.network == ""
    assert load(text).externals == ("outer",)


def test_tenant_networks_of_a_file():
    """A network of the file is the tenant's, with all that is said of it."""
    stack = load(
        """
        name: shop
        services:
          web:
            image: i
            networks:
              back: {ipv4_address: 10.20.1.9, aliases: [www, www.shop]}
              front: {gw_priority: 1}
          db: {vm: {disk: d.qcow2, trunk: true}, networks: [back]}
        networks:
          front:
            ipam: {config: [{subnet: 10.20.0.0/24, gateway: 10.20.0.254}, {subnet: "fd00::/64"}]}
            security_group: web
            driver_opts: {com.docker.network.driver.mtu: 1400}
            resolvers: 10.20.0.53
            routed: true
          back:
            name: backend
            provider: {network: physnet1, vlan: 30}
            port_security: false
            ipam: {config: [{subnet: 10.20.1.0/24}]}
        security_groups: {web: {ingress: [{ports: 80}]}}
        """
    )

    web, db = stack.services
    assert web.template.networks == (
        NetworkUse("shop_front"),
        NetworkUse("backend", ("10.20.1.9",), ("www", "www.shop")),
    )
    assert db.template.networks == (NetworkUse("backend"),)
    assert [one.definition for one in stack.networks] == [
        NetworkDefinition(
            "shop_front",
            stack="shop",
            subnets=(Subnet("10.20.0.0/24", "10.20.0.254"), Subnet("fd00::/64", "fd00::1")),
            mtu=1400,
            routed=True,
            resolvers=("10.20.0.53",),
            security_groups=("shop_web",),
        ),
        NetworkDefinition(
            "backend",
            stack="shop",
            subnets=(Subnet("10.20.1.0/24", "10.20.1.1"),),
            provider=Provider("physnet1", 30),
            port_security=False,
        ),
    ]
    assert stack.warnings == ()


def test_security_groups_of_a_file():
    """Rules name ports and the other end: ranges, services, labels and groups."""
    stack = load(
        """
        name: shop
        services: {web: {image: i}}
        security_groups:
          web:
            ingress:
              - {ports: [80, 8000-8080], from: 0.0.0.0/0}
              - {from: {group: web}}
            egress: [{to: {label: tier=db}, protocol: icmp}]
        """
    )

    anyone = Remote(RemoteKind.CIDR, "0.0.0.0/0")
    assert stack.groups == (
        SecurityGroup(
            "default",
            "shop_web",
            (
                Rule(Direction.INGRESS, Protocol.TCP, (80, 80), anyone),
                Rule(Direction.INGRESS, Protocol.TCP, (8000, 8080), anyone),
                Rule(Direction.INGRESS, remote=Remote(RemoteKind.GROUP, "shop_web")),
                Rule(Direction.EGRESS, Protocol.ICMP, remote=Remote(RemoteKind.LABEL, "tier=db")),
            ),
        ),
    )


def test_older_fields_for_resources():
    """``cpus``, ``mem_limit`` and ``mem_reservation`` say the same as deploy.resources."""
    (service,) = load(
        "services: {web: {image: i, cpus: 0.5, mem_limit: 1g, mem_reservation: 512m, scale: 4}}"
    ).services

    assert service.template.limits == Resources(500, 1 << 30)
    assert service.template.resources == Resources(500, 512 << 20)
    assert service.replicas == 4


def test_profiles_that_are_asked_for():
    """COMPOSE_PROFILES brings a service in."""
    text = "services: {web: {image: i}, debug: {image: d, profiles: [dev, test]}}"

    assert [s.name for s in load(text).services] == ["web"]
    asked = load(text, environment={"COMPOSE_PROFILES": "x,test"})
    assert [s.name for s in asked.services] == ["web", "debug"]


@pytest.mark.parametrize(
    "text", ["a\x00b", "\ud800", "a: \x07", "\ufeff", "%YAML 9.9\n---\na: b", "\t", "- ", "a: *"]
)
def test_odd_texts_are_refused(text):
    """Control characters, half characters and fragments give a clear error, never another."""
    with pytest.raises(InvalidSpec) as caught:
        load(text)

    assert caught.value.where.startswith("1.yaml")
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_refused_unread():
    """Past the bound the file is not parsed at all."""
    with pytest.raises(InvalidSpec, match="characters"):
        load("services: {}\n" + "#" * yamltree.FILE_MAX_CHARS)


def test_merge_bombs_are_refused_early():
    """Many merges of one large map are counted as they are copied, not afterwards."""
    large = "x-a: &a {" + ",".join(f"k{n}: v" for n in range(10_000)) + "}\n"
    merges = "".join(f"  s{n}: {{<<: *a}}\n" for n in range(10_000))

    with pytest.raises(InvalidSpec, match=r"1\.yaml:23: .* more than 200000 values"):
        load(f"{large}services:\n{merges}")


def test_a_thousand_services_are_within_bounds():
    """The bounds leave room for what is real."""
    text = "services:\n" + "".join(
        f"  s{n}:\n    image: i:{n}\n    ports: ['{n + 1}:80']\n    environment: {{A: '{n}'}}\n"
        for n in range(1000)
    )

    assert len(load(text).services) == 1000


@contextmanager
def refused_clearly():
    """Lets an InvalidSpec pass that has a place and is one printable line."""
    try:
        yield
    except InvalidSpec as caught:
        error = caught
    else:
        return
    assert error.where
    assert str(error).isprintable()


_KEYS = st.sampled_from(
    [
        "image",
        "command",
        "entrypoint",
        "environment",
        "env_file",
        "ports",
        "volumes",
        "networks",
        "labels",
        "restart",
        "deploy",
        "vm",
        "replicas",
        "resources",
        "limits",
        "reservations",
        "memory",
        "cpus",
        "devices",
        "placement",
        "constraints",
        "target",
        "source",
        "type",
        "disk",
        "cloud_init",
        "user_data",
        "size",
        "tmpfs",
        "tty",
        "x-a",
        "<<",
        "path",
        "profiles",
        "external",
        "stop_signal",
        "network_mode",
        "build",
        "scale",
        "healthcheck",
        "restart_policy",
        "condition",
        "delay",
    ]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 100_000)
    | st.sampled_from(["80:80", "a:/b", "/x", "1g", "10s", "${A", "$$", "A=1", "~", "", "always"])
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(service=st.dictionaries(_KEYS, _VALUES, max_size=6), top=st.dictionaries(_KEYS, _VALUES))
def test_any_structure_loads_or_is_refused_clearly(service, top):
    """Whatever the shape, the answer is a stack or one InvalidSpec with a place."""
    text = json.dumps({"services": {"web": {"image": "i"} | service}, "volumes": top})

    with refused_clearly():
        load(text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*<>|\"'\n\t #!%$1~,?"), max_size=40))
def test_any_text_loads_or_is_refused_clearly(text):
    """The parser's own errors never come through."""
    with pytest.raises(InvalidSpec) as caught:
        load(text)

    assert str(caught.value).isprintable()
