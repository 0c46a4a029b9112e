"""Stack files as people have them: the bad ones, the ones that warn, the ones that apply.

Each file of ``bad/`` begins with the one line that it is answered with; each of ``warned/`` with
its warnings. Reading these folders teaches the format.
"""

from pathlib import Path

import pytest
import yaml

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec import yamltree
from swarmctl.spec.models import (
    AffinityTerm,
    CloudInit,
    DiskSpec,
    Kind,
    Mount,
    PortMapping,
    Resources,
    RestartCondition,
    RestartPolicy,
    VmSpec,
)
from swarmctl.spec.stack import Stack, load_stack

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad").glob("*.yaml"))
WARNED = sorted((HERE / "warned").glob("*.yaml"))

FILES = {"/srv/shop/bad.env": 'A=1\nB="open\n'}


def read_file(path):
    if path not in FILES:
        raise FileNotFoundError(path)
    return FILES[path]


def expected(text, kind):
    prefix = f"# {kind}: "
    return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]


def load(path, environment=None) -> Stack:
    environment = environment if environment is not None else {"HOME": "/root", "B": "1"}
    return load_stack([(path.name, path.read_text())], environment, read_file, folder="/srv/shop")


def services(stack):
    return {service.name: service for service in stack.services}


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_is_refused_with_one_clear_line(path):
    """A bad file is refused with the line that it begins with: where, what, what to do."""
    with pytest.raises(InvalidSpec) as caught:
        load(path, {"HOME": ""})

    assert expected(path.read_text(), "error") == [str(caught.value)]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_is_refused_alike_without_the_parser_in_c(path, monkeypatch):
    """PyYAML without libyaml finds the same faults; only its words for bad syntax differ."""
    monkeypatch.setattr(yamltree, "_LOADER", yaml.SafeLoader)

    with pytest.raises(InvalidSpec) as caught:
        load(path, {"HOME": ""})

    (line,) = expected(path.read_text(), "error")
    if "not valid YAML" in line:
        assert "not valid YAML" in caught.value.what
        assert caught.value.where.startswith(f"{path.name}:")
    else:
        assert str(caught.value) == line


@pytest.mark.parametrize("path", WARNED, ids=lambda path: path.stem)
def test_what_has_no_effect_is_warned_about(path):
    """A file that asks for what is not supported applies, and says so line by line."""
    stack = load(path)

    assert [str(warning) for warning in stack.warnings] == expected(path.read_text(), "warning")
    assert stack.services


def test_folders_hold_files():
    """The tables above are not empty by accident."""
    assert len(BAD) >= 100
    assert len(WARNED) >= 20


def test_blog_applies_as_it_is():
    """A blog and its database, version key and all, become two services with their volumes."""
    stack = load(HERE / "good" / "blog.yaml")
    found = services(stack)

    assert stack.name == "shop"
    assert list(found) == ["db", "wordpress"]
    db, blog = found["db"].template.container, found["wordpress"].template.container
    assert db.environment["MYSQL_ROOT_PASSWORD"] == "somewordpress"
    assert db.command == ("--default-authentication-plugin=mysql_native_password",)
    assert db.mounts == (Mount("volume", "shop_db_data", "/var/lib/mysql"),)
    assert blog.image == "wordpress:latest"
    assert blog.ports == (PortMapping(80, 80),)
    assert blog.environment["WORDPRESS_DB_HOST"] == "db"
    assert found["db"].template.restart == RestartPolicy(RestartCondition.ALWAYS)
    assert {warning.where.split(": ")[1] for warning in stack.warnings} == {
        "services.db.expose",
        "services.wordpress.depends_on",
    }


def test_polls_apply_as_they_are():
    """A stack as written for a swarm: anchors, deploy, long volumes, two networks a service."""
    found = services(load(HERE / "good" / "polls.yaml"))

    assert found["vote"].replicas == 2
    assert found["vote"].template.restart == RestartPolicy(
        RestartCondition.ON_FAILURE, delay_s=5.0, max_attempts=3, window_s=120.0
    )
    assert found["vote"].template.container.mounts == (Mount("bind", "/srv/shop/vote", "/app"),)
    assert found["redis"].template.container.ports == (PortMapping(6379),)
    assert found["worker"].placement.constraints == ()
    db = found["db"]
    assert db.template.resources == Resources(cpu_millis=250, memory_bytes=128 << 20)
    assert db.template.limits == Resources(cpu_millis=500, memory_bytes=512 << 20)
    assert db.placement.constraints == ("node.labels.disk == ssd",)
    assert db.placement.spread == ("node.labels.rack",)


def test_machines_and_jobs_apply():
    """What is added to the Compose Specification: VMs, named resources, placement, jobs."""
    stack = load(HERE / "good" / "machines.yaml")
    found = services(stack)

    assert stack.name == "lab"
    assert stack.warnings == ()
    db = found["db"]
    assert db.template.kind is Kind.VM
    assert db.template.vm == VmSpec(
        disk=DiskSpec("debian-12.qcow2", 20 << 30, persistent=True),
        firmware="uefi",
        cloud_init=CloudInit(
            user_data="#cloud-config\npackages: [postgresql]\nruncmd:\n"
            '  - [sh, -c, "echo $HOME"]\n',
            hostname="db",
            ssh_authorized_keys=("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGVuZ2luZSByb29t ops",),
        ),
    )
    assert db.template.resources == Resources(
        2000, 2 << 30, 20 << 30, {"gpu": 1, "fpga-region": 2, "licence/matlab": 1}
    )
    assert db.template.stop_grace_period_s == 90.0
    assert (db.replicas, db.priority, db.fencing) == (2, 50, "lease")
    assert db.placement.max_replicas_per_node == 1
    assert db.placement.affinity == (AffinityTerm("cache", 70),)
    assert db.placement.anti_affinity == (AffinityTerm("batch", 50, required=True),)
    tiny = found["tiny"].template
    assert tiny.vm.initrd == "/srv/shop/initrd.img"
    assert tiny.resources == Resources(1000, 512 << 20)
    assert [one.driver_name for one in found.values()] == ["libvirt", "libvirt", "oci"]
    batch = found["batch"].template
    assert batch.job
    assert batch.restart.condition is RestartCondition.ON_FAILURE
    assert batch.container.command == ("sh", "-c", "echo $((1+1))")
