"""Health checks of real VMs under QEMU: a service in the guest ends, and what follows for the VM.

The guests serve with busybox's httpd; a second one of theirs, the levers, tells the test how often
the first was asked, and takes it away when the test pulls.  For the third kind of check Debian's
own guest agent is put into the guest, with the libraries that it is linked to: a second initramfs,
appended to the lab's.
"""

import gzip
import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lab import fetch
from lab.config import Paths
from lab.cpio import Archive
from lab.report import Step
from swarmctl.spec.models import (
    CloudInit,
    HealthCheck,
    HealthKind,
    Resources,
    RestartPolicy,
    ServiceSpec,
)
from tests.e2e.cluster import LIBVIRT_URI, MIB, Cluster, machine, until

# Guests boot in three seconds on a free machine, and have been seen to take forty on a full one.
PATIENCE_S = 100.0
PORT, LEVERS = 8080, 8081
OFTEN = {"interval_s": 0.5, "timeout_s": 5.0, "retries": 3, "start_period_s": PATIENCE_S}
CACHE = Path(os.environ.get("SWARMCTL_LAB_CACHE", "/var/cache/swarmctl-lab"))

CGI = """
cat >{path} <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
{does}
END
chmod +x {path}
"""


def serves(pulled: str) -> str:
    """The script of a guest that serves a page, which notes each look at it, and has levers."""
    return f"""
mkdir -p /www/cgi-bin /levers/cgi-bin
: >/run/asked
{CGI.format(path="/www/cgi-bin/page", does="echo >>/run/asked")}
{CGI.format(path="/levers/cgi-bin/asked", does="wc -l </run/asked")}
{CGI.format(path="/levers/cgi-bin/pull", does=f"{pulled} 2>&1")}
httpd -f -p {PORT} -h /www &
echo $! >/run/web.pid
httpd -p {LEVERS} -h /levers
"""


AGENT = """
port=$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name | cut -d / -f 5)
qemu-ga --daemonize -m virtio-serial -p /dev/$port -t /run -l /tmp/agent.log -f /run/agent.pid
"""


def virsh(*arguments: str) -> None:
    """What an administrator does."""
    command = ["virsh", "-c", LIBVIRT_URI, *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A network of libvirt's, of the test's own: its name."""
    name, subnet = f"swh{os.getpid()}", f"10.214.{os.getpid() % 256}"
    definition = tmp_path_factory.mktemp("network") / "network.xml"
    definition.write_text(
        f"<network><name>{name}</name><bridge name='{name}'/>"
        f"<ip address='{subnet}.1' netmask='255.255.255.0'>"
        f"<dhcp><range start='{subnet}.10' end='{subnet}.99'/></dhcp></ip></network>"
    )
    virsh("net-create", str(definition))
    try:
        yield name
    finally:
        virsh("net-destroy", name)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node with libvirt."""
    made = Cluster(tmp_path_factory.mktemp("vm-health"))
    made.agent("v1", drivers="libvirt")
    try:
        yield made.start()
    finally:
        print(made.logs())  # noqa: T201 - captured
        made.close()


@pytest.fixture(scope="module")
def agent_initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's initramfs with the QEMU guest agent in it."""
    paths = Paths(tmp_path_factory.mktemp("state"), CACHE)
    root = fetch.unpacked(paths, "qemu-guest-agent", Step("guest agent", time.monotonic()))
    program = root / "usr/sbin/qemu-ga"
    linked = subprocess.run(
        ["ldd", str(program)], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    assert "not found" not in linked, f"QEMU's own libraries are missing here: {linked}"
    archive = Archive()
    archive.file("usr/sbin/qemu-ga", program.read_bytes(), 0o755)
    for library in re.findall(r"(/\S+) \(0x", linked):
        archive.file(library.removeprefix("/"), Path(library).read_bytes(), 0o755)
    made = tmp_path_factory.mktemp("guest") / "initrd.img"
    more = gzip.compress(archive.finish(), compresslevel=1, mtime=0)
    made.write_bytes(paths.initrd.read_bytes() + more)
    return made


def vm(
    name: str, network: str, check: HealthCheck, script: str, initrd: Path | None = None
) -> ServiceSpec:
    """A service of one guest that runs ``script`` at each boot."""
    # What it was stopped for is shown until it is started again: long enough for the test to look.
    plain = machine(name, health=check, restart=RestartPolicy(delay_s=2.0))
    seed = CloudInit(user_data=f"#!/bin/sh\n{script}")
    made = evolve(plain.template.vm, network=network, cloud_init=seed)
    made = evolve(made, initrd=str(initrd) if initrd else made.initrd)
    resources = Resources(memory_bytes=128 * MIB)
    return evolve(plain, template=evolve(plain.template, vm=made, resources=resources))


def view(cluster: Cluster, name: str) -> dict:
    """What ``ps`` says of its only instance."""
    found: dict = cluster.ps(name)[f"{name}.1"]
    return found


def lever(cluster: Cluster, name: str, what: str) -> bytes:
    """What the guest says when that lever is pulled."""
    [address] = view(cluster, name)["addresses"]
    with urllib.request.urlopen(f"http://{address}:{LEVERS}/cgi-bin/{what}", timeout=30) as answer:
        said: bytes = answer.read()
    return said


def end_guest_agent(cluster: Cluster, name: str) -> None:
    """Have the agent in the guest end itself."""
    arguments = {"path": "/bin/sh", "arg": ["-c", "sleep 0.3; killall -9 qemu-ga"]}
    order = json.dumps({"execute": "guest-exec", "arguments": arguments})
    virsh("qemu-agent-command", view(cluster, name)["runtime_id"], order)


def are_stopped(cluster: Cluster, expected: dict[str, str]) -> None:
    """Wait until each was stopped, for the reason that ``expected`` has for it."""
    said: dict[str, list[str]] = {name: [""] for name in expected}

    def all_said() -> bool:
        for name, heard in said.items():
            reason = view(cluster, name)["reason"]
            if reason != heard[-1]:
                heard.append(reason)
        return all(re.search(why, "\n".join(said[name])) for name, why in expected.items())

    try:
        until(all_said, PATIENCE_S, f"unhealthy: {', '.join(expected)}")
    finally:
        print(said)  # noqa: T201 - captured


def are_well(cluster: Cluster, names: Iterable[str], *, attempt: int) -> dict[str, int]:
    """Wait until each is healthy in that attempt; by name libvirt's number of its run."""

    def is_well(shown: dict) -> bool:
        return (shown["attempt"], shown["health"]) == (attempt, "healthy")

    def all_well() -> bool:
        return all(is_well(view(cluster, name)) for name in names)

    try:
        until(all_well, PATIENCE_S, f"attempt {attempt} of {', '.join(names)} well")
    finally:
        print(cluster.ps(*names))  # noqa: T201 - captured
    return {name: cluster.domains()[view(cluster, name)["runtime_id"]] for name in names}


def test_a_service_that_ends_in_a_guest_has_its_vm_started_again(cluster: Cluster, network: str):
    """By TCP and by HTTP; as long as it answers nothing is done to the VM."""
    tcp = HealthCheck(HealthKind.TCP, port=PORT, **OFTEN)
    page = HealthCheck(HealthKind.HTTP, port=PORT, path="/cgi-bin/page", **OFTEN)
    names = ("tcp", "page")
    cluster.apply(
        vm("tcp", network, tcp, serves("kill $(cat /run/web.pid)")),
        vm("page", network, page, serves("rm /www/cgi-bin/page")),
    )
    first = are_well(cluster, names, attempt=1)
    asked = int(lever(cluster, "page", "asked"))
    until(lambda: int(lever(cluster, "page", "asked")) >= asked + 8, what="eight more looks")
    assert are_well(cluster, names, attempt=1) == first

    for name in names:
        assert lever(cluster, name, "pull") == b"", "it says what went wrong"
    are_stopped(
        cluster,
        {
            "tcp": f"unhealthy: .*:{PORT}: connection refused",
            "page": f"unhealthy: .*:{PORT}/cgi-bin/page answered 404",
        },
    )
    again = are_well(cluster, names, attempt=2)
    assert all(again[name] != first[name] for name in names)
    cluster.remove(*names)


@pytest.mark.slow
def test_a_guest_whose_agent_is_silent_is_started_again(cluster: Cluster, agent_initrd: Path):
    """The QEMU guest agent answers from within the VM, until it ends."""
    pinged = HealthCheck(HealthKind.GUEST_AGENT, **OFTEN)
    cluster.apply(vm("pinged", "none", pinged, AGENT, agent_initrd))
    [first] = are_well(cluster, ["pinged"], attempt=1).values()

    end_guest_agent(cluster, "pinged")
    are_stopped(cluster, {"pinged": "unhealthy: .*guest agent is not connected"})
    [again] = are_well(cluster, ["pinged"], attempt=2).values()
    assert again != first
    cluster.remove("pinged")
