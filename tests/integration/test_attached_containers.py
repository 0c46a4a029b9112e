"""Containers on tenant networks: real Docker, a real Open vSwitch, the agent's own parts."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import trio
from attrs import evolve

from swarmctl.agent.attaching import Attaching
from swarmctl.agent.checks import Checker
from swarmctl.agent.drivers.api import Found, Launch, Owner, Phase
from swarmctl.agent.drivers.docker import DockerDriver
from swarmctl.agent.drivers.oci import OciDriver
from swarmctl.agent.executor import Executor
from swarmctl.agent.supervisor import Supervisor
from swarmctl.net.plugging.ovs import OvsPlugs
from swarmctl.proto import incarnation
from swarmctl.proto.messages import Attachment
from swarmctl.spec.models import ContainerSpec, HealthCheck, HealthKind, Template
from tests.integration.driver_contract import eventually
from tests.integration.ovs_sandbox import OvsSandbox, need_ovs, ovs
from tests.integration.test_docker_driver import IMAGE
from tests.integration.test_oci_driver import box

DEADLINE_S = 60.0
__all__ = ["box"]  # a fixture, used by its name
# Says what it sees in its first moment, and stays.
SAID = "and that is all"
SAY = f"ip addr show eth0; ip route; cat /etc/resolv.conf; echo {SAID}; exec sleep 600"


@pytest.fixture(scope="module")
def switch() -> Iterator[OvsSandbox]:
    """A switch for the tests of this module."""
    need_ovs()
    try:
        docker.APIClient().images(IMAGE)
    except docker.errors.DockerException as error:
        pytest.skip(f"no dockerd here: {error}")
    with ovs(f"swt-ovs-{secrets.token_hex(3)}") as sandbox:
        yield sandbox


class Fleet:
    """One node's driver and plugs; OVN is the test."""

    def __init__(self, switch: OvsSandbox, oci: tuple[Path, str] | None = None) -> None:
        self.switch = switch
        self.owner = Owner(secrets.token_hex(6), f"n{secrets.token_hex(2)}")
        self.driver = OciDriver(self.owner, oci[0]) if oci else DockerDriver(self.owner)
        self.image = oci[1] if oci else IMAGE
        self.plugs = OvsPlugs(
            self.owner.cluster_id, self.owner.node, switch.remote, switch.namespace
        )
        self.supervisor = Supervisor([self.driver.name])
        self.attaching = Attaching(self.plugs, {self.driver.name: self.driver}, self.supervisor)

    def launch(self, index: int, *command: str, ports: int = 1) -> Launch:
        """An instance of busybox with so many ports."""
        attachments = tuple(
            Attachment(
                f"{self.owner.cluster_id[:8]}-1-{index}-{port}",
                "acme/front",
                f"02:00:00:00:{port:02x}:{index:02x}",
                (f"10.2{port}.0.{index}/24",),
                1400,
                (("0.0.0.0/0", "10.20.0.254"),) if port == 0 else (),
                ("10.20.0.254",),
                ("acme.internal",),
            )
            for port in range(ports)
        )
        template = Template(container=ContainerSpec(self.image, command or ("sh", "-c", SAY)))
        return Launch("web", index, incarnation.make(1, index), template, "acme", attachments)

    async def start(self, launch: Launch) -> Found:
        """What the executor does, with OVN installing each port once it is in the switch."""
        await self.attaching.look()
        await self.driver.prepare(launch, lambda _: None)
        await self.attaching.plug(launch, self.driver)
        await self.driver.create(launch)
        for one in launch.attachments:
            await trio.to_thread.run_sync(self.switch.install, self.plugs.device(one.port))
        await self.attaching.wait_installed(launch)
        return await self.driver.start(launch)

    async def output(self, launch: Launch) -> str:
        """All that it printed so far."""
        chunks = self.driver.logs(launch.incarnation, follow=False, tail=None, timestamps=False)
        return b"".join([chunk.data async for chunk in chunks]).decode()

    async def until_output(self, launch: Launch, text: str) -> str:
        """What it printed, once ``text`` is in it."""

        async def said() -> bool:
            return text in await self.output(launch)

        await eventually(said, DEADLINE_S)
        return await self.output(launch)

    async def close(self) -> None:
        """Remove everything."""
        for found in await self.driver.list():
            await self.driver.remove(found.incarnation)
        for one in await self.driver.places.placed():
            await self.driver.places.displace(one)
        await self.plugs.unplug(tuple(one.device for one in await self.plugs.list()))
        self.plugs.close()
        if isinstance(self.driver, DockerDriver):
            self.driver.close()


@pytest.fixture(params=["docker", "oci"])
async def fleet(request, switch: OvsSandbox, box: str, tmp_path: Path):
    """Fresh for each test, on the one switch, with either driver."""
    one = Fleet(switch, (tmp_path / "oci", box) if request.param == "oci" else None)
    await one.driver.probe()
    yield one
    with trio.CancelScope(shield=True):
        await one.close()


@pytest.fixture
async def docked(switch: OvsSandbox):
    """The same with Docker alone."""
    one = Fleet(switch)
    yield one
    with trio.CancelScope(shield=True):
        await one.close()


async def test_a_process_sees_its_network_from_its_first_instruction(fleet: Fleet) -> None:
    """Address, route, MTU and name servers are there when its first command runs."""
    launch = fleet.launch(7, ports=2)
    found = await fleet.start(launch)
    said = await fleet.until_output(launch, SAID)

    assert found.phase is Phase.RUNNING
    assert "10.20.0.7/24" in said
    assert "mtu 1400" in said
    assert "default via 10.20.0.254 dev eth0" in said
    assert "dev eth1" in said
    assert "nameserver 10.20.0.254" in said
    assert "search acme.internal" in said


async def test_containers_reach_each_other(fleet: Fleet) -> None:
    """Over their ports on the switch, by TCP."""
    server = fleet.launch(8, "sh", "-c", "echo hello | nc -l -p 9; exec sleep 600")
    await fleet.start(server)
    client = fleet.launch(
        9, "sh", "-c", "until nc 10.20.0.8 9 </dev/null; do sleep 0.2; done; exec sleep 600"
    )
    await fleet.start(client)

    assert "hello" in await fleet.until_output(client, "hello")


async def test_a_port_lives_as_long_as_its_instance_and_no_longer(fleet: Fleet) -> None:
    """It survives an end and a new start; after the removal nothing is left on the node."""
    launch = fleet.launch(7)
    await fleet.start(launch)
    await fleet.driver.stop(launch.incarnation, 0)
    assert [one.port for one in await fleet.plugs.list()] == [launch.attachments[0].port]
    await fleet.start(launch)
    assert [one.phase for one in await fleet.driver.list()] == [Phase.RUNNING]

    instance = fleet_instance(fleet, launch)
    await fleet.driver.remove(launch.incarnation)
    await fleet.attaching.unplug(instance, fleet.driver)

    assert await fleet.plugs.list() == ()
    assert await fleet.driver.places.placed() == ()
    assert await fleet.driver.list() == []


def fleet_instance(fleet: Fleet, launch: Launch):
    """The supervisor's instance of a launch."""
    from swarmctl.agent.instance import Instance

    instance = Instance(
        launch.incarnation, launch.service, launch.slot, driver=fleet.driver.name,
        attachments=launch.attachments,
    )  # fmt: skip
    fleet.supervisor.instances[launch.incarnation] = instance
    return instance


async def test_a_holder_that_was_killed_is_made_again(docked: Fleet) -> None:
    """The next attempt has a new namespace, and its port in it."""
    launch = docked.launch(7)
    await docked.start(launch)
    client = docker.APIClient()
    names = {"label": [f"swarmctl.cluster={docked.owner.cluster_id}", "swarmctl.holds"]}
    (holder,) = await trio.to_thread.run_sync(lambda: client.containers(filters=names))
    await trio.to_thread.run_sync(client.kill, holder["Id"])
    await docked.driver.stop(launch.incarnation, 0)

    await docked.start(launch)

    said = await docked.until_output(launch, "10.20.0.7/24")
    assert said.count("10.20.0.7/24") >= 1
    assert len(await docked.plugs.list()) == 1


async def test_a_sweep_removes_what_nobody_has(docked: Fleet) -> None:
    """After a crash of the agent between plug and create: holder, port and link go."""
    launch = docked.launch(7)
    await docked.attaching.look()
    await docked.attaching.plug(launch, docked.driver)
    kept = docked.launch(8)
    await docked.start(kept)
    fleet_instance(docked, kept)
    docked.supervisor.listed.add("docker")

    await docked.attaching.sweep()

    assert [one.port for one in await docked.plugs.list()] == [kept.attachments[0].port]
    assert await docked.driver.places.placed() == (kept.incarnation,)


@pytest.mark.parametrize("check", ["tcp", "http", "closed"])
async def test_checks_reach_into_the_containers_network(fleet: Fleet, check: str) -> None:
    """By its own namespace, at its own address, where no process of the node could ask it."""
    serve = "mkdir -p /tmp/w; echo well >/tmp/w/index.html; httpd -p 8080 -h /tmp/w; echo ready; "
    launch = fleet.launch(7, "sh", "-c", f"{serve} while :; do sleep 1; done")
    await fleet.start(launch)
    await fleet.until_output(launch, "ready")
    instance = fleet_instance(fleet, launch)
    checker = Checker(fleet.supervisor, {fleet.driver.name: fleet.driver}, lambda: None)
    kind = HealthKind.HTTP if check == "http" else HealthKind.TCP
    port = 8081 if check == "closed" else 8080

    answer = await checker.ask(instance, HealthCheck(kind, port=port, path="/index.html"))

    assert answer is not None
    assert answer.good is (check != "closed")
    assert answer.said == ("" if answer.good else "10.20.0.7:8081: connection refused")


async def test_the_executor_plugs_in_and_out(fleet: Fleet) -> None:
    """The agent's own way from a launch to running, and to nothing again."""
    launch = evolve(fleet.launch(7))
    instance = fleet_instance(fleet, launch)
    await fleet.attaching.look()
    told: list[str] = []

    class Told(Supervisor):
        """Notes the ends of operations."""

        def launched(self, _incarnation, _found, _now):
            told.append("launched")

        def launch_failed(self, _incarnation, error, _now):
            told.append(str(error))

        def removed(self, _incarnation, _now):
            told.append("removed")

        def remove_failed(self, _incarnation, error, _now):
            told.append(str(error))

    supervisor = Told([fleet.driver.name])
    supervisor.instances[launch.incarnation] = instance

    async def plugged() -> bool:
        return device in {one.device for one in await fleet.plugs.list() if one.port}

    async def ended() -> bool:
        return len(told) == count

    async with trio.open_nursery() as nursery:
        executor = Executor(
            {fleet.driver.name: fleet.driver},
            supervisor,
            nursery,
            lambda: None,
            attaching=fleet.attaching,
        ).by_driver[fleet.driver.name]
        await executor.launch([launch])
        device = fleet.plugs.device(launch.attachments[0].port)
        await eventually(plugged, DEADLINE_S)
        assert told == []
        await trio.to_thread.run_sync(fleet.switch.install, device)
        count = 1
        await eventually(ended, DEADLINE_S)
        await executor.remove([launch.incarnation])
        count = 2
        await eventually(ended, DEADLINE_S)

    assert told == ["launched", "removed"]
    assert await fleet.plugs.list() == ()
    assert await fleet.driver.places.placed() == ()
    assert fleet.switch.vsctl("list-ports", "br-int") == ""
