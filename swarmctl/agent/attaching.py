"""The agent's side of tenant networks: instances are plugged in before they start.

A launch with attachments gets its *place* from the driver (a network namespace, or the name of a
tap), its ports are plugged in there, the instance is created, and it starts when OVN says that its
ports are installed: so its first instruction sees its network.  Launches without attachments do
not come here.

What is plugged in goes with the instance, after it.  What a crash or a call that was given up left
is found by comparing the plugs that are there with what the instances have, now and then and
at the start; where a plug of a running instance is missing (someone removed it, or the switch lost
its database), it is made again.
"""

from collections.abc import Mapping
from typing import Final

import structlog
import trio

from swarmctl.agent.drivers.api import Driver, Launch, Pluggable
from swarmctl.agent.instance import Instance
from swarmctl.agent.relays import Relays
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.transitions import Phase
from swarmctl.net.plugging.api import Plugged, Plugs, Switch
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, SwarmError
from swarmctl.spec.models import Template

_log = structlog.get_logger(__name__)

# OVN installs a port within a fraction of a second; one that many others are before takes longer,
# and its rows may come after its assignment.
INSTALL_DEADLINE_S: Final = 30.0
# Leftovers cost nothing but their names; a plug that went missing is to be mended soon.
SWEEP_EVERY_S: Final = 60.0


class Attaching:
    """A node's instances and its plugs.

    Args:
        plugs: what plugs in.
        drivers: by name; those that are :class:`Pluggable` have places.
        supervisor: whose instances these are.
    """

    def __init__(self, plugs: Plugs, drivers: Mapping[str, Driver], supervisor: Supervisor) -> None:
        self._plugs = plugs
        self._drivers = drivers
        self._supervisor = supervisor
        self._switch: Switch | None = None
        self._reason = "nobody has looked for a switch yet"
        self._was_there = False
        # What nested nodes reach controllers through; None where there are none.
        self.relays: Relays | None = None

    # --- the switch ---------------------------------------------------------------------------

    async def look(self) -> dict[str, str]:
        """Look at the switch again; what the node's facts say of it, or why there is none."""
        try:
            self._switch = await self._plugs.probe()
        except SwarmError as error:
            self._switch, self._reason = None, str(error)
            return {"network": f"none: {self._reason}"}
        self._was_there, self._reason = True, ""
        found = {"network": self._switch.label}
        if self._switch.chassis:
            found["chassis"] = self._switch.chassis
            found["physical_networks"] = ",".join(self._switch.physical_networks)
        return found

    def reasons(self) -> list[str]:
        """What is wrong: a switch that was there and is not. One that never was is no illness."""
        return [f"network: {self._reason}"] if self._was_there and self._reason else []

    def _present(self, launch: Launch) -> Switch:
        if self._switch is not None:
            return self._switch
        if self._was_there:
            raise DriverUnavailable(f"the network is away: {self._reason}", launch.instance)
        raise LaunchFailed(
            f"this node has no tenant networks: {self._reason}",
            launch.instance,
            "install Open vSwitch and OVN's host part, or constrain the service to other nodes",
        )

    # --- one instance -------------------------------------------------------------------------

    async def plug(self, launch: Launch, driver: Driver) -> None:
        """Plug all ports of a launch in, where its driver will have them.

        Raises:
            LaunchFailed: the node or its driver has no tenant networks, or the kernel refuses.
            DriverUnavailable: the switch or the driver's daemon does not answer.
        """
        switch = self._present(launch)
        if not isinstance(driver, Pluggable):
            raise LaunchFailed(
                f"driver {driver.name} does not plug instances into tenant networks",
                launch.instance,
            )
        targets = await driver.places.place(launch, switch)
        for attachment, target in zip(launch.attachments, targets, strict=True):
            await self._plugs.plug(attachment, target, launch.incarnation)
        if _is_trunk(launch.template):
            self._relay()

    async def wait_installed(self, launch: Launch) -> None:
        """Returns once the packets of all its ports flow.

        Raises:
            PortNotUp: those of one do not, with the reason.
        """
        until = trio.current_time() + INSTALL_DEADLINE_S
        for attachment in launch.attachments:
            await self._plugs.wait_installed(attachment, max(0.0, until - trio.current_time()))

    async def unplug(self, instance: Instance, driver: Driver) -> None:
        """Take all plugs of an instance away, and its place; it is gone itself."""
        await self._plugs.unplug(
            tuple(self._plugs.device(one.port) for one in instance.attachments)
        )
        if isinstance(driver, Pluggable):
            await driver.places.displace(instance.incarnation)

    def device(self, port: str) -> str:
        """The name of the device that the port of that name has, or would have."""
        return self._plugs.device(port)

    async def look_at(self, instance: Instance) -> tuple[Switch | None, tuple[Plugged, ...]]:
        """The switch, and what of the instance is plugged into it now.

        Raises:
            DriverUnavailable: the switch does not answer.
        """
        devices = {self.device(one.port) for one in instance.attachments}
        plugged = await self._plugs.list()
        return self._switch, tuple(one for one in plugged if one.device in devices)

    def _relay(self) -> None:
        """Have a relay on each network that a trunk is on: that of a VM's first port."""
        if self.relays is None:
            return
        templates = self._supervisor.templates
        self.relays.want(
            {
                one.attachments[0].network: one.attachments[0].mtu
                for one in self._supervisor.instances.values()
                if one.attachments and _is_trunk(templates.get(one.template))
            }
        )

    # --- all of them --------------------------------------------------------------------------

    async def run(self, listed: trio.Event) -> None:
        """Compare plugs and instances, from when the drivers have said what they have."""
        await listed.wait()
        async with trio.open_nursery() as nursery:
            if self.relays is not None:
                nursery.start_soon(self.relays.run)
            await self._sweep_again()

    async def _sweep_again(self) -> None:
        while True:
            if self._switch is not None:
                try:
                    await self.sweep()
                except SwarmError as error:
                    _log.warning("cannot compare plugs", error=str(error))
                except Exception:  # noqa: BLE001 - a defect here must not end what the agent does for its instances: it is logged with its trace
                    _log.exception("comparing plugs failed")
            await trio.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> None:
        """Unplug what no instance has, and plug in again what a running one has lost."""
        plugged = await self._plugs.list()
        placed = {
            name: await driver.places.placed()
            for name, driver in self._drivers.items()
            if isinstance(driver, Pluggable) and name in self._supervisor.listed
        }
        # What is wanted is read after what is there: what came in between is in neither's way.
        instances = self._supervisor.instances
        self._relay()
        left = leftovers(self._plugs, plugged, instances)
        if self.relays is not None:
            left = tuple(one for one in left if one not in self.relays.devices)
        if left:
            _log.info("unplugging what is left over", devices=left)
            await self._plugs.unplug(left)
        for name, incarnations in placed.items():
            driver = self._drivers[name]
            for incarnation in incarnations:
                if incarnation not in instances and isinstance(driver, Pluggable):
                    await driver.places.displace(incarnation)
        for instance in lost(self._plugs, plugged, instances):
            await self._mend(instance)

    async def _mend(self, instance: Instance) -> None:
        template = self._supervisor.templates.get(instance.template)
        driver = self._drivers.get(instance.driver)
        if template is None or driver is None:
            return
        _log.warning("a port was lost and is plugged in again", instance=instance.name)
        try:
            await self.plug(instance.launch(template), driver)
        except SwarmError as error:
            _log.warning("cannot plug it in again", instance=instance.name, error=str(error))


def _is_trunk(template: Template | None) -> bool:
    return template is not None and template.vm is not None and template.vm.trunk


def leftovers(
    plugs: Plugs, plugged: tuple[Plugged, ...], instances: Mapping[int, Instance]
) -> tuple[str, ...]:
    """The devices of plugs that no instance has.

    One whose instance is there and does not know its ports (it was adopted without a journal) is
    not left over: it is in use.
    """
    wanted = {plugs.device(one.port) for each in instances.values() for one in each.attachments}
    return tuple(
        one.device
        for one in plugged
        if one.device not in wanted and one.incarnation not in instances
    )


def lost(
    plugs: Plugs, plugged: tuple[Plugged, ...], instances: Mapping[int, Instance]
) -> list[Instance]:
    """Instances that run and lack one of their plugs, or have half of one."""
    whole = {one.device for one in plugged if one.port and one.mtu}
    return [
        each
        for each in instances.values()
        if each.phase == Phase.RUNNING
        and any(plugs.device(one.port) not in whole for one in each.attachments)
    ]
