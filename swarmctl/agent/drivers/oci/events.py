"""What happens to containers, as driver events: told from the three folders' changes.

Theory of operation.  A change of a name only says which container to look at; what is told is the
difference between what its files say now and what was told before.  So the order in which files
appear (a container may end before its start is recorded) makes no difference, and nothing is told
twice.  What the kernel cannot say (too many changes at once) becomes a ``RESYNC``.

Beside it, every few seconds, containers are looked at for what no file tells: a container whose
monitor was killed has ended, and nobody wrote that down.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field, frozen

from swarmctl.agent.drivers.api import DriverEvent, EventKind
from swarmctl.agent.drivers.oci import state
from swarmctl.agent.drivers.oci.containers import Containers
from swarmctl.agent.drivers.oci.layout import HIDDEN
from swarmctl.agent.drivers.oci.rotation import rotate_all
from swarmctl.agent.drivers.oci.watch import Watch, watch
from swarmctl.agent.drivers.outlet import Outlet
from swarmctl.proto.errors import DriverUnavailable

# Between looks for ends that nobody recorded, and for logs that have grown.
LOOK_EVERY_S: Final = 5.0
# The folders cannot be watched: tried again after this.
RETRY_S: Final = 1.0


@frozen
class Seen:
    """What was last seen of a container; ``start`` is told as long as it is the same one."""

    incarnation: int
    start: state.Start | None = None
    ended: bool = False


@define
class Teller:
    """Turns what is seen of containers into events. Pure but for the clock."""

    now: Callable[[], float]
    known: dict[str, Seen] = field(factory=dict)

    def note(self, container: str, seen: state.State | None) -> list[DriverEvent]:
        """The events that are new in ``seen`` (None: it is not there, or not ours)."""
        before = self.known.get(container)
        if seen is None:
            if before is None:
                return []
            del self.known[container]
            return [DriverEvent(EventKind.REMOVED, before.incarnation, self.now())]
        incarnation, start, end = seen.record.incarnation, seen.start, seen.end
        self.known[container] = Seen(incarnation, start, end is not None)
        events = []
        is_new = start is not None and (before is None or before.start != start)
        if start is not None and is_new:
            events.append(DriverEvent(EventKind.STARTED, incarnation, start.at))
        if end is not None and (is_new or before is None or not before.ended):
            at = end.at or self.now()
            reason = state.reason(end)
            events.append(DriverEvent(EventKind.EXITED, incarnation, at, end.code, reason))
        return events


async def pump(
    open_containers: Callable[[], Awaitable[Containers]],
    outlet: Outlet,
    now: Callable[[], float],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tell what happens, from ``started`` on, until cancelled."""
    gap = ""
    started = False
    while True:
        try:
            containers = await open_containers()
            layout = containers.layout
            with watch([layout.containers, layout.starts, layout.exits]) as changes:
                teller = Teller(now)
                for place, seen in await trio.to_thread.run_sync(containers.list):
                    teller.note(place.id, seen)
                if gap:
                    outlet.resync(gap)
                if not started:
                    task_status.started()
                    started = True
                await _follow(containers, changes, teller, outlet)
            gap = "more happened than could be told"
        except (OSError, DriverUnavailable) as error:
            # Told by the RESYNC; why the driver cannot be used is told by probe.
            gap = f"the driver's folder could not be watched: {error}"
        if not started:
            task_status.started()
            started = True
        await trio.sleep(RETRY_S)


async def _follow(containers: Containers, changes: Watch, teller: Teller, outlet: Outlet) -> None:
    """Until a gap: what was missed then is looked for by whoever gets the ``RESYNC``."""
    look_at = trio.current_time() + LOOK_EVERY_S
    while True:
        # Not counted anew with each change: on a busy node that would never come.
        with trio.move_on_at(look_at):
            found = await changes.changes()
            if any(change.is_gap for change in found):
                return
            for name in dict.fromkeys(change.name for change in found):
                if not name.startswith(HIDDEN):
                    _look(containers, name, teller, outlet)
            continue
        await trio.to_thread.run_sync(rotate_all, containers.layout, list(teller.known))
        for name, seen in list(teller.known.items()):
            if seen.start is not None and not seen.ended:
                _look(containers, name, teller, outlet)
        look_at = trio.current_time() + LOOK_EVERY_S


def _look(containers: Containers, container: str, teller: Teller, outlet: Outlet) -> None:
    seen = state.read(containers.layout.place(container))
    if seen is not None and seen.record.owner != containers.owner:
        return
    for event in teller.note(container, seen):
        outlet.offer(event)
