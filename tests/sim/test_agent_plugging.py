"""An agent and its tenant networks, in virtual time, over plugs in memory."""

import attrs
import pytest
import trio

from swarmctl.agent import attaching
from swarmctl.agent.drivers.api import Launch, Phase
from swarmctl.agent.drivers.sim import SimDriver, SimSettings
from swarmctl.net.plugging.api import InNamespace
from swarmctl.net.plugging.memory import MemoryPlugs
from swarmctl.proto.messages import Attachment
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import RestartCondition, RestartPolicy
from tests.sim.agent_fixture import CLUSTER, a_world, inc, template

RUNNING, FAILED = InstanceState.RUNNING, InstanceState.FAILED


@attrs.define
class SimPlaces:
    """Namespaces of simulated instances: names, and what was done in which order."""

    host: object
    made: dict[int, str] = attrs.field(factory=dict)
    order: list[tuple[str, int]] = attrs.field(factory=list)

    async def place(self, launch: Launch, _switch):
        self.made[launch.incarnation] = f"/run/{launch.incarnation}"
        self.order.append(("place", launch.incarnation))
        return tuple(
            InNamespace(self.made[launch.incarnation], f"eth{index}")
            for index, _ in enumerate(launch.attachments)
        )

    async def displace(self, incarnation: int):
        self.made.pop(incarnation, None)
        self.order.append(("displace", incarnation))

    async def placed(self):
        return tuple(self.made)


class PluggedSim(SimDriver):
    """A simulated driver whose instances are plugged in, and which notes when they start."""

    simulated = False

    def __init__(self, owner, host, places):
        super().__init__(owner, host)
        self.places = places

    async def start(self, launch):
        self.places.order.append(("start", launch.incarnation))
        return await super().start(launch)

    async def remove(self, incarnation):
        await super().remove(incarnation)
        self.places.order.append(("remove", incarnation))


def ports(sequence: int, count: int = 1) -> tuple[Attachment, ...]:
    return tuple(
        Attachment(
            f"{CLUSTER[:8]}-1-{sequence}-{index}",
            "default/front",
            f"02:00:00:00:{index:02x}:{sequence:02x}",
            (f"10.2{index}.0.{sequence}/24",),
            1400,
        )
        for index in range(count)
    )


def plugged_world(world, **fields):
    """Give the world a switch, and a driver with places."""
    world.plugs = MemoryPlugs(CLUSTER, "n1", **fields)
    places = SimPlaces(world.host)
    world.make_drivers = lambda _config, owner: {"sim": PluggedSim(owner, world.host, places)}
    return places


async def test_an_instance_starts_plugged_in_and_says_where(autojump_clock, tmp_path):
    """Its place, its ports, its start, in that order; the report has addresses and attachments."""
    async with a_world(tmp_path) as world:
        places, controller = plugged_world(world), world.controller
        controller.want(1, template(), attachments=ports(1, 2))
        controller.want(2, template())
        await world.start_agent()
        report = await controller.until_state(1, RUNNING)
        bare = await controller.until_state(2, RUNNING)

        assert report.attachments == ports(1, 2)
        assert report.addresses == ("10.20.0.1", "10.21.0.1")
        assert bare.attachments == ()
        assert places.order.index(("place", inc(1))) < places.order.index(("start", inc(1)))
        assert ("place", inc(2)) not in places.order
        assert [one.target.name for one in world.plugs.made.values()] == ["eth0", "eth1"]
        facts = controller.hellos[-1].facts.facts
        assert facts["network"] == "memory 1 (br-int)"
        await controller.until_agreed()


async def test_a_port_that_does_not_come_up_fails_the_launch(autojump_clock, tmp_path):
    """It is never said to run; the reason names the port, and the next try may succeed."""
    async with a_world(tmp_path) as world:
        places, controller = plugged_world(world, installs=False), world.controller
        controller.want(1, template(), attachments=ports(1))
        await world.start_agent()
        report = await controller.until_state(1, FAILED)

        assert "did not come up within" in report.reason
        assert report.retrying
        assert report.port_down == ports(1)[0].port
        assert ("start", inc(1)) not in places.order
        world.plugs.install(ports(1)[0].port)
        report = await controller.until_state(1, RUNNING)
        assert report.port_down == ""
        assert RUNNING not in [one.state for one in controller.seen[inc(1)][:-1]]


async def test_a_removed_instance_is_unplugged_after_it_went(autojump_clock, tmp_path):
    """Its removal is confirmed only when its ports are free."""
    async with a_world(tmp_path) as world:
        places, controller = plugged_world(world), world.controller
        controller.want(1, template(), attachments=ports(1))
        await world.start_agent()
        await controller.until_state(1, RUNNING)
        controller.unwant(1)
        controller.assign(removed=[1])
        await controller.until_gone(1)

        assert world.plugs.made == {}
        assert places.made == {}
        assert places.order[-2:] == [("remove", inc(1)), ("displace", inc(1))]


async def test_a_removal_waits_for_a_switch_that_is_away(autojump_clock, tmp_path):
    """While the switch cannot be asked the node is sick, and the port is not called free."""
    async with a_world(tmp_path) as world:
        plugged_world(world)
        controller = world.controller
        controller.want(1, template(), attachments=ports(1))
        await world.start_agent()
        await controller.until_state(1, RUNNING)
        world.plugs.away = "no Open vSwitch runs on this node"
        await controller.until(lambda: controller.beats and controller.beats[-1].reasons)
        controller.unwant(1)
        controller.assign(removed=[1])
        await controller.until(lambda: "remove failed" in controller.seen[inc(1)][-1].reason)

        assert controller.beats[-1].reasons == ("network: no Open vSwitch runs on this node",)
        assert world.plugs.made
        world.plugs.away = ""
        await controller.until_gone(1)
        assert world.plugs.made == {}
        await controller.until(lambda: not controller.beats[-1].reasons)


async def test_a_node_without_a_switch_says_so_and_refuses(autojump_clock, tmp_path):
    """Only what needs the network fails, with what to do; the node is not sick for it."""
    async with a_world(tmp_path) as world:
        plugged_world(world, away="no Open vSwitch runs on this node")
        controller = world.controller
        policy = RestartPolicy(RestartCondition.NEVER)
        controller.want(1, template(restart=policy), attachments=ports(1))
        controller.want(2, template())
        await world.start_agent()
        report = await controller.until_state(1, FAILED)
        await controller.until_state(2, RUNNING)

        assert report.reason.startswith("this node has no tenant networks: no Open vSwitch runs")
        assert controller.hellos[-1].facts.facts["network"].startswith("none: no Open vSwitch")
        assert controller.beats == [] or controller.beats[-1].reasons == ()


async def test_a_driver_without_places_refuses(autojump_clock, tmp_path):
    """What cannot be plugged in is not started beside its network."""

    class Placeless(SimDriver):
        simulated = False

    async with a_world(tmp_path) as world:
        plugged_world(world)
        world.make_drivers = lambda _config, owner: {"sim": Placeless(owner, world.host)}
        controller = world.controller
        controller.want(1, template(), attachments=ports(1))
        await world.start_agent()
        report = await controller.until_state(1, FAILED)

        assert "driver sim does not plug instances into tenant networks" in report.reason


async def test_attachments_survive_an_agent(autojump_clock, tmp_path):
    """After a kill the next agent knows them from its journal, plugs nothing twice, and tells."""
    async with a_world(tmp_path) as world:
        plugged_world(world)
        controller = world.controller
        controller.want(1, template(), attachments=ports(1))
        scope = await world.start_agent()
        await controller.until_state(1, RUNNING)
        calls = world.plugs.calls
        scope.cancel()
        await trio.sleep(1)
        hellos = len(controller.hellos)
        await world.start_agent()
        await controller.until(lambda: len(controller.hellos) > hellos)

        (told,) = controller.hellos[-1].inventory
        assert told.attachments == ports(1)
        assert told.state == RUNNING
        await controller.until_agreed()
        assert world.plugs.calls == calls
        assert len(world.plugs.made) == 1


async def test_what_a_crash_left_is_unplugged(autojump_clock, tmp_path):
    """Plugs and places of instances that are nowhere are taken away; those in use stay."""
    async with a_world(tmp_path) as world:
        places = plugged_world(world)
        controller = world.controller
        (stale,) = ports(9)
        await world.plugs.plug(stale, InNamespace("/run/9", "eth0"), inc(9))
        world.plugs.leftover.add(world.plugs.device("half made"))
        places.made[inc(9)] = "/run/9"
        controller.want(1, template(), attachments=ports(1))
        await world.start_agent()
        await controller.until_state(1, RUNNING)
        await controller.until(lambda: world.plugs.leftover == set() and inc(9) not in places.made)

        assert [one.incarnation for one in world.plugs.made.values()] == [inc(1)]


async def test_a_port_that_was_lost_is_plugged_in_again(autojump_clock, tmp_path):
    """A running instance whose plug somebody removed has it again without a restart."""
    async with a_world(tmp_path) as world:
        plugged_world(world)
        controller = world.controller
        controller.want(1, template(), attachments=ports(1))
        await world.start_agent()
        await controller.until_state(1, RUNNING)
        world.plugs.made.clear()
        await controller.until(lambda: len(world.plugs.made) == 1)

        assert world.book[inc(1)].phase is Phase.RUNNING
        assert controller.now[inc(1)].attempt == 1


async def test_a_restart_finds_its_ports(autojump_clock, tmp_path):
    """An attempt after an end is plugged in as the first one was."""
    async with a_world(tmp_path, SimSettings()) as world:
        places, controller = plugged_world(world), world.controller
        controller.want(1, template(), attachments=ports(1))
        await world.start_agent()
        await controller.until_state(1, RUNNING)
        controller.want(1, template(), generation=1, attachments=ports(1))
        controller.assign(1)
        await controller.until_state(1, RUNNING, attempt=2)

        assert len(world.plugs.made) == 1
        assert places.order.count(("place", inc(1))) == 2


async def test_a_defect_in_the_plugs_does_not_end_the_agent(autojump_clock, tmp_path):
    """Neither in a wait for a port, which fails that launch, nor in the comparison of plugs."""

    class Defective(MemoryPlugs):
        broken = True

        async def wait_installed(self, attachment, deadline_s):
            if self.broken and attachment == ports(1)[0]:
                raise KeyError("ifindex")
            await super().wait_installed(attachment, deadline_s)

        async def list(self):
            if self.broken:
                raise IndexError("a link that went between two looks")
            return await super().list()

    async with a_world(tmp_path) as world:
        plugged_world(world)
        world.plugs, controller = Defective(CLUSTER, "n1"), world.controller
        controller.want(1, template(), attachments=ports(1))
        controller.want(2, template(), attachments=ports(2))
        await world.start_agent()
        await controller.until_state(2, RUNNING)
        report = await controller.until_state(1, FAILED)

        assert "wait for its ports failed: KeyError" in report.reason
        await trio.sleep(2 * attaching.SWEEP_EVERY_S)
        world.plugs.broken = False
        world.plugs.made.pop(world.plugs.device(ports(2)[0].port))
        await controller.until_state(1, RUNNING)
        await controller.until(lambda: len(world.plugs.made) == 2)
        assert len(controller.hellos) == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_plug_in_use_is_never_left_over(known):
    """Neither by its name nor, for one adopted without a journal, by its incarnation."""
    from swarmctl.agent.instance import Instance
    from swarmctl.net.plugging.api import Plugged

    plugs = MemoryPlugs(CLUSTER, "n1")
    (port,) = ports(1)
    instance = Instance(inc(1), "web", 1, attachments=(port,) if known else ())
    there = (
        Plugged(plugs.device(port.port), inc(1), port.port, 1400),
        Plugged(plugs.device("other"), inc(2), "other", 1400),
    )

    assert attaching.leftovers(plugs, there, {inc(1): instance}) == (plugs.device("other"),)
