"""Docker's event stream as driver events.

dockerd filters by our labels, so that other containers' events cost nothing here.  A gap (dockerd
restarted, the connection broke) begins with an ``INTERRUPTED``, and ends with a ``RESYNC`` once
dockerd is back.
"""

import json
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import urlencode

import trio
from attrs import define, field

from swarmctl.agent.drivers.api import DriverEvent, EventKind, Owner
from swarmctl.agent.drivers.docker.config import identity_of, owner_filter
from swarmctl.agent.drivers.docker.wire import Endpoint, Refusal, request
from swarmctl.agent.drivers.endings import exit_reason
from swarmctl.agent.drivers.outlet import Outlet
from swarmctl.proto.errors import DriverUnavailable

# Between attempts to reach a dockerd that is away: it takes a few seconds to start.
RECONNECT_S: Final = 0.5


@define
class Translator:
    """Turns Docker's events into ours. It remembers who ran out of memory until it ends."""

    _out_of_memory: set[str] = field(factory=set)

    def translate(self, raw: dict[str, Any]) -> DriverEvent | None:
        """The event for ``raw``; None when it is of no interest."""
        actor = raw.get("Actor") or {}
        attributes = actor.get("Attributes") or {}
        container = actor.get("ID", "")
        identity = identity_of(attributes)
        if identity is None:
            return None
        at = raw.get("timeNano", 0) / 1e9
        match raw.get("Action"):
            case "start":
                self._out_of_memory.discard(container)
                return DriverEvent(EventKind.STARTED, identity.incarnation, at)
            case "oom":
                self._out_of_memory.add(container)
            case "die":
                code = int(attributes.get("exitCode") or 0)
                reason = exit_reason(code, out_of_memory=container in self._out_of_memory)
                self._out_of_memory.discard(container)
                return DriverEvent(EventKind.EXITED, identity.incarnation, at, code, reason)
            case "destroy":
                self._out_of_memory.discard(container)
                return DriverEvent(EventKind.REMOVED, identity.incarnation, at)
        return None


async def pump(
    endpoint: Endpoint,
    owner: Owner,
    outlet: Outlet,
    now: Callable[[], float],
    changed: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read events until cancelled.

    Args:
        endpoint: where dockerd listens.
        owner: whose containers.
        outlet: where the events go.
        now: the clock, epoch seconds: dockerd's own, for it is on this machine.
        changed: called with the id of each container that something happened to.
        task_status: started once dockerd listens to us, or is known to be away.
    """
    gap = ""
    started = False
    while True:
        try:
            # dockerd answers before it subscribes us; `since` covers the moment between.
            async with request(endpoint, "GET", _path(owner, now())) as answer:
                if gap:
                    outlet.resync(gap)
                    gap = ""
                if not started:
                    task_status.started()
                    started = True
                translator = Translator()
                async with aclosing(answer.objects()) as objects:
                    async for raw in objects:
                        changed((raw.get("Actor") or {}).get("ID", ""))
                        event = translator.translate(raw)
                        if event is not None:
                            outlet.offer(event)
            why = "dockerd ended the event stream"
        except (DriverUnavailable, Refusal, trio.BrokenResourceError) as error:
            # That dockerd is away is told by probe.
            why = f"events were interrupted: {error}"
        if not gap:
            outlet.interrupted(why)
        gap = why
        if not started:
            task_status.started()
            started = True
        await trio.sleep(RECONNECT_S)


def _path(owner: Owner, since: float) -> str:
    filters = {
        "type": ["container"],
        "event": ["start", "die", "oom", "destroy"],
        "label": owner_filter(owner),
    }
    return "/events?" + urlencode({"filters": json.dumps(filters), "since": f"{since:.9f}"})
