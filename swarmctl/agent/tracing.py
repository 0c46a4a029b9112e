"""What an agent says of one instance's launch and of its way to the network: ``instance.trace``.

``incarnation``.  Result::

    clock_s    this node's clock when the request came and when it was answered, epoch seconds
    attempt    which one this is
    state, since, health, reason    as it reports them
    steps      [step, when, detail]; when is by this node's clock, 0 where it is not known
    switch     what its ports are plugged into: kind, bridge, encapsulation, address; or None
    ports      port: {device, installed}, of those that are plugged in
    links      its interfaces on networks of the node's own
    problems   what could not be found out, and why

Times are kept on a clock that nobody sets, and placed in the day by the node's clock of now: so the
time between two steps is true even where the node's clock was set meanwhile.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import trio

from swarmctl.agent.attaching import Attaching
from swarmctl.agent.drivers.api import Driver, NodeLinks
from swarmctl.agent.handlers import instance_of
from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.agent.timeline import Step, Timeline, Timelines
from swarmctl.proto.errors import SwarmError
from swarmctl.proto.states import FINAL, InstanceState
from swarmctl.transport.rpc import Call, Handler

# A person waits: what the switch or the driver has not said by then is left out.
LOOK_S: Final = 3.0
_ADOPTED: Final = "not known: the agent began later, and has adopted it"
_FORGOTTEN: Final = "not known: the agent remembers the newest launches only"

Moment = tuple[str, float, str]


@attrs.frozen
class Tracing:
    """Answers for one agent.

    ``wall`` gives epoch seconds; ``attaching`` is None where nothing is plugged in.
    """

    supervisor: Supervisor
    timelines: Timelines
    drivers: Mapping[str, Driver]
    attaching: Attaching | None
    wall: Callable[[], float]

    def handlers(self) -> dict[str, Handler]:
        """Method to handler."""

        async def trace(call: Call) -> dict[str, Any]:
            return await self.trace(instance_of(self.supervisor, call))

        return {"instance.trace": trace}

    async def trace(self, instance: Instance) -> dict[str, Any]:
        """The whole answer; see the module's docstring."""
        asked_at, now = self.wall(), trio.current_time()
        found: dict[str, Any] = {
            "attempt": instance.attempt,
            "state": instance.state.label,
            "since": instance.since,
            "health": instance.health_label,
            "reason": instance.reason,
            "steps": moments(instance, self.timelines.of(instance.incarnation), asked_at - now),
            "switch": None,
            "ports": {},
            "links": [],
            "problems": [],
        }
        try:
            with trio.fail_after(LOOK_S):
                await self._look(instance, found)
        except SwarmError as error:
            found["problems"].append(str(error))
        except trio.TooSlowError:
            found["problems"].append(f"what it is plugged into was not said within {LOOK_S:g} s")
        return found | {"clock_s": [asked_at, self.wall()]}

    async def _look(self, instance: Instance, found: dict[str, Any]) -> None:
        driver = self.drivers.get(instance.driver)
        if instance.attachments and self.attaching is not None:
            switch, plugged = await self.attaching.look_at(instance)
            if switch is not None:
                found["switch"] = {
                    "kind": switch.kind,
                    "bridge": switch.bridge,
                    "encapsulation": switch.encapsulation,
                    "address": switch.address,
                }
            names = {self.attaching.device(one.port): one.port for one in instance.attachments}
            found["ports"] = {
                names[one.device]: {"device": one.device, "installed": one.installed}
                for one in plugged
            }
        elif isinstance(driver, NodeLinks):
            links = await driver.links(instance.incarnation)
            found["links"] = [attrs.asdict(one) for one in links]


def moments(instance: Instance, timeline: Timeline | None, offset_s: float) -> list[Moment]:
    """The steps of its launch in their order, with what is not known.

    Args:
        instance: as it is now.
        timeline: of its newest launch, where that is remembered.
        offset_s: epoch seconds minus the agent's clock.
    """
    found: list[Moment] = []
    received_at = instance.received_at
    if received_at is not None:
        found.append((Step.RECEIVED.value, received_at + offset_s, ""))
    else:
        found.append((Step.RECEIVED.value, 0.0, _ADOPTED))
    if timeline is not None:
        which = f"attempt {timeline.attempt}" if timeline.attempt > 1 else ""
        found += [
            (step.value, at + offset_s, which if step is Step.JOURNALED else "")
            for step, at in timeline.steps
        ]
    else:
        found += _without_timeline(instance)
    watch = instance.health
    if watch is not None and watch.healthy_since:
        found.append((Step.HEALTHY.value, watch.healthy_since + offset_s, ""))
    if instance.state in FINAL or instance.state is InstanceState.STOPPING:
        found.append((instance.state.label, instance.since, instance.reason))
    return found


def _without_timeline(instance: Instance) -> list[Moment]:
    """Of a launch that is not remembered: since when it runs, if it does."""
    why = _ADOPTED if instance.received_at is None else _FORGOTTEN
    unknown = [(step.value, 0.0, why) for step in (Step.PREPARING, Step.STARTING)]
    if instance.state is InstanceState.RUNNING and instance.health is None:
        return [*unknown, (Step.RUNNING.value, instance.since, "as its driver has it")]
    started = instance.started_at
    return [*unknown, (Step.RUNNING.value, started, "as its driver has it" if started else why)]
