"""The oci driver on the real runc, conmon, skopeo and umoci."""

import contextlib
import os
import shutil
import signal
import subprocess
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from attrs import evolve

from swarmctl.agent.drivers.api import Driver, Exec, Logs
from swarmctl.agent.drivers.oci import OciDriver
from swarmctl.agent.drivers.oci.layout import Layout
from swarmctl.agent.drivers.oci.state import read_pid
from swarmctl.spec.models import ContainerSpec, Resources, Template
from tests.integration.driver_contract import (
    Behaviour,
    DriverContract,
    ExecContract,
    ExitCodeContract,
    Harness,
    LogsContract,
)

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
    for path in (folder / "containers").glob("*/rootfs"):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)
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
        await trio.to_thread.run_sync(self.take_away, found.runtime_id)

    def take_away(self, container):
        place = self.layout.place(container)
        runtime = ["runc", "--root", str(self.layout.runtime)]
        subprocess.run([*runtime, "delete", "--force", container], check=False, capture_output=True)
        subprocess.run(["umount", "-l", place.rootfs], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", place.namespace], check=False, capture_output=True)
        shutil.rmtree(place.folder, ignore_errors=True)

    async def clean_up(self):
        await trio.to_thread.run_sync(self.sweep)

    def sweep(self):
        """Remove all that is in the folder, past the driver."""
        with contextlib.suppress(FileNotFoundError):
            for container in self.layout.containers.iterdir():
                self.take_away(container.name)

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
