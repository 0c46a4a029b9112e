"""What ``swarmctl run``'s options become."""

import pytest

from swarmctl.proto.errors import InvalidSpec, NotFound
from swarmctl.spec.models import (
    CloudInit,
    DiskSpec,
    Mount,
    NetworkUse,
    PortMapping,
    Resources,
    RestartCondition,
    RestartPolicy,
    VmSpec,
)
from swarmctl.spec.options import RunOptions, build_service
from swarmctl.spec.stack import load_stack


def build(around=None, /, **options):
    return build_service(RunOptions(**options), around or {})


def test_the_least():
    """An image alone is a service of one, called after it, that is kept running."""
    spec = build(image="swarmctl/testbox:latest")

    assert (spec.name, spec.replicas, spec.driver_name) == ("testbox", 1, "docker")
    assert spec.template.container.image == "swarmctl/testbox:latest"
    assert spec.template.container.command is None
    assert spec.template.restart == RestartPolicy(RestartCondition.ALWAYS)


def test_everyday_flags():
    """Docker's everyday flags mean what they mean there."""
    spec = build(
        {"TOKEN": "secret", "HOME": "/root"},
        image="nginx",
        command=["sleep", "600"],
        name="web",
        replicas=40,
        cpus="0.5",
        memory="512m",
        reserve=["gpu=1"],
        labels=["a=1", "b"],
        constraints=["node.labels.zone == eu-1"],
        environment=["A=1", "TOKEN"],
        publish=["8080:80", "53/udp"],
        volumes=["data:/data", "./x:/x:ro", "~/y:/y"],
        user="1000:1000",
        workdir="/srv",
        entrypoint="/bin/sh -c",
        hostname="w",
        networks=["node:front"],
        restart="on-failure:3",
        stop_timeout="30s",
        tty=True,
        folder="/home/me",
    )
    template = spec.template
    container = template.container

    assert (spec.name, spec.replicas) == ("web", 40)
    assert spec.placement.constraints == ("node.labels.zone == eu-1",)
    assert template.resources == Resources(500, 512 << 20, named={"gpu": 1})
    assert template.limits == Resources(500, 512 << 20)
    assert template.labels == {"a": "1", "b": ""}
    assert template.restart == RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=3)
    assert template.stop_grace_period_s == 30.0
    assert container.command == ("sleep", "600")
    assert container.entrypoint == ("/bin/sh", "-c")
    assert container.environment == {"A": "1", "TOKEN": "secret"}
    assert container.ports == (PortMapping(80, 8080), PortMapping(53, 0, "udp"))
    assert container.mounts == (
        Mount("volume", "data", "/data"),
        Mount("bind", "/home/me/x", "/x", read_only=True),
        Mount("bind", "/root/y", "/y"),
    )
    assert (container.user, container.working_dir) == ("1000:1000", "/srv")
    assert (container.hostname, container.network, container.tty) == ("w", "front", True)


def test_jobs_restart_on_failure():
    """A job that says nothing is tried again until it succeeds."""
    template = build(image="i", job=True).template

    assert template.job
    assert template.restart.condition is RestartCondition.ON_FAILURE


def test_machines():
    """With ``--vm`` the image is a disk; cloud-init gets the rest; a VM has cpus and memory."""
    key = "ssh-ed25519 AAAA me"
    spec = build(
        image="/images/debian-12.qcow2",
        vm=True,
        disk_size="20g",
        firmware="uefi",
        user_data="#cloud-config\n",
        ssh_keys=[key],
        hostname="db",
        memory="1g",
    )

    assert (spec.name, spec.driver_name) == ("debian-12", "libvirt")
    assert spec.template.vm == VmSpec(
        disk=DiskSpec("/images/debian-12.qcow2", 20 << 30),
        firmware="uefi",
        cloud_init=CloudInit("#cloud-config\n", "db", (key,)),
    )
    assert spec.template.resources == Resources(1000, 1 << 30)
    assert spec.template.limits == Resources()


def test_direct_boot():
    """A kernel boots without a disk."""
    spec = build(vm=True, kernel="/boot/vmlinuz", initrd="/i", cmdline="console=ttyS0")

    assert spec.name == "vmlinuz"
    assert spec.template.vm == VmSpec(kernel="/boot/vmlinuz", initrd="/i", cmdline="console=ttyS0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, 'IMAGE: "" cannot be the name of an image (such as "nginx:1.27" or "host/app")'),
        ({"name": "web/1"}, '--name: "web/1" cannot be a service name'),
        ({"memory": "12 gigs"}, '--memory: "12 gigs" is not a size (write "12g")'),
        ({"cpus": "many"}, '--cpus: "many" is not a number of cpus'),
        ({"replicas": -1}, "--replicas: -1 is not between 0 and 5000000"),
        ({"reserve": ["gpu"]}, '--reserve: "" is not a count (such as gpu=1)'),
        ({"labels": ["=x"]}, '--label: "=x" has no name (write NAME=VALUE)'),
        ({"constraints": ["zone"]}, "--constraint: not of the form"),
        ({"environment": ["NONE"]}, "--env: NONE is not set here"),
        ({"environment": ["=1"]}, '--env: "" cannot be the name of a variable'),
        ({"publish": ["http"]}, '--publish: "http" is not a port mapping'),
        ({"publish": ["80:80", "80:81"]}, "--publish: host port 80/tcp is published twice"),
        ({"volumes": ["/a"], "workdir": "x"}, '--workdir: "x" is not an absolute path'),
        ({"volumes": ["/a:b"]}, '--volume: "b" is not an absolute path in the container'),
        ({"volumes": ["./a:/b"]}, '--volume: "./a" is not an absolute path'),
        ({"restart": "allways"}, '--restart: "allways" is not a restart policy (did you mean'),
        ({"restart": "always", "job": True}, '--restart: a job that restarts "always" never ends'),
        ({"entrypoint": "'x"}, '--entrypoint: "\'x" is not a command'),
        ({"hostname": "a b"}, '--hostname: "a b" cannot be a host name'),
        ({"stop_timeout": "soon"}, '--stop-timeout: "soon" is not a time'),
        ({"driver": "libvirt"}, '--driver: no driver "libvirt" starts containers'),
        ({"disk": "d"}, "--disk: a container has none (add --vm to start a VM)"),
        ({"vm": True, "command": ["x"]}, "COMMAND: a VM has none"),
        ({"vm": True, "disk": "d"}, "--disk: both IMAGE and --disk say what to boot"),
        ({"vm": True, "kernel": "k"}, "--kernel: both IMAGE and --kernel say what to boot"),
        ({"vm": True, "initrd": "k"}, "--vm: initrd needs a kernel"),
        ({"vm": True, "firmware": "efi"}, '--vm: "efi" is not a firmware (use bios or uefi)'),
        ({"vm": True, "user_data": "x: 1"}, "--user-data: cloud-init does not know this kind"),
        ({"vm": True, "ssh_keys": ["k"]}, "--ssh-key: this is not an ssh public key"),
        ({"vm": True, "disk_size": "big"}, '--disk-size: "big" is not a size'),
    ],
)
def test_bad_options_are_named(options, message):
    """What is wrong is said about the option that it came with."""
    image = {"image": "nginx"} if options else {}

    with pytest.raises(InvalidSpec) as caught:
        build(**(image | options))

    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 2


def test_options_and_file_agree():
    """The same wishes give the same template, whichever way they are said."""
    text = """
services:
  web:
    image: nginx
    command: [sleep, "600"]
    environment: {A: "1"}
    ports: ["8080:80"]
    restart: on-failure:3
    deploy:
      replicas: 3
      resources: {limits: {cpus: 0.5, memory: 512m}}
"""
    (from_file,) = load_stack([("f.yaml", text)], {}, str, folder="/p").services

    from_options = build(
        image="nginx",
        name="web",
        command=["sleep", "600"],
        environment=["A=1"],
        publish=["8080:80"],
        restart="on-failure:3",
        replicas=3,
        cpus="0.5",
        memory="512m",
    )

    assert from_options.template == from_file.template
    assert from_options.replicas == from_file.replicas


def test_networks_of_tenants_and_of_the_node():
    """What --network names is a tenant network where there is one, with --ip on the first."""

    def built(tenants, **options):
        return build_service(RunOptions(image="i", **options), {}, tenants).template

    plugged = built({"front", "back"}, networks=["front", "back"], ip="10.0.0.9")
    assert plugged.networks == (NetworkUse("front", ("10.0.0.9",)), NetworkUse("back"))
    assert plugged.container.network == ""
    assert built({"front"}, networks=["node:front"]).container.network == "front"
    assert built(set(), networks=["host"]).container.network == "host"
    for tenants, options, where in (
        ({"front"}, {"networks": ["front", "node:own"]}, "--network"),
        (set(), {"networks": ["node:one", "node:two"]}, "--network"),
        (set(), {"networks": ["node:"]}, "--network"),
        ({"front"}, {"networks": ["front"], "ip": "10.0.0"}, "--ip"),
        ({"front"}, {"networks": ["front"], "ip": "10.0.0.9", "replicas": 2}, "--ip"),
        (set(), {"networks": ["host"], "ip": "10.0.0.9"}, "--ip"),
        (set(), {"network_aliases": ["www"]}, "--network-alias"),
    ):
        with pytest.raises(InvalidSpec) as caught:
            built(tenants, **options)
        assert caught.value.where == where


@pytest.mark.parametrize(
    ("known", "hint"),
    [({"front", "back"}, 'did you mean "front"?'), ({"b", "a"}, "there are: a, b"), ((), "none")],
)
def test_a_network_that_nobody_made_is_refused(known, hint):
    """With those that there are, and the ways to have it."""
    with pytest.raises(NotFound, match='there is no network "frnt"') as caught:
        build_service(RunOptions(image="i", networks=["frnt"]), {}, known)
    assert caught.value.where == "--network"
    assert hint in caught.value.hint
    assert "swarmctl network create frnt" in caught.value.hint
    assert "node:frnt" in caught.value.hint
