"""Daemons as processes: begun, killed as by ``kill -9`` at any of their awaits, begun again.

Whoever is killed sends nothing more, and what its disk had not synced is lost.  A daemon that ends
by itself is begun again after a moment, as systemd does.
"""

from contextvars import ContextVar

import attrs
import trio

from swarmctl.proto.errors import SwarmError

# Every task of a process inherits it, so that steps can be counted by process.
_OWNER = ContextVar("process", default=None)
# kill -9 leaves no time for anything: all tasks are gone by then.
_GONE_WITHIN_S = 0.5
_RESTART_S = 1.0


@attrs.define(eq=False)
class Process:
    """One daemon. ``main(process)`` runs it; ``cut(process)`` takes its wires and disk away.

    ``wanted`` says that it is begun again whenever it ends.
    """

    world: object
    name: str
    main: object
    cut: object
    wanted: bool = True
    scope: trio.CancelScope | None = None
    task: object = None
    value: object = None
    store: object = None
    starts: int = 0
    ended: trio.Event = attrs.field(factory=trio.Event)
    endings: list = attrs.field(factory=list)

    @property
    def alive(self):
        """Whether it runs now."""
        return self.scope is not None and not self.scope.cancel_called

    async def keep(self):
        """Run it, and again, as long as it is wanted."""
        while True:
            await self._run()
            while True:
                await trio.sleep(_RESTART_S * self.world.restart_random.uniform(0.1, 3.0))
                if self.wanted:
                    break

    async def _run(self):
        world = self.world
        self.starts += 1
        world.trace.note("begin", self.name, self.starts)
        self.ended = trio.Event()
        token = _OWNER.set(self)
        try:
            with trio.CancelScope() as self.scope:
                self.task = trio.lowlevel.current_task()
                await self.main(self)
        except* SwarmError as group:
            self._note_ending(group)
        finally:
            _OWNER.reset(token)
            self.scope = self.value = None
            self.ended.set()
        self.cut(self)
        world.trace.note("end", self.name)

    def _note_ending(self, group):
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        self.endings.append(error)
        self.world.trace.note("ended by", self.name, error.code)
        self.world.invariants.process_ended(self, error)

    def kill(self):
        """As ``kill -9``, now."""
        if not self.alive:
            return False
        self.world.trace.note("kill", self.name)
        scope = self.scope
        self.cut(self)
        scope.cancel()
        self.world.nursery.start_soon(self._see_it_gone, self.ended)
        return True

    async def _see_it_gone(self, ended):
        with trio.move_on_after(_GONE_WITHIN_S):
            await ended.wait()
        self.world.books.check(
            "killed-is-gone", ended.is_set(), lambda: f"{self.name} has tasks after it was killed"
        )

    def tasks(self):
        """How many tasks it has."""
        return _count(self.task) if self.alive else 0


def _count(task):
    return sum(1 + _count(child) for n in task.child_nurseries for child in n.child_tasks)


class Killer(trio.abc.Instrument):
    """Kills a process right before one of its own task steps: at any await of any task."""

    def __init__(self, process, steps, done):
        self._process = process
        self._left = steps
        self._done = done
        self._armed = False

    def before_task_step(self, task):
        """Count the steps of the victim."""
        if task.context.get(_OWNER) is not self._process:
            return
        self._left -= 1
        if self._left == 0:
            self.disarm()
            self._done(self._process.kill())

    def arm(self):
        """Begin to count."""
        self._armed = True
        trio.lowlevel.add_instrument(self)

    def disarm(self):
        """Whether it struck or not: it will not any more."""
        if self._armed:
            self._armed = False
            trio.lowlevel.remove_instrument(self)
